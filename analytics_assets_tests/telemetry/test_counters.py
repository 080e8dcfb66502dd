"""Telemetry as the web application sees it: keys, days, refusals, drops, threads, forks.

test_trouble covers disks, folders and threads that make trouble; test_crash covers kills.
"""

import asyncio
import contextvars
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfoNotFoundError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_assets.contract import MAX_COUNT, METHODS, METRICS, OTHER, OVERFLOW, UNMATCHED, SourceView
from analytics_assets.telemetry import Telemetry, TelemetryError, counters, do_not_count
from analytics_assets_tests.support.telemetry import NOON, Clock, by_day, drops, rows, totals

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True, timeout=300
    ).stdout


def test_rows_of_both_kinds_in_the_order_of_the_contract(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count_response("GET", "/events/{event_id}", 404, times=3)
        telemetry.count("directory_page_viewed", source="web", event_id="42")
        telemetry.count("directory_searched", event_id="42")
        telemetry.count("directory_searched", event_id="42")
    assert [list(row.items()) for row in rows(tmp_path)] == [
        [
            ("event_date", "2026-11-22"),
            ("event_name", "http_response"),
            ("endpoint", "GET /events/{event_id}"),
            ("status_code", 404),
            ("count", 3),
        ],
        [
            ("event_date", "2026-11-22"),
            ("event_name", "directory_page_viewed"),
            ("event_id", "42"),
            ("source", "web"),
            ("count", 1),
        ],
        [("event_date", "2026-11-22"), ("event_name", "directory_searched"), ("event_id", "42"), ("count", 2)],
    ]


def test_an_id_counts_alike_as_number_text_and_uuid(tmp_path: Path) -> None:
    text = "0b5c2c0e-6f5e-4d39-9a43-0d7a1c7c9f11"
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        for event_id in (42, "42", text, UUID(text), UUID(text.upper()), 10**19 - 1):
            telemetry.count("directory_searched", event_id=event_id)
    assert [(row["event_id"], row["count"]) for row in rows(tmp_path)] == [("42", 2), (text, 3), ("9" * 19, 1)]


CANARY = "ada@example" + ".org"
NUMBER = 31_337_000_000_000_000_000_000
WORDS = "event_name must be one that telemetry counts: directory_page_viewed, directory_searched, http_response"

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"event_name": CANARY, "event_id": 1}, WORDS),
    ({"event_name": [CANARY], "event_id": 1}, WORDS),
    ({"event_name": None}, WORDS),
    ({"event_id": None}, "directory_searches: event_id must be an integer"),
    ({"event_id": CANARY}, "directory_searches: event_id must be an integer"),
    ({"event_id": [CANARY]}, "directory_searches: event_id must be an integer"),
    ({"event_id": True}, "directory_searches: event_id must be an integer"),
    ({"event_id": 1.0}, "directory_searches: event_id must be an integer"),
    ({"event_id": -NUMBER}, "directory_searches: event_id must be an integer"),
    ({"event_id": NUMBER}, "directory_searches: event_id must be an integer"),
    ({"event_id": NUMBER**1000}, "directory_searches: event_id must be an integer"),
    ({"source": CANARY}, "directory_searches: source must be web, admin or absent"),
    ({"source": [CANARY]}, "directory_searches: source must be web, admin or absent"),
    ({"times": 0}, "directory_searches: count must be a whole number from 1 to"),
    ({"times": -NUMBER}, "directory_searches: count must be a whole number from 1 to"),
    ({"times": True}, "directory_searches: count must be a whole number from 1 to"),
    ({"times": CANARY}, "directory_searches: count must be a whole number from 1 to"),
    ({"times": NUMBER}, "directory_searches: count must be a whole number from 1 to"),
    ({"times": NUMBER**1000}, "directory_searches: count must be a whole number from 1 to"),
    ({"event_id": CANARY, "source": CANARY}, "event_id must .*; source must be"),
    ({"event_name": "http_response"}, "endpoint_error_rates: event_id is not a field of this metric"),
]


def shows_a_value(text: str) -> bool:
    return CANARY in text or str(NUMBER) in text


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_strict_raises_what_is_wrong_without_showing_it(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    telemetry = Telemetry(tmp_path / "dumps", strict=True, clock=Clock())
    with pytest.raises(TelemetryError, match=message) as caught:
        telemetry.count(**{"event_name": "directory_searched", "event_id": 1, **arguments})
    shown = [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
    assert not any(map(shows_a_value, shown))
    assert caught.value.__context__ is None
    assert telemetry.dropped == {}
    assert not (tmp_path / "dumps").exists()


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_is_wrong_is_dropped_and_logged_without_showing_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], message: str
) -> None:
    with Telemetry(tmp_path / "dumps", clock=Clock()) as telemetry:
        for _ in range(3):
            telemetry.count(**{"event_name": "directory_searched", "event_id": 1, **arguments})
    assert telemetry.dropped == {"refused": 3}
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("analytics_assets.telemetry", "WARNING")
    assert record.exc_info is None
    assert not shows_a_value(repr(vars(record)))
    with pytest.raises(TelemetryError, match=message):
        raise TelemetryError(record.getMessage())
    (file,) = (tmp_path / "dumps").rglob("*.*")
    assert file.suffix == ".drops"
    assert drops(tmp_path / "dumps") == {"refused": 3}
    assert not shows_a_value(file.read_text())


@pytest.mark.parametrize("times", [0, -NUMBER, True, CANARY, NUMBER, 2.0])
def test_a_bad_number_is_refused_for_a_seen_key_too(tmp_path: Path, times: Any) -> None:
    with Telemetry(tmp_path, clock=Clock()) as lenient, Telemetry(tmp_path, strict=True, clock=Clock()) as strict:
        for telemetry in (lenient, strict):
            telemetry.count("directory_searched", event_id=1)
        lenient.count("directory_searched", event_id=1, times=times)
        with pytest.raises(TelemetryError, match="count must be a whole number from 1 to") as caught:
            strict.count("directory_searched", event_id=1, times=times)
    assert not any(map(shows_a_value, traceback.format_exception(caught.value)))
    assert lenient.dropped == {"refused": 1}
    assert [row["count"] for row in rows(tmp_path)] == [1, 1]


def test_what_is_dropped_is_told_as_the_number_of_times_it_stood_for(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=CANARY, times=5)
        telemetry.count("directory_searched", event_id=CANARY)
        assert telemetry.dropped == drops(tmp_path) == {"refused": 6}


@pytest.mark.parametrize(
    ("route", "status_code", "message"),
    [
        ("/events/" + "{id}/" * 50, 200, "endpoint must be a method and a route template"),
        ("/people/" + CANARY, 200, "endpoint must be a method and a route template"),
        ("/people/42", 200, "endpoint must be a method and a route template"),
        ([CANARY], 200, "endpoint must be a method and a route template"),
        ("", 200, "endpoint must be a method and a route template"),
        ("/events", None, "status_code must be a whole number from 100 to 599"),
        ("/events", 600, "status_code must be a whole number from 100 to 599"),
        ("/events", "200", "status_code must be a whole number from 100 to 599"),
        ("/events", 200.0, "status_code must be a whole number from 100 to 599"),
        ("/events", [CANARY], "status_code must be a whole number from 100 to 599"),
    ],
)
def test_a_bad_response_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, route: Any, status_code: Any, message: str
) -> None:
    with Telemetry(tmp_path, clock=Clock()) as lenient, Telemetry(tmp_path, strict=True, clock=Clock()) as strict:
        for telemetry in (lenient, strict):
            telemetry.count_response("GET", "/events", 200)
        lenient.count_response("GET", route, status_code)
        with pytest.raises(TelemetryError, match=f"endpoint_error_rates: {message}") as caught:
            strict.count_response("GET", route, status_code)
    assert not any(map(shows_a_value, traceback.format_exception(caught.value)))
    assert not shows_a_value(caplog.text)
    assert message in caplog.text
    assert lenient.dropped == {"refused": 1}
    assert [row["count"] for row in rows(tmp_path)] == [1, 1]


@pytest.mark.parametrize("name", [n for m in METRICS if isinstance(m.origin, SourceView) for n in m.event_names])
def test_what_is_counted_from_a_view_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TelemetryError, match=WORDS):
        Telemetry(tmp_path, strict=True, clock=Clock()).count(name, event_id=1)


def test_a_value_that_equals_a_seen_one_is_refused_all_the_same(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=1)
        telemetry.count_response("GET", "/", 404)
        for event_id in (True, 1.0):
            telemetry.count("directory_searched", event_id=event_id)  # type: ignore[arg-type]
        telemetry.count_response("GET", "/", 404.0)  # type: ignore[arg-type]
    assert telemetry.dropped == {"refused": 3}
    assert [row["count"] for row in rows(tmp_path)] == [1, 1]


def test_the_largest_count_is_reached_and_not_passed(tmp_path: Path) -> None:
    # 1 and "1" are two keys of one row: "1" is a new key for a line that exists.
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=1, times=MAX_COUNT - 1)
        telemetry.count("directory_searched", event_id=1)
        for event_id in (1, "1"):
            telemetry.count("directory_searched", event_id=event_id)
    assert telemetry.dropped == {"refused": 2}
    assert [row["count"] for row in rows(tmp_path)] == [MAX_COUNT]


def test_the_source_of_the_instance_holds_where_the_call_names_none(tmp_path: Path) -> None:
    with Telemetry(tmp_path, source="web", clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=1)
        telemetry.count("directory_searched", event_id=1, source="web")
        telemetry.count("directory_searched", event_id=1, source="admin")
        telemetry.count_response("GET", "/", 200)
    assert [(row.get("source"), row["count"]) for row in rows(tmp_path)] == [("web", 2), ("admin", 1), (None, 1)]
    assert telemetry.dropped == {}


@pytest.mark.parametrize("source", [CANARY, "", "Web"])
def test_an_instance_with_an_unknown_source_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(TelemetryError, match="source must be web, admin or absent"):
        Telemetry(tmp_path, source=source)


def test_a_method_that_http_does_not_define_is_other(tmp_path: Path) -> None:
    unknown: list[Any] = ["get", "PROPFIND", CANARY, "", None, [CANARY]]
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        for method in (*METHODS, *unknown):
            telemetry.count_response(method, "/events", 200)
    counted = {row["endpoint"]: row["count"] for row in rows(tmp_path)}
    assert counted == {**{f"{method} /events": 1 for method in METHODS}, "(other) /events": len(unknown)}
    assert telemetry.dropped == {}


def test_without_a_route_a_response_is_unmatched_whatever_its_method(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        for method in ("GET", "POST", CANARY):
            telemetry.count_response(method, None, 404)
        telemetry.count_response("GET", None, 301)
    assert [(row["endpoint"], row["status_code"], row["count"]) for row in rows(tmp_path)] == [
        (UNMATCHED, 404, 3),
        (UNMATCHED, 301, 1),
    ]


def test_keys_over_the_cap_of_their_event_name_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Telemetry(tmp_path, max_keys=3, clock=Clock()) as telemetry:
        for event_id in (1, 2, 3, 4, 5, 1, 4):
            telemetry.count("directory_searched", event_id=event_id, times=10)
        for event_id in (4, 5):
            telemetry.count("directory_page_viewed", event_id=event_id)
        # Other keys of the same rows do not count towards the cap.
        telemetry.count("directory_searched", event_id="1")
        telemetry.count("directory_searched", event_id="4")
    counted = Counter({(row["event_name"], row["event_id"]): row["count"] for row in rows(tmp_path)})
    assert counted == {
        **{("directory_searched", "1"): 21, ("directory_searched", "2"): 10, ("directory_searched", "3"): 10},
        **{("directory_page_viewed", "4"): 1, ("directory_page_viewed", "5"): 1},
    }
    assert telemetry.dropped == {"capped": 31}
    assert [record.getMessage() for record in caplog.records] == [
        "not counted (capped): there are more than 3 keys of one event name; 10 since this process started"
    ]


def test_endpoints_over_the_cap_overflow_with_their_status_code(tmp_path: Path) -> None:
    with Telemetry(tmp_path, max_keys=2, clock=Clock()) as telemetry:
        for _ in range(2):
            for route, status_code in (("/a", 200), ("/b", 200), ("/c", 200), ("/d", 404), ("/e", 404), ("/a", 500)):
                telemetry.count_response("GET", route, status_code)
        telemetry.count_response("GET", "/f", 404, times=MAX_COUNT - 4)
        telemetry.count_response("GET", "/f", 404)
    assert {(row["endpoint"], row["status_code"]): row["count"] for row in rows(tmp_path)} == {
        ("GET /a", 200): 2,
        ("GET /b", 200): 2,
        (OVERFLOW, 200): 2,
        (OVERFLOW, 404): MAX_COUNT,
        (OVERFLOW, 500): 2,
    }
    assert telemetry.dropped == {"refused": 1}


def test_the_cap_starts_anew_with_the_day(tmp_path: Path) -> None:
    clock = Clock()
    with Telemetry(tmp_path, max_keys=2, clock=clock) as telemetry:
        for first in (0, 100):
            for event_id in range(first, first + 3):
                telemetry.count("directory_searched", event_id=event_id)
                telemetry.count_response("GET", f"/r{event_id}", 200)
            clock.now += 86_400
    for day in ("2026-11-22", "2026-11-23"):
        of_the_day = [row for row in rows(tmp_path) if row["event_date"] == day]
        assert Counter(row["event_name"] for row in of_the_day) == {"directory_searched": 2, "http_response": 3}
    assert telemetry.dropped == {"capped": 2}


def test_memory_does_not_grow_with_what_is_over_the_cap(tmp_path: Path) -> None:
    with Telemetry(tmp_path, max_keys=5, clock=Clock()) as telemetry:
        for number in range(300):
            telemetry.count("directory_searched", event_id=number)
            telemetry.count_response("GET", f"/r{number}", 200)
            telemetry.count_response("GET", f"/{CANARY}{number}", 200)
            telemetry.count(f"{CANARY}{number}")
        assert len(telemetry._line_of_key) == 10
        assert len(telemetry._line_of_row) == 11


def test_nothing_is_counted_inside_do_not_count_and_everything_after_it(tmp_path: Path) -> None:
    with Telemetry(tmp_path / "dumps", strict=True, clock=Clock()) as telemetry:
        with do_not_count():
            telemetry.count("directory_searched", event_id=1)
            telemetry.count_response("GET", "/", 200)
            telemetry.count(CANARY)
        assert not (tmp_path / "dumps").exists()
        assert telemetry.dropped == {}
        telemetry.count("directory_searched", event_id=1)
    assert by_day(tmp_path / "dumps") == {"2026-11-22": 1}


class Unsure:
    """What an application may pass for a condition: only its truth matters."""

    def __bool__(self) -> bool:
        return False


def counts_in(telemetry: Telemetry, folder: Path) -> Iterator[bool]:
    """Whether a call has been counted, for each of endless calls."""
    total = 0
    while True:
        telemetry.count("directory_searched", event_id=1)
        before, total = total, sum(by_day(folder).values())
        yield total > before


def test_do_not_count_holds_for_its_block_only_however_it_is_nested(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        counted = counts_in(telemetry, tmp_path)
        assert next(counted)
        unsure: Any = Unsure()
        for condition in (False, unsure):
            with do_not_count(when=condition):
                assert next(counted)
        with do_not_count():
            with do_not_count():
                assert not next(counted)
            assert not next(counted)
            with do_not_count(when=False):
                assert not next(counted)
            assert not next(counted)
        assert next(counted)
        with pytest.raises(KeyError), do_not_count():
            raise KeyError
        assert next(counted)

        @do_not_count()
        def view() -> bool:
            return next(counted)

        assert not view()
        assert not view()
        assert next(counted)


def test_do_not_count_goes_along_with_tasks_and_threads_of_asyncio(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:

        async def search(event_id: int, started: asyncio.Event, go: asyncio.Event) -> None:
            started.set()
            await go.wait()
            telemetry.count("directory_searched", event_id=event_id)
            await asyncio.to_thread(telemetry.count, "directory_searched", event_id=event_id)

        async def main() -> None:
            started, other_started, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
            with do_not_count():
                uncounted = asyncio.create_task(search(1, started, go))
                await started.wait()
                await asyncio.to_thread(telemetry.count, "directory_searched", event_id=1)
            # Both run at the same time, and the first after its block has been left.
            counted = asyncio.create_task(search(2, other_started, go))
            await other_started.wait()
            go.set()
            await asyncio.gather(uncounted, counted)
            await asyncio.to_thread(telemetry.count, "directory_searched", event_id=2)

        asyncio.run(main())
    assert [(row["event_id"], row["count"]) for row in rows(tmp_path)] == [("2", 3)]


def test_do_not_count_in_one_thread_is_none_of_the_others_business(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry, do_not_count():
        thread = threading.Thread(target=telemetry.count, args=("directory_searched",), kwargs={"event_id": 1})
        thread.start()
        thread.join()
    assert by_day(tmp_path) == {"2026-11-22": 1}


def test_a_generator_that_is_ended_in_another_context_does_not_raise(tmp_path: Path) -> None:
    # Like a thread pool that reads each piece of a body in another context.
    def body() -> Iterator[bool]:
        with do_not_count():
            yield next(counted)

    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        counted = counts_in(telemetry, tmp_path)
        pieces = body()
        assert contextvars.copy_context().run(next, pieces) is False
        assert contextvars.copy_context().run(list[bool], pieces) == []
        assert next(counted)


@dataclass
class Seconds:
    """Stands in for the module's `time`: the real one belongs to everybody."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    stand_in = Seconds()
    monkeypatch.setattr(counters, "time", stand_in)
    return stand_in


def test_the_log_tells_each_reason_once_a_minute_with_the_sum(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seconds: Seconds
) -> None:
    telemetry = Telemetry(tmp_path, max_keys=1, clock=Clock())
    with telemetry:
        telemetry.count("directory_searched", event_id=1)
        for seconds.now in (1000, 1001, 1059.9, 1060, 1061, 1119.9, 1500):
            telemetry.count("directory_searched", event_id=CANARY)
            telemetry.count("directory_searched", event_id=2, times=10)
    told = [record.getMessage() for record in caplog.records]
    assert [text.removeprefix("not counted ") for text in told if "(capped)" in text] == [
        f"(capped): there are more than 1 keys of one event name; {number} since this process started"
        for number in (10, 40, 70)
    ]
    assert [text.rpartition("; ")[2] for text in told if "(refused)" in text] == [
        f"{number} since this process started" for number in (1, 4, 7)
    ]
    assert len(told) == 6
    assert not shows_a_value(caplog.text)
    assert telemetry.dropped == {"refused": 7, "capped": 70}


def test_what_nobody_has_thought_of_is_dropped_with_the_name_of_its_type_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> float:
        raise LookupError(CANARY)

    telemetry = Telemetry(tmp_path, strict=True, clock=broken)
    telemetry.count("directory_searched", event_id=1, times=3)
    assert telemetry.dropped == {"failed": 3}
    assert [record.getMessage() for record in caplog.records] == [
        "not counted (failed): LookupError; 3 since this process started",
        "the number of dropped counts cannot be written: LookupError",
    ]
    assert "Traceback" not in caplog.text


def test_a_failing_log_handler_fails_nothing_else(tmp_path: Path) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError

    logger, handler = logging.getLogger("analytics_assets.telemetry"), Failing()
    logger.addHandler(handler)
    try:
        with Telemetry(tmp_path, max_keys=1, clock=Clock()) as telemetry:
            for event_id in (1, CANARY, 2, 1):
                telemetry.count("directory_searched", event_id=event_id)
    finally:
        logger.removeHandler(handler)
    assert telemetry.dropped == {"refused": 1, "capped": 1}
    assert by_day(tmp_path) == {"2026-11-22": 2}


def test_what_was_dropped_cannot_be_changed_from_outside(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=CANARY)
        dropped: Any = telemetry.dropped
        dropped.clear()
        assert telemetry.dropped == {"refused": 1}


def test_an_unknown_time_zone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZoneInfoNotFoundError):
        Telemetry(tmp_path, time_zone="Atlantis/Capital")


def test_nothing_is_made_before_the_first_count_and_closing_is_idempotent(tmp_path: Path) -> None:
    with Telemetry(tmp_path / "dumps", clock=Clock()) as telemetry:
        telemetry.close()
        assert not (tmp_path / "dumps").exists()
        telemetry.count("directory_searched", event_id=1)
        telemetry.close()
        telemetry.close()
        telemetry.count("directory_searched", event_id=1)
    assert len(list(tmp_path.glob("dumps/2026-11-22/*"))) == 2
    assert [row["count"] for row in rows(tmp_path / "dumps")] == [1, 1]


@pytest.mark.parametrize(
    ("zone", "moments"),
    [
        # The last second of a day, the first and the last of the next (of 24, 23 or 25 hours), the first after it.
        ("UTC", ["11-21T23:59:59", "11-22T00:00:00", "11-22T23:59:59", "11-23T00:00:00"]),
        ("Europe/Berlin", ["03-28T22:59:59", "03-28T23:00:00", "03-29T21:59:59", "03-29T22:00:00"]),
        ("Europe/Berlin", ["10-24T21:59:59", "10-24T22:00:00", "10-25T22:59:59", "10-25T23:00:00"]),
        ("Pacific/Auckland", ["07-01T11:59:59", "07-01T12:00:00", "07-02T11:59:59", "07-02T12:00:00"]),
        # Clocks go forward at midnight, so that the day begins at 01:00.
        ("Africa/Cairo", ["04-23T21:59:59", "04-23T22:00:00", "04-24T20:59:59", "04-24T21:00:00"]),
        # Clocks go back at midnight, so that the day has two hours from 23:00 to midnight.
        ("Africa/Cairo", ["10-28T20:59:59", "10-28T21:00:00", "10-29T21:59:59", "10-29T22:00:00"]),
        # Clocks go back to midnight, so that there are two; the second is met first.
        ("America/Havana", ["11-01T03:59:59", "11-01T05:00:00", "11-01T04:00:00", "11-02T05:00:00"]),
    ],
)
def test_the_day_is_that_of_the_zone(tmp_path: Path, zone: str, moments: list[str]) -> None:
    seconds = [datetime.fromisoformat(f"2026-{moment}+00:00").timestamp() for moment in moments]
    clock = Clock()
    with Telemetry(tmp_path, time_zone=zone, clock=clock) as telemetry:
        for clock.now in (*seconds, *reversed(seconds)):
            telemetry.count("directory_searched", event_id=1)
    assert list(by_day(tmp_path).values()) == [2, 4, 2]
    assert len(list(tmp_path.glob("*/*"))) == 5


def test_within_a_day_there_is_one_file_and_a_clock_set_back_over_midnight_opens_another(tmp_path: Path) -> None:
    midnight = datetime(2026, 10, 25, tzinfo=UTC).timestamp()
    clock = Clock()
    with Telemetry(tmp_path, clock=clock) as telemetry:
        for clock.now in range(int(midnight), int(midnight) + 86_400, 60):
            telemetry.count("directory_searched", event_id=1)
        clock.now = midnight - 1
        telemetry.count("directory_searched", event_id=1)
        clock.now = midnight
        telemetry.count("directory_searched", event_id=1)
    assert by_day(tmp_path) == {"2026-10-24": 1, "2026-10-25": 1441}
    assert len(list(tmp_path.glob("2026-10-25/*"))) == 2


def test_threads_lose_nothing(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, clock=Clock())

    def work() -> None:
        for number in range(5000):
            telemetry.count("directory_searched", event_id=number % 700)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    telemetry.close()
    assert len(rows(tmp_path)) == 700
    assert by_day(tmp_path) == {"2026-11-22": 40_000}


FORKS = """
import os, sys, threading, warnings
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.telemetry import NOON, Clock, by_day, rows, totals

warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is what is tried here
telemetry = Telemetry(sys.argv[1], clock=lambda: 0)
stop = threading.Event()
counted = [0, 0]

def work(slot):
    while not stop.is_set():
        telemetry.count("directory_searched", event_id=counted[slot] % 500, source="web")
        counted[slot] += 1

threads = [threading.Thread(target=work, args=(slot,)) for slot in (0, 1)]
telemetry.count("directory_page_viewed", event_id=1, times=1000)
for thread in threads:
    thread.start()
children = []
for number in range(30):
    child = os.fork()
    if child == 0:
        if number % 2:
            telemetry.close()
        telemetry.count("directory_page_viewed", event_id=1, times=number + 1)
        telemetry.count("directory_page_viewed", event_id=2)
        if number % 3:
            telemetry.close()
        os._exit(0)
    children.append(child)
failed = [child for child in children if os.waitpid(child, 0)[1]]
stop.set()
for thread in threads:
    thread.join()
telemetry.count("directory_page_viewed", event_id=1, times=2000)
print(len(failed), sum(counted))
"""


def test_a_forked_child_counts_for_itself_whatever_the_threads_of_its_parent_do(tmp_path: Path) -> None:
    failed, searched = map(int, run(FORKS, tmp_path).split())
    assert failed == 0
    assert len(list(tmp_path.glob("1970-01-01/*"))) == 31
    sums: Counter[tuple[str, str]] = Counter()
    for row in rows(tmp_path):
        sums[row["event_name"], row["event_id"]] += row["count"]
    assert sums["directory_page_viewed", "1"] == 3000 + sum(range(1, 31))
    assert sums["directory_page_viewed", "2"] == 30
    assert sum(count for (name, _), count in sums.items() if name == "directory_searched") == searched


def test_a_forked_child_holds_nothing_of_its_parent_and_closing_there_does_the_parent_no_harm(tmp_path: Path) -> None:
    held = run(
        """
import os, sys
from pathlib import Path
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.telemetry import NOON, Clock, by_day, rows, totals

def held():
    files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return Path("/proc/self/maps").read_text().count(".ndjson") + sum(path.endswith(".ndjson") for path in files)

telemetry = Telemetry(sys.argv[1], clock=lambda: 0)
telemetry.count("directory_searched", event_id=1)
print(held() > 0, flush=True)
child = os.fork()
if child == 0:
    print(held() > 0, flush=True)
    telemetry.close()
    os._exit(0)
os.waitpid(child, 0)
telemetry.count("directory_searched", event_id=1)
os._exit(0)
""",
        tmp_path,
    )
    assert held.split() == ["True", "False"]
    assert len(list(tmp_path.glob("*/*.ndjson"))) == 1
    assert [row["count"] for row in rows(tmp_path)] == [2]


def test_a_forked_child_has_dropped_nothing_yet_and_is_capped_by_itself(tmp_path: Path) -> None:
    told = run(
        """
import os, sys
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.telemetry import NOON, Clock, by_day, rows, totals

telemetry = Telemetry(sys.argv[1], max_keys=2, clock=lambda: 0)
for event_id in (1, 2, 3, "no id"):
    telemetry.count("directory_searched", event_id=event_id)
child = os.fork()
if child == 0:
    print(sorted(telemetry.dropped.items()), flush=True)
    for event_id in (4, 5, 6):
        telemetry.count("directory_searched", event_id=event_id)
    print(sorted(telemetry.dropped.items()), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(sorted(telemetry.dropped.items()))
telemetry.close()
""",
        tmp_path,
    )
    assert told.splitlines() == ["[]", "[('capped', 1)]", "[('capped', 1), ('refused', 1)]"]
    assert sorted(row["event_id"] for row in rows(tmp_path)) == ["1", "2", "4", "5"]


def noon() -> float:
    return NOON


def count_and_close(telemetry: Telemetry) -> None:
    """Run in a process that multiprocessing has started."""
    telemetry.count("directory_searched", event_id=1)
    telemetry.count("directory_searched", event_id=2)
    telemetry.count("directory_searched", event_id="no id")
    telemetry.close()


def test_pickled_it_is_a_new_one_with_the_same_arguments(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "source": "admin",
        "time_zone": "Pacific/Auckland",
        "max_keys": 1,
        "strict": True,
        "clock": noon,
    }
    with Telemetry(tmp_path, **arguments) as telemetry:
        telemetry.count("directory_searched", event_id=1)
        with pickle.loads(pickle.dumps(telemetry)) as copy:  # noqa: S301 # our own
            for event_id in (2, 3):
                copy.count("directory_searched", event_id=event_id)
            assert copy.dropped == {"capped": 1}
            with pytest.raises(TelemetryError):
                copy.count("directory_searched")
        assert telemetry.dropped == {}
    found = sorted((row["event_date"], row["event_id"], row["source"]) for row in rows(tmp_path))
    assert found == [("2026-11-23", "1", "admin"), ("2026-11-23", "2", "admin")]
    assert len(list(tmp_path.glob("*/*.ndjson"))) == 2


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_child_of_multiprocessing_counts_into_a_file_of_its_own(tmp_path: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with Telemetry(tmp_path, source="web", max_keys=2, clock=noon) as telemetry:
        telemetry.count("directory_searched", event_id=1, times=10)
        telemetry.count("directory_searched", event_id="no id")
        children = [context.Process(target=count_and_close, args=(telemetry,)) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        telemetry.count("directory_searched", event_id=1, times=100)
    assert [child.exitcode for child in children] == [0, 0]
    assert len(list(tmp_path.glob("*/*.ndjson"))) == 3
    assert {(row["event_id"], row["source"]) for row in rows(tmp_path)} == {("1", "web"), ("2", "web")}
    assert sorted(row["count"] for row in rows(tmp_path)) == [1, 1, 1, 1, 110]
    assert telemetry.dropped == {"refused": 1}


def test_a_seen_key_is_counted_without_writing(tmp_path: Path) -> None:
    run(
        """
import resource, sys
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.telemetry import NOON, Clock, by_day, rows, totals

telemetry = Telemetry(sys.argv[1], clock=lambda: 0)
telemetry.count("directory_searched", event_id=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
for _ in range(99):
    telemetry.count("directory_searched", event_id=1)
if telemetry.dropped:
    sys.exit("a seen key is no write")
telemetry.count("directory_searched", event_id=2)
if telemetry.dropped != {"io": 1}:
    sys.exit("a new key needs a write")
telemetry.close()
""",
        tmp_path,
    )
    assert [row["count"] for row in rows(tmp_path)] == [100]


def isolated(script: str, *arguments: object) -> str:
    """Output of a script in an interpreter without site-packages, with this package's folder alone to import from."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_it_loads_only_the_standard_library_and_the_contract() -> None:
    script = "before = set(sys.modules); import analytics_assets.telemetry; print(*set(sys.modules) - before)"
    # zoneinfo loads _sysconfigdata_<platform>, which the list of standard modules cannot name.
    loaded_names = {name for name in isolated(script).split() if not name.startswith("_sysconfigdata_")}
    others = {name for name in loaded_names if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {
        "analytics_assets",
        "analytics_assets.contract",
        "analytics_assets.days",
        "analytics_assets.guard",
        "analytics_assets.telemetry",
        "analytics_assets.telemetry.counters",
        "analytics_assets.telemetry.dumps",
    }


WHOLE = """
import asyncio, json, logging
from pathlib import Path
from types import SimpleNamespace

before = set(sys.modules)
from analytics_assets.telemetry import Telemetry, do_not_count
from analytics_assets.telemetry import asgi, django, wsgi

logging.getLogger().addHandler(logging.NullHandler())
telemetry = Telemetry(sys.argv[1], source="web", clock=lambda: 0)
telemetry.count("directory_searched", event_id=1)
with do_not_count():
    telemetry.count("directory_searched", event_id=1)
telemetry.count("directory_searched", event_id="no id")

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 201})
    await send({"type": "http.response.body", "body": b""})

async def send(message):
    pass

counting = asgi.CountResponses(app, telemetry, route=lambda scope: "/asgi")
asyncio.run(counting({"type": "http", "method": "GET"}, None, send))

def wsgi_app(environ, start_response):
    start_response("202 Accepted", [])
    return [b""]

counting = wsgi.CountResponses(wsgi_app, telemetry, route=lambda environ: "/wsgi")
list(counting({"REQUEST_METHOD": "POST"}, lambda status, headers: None))

request = SimpleNamespace(method="PUT", resolver_match=SimpleNamespace(route="django/<int:pk>"))
django.count_responses(telemetry)(lambda request: SimpleNamespace(status_code=203))(request)

rows = [json.loads(line) for path in Path(sys.argv[1]).glob("*/*.ndjson") for line in path.read_text().splitlines()]
telemetry.close()
print(json.dumps({"rows": rows, "dropped": telemetry.dropped, "modules": sorted(set(sys.modules) - before)}))
"""


def test_all_of_it_runs_without_site_packages(tmp_path: Path) -> None:
    told = json.loads(isolated(WHOLE, tmp_path))
    assert told["rows"] == rows(tmp_path)
    assert [
        (row.get("endpoint"), row.get("event_id"), row.get("status_code"), row["count"]) for row in told["rows"]
    ] == [
        (None, "1", None, 1),
        ("GET /asgi", None, 201, 1),
        ("POST /wsgi", None, 202, 1),
        ("PUT /django/{pk}", None, 203, 1),
    ]
    assert told["dropped"] == {"refused": 1}
    assert {name for name in told["modules"] if name.partition(".")[0] == "analytics_assets"} == {
        "analytics_assets",
        *(f"analytics_assets.{name}" for name in ("contract", "days", "guard", "telemetry")),
        *(f"analytics_assets.telemetry.{name}" for name in ("counters", "dumps")),
        *(f"analytics_assets.telemetry.{name}" for name in ("asgi", "django", "responses", "routes", "wsgi")),
    }


ids = st.integers(0, 10**19 - 1).map(str) | st.uuids().map(str) | st.sampled_from(["0", "1", "42"])
segments = st.sampled_from(["events", "{event_id}", "v1", "a-b", "{name}.json"])
routes = st.none() | st.lists(segments, max_size=6).map(lambda path: "/" + "/".join(path))
core = st.fixed_dictionaries(
    {"event_name": st.sampled_from(["directory_page_viewed", "directory_searched"]), "event_id": ids},
    optional={"source": st.sampled_from(["web", "admin"])},
)
responses = st.fixed_dictionaries(
    {"method": st.sampled_from(["GET", "POST", "BREW"]), "route": routes, "status_code": st.integers(100, 599)}
)
times = st.integers(1, 1000) | st.integers(1, 10**10)


@settings(deadline=None)
@given(calls=st.lists(st.tuples(core | responses, times, st.integers(0, 2)), max_size=50))
def test_any_sequence_of_counts_sums_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[dict[str, Any], int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("dumps")
    clock = Clock()
    expected: Counter[frozenset[tuple[str, Any]]] = Counter()
    with Telemetry(folder, clock=clock) as telemetry:
        for key, number, day in calls:
            clock.now = day * 86_400.0
            row = {"event_date": f"1970-01-0{day + 1}", **key}
            if "method" in key:
                telemetry.count_response(**key, times=number)
                method, route = row.pop("method"), row.pop("route")
                endpoint = f"{OTHER if method == 'BREW' else method} {route}" if route else UNMATCHED
                row |= {"event_name": "http_response", "endpoint": endpoint}
            else:
                telemetry.count(**key, times=number)
            expected[frozenset(row.items())] += number
        assert telemetry.dropped == {}
        assert totals(folder) == expected
    assert totals(folder) == expected
