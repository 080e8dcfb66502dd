"""The demonstration application in a real PostgreSQL: its views, its days, and what a second start does."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import sqlalchemy as sa
from starlette.routing import Route

from analytics_assets import contract, guard
from analytics_assets.days import bounds
from analytics_assets.demo.activity import (
    CROWDS,
    ERROR_SPIKE_CYCLE,
    OPENING_CYCLE,
    PROCESSES,
    _move_dumps,
    create_demo_app,
    missing_days,
    record_activity,
)
from analytics_assets.demo.app import build_app
from analytics_assets.demo.directory import (
    EVENTS,
    Browser,
    MemoryDirectory,
    insert,
    profile_row,
    utc_now,
)
from analytics_assets.publication.friction import daily_matrix, error_spikes, spikes
from analytics_assets.telemetry import Telemetry

ZONE = "Europe/Berlin"
DIRECTORY = "GET /events/{event_id}/directory"
SEARCH = "GET /events/{event_id}/directory/search"
SIGNUP = "POST /events/{event_id}/signup"
ORGANIZER = "GET /organizer/events/{event_id}/signups"
WINDOW = [date(2026, 9, 30) - timedelta(days=ago) for ago in reversed(range(200))]
VIEWS = {m.origin.name: m.origin.columns for m in contract.METRICS if isinstance(m.origin, contract.SourceView)}
DUMPED = {
    name: m.dump_fields
    for m in contract.METRICS
    if isinstance(m.origin, contract.CounterDumps)
    for name in m.event_names
}
PERSON = {"name": "canary at noon", "email": "canary@example.org"}
TIME_COLUMN = {
    "profiles": "created_at",
    "signups": "created_at",
    "profile_visibility_changes": "changed_at",
    "consent_changes": "changed_at",
}

Line = dict[str, Any]


class Demo(NamedTuple):
    connection: sa.Connection
    dump_dir: Path

    def record(self, *days: date) -> list[date]:
        """Record the days; returns those that were written."""
        written: list[date] = []
        record_activity(self.connection, self.dump_dir, days, ZONE, written.append)
        return written

    def rows(self, table: str, day: date) -> list[sa.RowMapping]:
        at: sa.ColumnClause[datetime] = sa.column(TIME_COLUMN[table])
        start, end = bounds(day, ZONE)
        select = sa.select(sa.text("*")).select_from(sa.table(table)).where(at >= start, at < end)
        return list(self.connection.execute(select).mappings())

    def lines(self, day: date) -> list[Line]:
        """Lines of all dumps of the day, without the blank ones."""
        files = (self.dump_dir / day.isoformat()).iterdir()
        return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]

    def activity(self, day: date) -> tuple[Counter[str], Counter[str]]:
        """The day's rows without the number that the database gave them, and its totals by key."""
        rows: Counter[str] = Counter()
        for table in TIME_COLUMN:
            for row in self.rows(table, day):
                rows[str({"table": table, **row, "id": None})] += 1
        totals: Counter[str] = Counter()
        for line in self.lines(day):
            totals[str({**line, "count": None})] += line["count"]
        return rows, totals

    def forget(self, day: date) -> None:
        """Take the day's rows away again, but not its dumps."""
        start, end = bounds(day, ZONE)
        for table, column in reversed(TIME_COLUMN.items()):
            at: sa.ColumnClause[datetime] = sa.column(column)
            self.connection.execute(sa.delete(sa.table(table)).where(at >= start, at < end))
        self.connection.execute(sa.text("delete from demo_days where day = :day"), {"day": day})
        self.connection.commit()

    def number_of_rows(self) -> dict[str, int]:
        select = sa.select(sa.func.count())
        return {
            table: self.connection.execute(select.select_from(sa.table(table))).scalar_one() for table in TIME_COLUMN
        }


def total(lines: list[Line], **wanted: object) -> int:
    return sum(line["count"] for line in lines if wanted.items() <= line.items())


@pytest.fixture(scope="module")
def demo(make_database: Callable[[str], sa.URL], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demonstration with every day of WINDOW; a test that writes takes days of its own outside of it."""
    engine = sa.create_engine(make_database("demo"))
    with engine.connect() as connection:
        create_demo_app(connection)
        filled = Demo(connection, tmp_path_factory.mktemp("activity") / "dumps")
        assert filled.record(*WINDOW) == WINDOW
        yield filled
    engine.dispose()


@pytest.fixture(scope="module")
def window_lines(demo: Demo) -> dict[date, list[Line]]:
    return {day: demo.lines(day) for day in WINDOW}


@pytest.fixture(scope="module")
def window_signups(demo: Demo) -> dict[date, Counter[int]]:
    """Signups by event."""
    return {day: Counter(row["event_id"] for row in demo.rows("signups", day)) for day in WINDOW}


def test_views_have_exactly_the_columns_of_the_contract(demo: Demo) -> None:
    types = {
        "event_id": "bigint",
        "occurred_at": "timestamp with time zone",
        "source": "text",
        "turned_on": "boolean",
    }
    select = sa.text(
        "select table_name, column_name, data_type from information_schema.columns"
        " where table_schema = 'analytics_source'"
    )
    assert {tuple(row) for row in demo.connection.execute(select)} == {
        (view, column, types[column]) for view, columns in VIEWS.items() for column in columns
    }


@pytest.mark.parametrize("view", VIEWS)
def test_views_show_every_event_and_source(demo: Demo, view: str) -> None:
    select = sa.select(sa.text("event_id, source")).select_from(sa.table(view, schema="analytics_source"))
    rows = demo.connection.execute(select).all()
    assert {event_id for event_id, _ in rows} == {event.id for event in EVENTS}
    assert {source for _, source in rows} == ({"web", "admin", None} if view == "signups" else {"web", "admin"})


def test_consent_is_given_more_often_than_withdrawn(demo: Demo) -> None:
    select = sa.text("select turned_on, count(*) from analytics_source.consent_changes group by turned_on")
    (_, off), (_, on) = sorted(tuple(row) for row in demo.connection.execute(select))
    assert on > off > 0


def test_every_personal_value_says_canary(demo: Demo) -> None:
    """In the tables about people every text is personal, but for the channel of a signup."""
    personal: list[tuple[str, sa.ColumnClause[str]]] = [
        (table, sa.column(column["name"]))
        for table in TIME_COLUMN
        for column in sa.inspect(demo.connection).get_columns(table)
        if isinstance(column["type"], sa.Text) and column["name"] != "channel"
    ]
    assert len(personal) == 11
    for table, column in personal:
        without = column.not_like("%canary%") | column.is_(None)
        select = sa.select(sa.func.count(), sa.func.count().filter(without)).select_from(sa.table(table))
        rows, rows_without = demo.connection.execute(select).one()
        assert rows > 0
        assert rows_without == 0, f"{table}.{column.name}"


def test_busy_days_have_rows_on_both_sides_of_midnight(demo: Demo, window_signups: dict[date, Counter[int]]) -> None:
    busy_days = [day for day in WINDOW if window_signups[day].total() >= 20]
    assert len(busy_days) > 180
    for day in busy_days:
        start, end = bounds(day, ZONE)
        for view in VIEWS:
            at = Counter(row[TIME_COLUMN[view]] for row in demo.rows(view, day))
            assert at[start] >= 2
            assert at[end - timedelta(microseconds=1)] >= 2


@pytest.mark.parametrize(
    ("day", "start", "end"),
    [
        (date(2027, 3, 28), "2027-03-27T23:00Z", "2027-03-28T22:00Z"),
        (date(2027, 6, 1), "2027-05-31T22:00Z", "2027-06-01T22:00Z"),
        (date(2027, 10, 31), "2027-10-30T22:00Z", "2027-10-31T23:00Z"),
    ],
    ids=["23 hours", "24 hours", "25 hours"],
)
def test_every_row_lies_within_the_local_day(demo: Demo, day: date, start: str, end: str) -> None:
    before = demo.number_of_rows()
    demo.record(day)
    for table, number in demo.number_of_rows().items():
        times = [row[TIME_COLUMN[table]] for row in demo.rows(table, day)]
        assert len(times) == number - before[table] > 0
        assert min(times) == datetime.fromisoformat(start)
        assert max(times) == datetime.fromisoformat(end) - timedelta(microseconds=1)


def test_dumps_obey_the_contract(window_lines: dict[date, list[Line]]) -> None:
    for day, lines in window_lines.items():
        assert {line["event_name"] for line in lines} == set(DUMPED)
        assert {line["event_date"] for line in lines} == {day.isoformat()}
        for line in lines:
            assert not guard.row_violations(line, DUMPED[line["event_name"]], tuple(DUMPED))


def test_responses_agree_with_what_was_looked_at(window_lines: dict[date, list[Line]]) -> None:
    for lines in window_lines.values():
        views = {source: total(lines, event_name="directory_page_viewed", source=source) for source in ("web", "admin")}
        assert views["web"] == total(lines, endpoint=DIRECTORY, status_code=200)
        assert views["admin"] == total(lines, endpoint=ORGANIZER, status_code=200)
        assert total(lines, event_name="directory_searched") == total(lines, endpoint=SEARCH, status_code=200)
        assert total(lines, endpoint="(unmatched)", status_code=404) > 0
        assert total(lines, endpoint="GET /events/{event_id}", status_code=404) > 0


def test_responses_agree_with_the_rows(demo: Demo, window_lines: dict[date, list[Line]]) -> None:
    refused = 0
    for day, lines in window_lines.items():
        channels = Counter(row["channel"] for row in demo.rows("signups", day))
        assert channels["site"] == total(lines, endpoint=SIGNUP, status_code=303)
        assert channels["organizer"] == total(lines, endpoint=ORGANIZER.replace("GET", "POST"), status_code=303)
        refused += total(lines, endpoint=SIGNUP, status_code=422)
    assert refused > len(WINDOW)


def test_nothing_of_anybody_gets_into_the_dumps(demo: Demo) -> None:
    dumps = [dump.read_text() for dump in demo.dump_dir.glob("*/*")]
    assert len(dumps) > len(WINDOW)
    assert not [text for text in dumps if "canary" in text]


def test_an_endpoint_is_a_template_of_the_application(window_lines: dict[date, list[Line]]) -> None:
    endpoints = {line["endpoint"] for lines in window_lines.values() for line in lines if "endpoint" in line}
    templates = {f"{method} {route.path_format}" for route in _routes() for method in route.methods or ()}
    assert endpoints <= templates | {"(unmatched)"}
    assert len(endpoints) > 10


def _routes() -> list[Route]:
    directory = MemoryDirectory(utc_now, 1)
    return [route for route in build_app(directory, Telemetry("unused")).routes if isinstance(route, Route)]


def test_a_day_has_one_to_three_processes(demo: Demo) -> None:
    numbers = Counter(len([*(demo.dump_dir / str(day)).iterdir()]) for day in WINDOW)
    assert set(numbers) == set(range(1, PROCESSES + 1))


def test_two_or_three_days_have_an_error_spike(window_lines: dict[date, list[Line]]) -> None:
    errors = [total(lines, endpoint=SEARCH, status_code=500) for lines in window_lines.values()]
    assert sum(n >= 50 for n in errors) in (2, 3)
    assert sum(0 < n < 50 for n in errors) == 0


def test_weekends_and_holidays_are_quieter(window_signups: dict[date, Counter[int]]) -> None:
    working = [n.total() for day, n in window_signups.items() if day.weekday() < 5]
    weekend = [n.total() for day, n in window_signups.items() if day.weekday() >= 5]
    assert sum(weekend) / len(weekend) < 0.6 * sum(working) / len(working)
    assert sum(n.total() < 15 for n in window_signups.values()) in (4, 5)


def test_signup_opens_with_a_burst(window_signups: dict[date, Counter[int]]) -> None:
    for crowd in CROWDS:
        if crowd.opens_on is not None:
            assert max(n[crowd.event_id] for n in window_signups.values()) > 3 * crowd.usual_signups


def test_two_events_have_nothing_for_weeks(
    window_signups: dict[date, Counter[int]], window_lines: dict[date, list[Line]]
) -> None:
    silent_for_weeks = set()
    for crowd in CROWDS:
        event_id = crowd.event_id
        active = [
            window_signups[day][event_id] + total(window_lines[day], event_id=str(event_id)) > 0 for day in WINDOW
        ]
        assert any(active)
        if max((len([*days]) for is_active, days in groupby(active) if not is_active), default=0) >= 21:
            silent_for_weeks.add(crowd)
    assert silent_for_weeks == {crowd for crowd in CROWDS if crowd.quiet}


def matrix(counts: list[tuple[date, str, int]]) -> pd.DataFrame:
    frame = pd.DataFrame(counts, columns=["event_date", "series", "count"])
    return daily_matrix(frame, WINDOW, WINDOW, sorted(set(frame["series"])))


def test_friction_finds_where_signup_opens_and_no_quiet_week(window_signups: dict[date, Counter[int]]) -> None:
    counts = [(day, str(event), count) for day, of_day in window_signups.items() for event, count in of_day.items()]
    judged = WINDOW[56:]
    found = {(f.series, f.day) for f in spikes(matrix(counts), "event_signup", judged)}
    openings = {
        (str(crowd.event_id), day)
        for crowd in CROWDS
        for day in judged
        if crowd.opens_on is not None and (day.toordinal() - crowd.opens_on) % OPENING_CYCLE == 0
    }
    assert len(openings) > 8
    assert openings <= found
    # The two days after an opening are high, too; nothing else is.
    assert found <= {(event, day + timedelta(days=n)) for event, day in openings for n in range(3)}
    assert not {str(crowd.event_id) for crowd in CROWDS if crowd.quiet} & {event for event, _ in found}


def test_friction_finds_the_outage_and_nothing_else(window_lines: dict[date, list[Line]]) -> None:
    responses = [
        (day, line["endpoint"], line["count"], line["status_code"])
        for day, lines in window_lines.items()
        for line in lines
        if "endpoint" in line
    ]
    requests = matrix([(day, endpoint, count) for day, endpoint, count, _ in responses])
    errors = matrix([(day, endpoint, count if status >= 400 else 0) for day, endpoint, count, status in responses])
    judged = WINDOW[56:]
    outages = {(SEARCH, day) for day in judged if day.toordinal() % ERROR_SPIKE_CYCLE == 0}
    assert outages
    assert {(f.series, f.day) for f in error_spikes(errors, requests, "http_response", judged)} == outages


def test_the_same_date_brings_the_same_activity_in_any_order(demo: Demo) -> None:
    one, other = date(2027, 4, 6), date(2027, 4, 7)
    assert demo.record(one, other) == [one, other]
    first = [demo.activity(day) for day in (one, other)]
    for day in (one, other):
        demo.forget(day)
    assert demo.record(other, one) == [other, one]
    assert [demo.activity(day) for day in (one, other)] == first
    assert first[0] != first[1]


def test_a_second_start_fills_only_what_is_missing(demo: Demo) -> None:
    there, missing = date(2027, 5, 4), date(2027, 5, 5)
    demo.record(there)
    before = demo.activity(there)
    create_demo_app(demo.connection)
    assert missing_days(demo.connection, [missing, there]) == [missing]
    assert demo.record(there, missing) == [missing]
    assert demo.record(there, missing) == []
    assert demo.activity(there) == before


def test_a_day_that_was_interrupted_is_written_again_whole(demo: Demo) -> None:
    day = date(2027, 7, 6)
    demo.connection.execute(sa.text("alter table consent_changes rename to out_of_reach"))
    demo.connection.commit()
    with pytest.raises(sa.exc.ProgrammingError):
        demo.record(day)
    demo.connection.rollback()
    demo.connection.execute(sa.text("alter table out_of_reach rename to consent_changes"))
    demo.connection.commit()
    assert demo.lines(day), "the dumps came first"
    assert missing_days(demo.connection, [day]) == [day]
    assert demo.rows("signups", day) == []

    demo.record(day)
    repaired = demo.activity(day)
    demo.forget(day)
    demo.record(day)
    assert repaired == demo.activity(day)
    assert repaired[0].total() > 100


def test_what_the_running_application_counted_and_stored_on_the_day_stays(demo: Demo) -> None:
    day, alike = date(2027, 8, 3), date(2027, 8, 4)
    noon = bounds(day, ZONE)[0] + timedelta(hours=12)
    with Telemetry(demo.dump_dir, source="web", time_zone=ZONE, clock=noon.timestamp) as telemetry:
        telemetry.count("directory_page_viewed", event_id=999, times=7)
    insert(demo.connection, "profiles", [profile_row(5, PERSON, Browser("canary", "canary"), noon)])
    demo.connection.commit()

    demo.record(day, alike)
    assert [row["id"] for row in demo.rows("profiles", day) if row["name"] == PERSON["name"]] == [5]
    assert total(demo.lines(day), event_id="999") == 7
    assert len(demo.lines(day)) > 20
    demo.forget(day)
    demo.record(day)
    assert total(demo.lines(day), event_id="999") == 7


def test_dumps_of_an_earlier_attempt_go_also_those_of_more_processes(tmp_path: Path) -> None:
    names = set()
    for attempt, processes in enumerate((3, 1, 2)):
        staging, folder = tmp_path / "staging", tmp_path / "2027-09-01"
        for process in range(processes):
            (staging / str(process) / folder.name).mkdir(parents=True)
            (staging / str(process) / folder.name / f"{process:032}.ndjson").write_text(str(attempt))
        _move_dumps(staging, folder)
        shutil.rmtree(staging)
        assert [dump.read_text() for dump in folder.iterdir()] == [str(attempt)] * processes
        names |= {dump.name for dump in folder.iterdir()}
    assert len(names) == PROCESSES


def test_nothing_is_left_beside_the_dumps(demo: Demo) -> None:
    assert [path.name for path in demo.dump_dir.parent.iterdir()] == [demo.dump_dir.name]
    assert all(re.fullmatch(contract.DUMP_FILE_PATTERN, dump.name) for dump in demo.dump_dir.glob("*/*"))
