"""Creating and upgrading the analytics database: roles, migrations, and what follows from the contract.

Everything here is idempotent, keeps data, and needs a login that may create roles. The pipeline never runs it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import AddConstraint

from analytics_assets.contract import SCHEMA
from analytics_assets.database import engine, redacted_errors
from analytics_assets.settings import Settings
from analytics_assets.store.comments import write_comments
from analytics_assets.store.grants import OWNER, RIGHTS, ROLES
from analytics_assets.store.tables import METADATA

_DIALECT: Final[sa.Dialect] = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


def init_db(admin_url: str, settings: Settings, *, keep_period: bool = False) -> None:
    """Create or upgrade schema `analytics` and its roles, and set time zone and retention period.

    With `keep_period`, existing settings are kept, because shortening the period deletes days.

    Raises:
        DatabaseError: the login may not create roles, stored rows break a rule of the contract, or the server is older
            than PostgreSQL 15, which brought `unique nulls not distinct`.
    """
    with (
        redacted_errors("setting up the analytics database (it takes a login that may create roles: --admin-url)"),
        engine(admin_url, "ANALYTICS_DATABASE_URL") as database,
        database.begin() as connection,
    ):
        # Two set-ups at once take turns.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("analytics setup"))))
        _create_roles(connection)
        _migrate(connection)
        enforced = connection.execute(sa.text("select retention_days, time_zone from analytics.settings")).one_or_none()
        if keep_period and enforced:
            settings = replace(settings, retention_days=enforced.retention_days, time_zone=enforced.time_zone)
        apply_contract(connection, settings)
        # The rights come last, because they name every table. The login grants them itself, because analytics_owner
        # does not own the database.
        connection.exec_driver_sql("reset role")
        connection.exec_driver_sql(RIGHTS)


def _create_roles(connection: sa.Connection) -> None:
    connection.exec_driver_sql(ROLES)
    connection.exec_driver_sql(f"grant {OWNER} to current_user")
    connection.exec_driver_sql(f"create schema if not exists {SCHEMA} authorization {OWNER}")
    connection.exec_driver_sql(f"set local role {OWNER}")


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def apply_contract(connection: sa.Connection, settings: Settings) -> None:
    """Bring checks and comments in line with the contract, and store the two settings that the database enforces.

    An unchanged check is left alone, so that a start locks no table.
    """
    for table in METADATA.sorted_tables:
        checks = [c for c in table.constraints if isinstance(c, sa.CheckConstraint)]
        found = connection.execute(
            sa.text(
                "select conname as name, obj_description(oid, 'pg_constraint') as text from pg_constraint"
                " where conrelid = cast(:table as regclass) and contype = 'c'"
            ),
            {"table": table.fullname},
        )
        in_place: dict[str, str | None] = {row.name: row.text for row in found}
        for check in checks:
            definition = str(check.sqltext.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))
            if in_place.get(str(check.name)) == definition:
                continue
            if check.name in in_place:
                connection.exec_driver_sql(f"alter table {table.fullname} drop constraint {check.name}")
            connection.execute(AddConstraint(check))
            quoted = definition.replace("'", "''")
            connection.exec_driver_sql(f"comment on constraint {check.name} on {table.fullname} is '{quoted}'")
    write_comments(connection, settings)
    connection.execute(
        sa.text(
            "insert into analytics.settings as s (retention_days, time_zone) values (:days, :zone)"
            " on conflict (only_row) do update set retention_days = excluded.retention_days,"
            # An expired day stays expired, whatever the period is set to afterwards.
            " time_zone = excluded.time_zone, kept_since = analytics.first_kept_day()"
            " where (s.retention_days, s.time_zone) is distinct from (excluded.retention_days, excluded.time_zone)"
        ),
        {"days": settings.retention_days, "zone": settings.time_zone},
    )
