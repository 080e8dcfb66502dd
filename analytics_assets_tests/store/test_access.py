"""Who may do what: every role x object x privilege of both databases, tried with real connections.

The two tables below are all that is permitted. What they do not name must end in "permission denied", and an object
that they do not name fails the test.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from analytics_assets.cli import main
from analytics_assets.settings import Settings
from analytics_assets.sources.login import SOURCE_READER
from analytics_assets.store.grants import OWNER, PUBLISHED_READER, READER, WRITER
from analytics_assets.store.setup import init_db
from analytics_assets_tests.support.database import SYSTEM, rights
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.postgres import tool

STRANGER = "nobody_in_particular"
LOGINS = (WRITER, READER, PUBLISHED_READER, SOURCE_READER, STRANGER)
PUBLISHED = {WRITER: "select insert", READER: "select", PUBLISHED_READER: "select"}
ANYBODY = dict.fromkeys(LOGINS, "usage")

Rights = Mapping[str, Mapping[str, str]]
"""Object -> role -> its privileges."""

IN_THE_ANALYTICS_DATABASE: Rights = {
    "database": {WRITER: "connect", READER: "connect", PUBLISHED_READER: "connect"},
    "schema public": ANYBODY,  # it is empty, and nobody may create there
    "schema analytics": {WRITER: "usage", READER: "usage"},
    "table analytics.daily_event_counts": {WRITER: "select insert delete", READER: "select"},
    "table analytics.daily_response_counts": {WRITER: "select insert delete", READER: "select"},
    "table analytics.daily_event_counts_{day}": {},
    "table analytics.daily_response_counts_{day}": {},
    "table analytics.collected_days": {WRITER: "select insert update", READER: "select"},
    "table analytics.collected_since": {WRITER: "select", READER: "select"},
    "table analytics.retention_ledger": {WRITER: "select insert", READER: "select"},
    "sequence analytics.retention_ledger_id_seq": {},
    "table analytics.settings": {WRITER: "select", READER: "select"},
    "table analytics.alembic_version": {WRITER: "select"},
    "view analytics.daily_error_rates": {WRITER: "select", READER: "select"},
    "function analytics.today()": {WRITER: "execute", READER: "execute"},
    "function analytics.first_kept_day()": {WRITER: "execute", READER: "execute"},
    "function analytics.confirm_cutoff(date)": {WRITER: "execute"},
    "function analytics.create_days(date[])": {WRITER: "execute"},
    "function analytics.drop_day(date)": {WRITER: "execute"},
    "function analytics.forget_days(date)": {WRITER: "execute"},
    "function analytics.refuse_expired()": {},
    "function analytics.note_first_day()": {},
    "table analytics.friction": {WRITER: "select insert delete", READER: "select"},
    "table analytics.publications": {WRITER: "select insert"},
    "table analytics.published_carries": {WRITER: "select insert update"},
    "function analytics.mark_filled(date,text,integer)": {WRITER: "execute"},
    "function analytics.forget_published(date)": {WRITER: "execute"},
    "function analytics.forget_carries(date)": {WRITER: "execute"},
    "function analytics.refuse_expired_rows()": {},
    "schema published": {WRITER: "usage", READER: "usage", PUBLISHED_READER: "usage"},
    "table published.daily_counts": PUBLISHED,
    "table published.days": PUBLISHED,
    "table published.weekly_counts": PUBLISHED,
    "table published.weeks": PUBLISHED,
    "view published.daily": {WRITER: "select", READER: "select", PUBLISHED_READER: "select"},
}
IN_THE_HOST_DATABASE: Rights = {
    "database": dict.fromkeys(LOGINS, "connect"),  # the operator's business
    "schema public": ANYBODY,
    "schema analytics_source": {SOURCE_READER: "usage"},
    "table public.signups": {},
    "table public.visibility": {},
    "table public.consent": {},
    "view analytics_source.signups": {SOURCE_READER: "select"},
    "view analytics_source.profile_visibility_changes": {SOURCE_READER: "select"},
    "view analytics_source.consent_changes": {SOURCE_READER: "select"},
}

# What has no column: permission is asked before anything else, so none is needed for a refusal.
ATTEMPTS = {
    "database": {
        "temporary": "create temporary table tried (x int)",
        "create": "create schema tried",
        "alter": "alter database {name} set work_mem = '1MB'",
    },
    "schema": {
        "usage": "select to_regclass('{name}.nothing')",
        "create": "create table {name}.tried (x int)",
        "alter": "alter schema {name} rename to renamed",
        "drop": "drop schema {name} cascade",
    },
    "table": {
        "select": "select count(*) from {name}",
        "insert": "insert into {name} {row}",
        "delete": "delete from {name}",
        "truncate": "truncate {name}",
        "trigger": "create trigger tried before insert on {name}"
        " for each row execute function suppress_redundant_updates_trigger()",
        "references": "create table tried.referring ({typed}, foreign key ({key}) references {name} ({key}))",
        "lock": "lock table {name} in access exclusive mode",
        "alter": "alter table {name} rename to tried",
        "policy": "create policy tried on {name}",
        "drop": "drop table {name} cascade",
    },
    "view": {
        "select": "select count(*) from {name}",
        "insert": "insert into {name} {row}",
        "delete": "delete from {name}",
        "trigger": "create trigger tried instead of insert on {name}"
        " for each row execute function suppress_redundant_updates_trigger()",
        "replace": "create or replace view {name} as select 1 as x",
        "alter": "alter view {name} rename to tried",
        "drop": "drop view {name} cascade",
    },
    "sequence": {
        "select": "select last_value from {name}",
        "usage": "select nextval('{name}')",
        "update": "select setval('{name}', 1)",
        "alter": "alter sequence {name} cycle",
        "drop": "drop sequence {name} cascade",
    },
    "function": {
        "execute": "select {call}",
        "alter": "alter function {name} security invoker",
        "drop": "drop function {name} cascade",
    },
    "column": {
        "select": "select {column} from {name}",
        "update": "update {name} set {column} = default where false",
    },
}
NOT_ALL_COLUMNS = {
    ("table analytics.collected_days", "update"): {"rows", "collected_at"},
    ("table analytics.published_carries", "update"): {"carry", "base", "event_date"},
}
"""Object and privilege -> the columns that it is granted for, if not for all."""
IMPLIED = {"lock": {"update", "delete", "truncate"}}
"""Attempt -> privileges of which one is enough for it."""

NOT_UPDATABLE = {"view analytics.daily_error_rates", "view published.daily"}
"""Whoever writes to it is told that it is a view, before permission is asked."""

ROWS = {
    "analytics.daily_event_counts": "values ('{day}', 'event_signup', '7', 'web', 1)",
    "analytics.daily_response_counts": "values ('{day}', 'GET /', 200, 1)",
    "analytics.collected_days": "values ('event_signups', '{day}', 0, now())",
    "analytics.collected_since": "values ('event_signups', '{day}')",
    "analytics.friction": "values ('{day}', 'event_signup', '7', 'spike', 4.5)",
    "analytics.publications": "(event_name, event_date, filled, base, fingerprint)"
    " values ('event_signup', '{day}', false, 5, md5(''))",
    "analytics.published_carries": "values ('event_signup', '7', 4, 5, '{day}')",
    "published.daily_counts": "values ('{day}', 'event_signup', '7', 5)",
    "published.days": "(event_date, event_name, state, base) values ('{day}', 'event_signup', 'published', 5)",
    "published.weekly_counts": "values ('{day}', 'consent_turned_on', 5)",
    "published.weeks": "(week_start, event_name, state, base) values ('{day}', 'consent_turned_on', 'published', 5)",
    "analytics.retention_ledger": "(run_id, cutoff, target, days, rows) values ('x', '{day}', 'x', 0, 0)",
}
CALLS = {
    "analytics.create_days(date[])": "analytics.create_days('{day}')",
    "analytics.confirm_cutoff(date)": "analytics.confirm_cutoff(analytics.first_kept_day())",
    "analytics.drop_day(date)": "analytics.drop_day('2020-01-01')",
    "analytics.forget_days(date)": "analytics.forget_days('2020-01-01')",
    "analytics.mark_filled(date,text,integer)": "analytics.mark_filled('{day}', 'event_signup', 5)",
    "analytics.forget_published(date)": "analytics.forget_published('2020-01-01')",
    "analytics.forget_carries(date)": "analytics.forget_carries('2020-01-01')",
}

EXISTING = """
select case c.relkind when 'v' then 'view' when 'm' then 'view' when 'S' then 'sequence' else 'table' end
       || ' ' || c.oid::regclass as name
from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relnamespace not in ({system})
union all
select 'function ' || p.oid::regprocedure from pg_proc p where p.pronamespace not in ({system})
union all
select 'schema ' || nspname from pg_namespace where oid not in ({system})
union all
select 'database'
"""
COLUMNS = """
select quote_ident(attname) from pg_attribute
where attrelid = to_regclass(:name) and attnum > 0 and not attisdropped
"""
# What a foreign key could refer to.
KEY = """
select string_agg(quote_ident(attname), ', ') as columns,
       string_agg(quote_ident(attname) || ' ' || format_type(atttypid, null), ', ') as typed
from pg_index join pg_attribute on attrelid = indrelid and attnum = any(indkey)
where indrelid = to_regclass(:name) and indisunique
"""


@dataclass
class Database:
    """One of the two databases, with what is permitted in it."""

    url: sa.URL
    day: date
    rights: Rights

    @contextmanager
    def login(self, role: str) -> Iterator[sa.Connection]:
        """A connection whose changes are rolled back. Names are written out in full."""
        engine = sa.create_engine(self.url.set(username=role), connect_args={"options": "-c search_path=pg_catalog"})
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()

    @contextmanager
    def acting_as(self, role: str) -> Iterator[sa.Connection]:
        """The role's own login or, where it may not even connect, what it could do if it had come in."""
        if "connect" in self.permitted("database", role):
            with self.login(role) as connection:
                yield connection
        else:
            with self.login("postgres") as connection:
                connection.exec_driver_sql(f"set session authorization {role}")
                yield connection

    def permitted(self, thing: str, role: str) -> set[str]:
        return set(self.expected()[thing].get(role, "").split())

    def expected(self) -> Rights:
        return {thing.format(day=f"{self.day:%Y%m%d}"): rights for thing, rights in self.rights.items()}

    def existing(self) -> list[str]:
        with self.login("postgres") as connection:
            return list(connection.exec_driver_sql(EXISTING.format(system=SYSTEM)).scalars())

    def attempts(self, thing: str) -> list[tuple[str, str, str]]:
        """Privilege, column if it is one's, and statement, for everything that can be tried on the object."""
        kind, _, name = thing.partition(" ")
        with self.login("postgres") as connection:
            columns = list(connection.scalars(sa.text(COLUMNS), {"name": name}))
            key = connection.execute(sa.text(KEY), {"name": name}).one()
        return [
            (
                privilege,
                column,
                statement.format(
                    name=name or self.url.database,
                    row=ROWS.get(name, "default values").format(day=self.day),
                    call=CALLS.get(name, name).format(day=self.day),
                    key=key.columns,
                    typed=key.typed,
                    column=column,
                ),
            )
            for which, listed in ((kind, [""]), ("column", columns))
            for column in listed
            for privilege, statement in ATTEMPTS[which].items()
        ]


@pytest.fixture(scope="module")
def analytics(make_analytics_database: Callable[[], sa.URL]) -> Database:
    url = make_analytics_database()
    day = Settings.from_env().today() - timedelta(days=1)
    superuser(url, f"select analytics.create_days('{day}')", *STAGE)
    return Database(url, day, IN_THE_ANALYTICS_DATABASE)


@pytest.fixture(scope="module")
def hosting(make_database: Callable[[str], sa.URL]) -> Iterator[Database]:
    """A host's database after `analytics-assets grants host`, with what it proposes besides."""
    with Host.create(make_database("access_host")) as host:
        proposed = re.findall(r"^-- ((?:do|revoke) [^.\n]*;)$", printed("host"), re.MULTILINE)
        assert len(proposed) == 2
        superuser(host.url, *proposed, *STAGE)
        for table in ("signups", "visibility", "consent"):
            host.sql(f"alter table {table} add unique (event_id)")
        yield Database(host.url, date(2026, 1, 1), IN_THE_HOST_DATABASE)


# A place in which everybody may create, for what takes a table of one's own.
STAGE = (
    f"do $$ begin if to_regrole('{STRANGER}') is null then create role {STRANGER} login; end if; end $$",
    f"do $$ begin if to_regrole('{SOURCE_READER}') is null then create role {SOURCE_READER} login; end if; end $$",
    "create schema tried",
    "grant usage, create on schema tried to public",
)


def superuser(url: sa.URL, *statements: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def sqlstate(connection: sa.Connection, statement: str) -> str | None:
    """None when it succeeds. Nothing of it stays."""
    try:
        with connection.begin_nested() as savepoint:
            connection.exec_driver_sql(statement)
            savepoint.rollback()
    except sa.exc.DBAPIError as error:
        return str(getattr(error.orig, "pgcode", error))
    return None


def printed(server: str) -> str:
    result = CliRunner().invoke(main, ["grants", server])
    assert result.exit_code == 0
    return result.output


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.server) for name in ("analytics", "hosting")])
def database(request: pytest.FixtureRequest) -> Database:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Database)
    return found


def test_every_object_has_its_entry(database: Database) -> None:
    assert sorted(database.existing()) == sorted(database.expected())


@pytest.mark.parametrize("role", LOGINS)
def test_who_may_connect(database: Database, role: str) -> None:
    if "connect" in database.permitted("database", role):
        with database.login(role) as connection:
            assert connection.scalar(sa.text("select session_user")) == role
    else:
        with pytest.raises(sa.exc.OperationalError, match="permission denied for database"), database.login(role):
            pass


def test_nobody_logs_in_as_the_owner(analytics: Database) -> None:
    with pytest.raises(sa.exc.OperationalError, match="is not permitted to log in"), analytics.login(OWNER):
        pass


@pytest.mark.parametrize("role", LOGINS)
def test_what_is_permitted_succeeds_and_everything_else_is_denied(database: Database, role: str) -> None:
    wrong = []
    tried = set()
    with database.acting_as(role) as connection:
        for thing in database.expected():
            permitted = database.permitted(thing, role)
            for privilege, column, statement in database.attempts(thing):
                whole = {p for p in permitted if (thing, p) not in NOT_ALL_COLUMNS}
                allowed = bool({privilege, *IMPLIED.get(privilege, ())} & whole)
                allowed |= privilege in permitted and column in NOT_ALL_COLUMNS.get((thing, privilege), ())
                denied = {"42501"}
                if thing in NOT_UPDATABLE and privilege in {"insert", "update", "delete"}:
                    denied.add("55000")
                found = sqlstate(connection, statement)
                if (found is not None) if allowed else (found not in denied):
                    wrong.append(f"{statement}: {'succeeds' if found is None else found}")
                tried.add((thing, privilege))
    assert wrong == []
    granted = {(thing, p) for thing in database.expected() for p in database.permitted(thing, role) - {"connect"}}
    assert granted <= tried, "every right that is expected has been used"


def test_the_database_says_when_something_was_published(analytics: Database) -> None:
    with analytics.login(WRITER) as connection:
        insert = "insert into analytics.publications (published_at) values (default)"
        assert sqlstate(connection, insert) == "42501"


@pytest.mark.parametrize("column", ["id", "removed_at"])
def test_an_entry_of_the_ledger_gets_its_number_and_time_from_the_database(analytics: Database, column: str) -> None:
    with analytics.login(WRITER) as connection:
        insert = "insert into analytics.retention_ledger ({}) values (default)"
        assert sqlstate(connection, insert.format(column)) == "42501"


@pytest.mark.parametrize("role", LOGINS)
def test_nobody_becomes_somebody_else(database: Database, role: str) -> None:
    with database.acting_as(role) as connection:
        for other in {*LOGINS, OWNER, "postgres", "pg_read_all_data"} - {role}:
            assert sqlstate(connection, f"set role {other}") == "42501"
        for statement in ("create role tried", f"alter role {role} bypassrls", f"grant {OWNER} to {role}"):
            assert sqlstate(connection, statement) == "42501"


# --- what `analytics-assets grants` prints


TOO_MUCH = """
grant all on all tables in schema analytics to public;
grant select (version_num) on analytics.alembic_version to analytics_reader;
grant execute on all functions in schema analytics to public;
grant all on schema analytics to analytics_reader, published_reader;
grant all on all tables in schema published to analytics_writer, published_reader, public;
grant create on schema public to public;
do $$ begin execute 'grant all on database ' || quote_ident(current_database()) || ' to public, analytics_reader';
end $$;
"""
TOO_LITTLE = """
revoke all on all tables in schema analytics from analytics_writer, analytics_reader;
revoke all on all functions in schema analytics from analytics_writer, analytics_reader;
revoke all on schema analytics, published from analytics_writer, analytics_reader, published_reader;
revoke all on all tables in schema published from analytics_writer, analytics_reader, published_reader;
do $$ begin execute 'revoke all on database ' || quote_ident(current_database()) || ' from public, analytics_reader';
end $$;
"""


def psql(url: sa.URL, sql: str) -> None:
    target = url.set(drivername="postgresql").render_as_string(hide_password=False)
    command = [tool("psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", target]
    ended = subprocess.run(command, input=sql, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("spoilt", ["", TOO_MUCH, TOO_LITTLE], ids=["as it was", "too much", "too little"])
def test_what_is_printed_for_the_analytics_database_is_what_init_db_does(
    settings: Settings, server: sa.URL, spoilt: str
) -> None:
    assert settings.database_url
    url = server.set(database=sa.make_url(settings.database_url).database)
    after_init_db = rights(url)
    psql(url, spoilt)
    assert (rights(url) != after_init_db) == bool(spoilt)
    psql(url, printed("analytics"))
    assert rights(url) == after_init_db
    psql(url, spoilt)
    init_db(url.render_as_string(hide_password=False), settings)
    assert rights(url) == after_init_db


def test_what_is_printed_for_the_host_takes_back_what_is_too_much(host: Host) -> None:
    before = rights(host.url)
    host.sql("grant all on all tables in schema analytics_source to public")
    host.sql(f"grant create on schema analytics_source to {SOURCE_READER}")
    host.sql(f"revoke select on analytics_source.signups from {SOURCE_READER}")  # noqa: S608
    psql(host.url, printed("host"))
    assert rights(host.url) == before


def test_both_are_printed_without_a_choice() -> None:
    output = CliRunner().invoke(main, ["grants"]).output
    assert output == f"{printed('analytics')}\n{printed('host')}"
    assert not re.search(r"password '", output)


def test_a_database_that_others_share_stays_open_to_them(
    make_database: Callable[[str], sa.URL], settings: Settings
) -> None:
    url = make_database("shared")
    superuser(url, "create table notes (text text)", *STAGE[:1])
    init_db(url.render_as_string(hide_password=False), settings)
    engine = sa.create_engine(url.set(username=STRANGER))
    with engine.connect() as connection:
        connection.exec_driver_sql("create temporary table scratch (x int)")
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            connection.exec_driver_sql("select from analytics.daily_event_counts")
    engine.dispose()


@pytest.mark.parametrize("owner", [True, False])
def test_a_login_that_may_create_roles_sets_up_and_closes_what_it_owns(
    make_database: Callable[[str], sa.URL], settings: Settings, owner: bool
) -> None:
    url = make_database("owned")
    superuser(
        url,
        "do $$ begin if to_regrole('administrator') is null then create role administrator login createrole; end if;"
        " end $$",
        f"grant {OWNER}, {WRITER}, {READER}, {PUBLISHED_READER} to administrator with admin option",
        f"alter database {url.database} owner to administrator"
        if owner
        else f"grant create on database {url.database} to administrator",
    )
    init_db(url.set(username="administrator").render_as_string(hide_password=False), settings)
    with Database(url, date(2026, 1, 1), {}).login(WRITER) as connection:
        assert connection.scalar(sa.text("select count(*) from analytics.daily_event_counts")) == 0
    open_to_all = "select has_database_privilege('public', current_database(), 'connect')"
    with Database(url, date(2026, 1, 1), {}).login("postgres") as connection:
        assert connection.scalar(sa.text(open_to_all)) != owner
