"""Who may do what in the analytics database, as SQL.

`setup.init_db` runs it. `analytics-assets grants` prints it, and the part for the host's database, which is with its
kind of database in `sources.hosts`. Nothing else grants anything. Each text may be run again at any time and holds no
password. It also revokes every other right from the roles it names and from PUBLIC. It holds no percent sign, because
the driver would take it for a parameter.
"""

from __future__ import annotations

from typing import Final

from analytics_assets.contract import PUBLISHED_SCHEMA, SCHEMA, TABLES
from analytics_assets.store.tables import (
    COLLECTED_DAYS,
    COLLECTED_SINCE,
    DAILY_COUNTS,
    DAYS,
    FRICTION,
    PUBLICATIONS,
    PUBLISHED_CARRIES,
    RETENTION_LEDGER,
    WEEKLY_COUNTS,
    WEEKS,
)

OWNER: Final = "analytics_owner"
WRITER: Final = "analytics_writer"
READER: Final = "analytics_reader"
PUBLISHED_READER: Final = "published_reader"


def _role(name: str, login: str) -> str:
    return f"""\
do $$ begin
    if not exists (select from pg_roles where rolname = '{name}') then
        create role {name} {login};
    end if;
end $$;
"""


ROLES: Final = f"""\
-- Owns the schema. Nobody logs in as this role.
{_role(OWNER, "nologin")}\
-- The service account: the pipeline.
{_role(WRITER, "login")}\
-- The core team.
{_role(READER, "login")}\
-- Dashboards for everybody else.
{_role(PUBLISHED_READER, "login")}"""

_COUNTS = ", ".join(f"{SCHEMA}.{table}" for table in TABLES)
_NOTES = f"{COLLECTED_DAYS}, {COLLECTED_SINCE}, {RETENTION_LEDGER}"
_READ = f"{_COUNTS}, {SCHEMA}.daily_error_rates, {_NOTES}, {FRICTION}, {SCHEMA}.settings"
_ENTRY = ", ".join(column.name for column in RETENTION_LEDGER.columns if column.name not in {"id", "removed_at"})
_NOTE = ", ".join(column.name for column in PUBLICATIONS.columns if column.name != "published_at")
_PUBLISHED = ", ".join(map(str, (DAILY_COUNTS, DAYS, WEEKLY_COUNTS, WEEKS)))
_LOGINS = f"{WRITER}, {READER}, {PUBLISHED_READER}"
_ANALYSTS = f"{WRITER}, {READER}"

RIGHTS: Final = f"""\
revoke all on schema {SCHEMA}, {PUBLISHED_SCHEMA} from public, {_LOGINS};
revoke all on all tables in schema {SCHEMA}, {PUBLISHED_SCHEMA} from public, {_LOGINS};
revoke all on all functions in schema {SCHEMA} from public, {_LOGINS};
grant usage on schema {SCHEMA} to {_ANALYSTS};
grant execute on function {SCHEMA}.today(), {SCHEMA}.first_kept_day() to {_ANALYSTS};
grant select on {_READ} to {_ANALYSTS};
grant select on {SCHEMA}.alembic_version to {WRITER};
-- Functions create and drop days, because the service account owns no table.
grant execute on function {SCHEMA}.create_days(date[]), {SCHEMA}.drop_day(date), {SCHEMA}.forget_days(date) to {WRITER};
grant execute on function {SCHEMA}.confirm_cutoff(date) to {WRITER};
grant insert, delete on {_COUNTS}, {FRICTION} to {WRITER};
grant insert, update (rows, collected_at) on {COLLECTED_DAYS} to {WRITER};
-- Append-only, and the database says when.
grant insert ({_ENTRY}) on {RETENTION_LEDGER} to {WRITER};
-- What is published is inserted and never changed.
grant usage on schema {PUBLISHED_SCHEMA} to {_LOGINS};
grant select on {_PUBLISHED}, {PUBLISHED_SCHEMA}.daily to {_LOGINS};
grant insert on {_PUBLISHED} to {WRITER};
grant select, insert ({_NOTE}) on {PUBLICATIONS} to {WRITER};
grant select, insert, update (carry, base, event_date) on {PUBLISHED_CARRIES} to {WRITER};
grant execute on function {SCHEMA}.mark_filled(date, text, integer) to {WRITER};
grant execute on function {SCHEMA}.forget_published(date), {SCHEMA}.forget_carries(date) to {WRITER};
do $$ begin
    -- A database that holds other tables keeps its own rules on who may connect.
    if not exists (
        select from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname not in ('{SCHEMA}', '{PUBLISHED_SCHEMA}', 'information_schema') and n.nspname !~ '^pg_'
    ) then
        execute 'revoke all on database ' || quote_ident(current_database()) || ' from public';
        if to_regnamespace('public') is not null then
            revoke create on schema public from public;
        end if;
    end if;
    execute 'revoke all on database ' || quote_ident(current_database()) || ' from {_LOGINS}';
    execute 'grant connect on database ' || quote_ident(current_database()) || ' to {_LOGINS}';
end $$;
"""  # noqa: S608  # built from constants

ANALYTICS: Final = f"""\
-- The analytics database. `analytics-assets init-db` has run all of this.
{ROLES}{RIGHTS}\
-- Passwords, in psql, which sends them hashed: \\password {WRITER}, \\password {READER},
-- \\password {PUBLISHED_READER}
"""
