"""Views in a real MariaDB: counted as the same rows in PostgreSQL are, refused and watched like them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from analytics_assets.cli import main
from analytics_assets.contract import EVENT_ID, SOURCE, SOURCE_VIEWS, metric
from analytics_assets.database import DatabaseError, UnreachableError
from analytics_assets.days import bounds, span
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.checks import ONLY_VIEWS, login_checks
from analytics_assets.defs.evaluation import open_reader
from analytics_assets.guard import Row, obeys
from analytics_assets.local.server import ROOT
from analytics_assets.settings import Settings, source_url
from analytics_assets.sources import OriginRefusedError
from analytics_assets.sources.app_views import find_view_problems
from analytics_assets.sources.hosts import HOSTS, find_host, mysql, open_catalog
from analytics_assets.sources.login import Excess
from analytics_assets_tests.support.host import Host, last_moment, moments
from analytics_assets_tests.support.mariadb import PASSWORD, READER, MariaHost, Server, client, mariadb
from analytics_assets_tests.support.pipeline import Pipeline, everything_said, failures, gate, run_checks

SIGNUPS, CONSENT = metric("event_signups"), metric("consent_changes")
FED_BY_VIEWS = ["consent_changes", "event_signups", "profile_visibility_toggles"]
DAY = date(2026, 3, 28)


@pytest.fixture(scope="session")
def mariadb_server(make_server_folder: Callable[[], Path]) -> Iterator[Server]:
    with mariadb(make_server_folder()) as started:
        yield started


@pytest.fixture
def maria(mariadb_server: Server) -> Iterator[MariaHost]:
    """An empty host application with correct source views."""
    with MariaHost.create(mariadb_server) as made:
        yield made


@pytest.fixture
def reading(maria: MariaHost) -> Settings:
    """Settings that know the host's database only."""
    return Settings.from_env({"ANALYTICS_SOURCE_URL": maria.reader_url, "ANALYTICS_TIMEZONE": "Europe/Berlin"})


def url_of(maria: MariaHost) -> str:
    """The URL of the views as the settings have it."""
    return source_url(maria.reader_url, "ANALYTICS_SOURCE_URL")


def replace_view(maria: MariaHost, columns: str, rest: str = "from events.signups") -> None:
    """Another view of sign-ups, readable for the pipeline: a right on a name outlives its view."""
    maria.sql(f"create or replace view analytics_source.signups as select {columns} {rest}")


def refusal_of(settings: Settings, name: str = "event_signups") -> str:
    with pytest.raises(OriginRefusedError) as refusal, open_reader(metric(name), settings):
        pass
    return str(refusal.value)


# --- the same rows, the same counts


Occurrence = tuple[str | None, datetime, str | None, bool | None]

EVENT_IDS = [
    *("0", "1", "42", "9999999999999999999", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    *(
        "",
        " 1",
        "1 ",
        "1\n",
        "1\r\n",
        "1\t",
        "01",
        "-1",
        "+1",
        "1.0",
        "1e3",
        "10000000000000000000",
        "\uff11",
        "\u00b2",
    ),
    *("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11 "),
    *("a0eebc999c0b4ef8bb6d6bb9bd380a11", "canary@example.org", "canary" * 10, "\U0001f600", "e\u0301", "\u00e9"),
    *("10000000000000000000", "1\\", "1'--", "%(x)s", "1%", ":start"),
    None,
]
SOURCES = [
    *("web", "admin", "Web", "WEB", "web ", " web", "web\n", "w\u00e9b", "we\u0301b", "admin\t", "", "canary"),
    *("\U0001f578", "web\\"),
    None,
]


def instants(time_zone: str, days: Sequence[date]) -> list[datetime]:
    """The edges of some days, and what is nearest to them."""
    near = [timedelta(microseconds=-1), timedelta(0), timedelta(microseconds=1), timedelta(hours=2, minutes=30)]
    return [bounds(day, time_zone)[0] + step for day in days for step in near]


def fill(hosts: Sequence[Host | MariaHost], rows: Sequence[Occurrence]) -> None:
    for host in hosts:
        host.sql("delete from events.consent" if isinstance(host, MariaHost) else "delete from consent")
        for event_id, moment, source, turned_on in rows:
            host.occur("consent", [moment], event_id=event_id, source=source, turned_on=turned_on)


def read(settings: Settings, days: Sequence[date], *, at_once: bool) -> list[Any]:
    """Everything that is counted of some days."""
    with open_reader(CONSENT, settings, days if at_once else ()) as reader:
        counted = {day: reader.count(day) for day in days}
        return [
            {day: sorted(map(repr, one.rows)) for day, one in counted.items()},
            {day: sorted(one.problems) for day, one in counted.items()},
            {day: reader.total(day) for day in days},
            reader.outside(),
        ]


def compare(maria: MariaHost, host: Host, time_zone: str, days: Sequence[date]) -> list[Any]:
    """Count in both, day by day and at once; return what all found."""
    found = [
        read(Settings.from_env({"ANALYTICS_SOURCE_URL": url, "ANALYTICS_TIMEZONE": time_zone}), days, at_once=at_once)
        for url in (host.reader_url, maria.reader_url)
        for at_once in (True, False)
    ]
    assert found[1:] == found[:1] * 3
    return found[0]


@pytest.mark.parametrize(
    ("time_zone", "day"),
    [
        ("UTC", date(2026, 11, 22)),
        ("Europe/Berlin", date(2026, 3, 29)),
        ("Europe/Berlin", date(2025, 10, 26)),
        ("America/New_York", date(2026, 3, 8)),
        ("America/New_York", date(2025, 11, 2)),
        ("America/Havana", date(2026, 3, 8)),  # its midnight does not exist
        ("Asia/Kathmandu", date(2026, 1, 1)),
        ("Pacific/Apia", date(2011, 12, 30)),  # the whole day does not exist
    ],
)
def test_every_instant_is_in_the_same_day_in_both(maria: MariaHost, host: Host, time_zone: str, day: date) -> None:
    days = span(day - timedelta(days=2), day + timedelta(days=2))
    rows = [
        (str(number), moment, "web", number % 2 == 0)
        for number, moment in enumerate(instants(time_zone, span(days[0], days[-1] + timedelta(days=1))))
    ]
    fill([maria, host], rows)
    _, problems, totals, _ = compare(maria, host, time_zone, days)
    assert not any(problems.values())
    assert sum(totals.values()) > 15


def test_every_nasty_value_is_refused_by_the_same_rule_in_both(maria: MariaHost, host: Host) -> None:
    noon = datetime(2026, 3, 28, 12, tzinfo=UTC)
    rows: list[Occurrence] = [(event_id, noon, source, True) for event_id in EVENT_IDS for source in SOURCES]
    rows += [("7", noon, "web", None), ("7", noon, "web", False)]
    fill([maria, host], rows)
    counted, problems, totals, _ = compare(maria, host, "Europe/Berlin", [DAY])
    assert totals == {DAY: len(rows)}
    allowed = [e for e in EVENT_IDS if e is not None and obeys(EVENT_ID, e)]
    assert len(allowed) == 5
    assert len(counted[DAY]) == 5 * 3 + 1
    assert {problem.violation.field: problem.rows for problem in problems[DAY]} == {
        "event_id": (len(EVENT_IDS) - 5) * len(SOURCES),
        "source": 5 * sum(not obeys(SOURCE, source) for source in SOURCES),
        "turned_on": 1,
    }
    assert "canary" not in repr((counted, problems))


occurrences = st.lists(
    st.tuples(
        st.sampled_from(EVENT_IDS),
        st.sampled_from(instants("Europe/Berlin", span(date(2026, 3, 27), date(2026, 3, 31)))),
        st.sampled_from(SOURCES),
        st.sampled_from([True, False, None]),
    ),
    max_size=25,
)


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=occurrences)
def test_any_rows_are_counted_the_same_in_both(maria: MariaHost, host: Host, rows: list[Occurrence]) -> None:
    fill([maria, host], rows)
    days = span(date(2026, 3, 26), date(2026, 3, 31))
    _, _, totals, _ = compare(maria, host, "Europe/Berlin", days)
    assert sum(totals.values()) == len(rows)


def test_allowed_values_that_a_collation_takes_for_equal_are_not_summed_together(
    maria: MariaHost, reading: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract allows no two such values; the statement must not rely on that."""
    alike = ("a", "A", "a ", "\u00e4", "a\u0308")
    monkeypatch.setattr(mysql, "EVENT_ID", replace(EVENT_ID, pattern=".*"))
    monkeypatch.setattr(mysql, "SOURCE", replace(SOURCE, choices=alike))
    mysql.groups_query.cache_clear()
    for number, value in enumerate(alike, 1):
        maria.occur("signups", moments(DAY, "Europe/Berlin", number), event_id=value, source="a")
        maria.occur("signups", moments(DAY, "Europe/Berlin", number), event_id="a", source=value)
    try:
        with open_reader(SIGNUPS, reading) as reader:
            found = {(row["event_id"], row["source"]): row["count"] for row in reader.count(DAY).rows}
    finally:
        mysql.groups_query.cache_clear()
    counted = {pair: number for number, value in enumerate(alike, 1) for pair in ((value, "a"), ("a", value))}
    assert found == counted | {("a", "a"): 2}


# --- types


@pytest.mark.parametrize(
    ("sql_type", "given", "counted"),
    [
        ("varchar(64)", "42", "42"),
        ("varchar(64) character set latin1 collate latin1_swedish_ci", "42", "42"),
        ("varchar(64) character set utf16", "42", "42"),
        ("char(36)", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("text", "42", "42"),
        ("longtext", "42", "42"),
        ("tinyint", "42", "42"),
        ("smallint unsigned", "42", "42"),
        ("mediumint", "42", "42"),
        ("int(7) unsigned zerofill", "42", "42"),
        ("bigint", "9223372036854775807", "9223372036854775807"),
        ("bigint unsigned", "9999999999999999999", "9999999999999999999"),
        ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("bigint unsigned", "18446744073709551615", None),
        ("bigint", "-1", None),
        ("int", None, None),
        ("uuid", None, None),
        ("varchar(64) character set latin1", "é", None),
    ],
)
def test_an_id_of_any_usual_type_is_counted_canonically_or_refused(
    maria: MariaHost, reading: Settings, sql_type: str, given: str | None, counted: str | None
) -> None:
    maria.sql(f"alter table events.signups modify event_id {sql_type}")
    maria.occur("signups", moments(DAY, "Europe/Berlin", 3), event_id=given)
    with open_reader(SIGNUPS, reading) as reader:
        found = reader.count(DAY)
    if counted is None:
        assert [(problem.violation.field, problem.rows) for problem in found.problems] == [("event_id", 3)]
        assert list(found.rows) == []
        assert given is None or given not in repr(found)
    else:
        assert not found.problems
        assert [(row["event_id"], row["count"]) for row in found.rows] == [(counted, 3)]


@pytest.mark.parametrize("sql_type", ["tinyint(1)", "tinyint unsigned", "int", "bigint", "bit(8)"])
def test_a_switch_is_0_or_1_and_any_other_number_breaks_its_rule(
    maria: MariaHost, reading: Settings, sql_type: str
) -> None:
    maria.sql(f"alter table events.consent modify turned_on {sql_type}")
    for number, turned_on in ((2, 0), (3, 1), (4, 2), (5, None), (6, 100)):
        maria.occur("consent", moments(DAY, "Europe/Berlin", number), turned_on=turned_on)
    with open_reader(CONSENT, reading) as reader:
        found = reader.count(DAY)
    assert {row["event_name"]: row["count"] for row in found.rows} == {"consent_turned_off": 2, "consent_turned_on": 3}
    assert list(map(str, found.problems)) == [
        f"{DAY}: view analytics_source.consent_changes: turned_on must be true or false (15 rows)"
    ]


def test_expressions_have_the_types_that_a_view_may_have(maria: MariaHost, reading: Settings) -> None:
    maria.occur("consent", moments(DAY, "Europe/Berlin", 2), turned_on=0, source="admin")
    maria.sql(
        "create or replace view analytics_source.consent_changes as select 7 as event_id, occurred_at,"
        " cast(null as char) as source, not turned_on as turned_on from events.consent"
    )
    with open_reader(CONSENT, reading) as reader:
        (row,) = reader.count(DAY).rows
    assert (row["event_name"], row["event_id"], row["source"], row["count"]) == ("consent_turned_on", "7", None, 2)


@pytest.mark.parametrize("precision", ["", "(3)", "(6)"])
def test_a_datetime_in_utc_is_counted_if_its_name_says_so(maria: MariaHost, reading: Settings, precision: str) -> None:
    maria.sql(f"alter table events.signups modify occurred_at datetime{precision}")
    days = span(DAY, DAY + timedelta(days=2))  # the second has 23 hours
    for day in days:
        start, end = bounds(day, "Europe/Berlin")
        maria.occur("signups", [start, end - timedelta(seconds=1)])
    replace_view(maria, "event_id, occurred_at as occurred_at_utc, source")
    for expected in (days, ()):
        with open_reader(SIGNUPS, reading, expected) as reader:
            assert [[row["count"] for row in reader.count(day).rows] for day in days] == [[2]] * 3
            assert [reader.total(day) for day in days] == [2] * 3
            assert reader.outside() == []
            assert reader.warnings == []


def test_a_date_that_no_calendar_has_is_in_the_same_day_however_it_is_counted(
    maria: MariaHost, reading: Settings
) -> None:
    maria.sql("alter table events.signups modify occurred_at datetime(6); set sql_mode = 'allow_invalid_dates';"
              " insert into events.signups values ('1', '2026-02-31 12:00:00.5', 'web', '')")  # fmt: skip
    replace_view(maria, "event_id, occurred_at as occurred_at_utc, source")
    days = span(date(2026, 2, 26), date(2026, 3, 3))
    for expected in (days, ()):
        with open_reader(SIGNUPS, reading, expected) as reader:
            assert [reader.total(day) for day in days] == [0, 0, 0, 1, 0, 0]
            assert [len(reader.count(day).rows) for day in days] == [0, 0, 0, 1, 0, 0]


def test_a_datetime_of_another_zone_can_be_converted_in_the_view(maria: MariaHost, reading: Settings) -> None:
    maria.sql("alter table events.signups modify occurred_at datetime(6)")
    maria.sql("insert into events.signups values ('1', '2026-03-28 04:59:59', 'web', ''),"
              " ('1', '2026-03-28 05:00:00', 'web', '')")  # fmt: skip
    replace_view(maria, "event_id, convert_tz(occurred_at, '+06:00', '+00:00') as occurred_at_utc, source")
    with open_reader(SIGNUPS, reading) as reader:
        assert (reader.total(DAY - timedelta(days=1)), reader.total(DAY)) == (1, 1)


# --- structure


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("event_id, occurred_at, source, email", "email is an unexpected column; remove it"),
        ("event_id, occurred_at, source, true as turned_on", "turned_on is an unexpected column"),
        ("event_id, occurred_at", "source is a missing column"),
        ("event_id as event, occurred_at, source", "event_id is a missing column"),
        (
            "event_id, timestamp(occurred_at) as occurred_at, source",
            "occurred_at has type datetime; expected: timestamp or datetime in UTC (a datetime in UTC is named"
            " occurred_at_utc; convert one of another time zone in the view: convert_tz(",
        ),
        ("event_id, date(occurred_at) as occurred_at, source", "occurred_at has type date; expected: timestamp or"),
        ("event_id, occurred_at as occurred_at_utc, source", "occurred_at is a missing column"),
        ("event_id, occurred_at, now() as occurred_at_utc, source", "occurred_at_utc is an unexpected column"),
        ("event_id, occurred_at, null as source", "source has type binary; expected: char or varchar"),
        ("event_id, occurred_at, 1 as source", "source has type int; expected: char or varchar"),
        ("1.5 as event_id, occurred_at, source", "event_id has type decimal"),
        ("cast(event_id as binary) as event_id, occurred_at, source", "event_id has type varbinary"),
    ],
)
def test_a_view_of_another_shape_is_refused_before_a_row_is_read(
    maria: MariaHost, reading: Settings, columns: str, expected: str
) -> None:
    replace_view(maria, columns)
    said = refusal_of(reading)
    assert expected in said
    assert said.startswith("view analytics_source.signups: ")
    assert "corrects the view" in said


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "drop view analytics_source.signups",
            "(view) is missing or is not a view; create it with the columns event_id, occurred_at, source, and grant"
            " select on it",
        ),
        (
            "revoke select on analytics_source.signups from analytics_source_reader",
            "(view) is missing or is not a view; create it",
        ),
        (
            f"revoke all privileges, grant option from {READER}; grant insert on analytics_source.signups to {READER}",
            "(view) cannot be read; grant select on it",
        ),
        (
            "drop view analytics_source.signups; create table analytics_source.signups like events.signups",
            "(view) is missing or is not a view; create it",
        ),
        (
            "drop table events.signups",
            "(view) cannot be read: the view refers to something that is missing, or its definer lacks a right, or it"
            " uses a stored function, which hides its columns; create it again",
        ),
        (
            "create function events.f(id varchar(64)) returns int return 7;"
            " create or replace view analytics_source.signups as"
            " select events.f(event_id) as event_id, occurred_at, source from events.signups",
            "or it uses a stored function, which hides its columns; create it again",
        ),
        (
            "alter sql security invoker view analytics_source.signups as"
            " select event_id, occurred_at, source from events.signups",
            "(view) runs with the rights of the pipeline's login, which would have to read the tables; create it with"
            " sql security definer",
        ),
    ],
    ids=["missing", "not granted", "closed", "table", "broken", "function", "invoker"],
)
def test_a_view_that_cannot_be_read_is_refused(
    maria: MariaHost, reading: Settings, statement: str, expected: str
) -> None:
    maria.sql(statement)
    assert expected in refusal_of(reading)


def test_the_names_of_columns_ignore_case(maria: MariaHost, reading: Settings) -> None:
    maria.occur("signups", moments(DAY, "Europe/Berlin", 3))
    replace_view(maria, "source as Source, occurred_at as OCCURRED_AT, event_id as Event_Id")
    with open_reader(SIGNUPS, reading) as reader:
        assert [row["count"] for row in reader.count(DAY).rows] == [3]


# --- rows in no day


NO_DAY = {
    "null": "is null",
    "'0000-00-00'": "is before 1971",
    "'1970-01-01 00:00:01'": "is before 1971",
    "'2038-01-19 03:14:07'": "is later than tomorrow",
}


@pytest.mark.parametrize("type_", ["timestamp(6) null", "datetime(6)"])
@pytest.mark.parametrize(("moment", "rule"), NO_DAY.items(), ids=NO_DAY.keys())
def test_a_row_that_is_in_no_day_is_a_warning(
    maria: MariaHost, reading: Settings, moment: str, rule: str, type_: str
) -> None:
    maria.sql(f"alter table events.signups modify occurred_at {type_}")
    if type_.startswith("datetime"):
        replace_view(maria, "event_id, occurred_at as occurred_at_utc, source")
    into = "set sql_mode = '', time_zone = '+00:00'; insert into events.signups (event_id, occurred_at)"
    maria.sql(f"{into} values ('canary', {moment})")

    maria.occur("signups", moments(DAY, "Europe/Berlin", 2))
    with open_reader(SIGNUPS, reading) as reader:
        assert list(map(str, reader.outside())) == [f"view analytics_source.signups: occurred_at {rule}"]
        assert reader.total(DAY) == 2


# --- errors


FUNCTIONS = """
delimiter //
create function events.tell(value text) returns text deterministic begin
    if value like 'canary%' then signal sqlstate '45000' set message_text = value; end if;
    return value;
end//
create function events.spoil() returns text deterministic begin
    insert into events.visibility (event_id) values ('1');
    return '1';
end//
delimiter ;
grant execute on function events.tell to analytics_source_reader;
grant execute on function events.spoil to analytics_source_reader;
"""


@pytest.mark.parametrize(
    ("leaking", "named"),
    [
        ("events.tell(email)", ": error 1644"),
        ("exp(999 + length(email))", ": error 1690"),
        ("(select event_id from events.signups)", ": error 1242 (SUBQUERY_NO_1_ROW)"),
    ],
)
def test_an_error_of_the_host_does_not_bring_its_values_along(
    pipeline: Pipeline, maria: MariaHost, yesterday: date, leaking: str, named: str
) -> None:
    """MariaDB's own texts quote values, and a function of the host's operator may raise what it likes."""
    maria.sql(FUNCTIONS)
    maria.occur("signups", moments(yesterday, pipeline.settings.time_zone, 2))
    replace_view(maria, f"event_id, occurred_at, cast({leaking} as char) as source")
    with Pipeline.open(replace(pipeline.settings, source_url=url_of(maria))) as opened:
        (failure,) = failures(opened.run(["event_signups"], yesterday)).values()
        assert "reading the source of event_signups (ANALYTICS_SOURCE_URL): " in failure
        assert named in failure
        assert opened.stored("event_signups", yesterday) == {}
        assert "canary" not in failure + everything_said(opened.instance)


def test_the_reader_writes_nothing(maria: MariaHost, reading: Settings) -> None:
    maria.sql(FUNCTIONS)
    maria.occur("signups", moments(DAY, "Europe/Berlin", 1))
    replace_view(maria, "events.spoil() as event_id, occurred_at, source")
    assert "(view) cannot be read" in refusal_of(reading)
    maria.sql(f"grant insert on events.visibility to {READER}")
    with (
        mysql.connect(url_of(maria)) as database,
        database.connect() as connection,
        pytest.raises(sa.exc.DBAPIError) as refusal,
    ):
        connection.exec_driver_sql("insert into events.visibility (event_id) values ('1')")
    assert mysql.explain(refusal.value) == (DatabaseError, "error 1792")
    assert maria.sql("select count(*) from events.visibility") == "0\n"


LOGIN_REFUSED = "the server refuses the login; check user and password in the URL, and from which hosts it may log in"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"password": "canary"}, LOGIN_REFUSED),
        ({"user": "canary"}, LOGIN_REFUSED),
        ({"database": "events"}, "the login may not use the database of the URL; that is analytics_source"),
        ({"user": "root", "password": "", "database": "canary"}, "the server has no database of the name in the URL"),
    ],
)
def test_a_login_that_fails_is_said_with_its_cause(maria: MariaHost, change: dict[str, str], cause: str) -> None:
    away = Settings.from_env({"ANALYTICS_SOURCE_URL": maria.url(**change)})
    with pytest.raises(UnreachableError) as refusal, open_reader(SIGNUPS, away):
        pass
    assert str(refusal.value) == (
        f"reading the source of event_signups (ANALYTICS_SOURCE_URL): the database cannot be reached: {cause}"
    )


def test_a_locked_login_is_named(maria: MariaHost, reading: Settings) -> None:
    maria.sql(f"alter user {READER} account lock")
    with pytest.raises(UnreachableError, match="the login is locked"), open_reader(SIGNUPS, reading):
        pass


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("mysql://canary:canary@127.0.0.1:1/canary", "nobody listens at host and port of the URL"),
        ("mysql://canary:canary@canary.invalid/canary", "the host name in the URL is unknown"),
        ("mysql://canary:canary@tls-canary.invalid/canary", "the host name in the URL is unknown"),
    ],
)
def test_a_host_out_of_reach_is_said_without_its_address(url: str, cause: str) -> None:
    away = Settings.from_env({"ANALYTICS_SOURCE_URL": url})
    with pytest.raises(UnreachableError) as refusal, open_reader(SIGNUPS, away):
        pass
    assert f"the database cannot be reached: {cause}" in str(refusal.value)
    assert "canary" not in str(refusal.value)


def test_a_connection_may_need_tls(maria: MariaHost) -> None:
    maria.sql(f"alter user {READER} require ssl")
    verified = maria.tls_url(maria.server.certificate)
    for url in (verified, verified.partition("?")[0]):  # where the server offers it, it is used in any case
        with open_reader(SIGNUPS, Settings.from_env({"ANALYTICS_SOURCE_URL": url})) as reader:
            assert reader.total(DAY) == 0
    without = Settings.from_env({"ANALYTICS_SOURCE_URL": verified.replace("ssl_ca", "ssl_disabled")})
    with pytest.raises(UnreachableError, match="the server refuses the login"), open_reader(SIGNUPS, without):
        pass


@pytest.mark.parametrize("authority", ["/nowhere/canary.pem", __file__, DEFAULT_CA_BUNDLE_PATH])
def test_tls_that_fails_is_named(maria: MariaHost, authority: str) -> None:
    """The file is missing, is no certificate, or is one of others."""
    away = Settings.from_env({"ANALYTICS_SOURCE_URL": maria.tls_url(authority)})
    with pytest.raises(UnreachableError, match="TLS fails; check ssl_ca") as refusal, open_reader(SIGNUPS, away):
        pass
    assert "canary" not in str(refusal.value)


def test_a_certificate_of_another_name_is_named(maria: MariaHost) -> None:
    away = Settings.from_env({"ANALYTICS_SOURCE_URL": maria.tls_url(maria.server.certificate, host="localhost")})
    with pytest.raises(UnreachableError, match="the name in the server's certificate"), open_reader(SIGNUPS, away):
        pass


def test_a_connection_that_is_killed_can_be_tried_again(maria: MariaHost, reading: Settings) -> None:
    kill = "select concat('kill ', id, ';') from information_schema.processlist where user = 'analytics_source_reader'"
    with open_reader(SIGNUPS, reading) as reader:
        assert reader.total(DAY) == 0
        maria.sql(maria.sql(kill))
        with suppress(UnreachableError):  # unless it has rested so long that it was tried
            assert reader.total(DAY) == 0
        assert reader.total(DAY) == 0
    with mysql.connect(url_of(maria)) as database, database.connect() as connection:
        connection.exec_driver_sql("select 1")
        maria.sql(maria.sql(kill))
        with pytest.raises(sa.exc.DBAPIError) as refusal:
            connection.exec_driver_sql("select 1")
        assert mysql.explain(refusal.value) == (
            UnreachableError,
            "the database cannot be reached: it closed the connection",
        )


# --- the login


LOGIN = "nosy"


@pytest.fixture
def nosy(maria: MariaHost) -> Iterator[str]:
    """URL of a login that may read the views; what a test grants it concerns no other test."""
    maria.sql(f"create user {LOGIN} identified by '{PASSWORD}'; create role crowd")
    for view in ("signups", "profile_visibility_changes", "consent_changes"):
        maria.sql(f"grant select on analytics_source.{view} to {LOGIN}")
    yield maria.url(LOGIN)
    maria.sql(f"drop user {LOGIN}; drop role crowd; drop role if exists crowd2; drop database if exists test")
    maria.sql("delete from mysql.db where user = ''; flush privileges")


def check(pipeline: Pipeline, url: str) -> dg.AssetCheckEvaluation:
    """Execute the three checks by themselves, as the UI does; they agree."""
    there = replace(pipeline.settings, source_url=source_url(url, "ANALYTICS_SOURCE_URL"))
    found = run_checks(replace(pipeline, settings=there), dg.AssetSelection.checks(login_checks))
    evaluations = found.get_asset_check_evaluations()
    assert {e.check_name for e in evaluations} == {ONLY_VIEWS}
    assert len({(e.passed, e.description) for e in evaluations}) == 1
    return evaluations[0]


EXCESSES = {
    "everything": (f"grant all privileges on *.* to {LOGIN}", "everything on the server (all privileges)"),
    "every table": (f"grant select on *.* to {LOGIN}", "everything on the server (select)"),
    "files": (f"grant file on *.* to {LOGIN}", "everything on the server (file)"),
    "other people's statements": (f"grant process on *.* to {LOGIN}", "everything on the server (process)"),
    "a database": (f"grant select on events.* to {LOGIN}", "events.* (select)"),
    "whatever is added": (f"grant select on analytics_source.* to {LOGIN}", "analytics_source.* (select)"),
    "a table": (f"grant select, insert on events.signups to {LOGIN}", "events.signups (select)"),
    "a column": (
        f"grant select (email), insert (source) on events.signups to {LOGIN}",
        "events.signups (select (`email`))",
    ),
    "a strange name": (
        f"create table events.`a``b c` (email text); grant select on events.`a``b c` to {LOGIN}",
        "events.ab c (select)",
    ),
    "a table for PUBLIC": ("grant select on events.signups to public", "events.signups (select)"),
    "a role": (
        f"grant select on events.consent to crowd; grant crowd to {LOGIN}",
        "everything that `crowd` may do",
    ),
    "a default role": (
        f"grant select on events.consent to crowd; grant crowd to {LOGIN}; set default role crowd for {LOGIN}",
        "everything that `crowd` may do",
    ),
    "a role of a role": (
        "create or replace role crowd2; grant select on events.consent to crowd2; grant crowd2 to crowd;"
        f" grant crowd to {LOGIN}; set default role crowd for {LOGIN}",
        "everything that `crowd` may do",
    ),
    "another account": (
        f"grant proxy on root@localhost to {LOGIN}",
        "everything that `root`@`localhost` may do",
    ),
    "a function": (
        f"{FUNCTIONS} grant execute on function events.tell to {LOGIN}",
        "function events.tell (execute)",
    ),
    "a view beside ours": (
        "create view analytics_source.emails as select email from events.signups;"
        " grant select on analytics_source.emails to nosy",
        "analytics_source.emails (select)",
    ),
}


@pytest.mark.parametrize(("grant", "what"), EXCESSES.values(), ids=list(EXCESSES))
def test_what_it_could_read_is_found_and_the_sql_in_it_ends_that(
    maria: MariaHost, nosy: str, grant: str, what: str
) -> None:
    assert excess_of(nosy) == []
    maria.sql(grant)
    (found,) = excess_of(nosy)
    assert found.what == what
    maria.sql(found.recovery)
    assert excess_of(nosy) == []


def test_a_role_is_named_before_what_it_may_do() -> None:
    """As MySQL 9.7 lists the rights of a login with a default role."""
    usage, right, role = (
        "GRANT USAGE ON *.* TO `nosy`@`%`",
        "GRANT SELECT ON `events`.`consent` TO `nosy`@`%`",
        "GRANT `crowd`@`%` TO `nosy`@`%`",
    )
    found = [str(excess) for line in mysql._roles_first([usage, right, role]) for excess, _ in mysql._excess_of(line)]
    assert found == [
        "everything that `crowd`@`%` may do: revoke `crowd`@`%` from `nosy`@`%`;",
        "events.consent (select): revoke select on `events`.`consent` from `nosy`@`%`;",
    ]


def excess_of(url: str) -> list[Excess]:
    with open_catalog(source_url(url, "ANALYTICS_SOURCE_URL")) as (host, connection):
        return host.find_excess_rights(connection)


def test_what_it_could_read_fails_the_check(pipeline: Pipeline, maria: MariaHost, nosy: str) -> None:
    assert check(pipeline, nosy).passed
    maria.sql(f"grant select on events.* to {LOGIN}")
    found = check(pipeline, nosy)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert (found.description or "").startswith("- events.* (select): revoke select on `events`.* from `nosy`@`%`;\n")


def test_a_right_of_everybody_is_found_though_no_grant_of_the_login_tells(maria: MariaHost, nosy: str) -> None:
    maria.sql("create database test; create table test.leftover (email text)")
    maria.sql("insert into mysql.db (host, db, user, select_priv) values ('%', 'test', '', 'Y'); flush privileges")
    assert list(map(str, excess_of(nosy))) == [
        "test.leftover: revoke what mysql.db gives everybody (its user is empty)."
    ]


def test_a_column_too_many_in_a_view_is_found(maria: MariaHost, nosy: str) -> None:
    replace_view(maria, "event_id, occurred_at, source, email")
    assert list(map(str, excess_of(nosy))) == [
        "analytics_source.signups.email: create the view again with only event_id, occurred_at, source."
    ]


def test_what_it_can_have_without_reading_is_no_finding(maria: MariaHost, nosy: str) -> None:
    maria.sql(f"grant insert, delete on events.signups to {LOGIN}; grant show databases on *.* to {LOGIN};"
              f" grant lock tables on events.* to {LOGIN} with grant option")  # fmt: skip
    assert excess_of(nosy) == []


def test_a_line_that_is_not_understood_is_a_finding_and_not_shown() -> None:
    (found,) = [excess for excess, _ in mysql._excess_of("BESTOW canary UPON `r`@`%` IDENTIFIED BY 'canary'")]
    assert str(found) == "something by a right that is not known: see `show grants`, and revoke it."


def test_the_warning_is_in_the_log_of_the_run(maria: MariaHost, nosy: str) -> None:
    maria.sql(f"grant select on events.signups to {LOGIN}")
    with open_reader(SIGNUPS, Settings.from_env({"ANALYTICS_SOURCE_URL": nosy})) as reader:
        (warning,) = reader.warnings
    assert "can read more than the source views: events.signups (select); revoke that" in warning


# --- the whole way


def test_the_metrics_are_collected_by_the_real_definitions(
    pipeline: Pipeline, maria: MariaHost, yesterday: date
) -> None:
    zone, before = pipeline.settings.time_zone, yesterday - timedelta(days=1)
    for day, number in ((before, 3), (yesterday, 4)):
        maria.occur("signups", [*moments(day, zone, number), last_moment(day, zone)])
        maria.occur("visibility", moments(day, zone, number), event_id=None if day == before else "2", source=None)
        maria.occur("consent", moments(day, zone, number), turned_on=1)
        maria.occur("consent", moments(day, zone, 2), turned_on=0, source="admin")
    with Pipeline.open(replace(pipeline.settings, source_url=url_of(maria))) as opened:
        result = opened.run(FED_BY_VIEWS, before, yesterday)
        (failure,) = failures(result).values()
        assert f"{before}: the source breaks the contract" in failure
        red = gate(opened, result, "profile_visibility_toggles")
        assert f"{before}: view analytics_source.profile_visibility_changes: event_id must be" in str(red.description)
        for day, number in ((before, 3), (yesterday, 4)):
            assert opened.stored("event_signups", day) == {("event_signup", "1", "web"): number + 1}
            assert opened.stored("consent_changes", day) == {
                ("consent_turned_on", "1", "web"): number,
                ("consent_turned_off", "1", "admin"): 2,
            }
        assert opened.stored("profile_visibility_toggles", yesterday) == {("profile_visibility_toggled", "2", None): 4}
        assert opened.materialized("profile_visibility_toggles") == {yesterday}
        passed = {(e.asset_key.path[-1], e.check_name): e.passed for e in result.get_asset_check_evaluations()}
        assert passed["event_signups", "counts_match_source"]
        assert passed["consent_changes", "counts_match_source"]
        assert "canary" not in everything_said(opened.instance)


def test_the_views_are_shown_as_what_they_are(pipeline: Pipeline, maria: MariaHost) -> None:
    definitions = build_definitions(replace(pipeline.settings, source_url=url_of(maria)))
    spec = definitions.resolve_asset_graph().get(dg.AssetKey(["analytics_source", "signups"])).to_asset_spec()
    assert spec.kinds == {"mysql", "view"}
    types = {column.name: column.type for column in spec.metadata["dagster/column_schema"].columns}
    assert types["occurred_at"] == "timestamp or datetime in UTC"


# --- the command line


def invoke(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, env={"ANALYTICS_SOURCE_URL": "", **environment})
    return result.exit_code, result.output


def test_sources_says_what_is_wrong_with_the_views(maria: MariaHost, tmp_path: Path) -> None:
    environment = {"ANALYTICS_SOURCE_URL": maria.reader_url, "ANALYTICS_DUMP_DIR": str(tmp_path)}
    code, output = invoke("sources", **environment)
    assert (code, output.splitlines()[:4]) == (
        0,
        [
            "Source views: analytics_source on localhost",
            "event_signups: ok",
            "profile_visibility_toggles: ok",
            "consent_changes: ok",
        ],
    )
    replace_view(maria, "event_id, occurred_at, source, email")
    maria.sql(f"grant select on events.consent to {READER}; drop view analytics_source.consent_changes")
    code, output = invoke("sources", **environment)
    assert code == 1
    assert "  view analytics_source.signups: email is an unexpected column; remove it from the view\n" in output
    assert "  view analytics_source.consent_changes: (view) is missing or is not a view; create it with" in output
    assert "warning: the login of ANALYTICS_SOURCE_URL can read more than the source views: events.consent" in output
    assert "2 problem(s)" in output


APPLICATION = """
drop database analytics_source; drop database events; create database events; use events;
create table meetups (id int primary key, title text);
create table `group` (id int primary key, meetup_id int not null, foreign key (meetup_id) references meetups (id));
create table signups (id int, meetup_id int not null, created_at timestamp not null, channel varchar(9), extra text,
    foreign key (meetup_id) references meetups (id));
create table visibility_changes (id int, group_id int, changed_at timestamp null,
    foreign key (group_id) references `group` (id));
create table consent_changes (id int, meetup_id int, changed_at datetime, withdrawn tinyint(1), payload json);
insert into meetups values (1, 'canary');
"""


def test_a_draft_is_sql_that_the_operator_can_run(maria: MariaHost) -> None:
    maria.sql(APPLICATION)
    code, output = invoke("sources", "--draft", "--operator-url", maria.url("root", "", "events"))
    assert code == 0
    maria.sql(output)
    with open_catalog(url_of(maria).replace(READER, "root").replace(f":{PASSWORD}", "")) as (host, connection):
        problems = {view.name: find_view_problems(host, connection, view) for view in SOURCE_VIEWS}
    missing = "view analytics_source.consent_changes: (view) is missing"
    assert [str(found).startswith(missing) for found in problems.pop("consent_changes")] == [True]
    assert problems == {"signups": [], "profile_visibility_changes": []}
    assert "t.created_at as occurred_at" in output
    assert "from events.signups t" in output
    assert "channel (varchar)" in output
    assert "join events.`group` p on p.id = t.group_id" in output
    assert "not known: in which time zone the application writes changed_at, which has none; if it is UTC," in output
    assert "--     convert_tz(t.changed_at, '...', '+00:00') as occurred_at_utc" in output
    assert "--     not t.withdrawn as turned_on" in output
    assert "canary" not in output


def test_the_grants_give_a_login_that_reads_the_views_and_nothing_else(maria: MariaHost) -> None:
    maria.sql(f"grant select on events.* to {READER}; grant file on *.* to {READER}")  # by hand, once
    code, output = invoke("grants", "host", "--kind", "mysql")
    assert code == 0
    for _ in range(2):  # it may be run again
        maria.sql(output)
    views = (
        "use analytics_source; select count(*) from signups; select count(*) from profile_visibility_changes;"
        " select count(*) from consent_changes"
    )
    assert maria.sql(views, READER, PASSWORD) == "0\n0\n0\n"
    refused = client(maria.server, "select count(*) from events.signups", READER, PASSWORD, check=False)
    assert "denied" in refused.stderr
    assert set(maria.sql("show databases", READER, PASSWORD).split()) <= {"analytics_source", "information_schema"}
    assert len(maria.sql("show grants", READER, PASSWORD).splitlines()) == 4


def test_the_grants_make_a_login_that_is_closed_until_it_has_a_password(maria: MariaHost) -> None:
    maria.sql(f"drop user {READER}")
    maria.sql(invoke("grants", "host", ANALYTICS_SOURCE_URL=maria.reader_url)[1])
    closed = Settings.from_env({"ANALYTICS_SOURCE_URL": maria.url(password="")})
    with pytest.raises(UnreachableError, match="the login is locked"), open_reader(SIGNUPS, closed):
        pass


def test_the_kind_of_the_grants_is_that_of_the_url_unless_it_is_given(maria: MariaHost) -> None:
    both = {kind: host.GRANTS for kind, host in HOSTS.items()}
    assert invoke("grants", "host")[1] == both["postgresql"]
    assert invoke("grants", "host", ANALYTICS_SOURCE_URL=maria.reader_url)[1] == both["mysql"]
    given = invoke("grants", "host", "--kind", "postgresql", ANALYTICS_SOURCE_URL=maria.reader_url)
    assert given[1] == both["postgresql"]


def test_the_host_of_a_url_is_found_by_its_backend(maria: MariaHost, host: Host) -> None:
    assert find_host(url_of(maria)) is HOSTS["mysql"]
    assert find_host(host.reader_url) is HOSTS["postgresql"]
    assert find_host(None) is HOSTS["postgresql"]


# --- the statement


def test_days_in_a_row_are_one_statement_and_a_day_uses_the_index(maria: MariaHost, reading: Settings) -> None:
    days = span(DAY, DAY + timedelta(days=4))
    for day in days:
        maria.occur("signups", moments(day, "Europe/Berlin", 50))
    maria.sql("create index by_moment on events.signups (occurred_at); analyze table events.signups")
    sent: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        if "FROM analytics_source." in statement:
            sent.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        with open_reader(SIGNUPS, reading, days) as reader:
            assert [sum(row["count"] for row in reader.count(day).rows) for day in days] == [50] * 5
        assert len(sent) == 2  # the first day says how many may be read together
        with open_reader(SIGNUPS, reading, [days[0], days[2]]) as reader:
            assert [reader.total(day) for day in (days[0], days[2])] == [50, 50]
        assert len(sent) == 4
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    for statement, parameters in sent[2:]:
        plan = maria.connection.exec_driver_sql(f"explain {statement}", parameters)
        assert "by_moment" in {row.key for row in plan}


def test_a_day_that_cannot_be_read_costs_no_other_of_its_chunk(maria: MariaHost, reading: Settings) -> None:
    maria.sql(FUNCTIONS)
    replace_view(maria, "events.tell(event_id) as event_id, occurred_at, source")
    days = span(DAY, DAY + timedelta(days=3))
    for day in days:
        maria.occur("signups", moments(day, "Europe/Berlin", 2))
    maria.occur("signups", moments(days[2], "Europe/Berlin", 1), event_id="canary")
    with open_reader(SIGNUPS, reading, days) as reader:
        for day in days:
            if day == days[2]:
                with pytest.raises(DatabaseError) as refusal:
                    reader.count(day)
                assert "canary" not in str(refusal.value)
            else:
                assert [row["count"] for row in reader.count(day).rows] == [2]


# --- the documentation


def test_the_sql_of_the_page_makes_views_that_are_counted(maria: MariaHost, reading: Settings) -> None:
    page = (ROOT / "docs/host-databases.md").read_text(encoding="utf-8")
    views, unlock = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    maria.sql(f"drop database analytics_source; drop database events; drop user {READER}; create database events")
    maria.sql(
        "use events; create table signups (event_id binary(16), created_at timestamp(6) null);"
        " create table profile_visibility_changes (event_id int, changed_at datetime(6));"
        " create table consent_changes (event_id int, changed_at timestamp, given boolean);"
    )
    # A table of the page has a DATETIME here.
    before, after = views.split("profile_visibility_changes as", 1)
    maria.sql(f"{before}profile_visibility_changes as{after.replace('as occurred_at,', 'as occurred_at_utc,', 1)}")
    replace_view(maria, "cast(event_id as uuid) as event_id, created_at as occurred_at, 'web' as source")
    maria.sql(invoke("grants", "host", "--kind", "mysql")[1] + unlock.replace("'...'", f"'{PASSWORD}'"))
    maria.sql("insert into events.signups values (unhex('A0EEBC999C0B4EF8BB6D6BB9BD380A11'), '2026-03-28 12:00:00')")
    found: list[Row] = []
    for each in FED_BY_VIEWS:
        with open_reader(metric(each), reading) as reader:
            found += reader.count(DAY).rows
    assert [row["event_id"] for row in found] == ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]
