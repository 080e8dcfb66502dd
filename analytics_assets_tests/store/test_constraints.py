"""What the database itself refuses, whoever writes: the second wall, and the rights of the three logins."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from analytics_assets.contract import MAX_COUNT, METRICS, Field, vocabulary
from analytics_assets.database import DatabaseError
from analytics_assets.guard import obeys
from analytics_assets.settings import Settings
from analytics_assets.store.setup import init_db
from analytics_assets.store.tables import (
    COLLECTED_DAYS,
    COUNTS,
    DAILY_COUNTS,
    DAYS,
    FRICTION,
    METADATA,
    PUBLICATIONS,
    PUBLISHED_CARRIES,
    WEEKLY_COUNTS,
    WEEKS,
)
from analytics_assets_tests.support.database import SUPERUSER, admin_url, as_superuser, pipeline_settings, set_up_as_of
from analytics_assets_tests.support.texts import TEXTS

WRITER, READER = "analytics_writer", "analytics_reader"
EVENTS, RESPONSES = COUNTS["daily_event_counts"], COUNTS["daily_response_counts"]
Row = dict[str, Any]
PARTITIONS = """
select c.relname, c.oid from pg_inherits join pg_class c on c.oid = inhrelid
where c.relkind = 'r' and c.relnamespace = 'analytics'::regnamespace
"""


@dataclass
class Database:
    """One analytics database that every test leaves as it was; yesterday has its partitions."""

    settings: Settings
    day: date

    @property
    def admin_url(self) -> str:
        return admin_url(self.settings)

    @contextmanager
    def login(self, user: str) -> Iterator[sa.Connection]:
        """A connection whose changes are rolled back."""
        engine = sa.create_engine(sa.make_url(self.admin_url).set(username=user))
        with engine.connect() as connection:
            yield connection
        engine.dispose()

    def row(self, table: sa.Table) -> Row:
        """A row that the table accepts."""
        if table is RESPONSES:
            return {"event_date": self.day, "endpoint": "GET /events/{event_id}", "status_code": 404, "count": 1}
        return {"event_date": self.day, "event_name": "event_signup", "event_id": "7", "source": "web", "count": 1}


@pytest.fixture(scope="module")
def database(make_analytics_database: Callable[[], sa.URL], tmp_path_factory: pytest.TempPathFactory) -> Database:
    url = make_analytics_database()
    made = pipeline_settings(url, url.render_as_string(hide_password=False), tmp_path_factory.mktemp("constraints"))
    database = Database(made, made.today() - timedelta(days=1))
    with database.login(WRITER) as connection, connection.begin():
        connection.execute(sa.select(sa.func.analytics.create_days(database.day)))
    return database


# --- rows


@pytest.mark.parametrize("user", [WRITER, SUPERUSER])
@pytest.mark.parametrize(
    ("table", "change"),
    [
        *((EVENTS, {"event_name": name}) for name in vocabulary("daily_event_counts")),
        (EVENTS, {"event_id": "0"}),
        (EVENTS, {"event_id": "9" * 19}),
        (EVENTS, {"event_id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}),
        (EVENTS, {"source": "admin"}),
        (EVENTS, {"source": None}),
        (EVENTS, {"count": MAX_COUNT}),
        (RESPONSES, {"endpoint": "(unmatched)"}),
        (RESPONSES, {"endpoint": "(other) /{path}"}),
        (RESPONSES, {"status_code": 100, "count": MAX_COUNT}),
        (RESPONSES, {"status_code": 599}),
    ],
)
def test_a_valid_row_is_accepted(database: Database, user: str, table: sa.Table, change: Row) -> None:
    with database.login(user) as connection:
        assert connection.execute(sa.insert(table).values(database.row(table) | change)).rowcount == 1


@pytest.mark.parametrize("user", [WRITER, SUPERUSER])
@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        (EVENTS, "event_name", "page_printed"),
        (EVENTS, "event_name", "http_response"),
        (EVENTS, "event_name", "event_signup\n"),
        (EVENTS, "event_id", "someone@example.org"),
        (EVENTS, "event_id", "7\n"),
        (EVENTS, "event_id", "07"),
        (EVENTS, "event_id", "-7"),
        (EVENTS, "event_id", ""),
        (EVENTS, "event_id", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
        (EVENTS, "source", "mobile"),
        (EVENTS, "source", ""),
        (EVENTS, "count", 0),
        (EVENTS, "count", -1),
        (EVENTS, "count", MAX_COUNT + 1),
        (RESPONSES, "endpoint", "GET /events/17"),
        (RESPONSES, "endpoint", "/events"),
        (RESPONSES, "endpoint", "GET /search?q=someone"),
        (RESPONSES, "endpoint", "GET /" + "z" * 200),
        (RESPONSES, "endpoint", "GET /reset/" + "0a" * 16),
        (RESPONSES, "endpoint", "GET /events\n"),
        (RESPONSES, "status_code", 99),
        (RESPONSES, "status_code", 600),
        (RESPONSES, "count", 0),
        (RESPONSES, "count", MAX_COUNT + 1),
    ],
)
def test_a_value_outside_the_contract_is_refused(
    database: Database, user: str, table: sa.Table, column: str, value: object
) -> None:
    with database.login(user) as connection, pytest.raises(sa.exc.IntegrityError) as refusal:
        connection.execute(sa.insert(table).values(database.row(table) | {column: value}))
    assert constraint(refusal) == f"{table.name}_{column}"


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column.name) for table in (EVENTS, RESPONSES) for column in table.columns if not column.nullable],
)
def test_null_is_refused_except_as_source(database: Database, table: sa.Table, column: str) -> None:
    with database.login(WRITER) as connection, pytest.raises(sa.exc.IntegrityError):
        connection.execute(sa.insert(table).values(database.row(table) | {column: None}))


def test_a_count_past_64_bits_is_refused(database: Database) -> None:
    with database.login(WRITER) as connection, pytest.raises(sa.exc.DataError):
        connection.execute(sa.insert(EVENTS).values(database.row(EVENTS) | {"count": sa.text("1" + "0" * 30)}))


@pytest.mark.parametrize(("table", "change"), [(EVENTS, {}), (EVENTS, {"source": None}), (RESPONSES, {})])
def test_a_key_occurs_once(database: Database, table: sa.Table, change: Row) -> None:
    row = database.row(table) | change
    with database.login(WRITER) as connection:
        connection.execute(sa.insert(table).values(row))
        with pytest.raises(sa.exc.IntegrityError) as refusal:
            connection.execute(sa.insert(table).values(row | {"count": 2}))
    assert constraint(refusal).endswith("_key")


@pytest.mark.parametrize("days", [-1, 1, 2, 400])
@pytest.mark.parametrize("table", [EVENTS, RESPONSES])
def test_a_day_without_partition_has_no_place(database: Database, table: sa.Table, days: int) -> None:
    day = database.day + timedelta(days=days)
    with database.login(WRITER) as connection, pytest.raises(sa.exc.IntegrityError, match="no partition of relation"):
        connection.execute(sa.insert(table).values(database.row(table) | {"event_date": day}))


def test_a_partition_is_no_way_around(database: Database) -> None:
    partition = f"daily_event_counts_{database.day:%Y%m%d}"
    elsewhere = sa.table(partition, *map(sa.column, EVENTS.columns.keys()), schema="analytics")
    row = database.row(EVENTS)
    with database.login(WRITER) as connection, pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
        connection.execute(sa.insert(elsewhere).values(row))
    for change in ({"event_id": "someone@example.org"}, {"event_date": database.day - timedelta(days=1)}):
        with database.login(SUPERUSER) as connection, pytest.raises(sa.exc.IntegrityError):
            connection.execute(sa.insert(elsewhere).values(row | change))


@pytest.mark.parametrize("user", [WRITER, SUPERUSER])
@pytest.mark.parametrize(
    ("column", "value"), [("asset", "page_prints"), ("asset", "someone@example.org"), ("rows", -1)]
)
def test_only_metrics_are_noted_as_collected(database: Database, user: str, column: str, value: object) -> None:
    row: Row = {"asset": METRICS[0].asset, "event_date": database.day, "rows": 0, "collected_at": sa.func.now()}
    with database.login(user) as connection:
        connection.execute(sa.insert(COLLECTED_DAYS).values(row))
        connection.rollback()
        with pytest.raises(sa.exc.IntegrityError) as refusal:
            connection.execute(sa.insert(COLLECTED_DAYS).values(row | {column: value}))
    assert constraint(refusal) == f"collected_days_{column}"


def constraint(refusal: pytest.ExceptionInfo[sa.exc.IntegrityError]) -> str:
    """The name of the constraint that refused."""
    return str(getattr(refusal.value.orig, "diag").constraint_name)  # noqa: B009  # psycopg2 alone has it


# --- what is published

PUBLISHED_ROWS: dict[sa.Table, Row] = {
    DAILY_COUNTS: {"event_name": "event_signup", "event_id": "7", "count": 5},
    DAYS: {"event_name": "event_signup", "state": "published", "base": 5},
    WEEKLY_COUNTS: {"event_name": "consent_turned_on", "count": 5},
    WEEKS: {"event_name": "consent_turned_on", "state": "not_collected", "base": 5},
    PUBLICATIONS: {"event_name": "event_signup", "filled": False, "base": 5, "fingerprint": "0" * 32},
    PUBLISHED_CARRIES: {"event_name": "event_signup", "event_id": "7", "carry": 4, "base": 5},
}


def published_row(database: Database, table: sa.Table, day: date | None = None) -> Row:
    start = next(column.name for column in table.columns if isinstance(column.type, sa.Date))
    return PUBLISHED_ROWS[table] | {start: day or database.day}


@pytest.mark.parametrize("user", [WRITER, SUPERUSER])
@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *((table, "event_name", "http_response") for table in PUBLISHED_ROWS),
        *((table, "event_name", "consent_turned_on") for table in (DAILY_COUNTS, DAYS)),
        *((table, "event_name", "event_signup") for table in (WEEKLY_COUNTS, WEEKS)),
        *((table, "count", count) for table in (DAILY_COUNTS, WEEKLY_COUNTS) for count in (-5, 0, 1, 4, 6, 999)),
        *((table, "state", state) for table in (DAYS, WEEKS) for state in ("", "value", "below", "canary")),
        *((table, "base", 4) for table in (PUBLICATIONS, DAYS, WEEKS)),
        (PUBLICATIONS, "fingerprint", "canary"),
        (PUBLISHED_CARRIES, "carry", -1),
        (PUBLISHED_CARRIES, "carry", 5),
        (PUBLISHED_CARRIES, "base", 4),
    ],
)
def test_what_is_no_publication_is_refused(
    database: Database, user: str, table: sa.Table, column: str, value: object
) -> None:
    row = published_row(database, table)
    with database.login(user) as connection:
        assert connection.execute(sa.insert(table).values(row)).rowcount == 1
        connection.rollback()
        with pytest.raises(sa.exc.IntegrityError) as refusal:
            connection.execute(sa.insert(table).values(row | {column: value}))
    # A base below 5 leaves no room for the carry of 4 either.
    assert constraint(refusal) in {f"{table.name}_{column}", f"{table.name}_carry" if column == "base" else ""}


@pytest.mark.parametrize("table", PUBLISHED_ROWS, ids=lambda table: table.name)
def test_nothing_expired_is_published(database: Database, table: sa.Table) -> None:
    with database.login(SUPERUSER) as connection:
        first: date = connection.execute(sa.select(sa.func.analytics.first_kept_day())).scalar_one()
        assert connection.execute(sa.insert(table).values(published_row(database, table, first))).rowcount == 1
        connection.rollback()
        with pytest.raises(sa.exc.DBAPIError, match="only a day inside the retention period can be published"):
            connection.execute(sa.insert(table).values(published_row(database, table, first - timedelta(days=1))))


def found_row(database: Database, day: date | None = None) -> Row:
    return {
        "event_date": day or database.day,
        "event_name": "event_signup",
        "series": "7",
        "kind": "spike",
        "score": 4.5,
    }


@pytest.mark.parametrize(
    ("column", "value"), [("event_name", "canary"), ("kind", "canary"), ("kind", ""), ("series", "x" * 201)]
)
def test_what_is_no_finding_is_refused(database: Database, column: str, value: str) -> None:
    with database.login(WRITER) as connection:
        assert connection.execute(sa.insert(FRICTION).values(found_row(database))).rowcount == 1
        connection.rollback()
        with pytest.raises(sa.exc.IntegrityError) as refusal:
            connection.execute(sa.insert(FRICTION).values(found_row(database) | {column: value}))
    assert constraint(refusal) == f"friction_{column}"


def test_nothing_is_found_of_an_expired_day(database: Database) -> None:
    with database.login(WRITER) as connection:
        first: date = connection.execute(sa.select(sa.func.analytics.first_kept_day())).scalar_one()
        assert connection.execute(sa.insert(FRICTION).values(found_row(database, first))).rowcount == 1
        connection.rollback()
        with pytest.raises(sa.exc.DBAPIError, match="inside the retention period"):
            connection.execute(sa.insert(FRICTION).values(found_row(database, first - timedelta(days=1))))


@pytest.mark.parametrize("table", PUBLISHED_ROWS, ids=lambda table: table.name)
def test_what_is_published_occurs_once(database: Database, table: sa.Table) -> None:
    with database.login(WRITER) as connection:
        connection.execute(sa.insert(table).values(published_row(database, table)))
        with pytest.raises(sa.exc.IntegrityError) as refusal:
            connection.execute(sa.insert(table).values(published_row(database, table)))
    assert constraint(refusal) == f"{table.name}_pkey"


@pytest.mark.parametrize("function", ["forget_published", "forget_carries"])
@pytest.mark.parametrize("before", ["analytics.first_kept_day() + 1", "analytics.today()", "null", "'infinity'"])
def test_what_is_published_and_kept_cannot_be_removed(database: Database, function: str, before: str) -> None:
    with database.login(WRITER) as connection, pytest.raises(sa.exc.DBAPIError, match="only days past"):
        connection.exec_driver_sql(f"select analytics.{function}({before})")


def test_a_published_day_is_not_marked_again(database: Database) -> None:
    """The one change that the writer can cause leads from `not_collected` to `published`."""
    with database.login(WRITER) as connection:
        for table in (DAYS, WEEKS):
            connection.execute(sa.insert(table).values(published_row(database, table)))
        for name in ("event_signup", "consent_turned_on"):
            connection.execute(sa.select(sa.func.analytics.mark_filled(database.day, name, 5)))
        for table in (DAYS, WEEKS):
            assert connection.scalars(sa.select(table.c.state)).all() == ["published"]


def test_a_new_base_leaves_what_was_published_as_it_was(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    day = settings.today() - timedelta(days=1)
    as_superuser(settings, f"insert into published.daily_counts values ('{day}', 'event_signup', '7', 15)")  # noqa: S608
    count = sa.column("count", sa.BigInteger)
    (rule,) = [c for c in DAILY_COUNTS.constraints if c.name == "daily_counts_count"]
    assert isinstance(rule, sa.CheckConstraint)
    monkeypatch.setattr(rule, "sqltext", sa.and_(count > 0, sa.func.mod(count, 10) == 0))
    init_db(admin_url(settings), settings)
    with pytest.raises(sa.exc.IntegrityError, match="daily_counts_count"):
        as_superuser(settings, f"insert into published.daily_counts values ('{day}', 'event_signup', '8', 15)")  # noqa: S608


# --- the two walls agree


@pytest.mark.parametrize("field", TEXTS, ids=lambda field: field.name)
@hypothesis_settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.data())
def test_python_and_postgresql_read_a_rule_alike(database: Database, field: Field, data: st.DataObject) -> None:
    values = data.draw(st.lists(TEXTS[field], min_size=20, max_size=80, unique=True))
    table = EVENTS if field.name in EVENTS.columns else RESPONSES
    with database.login(SUPERUSER) as connection:
        live = sa.text(
            "select pg_get_expr(conbin, conrelid) from pg_constraint where conname = :name and conparentid = 0"
        )
        rule = str(connection.scalar(live, {"name": f"{table.name}_{field.name}"})).replace("%", "%%")
        query = f"select {field.name}, {rule} from unnest(%(values)s::text[]) as given({field.name})"  # noqa: S608
        answers = connection.exec_driver_sql(query, {"values": values})
        differing = [value for value, allowed in answers if allowed != obeys(field, value)]
    assert differing == []


# --- who may do what


@pytest.mark.parametrize("day", ["today()", "today() + 1", "today() + 1000", "first_kept_day() - 1", "null"])
def test_no_partition_for_an_unfinished_or_expired_day(database: Database, day: str) -> None:
    with database.login(WRITER) as connection, pytest.raises(sa.exc.DBAPIError, match="only a finished day"):
        connection.exec_driver_sql(f"select analytics.create_days({qualified(day)})")


@pytest.mark.parametrize("day", ["first_kept_day()", "today() - 1"])
def test_a_partition_for_the_ends_of_the_kept_days(database: Database, day: str) -> None:
    with database.login(WRITER) as connection:
        for _ in range(2):
            connection.exec_driver_sql(f"select analytics.create_days({qualified(day)})")
        row = database.row(EVENTS) | {"event_date": sa.text(qualified(day))}
        assert connection.execute(sa.insert(EVENTS).values(row)).rowcount == 1


def test_partitions_of_several_days_are_made_once_each_and_only_if_all_are_kept(database: Database) -> None:
    asked = "select analytics.create_days(variadic array(select analytics.today() - n from generate_series(1, {}) n))"
    with database.login(WRITER) as connection:
        connection.exec_driver_sql("select analytics.create_days(analytics.today() - 2)")
        before = dict(map(tuple, connection.exec_driver_sql(PARTITIONS)))
        connection.exec_driver_sql(asked.format(4))
        connection.exec_driver_sql("select analytics.create_days(analytics.today() - 5, analytics.today() - 5)")
        made = dict(map(tuple, connection.exec_driver_sql(PARTITIONS)))
        assert before.items() < made.items()
        days = [f"{database.day - timedelta(days=n):%Y%m%d}" for n in range(5)]
        assert set(made) == {f"{table.name}_{day}" for table in (EVENTS, RESPONSES) for day in days}
        with pytest.raises(sa.exc.DBAPIError, match="only a finished day"):
            connection.exec_driver_sql(asked.format(database.settings.retention_days + 1))


@pytest.mark.parametrize("day", ["first_kept_day()", "today() - 1", "today()", "today() + 1", "null", "'1999-12-31'"])
def test_a_kept_day_cannot_be_dropped(database: Database, day: str) -> None:
    with database.login(WRITER) as connection, pytest.raises(sa.exc.DBAPIError, match="only a day past"):
        connection.exec_driver_sql(f"select analytics.drop_day({qualified(day)})")


def test_a_day_before_christ_does_not_stand_for_one_that_is_kept(database: Database) -> None:
    with database.login(WRITER) as connection, pytest.raises(sa.exc.DBAPIError, match="only a day past"):
        connection.exec_driver_sql(f"select analytics.drop_day('{database.day} BC')")


def test_an_expired_day_is_dropped_whole_and_alone(database: Database) -> None:
    expired = database.day - timedelta(days=30)
    note: Row = {"asset": METRICS[0].asset, "rows": 1, "collected_at": sa.func.now()}
    with database.login(SUPERUSER) as connection:
        connection.execute(sa.select(sa.func.analytics.create_days(expired)))
        for day in (expired, database.day):
            for table in (EVENTS, RESPONSES):
                connection.execute(sa.insert(table).values(database.row(table) | {"event_date": day}))
            connection.execute(sa.insert(COLLECTED_DAYS).values(note | {"event_date": day}))
        connection.exec_driver_sql("update analytics.settings set retention_days = 29")
        connection.exec_driver_sql(f"set local role {WRITER}")
        for _ in range(2):
            assert connection.scalar(sa.select(sa.func.analytics.drop_day(expired))) == 1, "rows it had"
        for table in (EVENTS, RESPONSES):
            assert connection.scalars(sa.select(table.c.event_date)).all() == [database.day]
        left = connection.scalars(sa.text("select relname from pg_class where relname ~ '^daily_.*_[0-9]{8}$'")).all()
    assert sorted(left) == [f"{table.name}_{database.day:%Y%m%d}" for table in (EVENTS, RESPONSES)]


SELECTS = ["daily_event_counts", "daily_response_counts", "daily_error_rates", "collected_days", "settings"]


@pytest.mark.parametrize("user", [WRITER, READER])
@pytest.mark.parametrize("relation", SELECTS)
def test_both_logins_read_everything(database: Database, user: str, relation: str) -> None:
    with database.login(user) as connection:
        connection.exec_driver_sql(f"select * from analytics.{relation}")  # noqa: S608


NOBODY = [
    "create table analytics.notes (id int)",
    "create view analytics.notes as select 1 as id",
    "create function analytics.notes() returns int language sql as 'select 1'",
    "create table public.notes (id int)",
    "create schema notes",
    "drop table analytics.daily_event_counts",
    "drop table analytics.{partition}",
    "drop view analytics.daily_error_rates",
    "drop schema analytics cascade",
    "alter table analytics.daily_event_counts add column email text",
    "alter table analytics.daily_event_counts drop constraint daily_event_counts_event_id",
    "alter table analytics.daily_event_counts detach partition analytics.{partition}",
    "comment on table analytics.daily_event_counts is 'x'",
    "truncate analytics.daily_event_counts",
    "truncate analytics.{partition}",
    "update analytics.daily_event_counts set count = 1",
    "delete from analytics.collected_days",
    "update analytics.settings set retention_days = 3650",
    "insert into analytics.settings (only_row, retention_days, time_zone) values (false, 1, 'UTC')",
    "delete from analytics.alembic_version",
    "set role analytics_owner",
    "create role notes",
]
NOT_THE_READER = [
    "insert into analytics.daily_event_counts values ('{day}', 'event_signup', '7', null, 1)",
    "insert into analytics.collected_days values ('event_signups', '{day}', 0, now())",
    "delete from analytics.daily_event_counts",
    "delete from analytics.daily_response_counts",
    "update analytics.collected_days set rows = 1",
    "select analytics.create_days('{day}')",
    "select analytics.drop_day('2020-01-01')",
]


@pytest.mark.parametrize(
    ("user", "statement"),
    [(user, statement) for user in (WRITER, READER) for statement in NOBODY]
    + [(READER, statement) for statement in NOT_THE_READER],
)
def test_not_permitted(database: Database, user: str, statement: str) -> None:
    text = statement.format(partition=f"daily_event_counts_{database.day:%Y%m%d}", day=database.day)
    with database.login(user) as connection, pytest.raises(sa.exc.DBAPIError) as refusal:
        connection.exec_driver_sql(text)
    assert getattr(refusal.value.orig, "pgcode") == "42501"  # noqa: B009  # insufficient_privilege


def test_a_login_without_grants_gets_nothing(database: Database) -> None:
    with database.login(SUPERUSER) as connection:
        connection.exec_driver_sql("create role passer_by login")
        connection.exec_driver_sql("set local role passer_by")
        for wanted in (*(f"* from analytics.{name}" for name in SELECTS), "analytics.today()"):
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"), connection.begin_nested():
                connection.exec_driver_sql(f"select {wanted}")


def qualified(day: str) -> str:
    return f"analytics.{day}" if "(" in day else day


# --- set-up


# SQLAlchemy's reflection does not know its own option for a constraint that is not valid.
@pytest.mark.filterwarnings("ignore:Can't validate argument 'dialect_options'")
def test_the_live_tables_are_those_of_the_contract(database: Database) -> None:
    with database.login(SUPERUSER) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name in {"analytics", "published"},
                "include_object": lambda thing, _, kind, *__: (
                    kind != "table" or f"{thing.schema}.{thing.name}" in METADATA.tables
                ),
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        connection.dialect.supports_comments = False  # test_dictionary compares them
        assert compare_metadata(context, METADATA) == []
        inspector = sa.inspect(connection)
        for table in (EVENTS, RESPONSES):
            (key,) = inspector.get_unique_constraints(table.name, "analytics")
            assert key["column_names"] == [column.name for column in table.columns if column.name != "count"]
            assert key["dialect_options"]["postgresql_nulls_not_distinct"] is True
            divided = sa.text("select pg_get_partkeydef(cast(:table as regclass))")
            assert connection.scalar(divided, {"table": table.fullname}) == "RANGE (event_date)"
        for table in METADATA.tables.values():
            live = {check["name"] for check in inspector.get_check_constraints(table.name, table.schema)}
            assert live == {c.name for c in table.constraints if isinstance(c, sa.CheckConstraint)}


def test_an_upgrade_from_the_first_migration_keeps_data(
    settings: Settings, make_database: Callable[[str], sa.URL]
) -> None:
    url = make_database("upgraded")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        set_up_as_of(connection, "0001")
        connection.exec_driver_sql("insert into analytics.settings values (true, 90, 'Asia/Tokyo')")
        connection.exec_driver_sql("select analytics.create_day(analytics.today() - 1)")
        connection.exec_driver_sql(
            "insert into analytics.daily_event_counts values (analytics.today() - 1, 'event_signup', '7', 'web', 3)"
        )
    tokyo = replace(settings, retention_days=90, time_zone="Asia/Tokyo")
    init_db(url.render_as_string(hide_password=False), tokyo)
    with engine.connect() as connection:
        counts = connection.exec_driver_sql(
            "select event_name, event_id, source, count from analytics.daily_event_counts"
        )
        assert counts.all() == [("event_signup", "7", "web", 3)]
        kept = connection.exec_driver_sql("select retention_days, time_zone, kept_since from analytics.settings")
        assert kept.all() == [(90, "Asia/Tokyo", None)]
        assert connection.exec_driver_sql("select count(*) from analytics.retention_ledger").scalar() == 0
    engine.dispose()


def test_an_upgrade_keeps_the_ledger_whose_column_is_renamed(
    settings: Settings, make_database: Callable[[str], sa.URL]
) -> None:
    """From the previous version: its column was called `store`, with a check and a grant of that name."""
    url = make_database("upgraded")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        set_up_as_of(connection, "0002")
        connection.exec_driver_sql(
            "insert into analytics.settings values (true, 180, 'UTC');"
            " insert into analytics.retention_ledger (run_id, cutoff, store, days, rows)"
            " values ('command line', '2026-01-02', 'daily counts', 3, 70);"
            " alter table analytics.retention_ledger"
            " add constraint retention_ledger_store check (char_length(store) <= 40);"
            " grant insert (run_id, cutoff, store, days, rows) on analytics.retention_ledger to analytics_writer"
        )
    init_db(url.render_as_string(hide_password=False), replace(settings, time_zone="UTC"))
    with engine.connect() as connection:
        entries = "select run_id, target, days, rows from analytics.retention_ledger"
        assert connection.exec_driver_sql(entries).all() == [("command line", "daily counts", 3, 70)]
        checks = sa.inspect(connection).get_check_constraints("retention_ledger", "analytics")
        assert {check["name"] for check in checks} == {
            f"retention_ledger_{column}" for column in ("days", "rows", "run_id", "target")
        }
    engine.dispose()
    written = sa.create_engine(url.set(username=WRITER))
    with written.begin() as connection:
        insert = (
            "insert into analytics.retention_ledger (run_id, cutoff, target, days, rows) values ('x', now(), {}, 0, 0)"
        )
        connection.exec_driver_sql(insert.format("'runs'"))
        with pytest.raises(sa.exc.IntegrityError, match="retention_ledger_target"):
            connection.exec_driver_sql(insert.format("repeat('x', 41)"))
    written.dispose()


def test_a_second_set_up_changes_nothing(database: Database) -> None:
    def state() -> list[Any]:
        with database.login(SUPERUSER) as connection:
            constraints = "select oid, conname, pg_get_constraintdef(oid) from pg_constraint order by 1"
            counts = "select * from analytics.daily_event_counts"
            settings = "select * from analytics.settings"
            return [connection.exec_driver_sql(query).all() for query in (constraints, counts, settings)]

    with database.login(WRITER) as connection, connection.begin():
        connection.execute(sa.insert(EVENTS).values(database.row(EVENTS)))
    before = state()
    init_db(database.admin_url, database.settings)
    assert state() == before
    with database.login(WRITER) as connection, connection.begin():
        assert connection.execute(sa.delete(EVENTS)).rowcount == 1


BAD_ROW = "insert into analytics.daily_event_counts values ('{day}', 'event_signup', 'canary@example.org', null, 1)"


def test_a_check_that_is_gone_comes_back(settings: Settings, yesterday: date) -> None:
    bad_row = BAD_ROW.format(day=yesterday)
    as_superuser(
        settings,
        f"select analytics.create_days('{yesterday}')",
        "alter table analytics.daily_event_counts drop constraint daily_event_counts_event_id",
    )
    init_db(admin_url(settings), settings)
    with pytest.raises(sa.exc.IntegrityError):
        as_superuser(settings, bad_row)


def test_a_check_that_the_contract_has_changed_is_replaced(settings: Settings, yesterday: date) -> None:
    """The comment holds the contract's text; a different one is what an older contract has left behind."""
    name = "daily_event_counts_event_id"
    as_superuser(
        settings,
        f"alter table analytics.daily_event_counts drop constraint {name}",
        f"alter table analytics.daily_event_counts add constraint {name} check (event_id <> '')",
        f"comment on constraint {name} on analytics.daily_event_counts is 'event_id <> '''''",
        f"select analytics.create_days('{yesterday}')",
    )
    init_db(admin_url(settings), settings)
    with pytest.raises(sa.exc.IntegrityError):
        as_superuser(settings, BAD_ROW.format(day=yesterday))
    partition = f"daily_event_counts_{yesterday:%Y%m%d}"
    with pytest.raises(sa.exc.IntegrityError):
        as_superuser(settings, BAD_ROW.format(day=yesterday).replace("daily_event_counts", partition))


def test_stored_rows_that_break_a_rule_stop_the_set_up_without_being_shown(settings: Settings, yesterday: date) -> None:
    as_superuser(
        settings,
        f"select analytics.create_days('{yesterday}')",
        "alter table analytics.daily_event_counts drop constraint daily_event_counts_event_id",
        BAD_ROW.format(day=yesterday),
    )
    with pytest.raises(DatabaseError, match="constraint daily_event_counts_event_id") as refusal:
        init_db(admin_url(settings), settings)
    assert "canary" not in str(refusal.value)
    assert "canary" not in "".join(traceback.format_exception(refusal.value))


def test_retention_and_time_zone_follow_the_settings(settings: Settings) -> None:
    init_db(admin_url(settings), replace(settings, retention_days=5, time_zone="Asia/Tokyo"))
    engine = sa.create_engine(admin_url(settings))
    with engine.connect() as connection:
        kept = connection.execute(sa.text("select retention_days, time_zone, analytics.today() -"
                                          " analytics.first_kept_day() from analytics.settings")).one()  # fmt: skip
    engine.dispose()
    assert kept == (5, "Asia/Tokyo", 5)


def test_a_login_without_rights_cannot_set_up(settings: Settings) -> None:
    assert settings.database_url
    with pytest.raises(DatabaseError, match="InsufficientPrivilege"):
        init_db(settings.database_url, settings)
