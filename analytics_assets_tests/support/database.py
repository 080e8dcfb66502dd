"""The analytics database as its superuser has it: set up for a test, and changed behind the pipeline's back."""

import os
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from analytics_assets.settings import Settings
from analytics_assets.store import setup
from analytics_assets.store.setup import init_db

SUPERUSER = "postgres"


def set_up(analytics: sa.URL, source_url: str, folder: Path) -> Settings:
    """Set up an analytics database that the session's fixtures have not made, and return its pipeline's settings."""
    made = pipeline_settings(analytics, source_url, folder)
    init_db(analytics.render_as_string(hide_password=False), made)
    return made


def pipeline_settings(analytics: sa.URL, source_url: str, folder: Path) -> Settings:
    """Settings of a pipeline that logs in as the service account, with its dumps and data in a folder."""
    dumps = folder / "dumps"
    dumps.mkdir(exist_ok=True)
    return Settings.from_env(
        {
            "ANALYTICS_TIMEZONE": os.environ["ANALYTICS_TIMEZONE"],
            "ANALYTICS_DATABASE_URL": analytics.set(username="analytics_writer").render_as_string(hide_password=False),
            "ANALYTICS_SOURCE_URL": source_url,
            "ANALYTICS_DATA_DIR": str(folder),
            "ANALYTICS_DUMP_DIR": str(dumps),
        }
    )


def admin_url(settings: Settings) -> str:
    """The superuser's URL of the analytics database."""
    assert settings.database_url
    return sa.make_url(settings.database_url).set(username=SUPERUSER).render_as_string(hide_password=False)


def as_superuser(settings: Settings, *statements: str) -> None:
    """Run SQL that the pipeline could not."""
    engine = sa.create_engine(admin_url(settings))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def insert(table: str, **row: object) -> str:
    """SQL that the pipeline would never send."""
    values = ", ".join("null" if value is None else f"'{value}'" for value in row.values())
    return f"insert into analytics.{table} ({', '.join(row)}) values ({values})"  # noqa: S608


def drop_check(table: str, field: str) -> str:
    return f"alter table analytics.{table} drop constraint {table}_{field}"


def event(day: date, **change: object) -> dict[str, object]:
    return {"event_date": day, "event_name": "event_signup", "event_id": "8", "source": "web", "count": 1} | change


SYSTEM = "select oid from pg_namespace where nspname ~ '^pg_' or nspname in ('information_schema', 'tried')"
RIGHTS = """
select 'relation ' || oid::regclass as thing, explained.*
from pg_class, lateral aclexplode(coalesce(relacl, acldefault('r', relowner))) explained
where relnamespace not in ({system})
union all
select 'function ' || oid::regprocedure, explained.*
from pg_proc, lateral aclexplode(coalesce(proacl, acldefault('f', proowner))) explained
where pronamespace not in ({system})
union all
select 'schema ' || nspname, explained.*
from pg_namespace, lateral aclexplode(coalesce(nspacl, acldefault('n', nspowner))) explained
where oid not in ({system})
union all
select 'database', explained.*
from pg_database, lateral aclexplode(coalesce(datacl, acldefault('d', datdba))) explained
where datname = current_database()
union all
select 'role ' || rolname, 0, oid, array_to_string(array[rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin,
       rolreplication, rolbypassrls], ' '), false
from pg_roles where rolname ~ '^(analytics|published)_'
order by 1, 2, 3, 4, 5
"""


def rights(url: sa.URL) -> list[Any]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(RIGHTS.format(system=SYSTEM)).all()
    engine.dispose()
    return [tuple(row) for row in found]


def set_up_as_of(connection: sa.Connection, revision: str) -> None:
    """Set the schema up as the version did whose newest migration this was, without checks and rights."""
    config = Config()
    config.set_main_option("script_location", str(Path(setup.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    setup._create_roles(connection)
    command.upgrade(config, revision)
