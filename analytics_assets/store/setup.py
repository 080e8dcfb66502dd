"""Creating and upgrading the analytics database: roles, migrations, and what follows from the contract.

Everything here is idempotent, keeps data, and needs a login that may create roles. The pipeline never runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import AddConstraint

from analytics_assets.contract import PUBLISHED_SCHEMA, SCHEMA
from analytics_assets.database import DatabaseError, engine, redacted_errors, sqlstate
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.store.comments import write_comments
from analytics_assets.store.grants import OWNER, RIGHTS, ROLES
from analytics_assets.store.tables import METADATA

_DIALECT: Final[sa.Dialect] = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


_DOING: Final = "setting up the analytics database (it takes a login that may create roles: --admin-url)"
_NO_PRIVILEGE: Final = "42501"
_NO_SUCH_ZONE: Final = "22023"


def init_db(admin_url: str, settings: Settings) -> None:
    """Create or upgrade schemas `analytics` and `published` and their roles, and set time zone and retention period.

    A shorter period ends days: `read_move` says which, beforehand.

    Raises:
        SettingsError: the server does not know the time zone, or reads its name differently.
        DatabaseError: the login may not create roles, stored rows break a rule of the contract, or the server is older
            than PostgreSQL 15, which brought `unique nulls not distinct`.
    """
    with (
        redacted_errors(_DOING),
        engine(admin_url, "ANALYTICS_DATABASE_URL") as database,
        database.begin() as connection,
    ):
        check_time_zone(connection, settings)
        # Two set-ups at once take turns.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("analytics setup"))))
        _create_roles(connection)
        _replace_unknown_zone(connection, settings)
        _migrate(connection)
        apply_contract(connection, settings)
        # The rights come last, because they name every table. The login grants them itself, because analytics_owner
        # does not own the database.
        connection.exec_driver_sql("reset role")
        connection.exec_driver_sql(RIGHTS)


@dataclass(frozen=True)
class Move:
    """What the settings of this process would change in a database that is set up."""

    first: date
    """The first day that is kept."""
    then: date
    """The first day that would be kept."""
    retention_days: int
    """The period that the database enforces."""
    time_zone: str
    """The time zone that the database enforces."""


def read_move(admin_url: str, settings: Settings) -> Move | None:
    """Return what `init_db` would change, None for a database that is not set up. Nothing is changed.

    Raises:
        SettingsError, DatabaseError: as `init_db` does.
    """
    with (
        redacted_errors(_DOING),
        engine(admin_url, "ANALYTICS_DATABASE_URL") as database,
        database.connect() as connection,  # and never committed
    ):
        check_time_zone(connection, settings)
        if not _is_set_up(connection):
            return None
        _become_owner(connection)
        _replace_unknown_zone(connection, settings)
        query = sa.text("select retention_days, time_zone, analytics.first_kept_day() as first from analytics.settings")
        before = connection.execute(query).one_or_none()
        if before is None:
            return None
        connection.execute(
            sa.text("update analytics.settings set retention_days = :days, time_zone = :zone"),
            {"days": settings.retention_days, "zone": settings.time_zone},
        )
        # An expired day stays expired.
        then = max(before.first, connection.execute(query).one().first)
        return Move(before.first, then, before.retention_days, before.time_zone)


def check_time_zone(connection: sa.Connection, settings: Settings) -> None:
    """Compare the zone's offsets of Python and of the server, hour by hour, for the days kept and a year to come.

    PostgreSQL has names of its own: it takes CET for an abbreviation without summer time, and its folder of zones has
    no `posix/`.

    Raises:
        SettingsError: the server does not know the name, or reads it differently.
    """
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=settings.retention_days + 1)
    hours = (settings.retention_days + 1 + 366) * 24
    query = sa.text(
        "select array_agg(cast(extract(epoch from (hour at time zone :zone) - (hour at time zone 'UTC')) as integer)"
        " order by hour) from generate_series(cast(:first as timestamptz), :last, interval '1 hour') hour"
    )
    parameters = {"zone": settings.time_zone, "first": first, "last": first + timedelta(hours=hours - 1)}
    try:
        offsets = connection.scalar(query, parameters)
    except sa.exc.DBAPIError as error:
        if sqlstate(error) != _NO_SUCH_ZONE:
            raise
        raise SettingsError(
            "ANALYTICS_TIMEZONE: the database's server does not know this name; use one without a prefix, like"
            " Europe/Berlin"
        ) from None
    local = ZoneInfo(settings.time_zone)
    moments = ((first + timedelta(hours=n)).astimezone(local).utcoffset() for n in range(hours))
    if offsets != [int(offset.total_seconds()) for offset in moments if offset is not None]:
        raise SettingsError(
            "ANALYTICS_TIMEZONE: the database's server reads this name differently from Python, as an abbreviation or"
            " by other rules: use a name like Europe/Berlin, or update the older time zone data"
        )


def _replace_unknown_zone(connection: sa.Connection, settings: Settings) -> None:
    """Replace a stored zone that the server does not know. Every function fails with it, and so would the set-up."""
    if not _is_set_up(connection):
        return
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("select now() at time zone time_zone from analytics.settings")
    except sa.exc.DBAPIError as error:
        if sqlstate(error) != _NO_SUCH_ZONE:
            raise
        query = sa.text("update analytics.settings set time_zone = :zone")
        connection.execute(query, {"zone": settings.time_zone})


def _is_set_up(connection: sa.Connection) -> bool:
    query = sa.text(
        "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = :schema and c.relname = 'settings')"
    )
    return bool(connection.scalar(query, {"schema": SCHEMA}))


def _create_roles(connection: sa.Connection) -> None:
    connection.exec_driver_sql(ROLES)
    _become_owner(connection, SCHEMA, PUBLISHED_SCHEMA)


def _become_owner(connection: sa.Connection, *schemas: str) -> None:
    """Act as the owner of the schemas, and create those that are missing.

    Raises:
        DatabaseError: another login has created the owner, and this one is not a member of it. Before PostgreSQL 16,
            whoever may create roles may grant them, too.
    """
    may_act = sa.text(
        "select pg_has_role(:owner, 'usage') and pg_has_role(:owner, case when"
        " cast(current_setting('server_version_num') as integer) >= 160000 then 'set' else 'member' end)"
    )
    if not connection.scalar(may_act, {"owner": OWNER}):
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"grant {OWNER} to current_user")
        except sa.exc.DBAPIError as error:
            creates_roles = sa.text("select rolcreaterole from pg_roles where rolname = current_user")
            if sqlstate(error) != _NO_PRIVILEGE or not connection.scalar(creates_roles):
                raise
            raise DatabaseError(
                f"{_DOING}: InsufficientPrivilege: the login is not a member of {OWNER}, which another login has"
                f" created. That login, or a superuser, gives it the membership: `grant {OWNER} to LOGIN` with the"
                " login's name for LOGIN"
            ) from None
    for schema in schemas:
        # `if not exists` would ask for the right to create schemas even if this one exists.
        exists = sa.text("select exists (select from pg_namespace where nspname = :schema)")
        if not connection.scalar(exists, {"schema": schema}):
            connection.exec_driver_sql(f"create schema {schema} authorization {OWNER}")
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
    changed = connection.execute(
        sa.text(
            "insert into analytics.settings as s (retention_days, time_zone) values (:days, :zone)"
            " on conflict (only_row) do update set retention_days = excluded.retention_days,"
            # An expired day stays expired, whatever the period is set to afterwards.
            " time_zone = excluded.time_zone, kept_since = analytics.first_kept_day()"
            " where (s.retention_days, s.time_zone) is distinct from (excluded.retention_days, excluded.time_zone)"
        ),
        {"days": settings.retention_days, "zone": settings.time_zone},
    )
    if changed.rowcount:
        connection.exec_driver_sql(
            "update analytics.settings set cutoff = analytics.first_kept_day(), cutoff_at = now()"
        )
