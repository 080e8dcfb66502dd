"""Poisoned dumps through real runs: the right gates are red and name the line, nothing is written or repeated."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_assets.contract import COUNT, EVENT_DATE, EVENT_ID, MAX_COUNT, STATUS_CODE, Metric, metric
from analytics_assets.guard import row_violations
from analytics_assets.settings import Settings
from analytics_assets.sources import OriginRefusedError, Reader, counter_dumps
from analytics_assets.sources.counter_dumps import UNREADABLE, open_dumps, read_day
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.nobody import as_nobody
from analytics_assets_tests.support.pipeline import Pipeline, everything_said, failures, gate

DUMP_FED = ["directory_page_views", "directory_searches", "endpoint_error_rates"]
VIEWS, SEARCHES, RATES = map(metric, DUMP_FED)
DAY = date(2026, 11, 22)
POISON_FILE = "f" * 32 + ".ndjson"
DEEP = 2000  # past the interpreter's recursion limit, and still within the longest line

Said = Callable[[], str]


def line(day: date = DAY, **change: Any) -> bytes:
    """A line of page views, or what a change makes of it; None takes a field away."""
    row = {"event_date": str(day), "event_name": "directory_page_viewed", "event_id": "7", "source": "web", "count": 5}
    return json.dumps({name: value for name, value in (row | change).items() if value is not None}).encode()


def count_a_day(folder: Path, day: date, zone: str, *, times: int = 1) -> None:
    """What a healthy application writes: one key for each of the three metrics."""
    noon = moments(day, zone, 2)[1].timestamp()
    with Telemetry(folder, time_zone=zone, clock=lambda: noon) as telemetry:
        telemetry.count("directory_page_viewed", event_id=7, source="web", times=times)
        telemetry.count("directory_searched", event_id=7, times=times)
        telemetry.count_response("GET", "/events/{event_id}", 200, times=times)


def total(pipeline: Pipeline, asset: str, day: date) -> int:
    return sum(pipeline.stored(asset, day).values())


@pytest.fixture
def said(pipeline: Pipeline, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Said:
    """What Dagster keeps, the logs and the terminal, so far."""
    return lambda: "\n".join([everything_said(pipeline.instance), caplog.text, *capfd.readouterr()])


ANYBODYS = {
    "unknown event name": line(event_name="canary_viewed"),
    "event name of a view-fed metric": line(event_name="event_signup"),
    "event name missing": line(event_name=None),
    "event name no text": line(event_name=["directory_page_viewed"]),
    "broken JSON": b'{"event_name":"directory_page_viewed","event_id":canary}',
    "half-written": line(event_id="canary")[:-9],
    "equal keys": line()[:-1] + b', "count": 6}',
    "NaN": line().replace(b"5}", b"NaN}"),
    "Infinity": line().replace(b"5}", b"-Infinity}"),
    "list": b"[" + line(event_id="canary") + b"]",
    "text": b'"canary"',
    "number": b"17",
    "two objects": line() + b" " + line(event_id="canary"),
    "trailing text": line() + b" canary",
    "deep nesting": b"[" * DEEP + b"]" * DEEP,
    "1 MB": line(event_id="canary" * 170_000),
    "1 MB behind blanks": line() + b" " * 4096 + b"canary" * 170_000 + b"\n",
    "object behind blanks": line() + b" " * 4096 + b'{"email":"canary@example.org"}\n',
    "NUL bytes": line() + b"\0" * 20,
    "hole": b"\0" * 4096,
    "not ASCII": line().replace(b'"7"', '"\u0667"'.encode()),
    "not UTF-8": line().replace(b'"7"', b'"\xff7"'),
    "UTF-8 mark": b"\xef\xbb\xbf" + line(),
    "blanks": b"   ",
    "number of 5000 digits": line().replace(b"5}", b"5" * 5000 + b"}"),
}
ITS_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "extra field": ("(row)", {"email": "canary@example.org"}),
    "extra field named like a value": ("(row)", {"canary@example.org": 1}),
    "field of another metric": ("(row)", {"endpoint": "GET /"}),
    "email as id": (EVENT_ID.name, {"event_id": "canary@example.org"}),
    "escaped digit as id": (EVENT_ID.name, {"event_id": "\u0667"}),
    "integer as id": (EVENT_ID.name, {"event_id": 7}),
    "id missing": (EVENT_ID.name, {"event_id": None}),
    "unknown source": ("source", {"source": "canary"}),
    "fractional count": (COUNT.name, {"count": 1.5}),
    "whole count with a point": (COUNT.name, {"count": 5.0}),
    "negative count": (COUNT.name, {"count": -5}),
    "zero count": (COUNT.name, {"count": 0}),
    "huge count": (COUNT.name, {"count": MAX_COUNT + 1}),
    "count past 64 bits": (COUNT.name, {"count": 10**40}),
    "boolean count": (COUNT.name, {"count": True}),
    "text count": (COUNT.name, {"count": "5"}),
    "list count": (COUNT.name, {"count": ["canary"]}),
    "count missing": (COUNT.name, {"count": None}),
    "no date": (EVENT_DATE.name, {"event_date": "canary"}),
    "impossible date": (EVENT_DATE.name, {"event_date": "2026-02-30"}),
    "date of another day": (EVENT_DATE.name, {"event_date": "2026-01-01"}),
    "date missing": (EVENT_DATE.name, {"event_date": None}),
}


def poison(pipeline: Pipeline, host: Host, day: date, add: Callable[[Path], None]) -> dg.ExecuteInProcessResult:
    """Collect a good day, add to the sources, poison the dumps, collect again."""
    folder, zone = pipeline.settings.dump_dir, pipeline.settings.time_zone
    count_a_day(folder, day, zone)
    assert pipeline.run(DUMP_FED, day).success
    count_a_day(folder, day, zone, times=2)
    host.occur("signups", moments(day, zone, 2))
    add(folder / str(day))
    return pipeline.run(["event_signups", *DUMP_FED], day)


def assert_refused(pipeline: Pipeline, result: dg.ExecuteInProcessResult, day: date, *assets: str) -> None:
    """These and no others are red and keep their old counts; the rest has the new ones."""
    assert set(failures(result)) == set(assets)
    assert {name for name in DUMP_FED if not gate(pipeline, result, name).passed} == set(assets)
    assert {name: total(pipeline, name, day) for name in DUMP_FED} == {n: 1 if n in assets else 3 for n in DUMP_FED}
    assert total(pipeline, "event_signups", day) == 2
    again = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert again == {"event_signups", *DUMP_FED} - set(assets)


@pytest.mark.parametrize("bad", ANYBODYS.values(), ids=ANYBODYS.keys())
def test_a_line_that_may_be_anybodys_is_a_problem_of_every_metric(tmp_path: Path, bad: bytes) -> None:
    write(tmp_path / str(DAY), line() + b"\n\n" + bad)
    for fed in (VIEWS, SEARCHES, RATES):
        (problem,) = read_day(tmp_path / str(DAY), DAY)[fed.asset].problems
        assert problem.where == f"{DAY}/{POISON_FILE} line 3"
        assert problem.violation.field in {"(row)", "event_name"}
        assert "canary" not in repr(problem)


@pytest.mark.parametrize(
    "name",
    [
        "unknown event name", "broken JSON", "half-written", "equal keys", "NaN", "list", "deep nesting", "1 MB",
        "object behind blanks", "NUL bytes", "not ASCII",
    ],
)  # fmt: skip
def test_such_a_line_fails_every_dump_fed_metric_of_a_run(
    pipeline: Pipeline, host: Host, yesterday: date, said: Said, name: str
) -> None:
    bad = ANYBODYS[name].replace(str(DAY).encode(), str(yesterday).encode())
    other = line(yesterday, event_name="directory_searched") + b"\n"
    result = poison(pipeline, host, yesterday, lambda day: write(day, other + bad))
    assert_refused(pipeline, result, yesterday, *DUMP_FED)
    for asset in DUMP_FED:
        description = gate(pipeline, result, asset).description or ""
        assert f"{yesterday}/{POISON_FILE} line 2" in description
        assert "materialize these days again" in description
    assert "canary" not in said()


@pytest.mark.parametrize(("field", "change"), ITS_OWN.values(), ids=ITS_OWN.keys())
def test_a_bad_line_of_a_metric_is_a_problem_of_that_metric_only(
    tmp_path: Path, field: str, change: dict[str, Any]
) -> None:
    day = tmp_path / str(DAY)
    write(day, b"\n".join([line(), b"", line(**change)]))
    (problem,) = read_day(day, DAY)[VIEWS.asset].problems
    assert problem.violation.field == field
    assert problem.where == f"{DAY}/{POISON_FILE} line 3"
    assert "canary" not in repr(problem)
    assert read_day(day, DAY)[SEARCHES.asset].problems == read_day(day, DAY)[RATES.asset].problems == []


@pytest.mark.parametrize(
    "name",
    ["extra field", "email as id", "fractional count", "negative count", "huge count", "date of another day"],
)
def test_such_a_line_fails_its_metric_in_a_run(
    pipeline: Pipeline, host: Host, yesterday: date, said: Said, name: str
) -> None:
    field, change = ITS_OWN[name]
    result = poison(pipeline, host, yesterday, lambda day: write(day, b"\n\n" + line(yesterday, **change)))
    assert_refused(pipeline, result, yesterday, "directory_page_views")
    assert f"{yesterday}/{POISON_FILE} line 3: {field}" in (
        gate(pipeline, result, "directory_page_views").description or ""
    )
    assert "canary" not in said()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("endpoint", {"endpoint": "GET /canary/17"}),
        ("endpoint", {"endpoint": "GET /search?q=canary"}),
        (STATUS_CODE.name, {"status_code": 99}),
        (STATUS_CODE.name, {"status_code": "200"}),
        ("(row)", {"event_id": "7"}),
    ],
)
def test_a_bad_line_of_the_responses(tmp_path: Path, field: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"event_name": "http_response", "endpoint": "GET /", "status_code": 200}
    good |= {"event_id": None, "source": None}
    write(tmp_path / str(DAY), line(**good) + b"\n" + line(**good | change))
    counted = read_day(tmp_path / str(DAY), DAY)[RATES.asset]
    assert [problem.violation.field for problem in counted.problems] == [field]
    assert "canary" not in repr(counted.problems)


def write(day: Path, content: bytes, name: str = POISON_FILE) -> None:
    day.mkdir(exist_ok=True)
    (day / name).write_bytes(content)


def link(day: Path) -> None:
    elsewhere = day.parent.parent / "elsewhere"
    elsewhere.write_bytes(line() + b"\n")
    (day / POISON_FILE).symlink_to(elsewhere)


@pytest.mark.parametrize(
    "add",
    [
        lambda day: write(day, b"", "canary@example.org.txt"),
        lambda day: write(day, b"", ".canary"),
        lambda day: write(day, line() + b"\n", POISON_FILE.upper()),
        lambda day: write(day, line() + b"\n", POISON_FILE + ".gz"),
        lambda day: write(day, line() + b"\n", POISON_FILE + "\n"),
        lambda day: (day / POISON_FILE).mkdir(),
        link,
    ],
    ids=["stray", "hidden", "upper case", "suffix", "line feed", "folder", "symlink"],
)
def test_what_is_no_dump_fails_every_dump_fed_metric(
    pipeline: Pipeline, host: Host, yesterday: date, said: Said, add: Callable[[Path], None]
) -> None:
    result = poison(pipeline, host, yesterday, add)
    assert_refused(pipeline, result, yesterday, *DUMP_FED)
    for asset in DUMP_FED:
        assert f"{yesterday}/: (file) is not a counter dump" in (gate(pipeline, result, asset).description or "")
    assert "canary" not in said()


def test_a_bad_day_does_not_cost_the_others(pipeline: Pipeline, yesterday: date) -> None:
    before, folder = yesterday - timedelta(days=1), pipeline.settings.dump_dir
    count_a_day(folder, before, pipeline.settings.time_zone)
    count_a_day(folder, yesterday, pipeline.settings.time_zone)
    write(folder / str(before), b"canary")
    result = pipeline.run(DUMP_FED, before, yesterday)
    assert set(failures(result)) == set(DUMP_FED)
    for asset in DUMP_FED:
        assert f"1 of 2 days were not stored:\n- {before}" in failures(result)[asset]
        assert pipeline.materialized(asset) == {yesterday}
        assert (total(pipeline, asset, before), total(pipeline, asset, yesterday)) == (0, 1)


def test_a_mended_dump_is_collected(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    poison(pipeline, host, yesterday, lambda day: write(day, b"canary"))
    (pipeline.settings.dump_dir / str(yesterday) / POISON_FILE).unlink()
    assert pipeline.run(DUMP_FED, yesterday).success
    assert [total(pipeline, asset, yesterday) for asset in DUMP_FED] == [3, 3, 3]


def test_a_day_that_has_lost_dumps_is_refused(pipeline: Pipeline, yesterday: date) -> None:
    folder = pipeline.settings.dump_dir
    for _ in range(4):
        count_a_day(folder, yesterday, pipeline.settings.time_zone)
    assert pipeline.run(DUMP_FED, yesterday).success
    for path in sorted((folder / str(yesterday)).iterdir())[:2]:
        path.unlink()

    result = pipeline.run(DUMP_FED, yesterday)
    assert set(failures(result)) == set(DUMP_FED)
    for asset in DUMP_FED:
        assert f"- {yesterday}: the source has less than is stored (dump files" in failures(result)[asset]
    assert [total(pipeline, asset, yesterday) for asset in DUMP_FED] == [4, 4, 4]

    assert pipeline.run(DUMP_FED, yesterday, allow_decrease=True).success
    assert [total(pipeline, asset, yesterday) for asset in DUMP_FED] == [2, 2, 2]


@pytest.mark.parametrize("change", [{"event_name": "badge_scanned"}, {"device": "phone"}, {"source": "kiosk"}])
def test_a_dump_of_a_newer_web_application_says_who_is_upgraded_first(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / str(DAY), line(**change))
    (problem,) = read_day(tmp_path / str(DAY), DAY)[VIEWS.asset].problems
    assert "if the web application is newer than the pipeline, upgrade the pipeline first" in str(problem)
    assert not set(change.values()) & set(str(problem).split())


# --- lines as telemetry writes them, and lines that are like them


def written(count: str = f"{17:12}", *, blanks: str = "", **change: Any) -> bytes:
    """A line of page views as telemetry writes it, with any text as its count."""
    return (
        line(count=None, **change).replace(b": ", b":").replace(b", ", b",")[:-1]
        + f',"count":{blanks}{count}}}'.encode()
    )


def response(**change: Any) -> bytes:
    """A line of responses."""
    return line(event_name="http_response", event_id=None, source=None, **{"endpoint": "GET /"} | change)


LIKE: dict[str, bytes] = {
    "as telemetry writes it": written(),
    "aligned": written(blanks=" " * 7),
    "the largest count": written(str(MAX_COUNT)),
    "blanks up to the longest line": written(blanks=" " * (4096 - len(written()))),
    "one byte longer": written(blanks=" " * (4097 - len(written()))),
    "narrow": written("17"),
    "tabs": written("\t" * 10 + "17"),
    "blanks behind the count": written("17" + " " * 10),
    "zero": written(f"{0:12}"),
    "leading zero": written(f"{'017':>12}"),
    "leading zeros": written(f"{17:012}"),
    "plus": written(f"{'+17':>12}"),
    "minus": written(f"{'-17':>12}"),
    "underscore": written(f"{'1_7':>12}"),
    "two numbers": written(f"{'1 7':>12}"),
    "point": written(f"{'17.0':>12}"),
    "exponent": written(f"{'1e3':>12}"),
    "no digits": written(" " * 12),
    "digits of another script": written(f"{chr(0x661):>12}"),
    "thirteen digits": written(str(10**12)),
    "a digit before blanks": written(f"{17:12}", blanks="1"),
    "a minus before blanks": written(f"{17:12}", blanks="-"),
    "a minus before twelve digits": written("1" * 12, blanks="-"),
    "a fraction of twelve digits": written("1" * 12, blanks="0."),
    "an exponent of twelve digits": written("0" * 11 + "1", blanks="1e"),
    "count twice": written(f"{1:12}")[:-1] + b',"count":           7}',
    "count in a text": written(event_id='x","count":')[:-14] + b"           7}",
    "count in a name": written()[: -len('"count":           17}')] + b'"\\"count":          17}',
    "count in an object": b'{"x":' + written() + b"}",
    "a code of twenty, then a count": response(count=1, status_code=20)[:-1] + b"         404}",
    "a code in place of the count": response(count=7, status_code=None)[:-1] + b',"status_code":         404}',
    "another order": b'{"count":          17,' + written()[1:-22] + b"}",
    "escaped": written().replace(b"directory_page", b"directory\\u005fpage"),
    "escaped name of a field": written().replace(b"event_id", b"event\\u005fid"),
    "carriage return": written() + b"\r",
    "a blank at the end": written() + b" ",
    "a blank at the start": b" " + written(),
    "UTF-8 mark": b"\xef\xbb\xbf" + written(),
    "NUL": written() + b"\0",
    "bracket at the end": written()[:-1] + b"]",
    "NUL before it": b"\0" + written(),
    "only the end": written()[-22:],
    "only the count": written()[-13:],
    "two lines": written() + written(),
    "another day": written().replace(str(DAY).encode(), b"2026-11-23"),
    "another metric": written(event_name="directory_searched"),
    "no metric": written(event_name="canary_viewed"),
    "a field more": written(email="canary@example.org"),
    "not UTF-8": written().replace(b'"7"', b'"\xff"'),
}  # fmt: skip


def read_strictly(lines: list[bytes]) -> tuple[dict[str, Counter[tuple[Any, ...]]], dict[str, list[str]]]:
    """What the parser alone makes of lines: counts and problems of each metric."""
    counted: dict[str, Counter[tuple[Any, ...]]] = {asset: Counter() for asset in DUMP_FED}
    problems: dict[str, list[str]] = {asset: [] for asset in DUMP_FED}
    for number, text in enumerate(lines, 1):
        fed, row, violations = counter_dumps._parse(text, DAY) if text else (None, {}, [])
        for asset in DUMP_FED if fed is None else [fed.asset]:
            problems[asset] += [f"{DAY}/{POISON_FILE} line {number}: {violation}" for violation in violations]
        if fed and not violations:
            counted[fed.asset][key_of(fed, row)] += row["count"]
    return counted, problems


def key_of(fed: Metric, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(field.name) for field in fed.fields if field not in {EVENT_DATE, COUNT})


def assert_read_as_strictly(folder: Path, lines: list[bytes]) -> None:
    """A day with these lines is read as the parser reads each of them, whatever was read before it."""
    write(folder, b"\n".join(lines))
    expected, problems = read_strictly(lines)
    read = read_day(folder, DAY)
    for fed in (VIEWS, SEARCHES, RATES):
        counts = {key_of(fed, row): row["count"] for row in read[fed.asset].rows}
        assert counts == expected[fed.asset]
        found = read[fed.asset].problems
        of_lines = [problem for problem in found if " line " in problem.where]
        assert list(map(str, of_lines)) == problems[fed.asset]
        too_large = sum(problem.rows for problem in found) - len(of_lines)
        assert too_large == sum(count > MAX_COUNT for count in counts.values())


@pytest.mark.parametrize("like", LIKE.values(), ids=LIKE.keys())
@pytest.mark.parametrize("times", [1, 2])
def test_a_line_is_read_as_the_parser_reads_it(tmp_path: Path, like: bytes, times: int) -> None:
    assert_read_as_strictly(tmp_path / str(DAY), [written(), b"", *[like] * times, written(), like])


@pytest.mark.parametrize("block", [1, 13, 200, 1 << 20])
def test_it_does_not_matter_how_much_of_a_file_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(counter_dumps, "_BLOCK", block)
    too_long = written(event_id="canary" * 700)
    assert_read_as_strictly(tmp_path / str(DAY), [b"", b"", *LIKE.values(), too_long, b"", written(), too_long])


def test_the_alignment_of_a_count_is_no_part_of_its_key(tmp_path: Path) -> None:
    write(tmp_path / str(DAY), b"\n".join(written(blanks=" " * blanks) for blanks in range(8)))
    (row,) = read_day(tmp_path / str(DAY), DAY)[VIEWS.asset].rows
    assert row["count"] == 8 * 17


# --- what the metrics of a run share


def open_at(folder: Path, fed: Metric, run_id: str = "") -> AbstractContextManager[Reader]:
    return open_dumps(fed, replace(Settings.from_env({}), dump_dir=folder), run_id)


def counted_in(folder: Path, fed: Metric, run_id: str, day: date = DAY) -> tuple[int, int]:
    """The sum of a day's counts, and the total that it is compared with."""
    with open_at(folder, fed, run_id) as reader:
        return sum(row["count"] for row in reader.count(day).rows), reader.total(day)


def test_the_metrics_of_a_run_read_a_day_once(tmp_path: Path) -> None:
    both = line() + b"\n" + line(event_name="directory_searched") + b"\n"
    write(tmp_path / str(DAY), both)
    assert counted_in(tmp_path, VIEWS, "first") == (5, 5)
    write(tmp_path / str(DAY), both, "a" * 32 + ".ndjson")
    assert counted_in(tmp_path, SEARCHES, "first") == (5, 5)
    assert counted_in(tmp_path, SEARCHES, "second") == (10, 10)
    assert counted_in(tmp_path, SEARCHES, "") == (10, 10)


def test_days_beyond_the_shared_rows_are_read_by_each_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_dumps, "_SHARED_ROWS", 2)
    days = [DAY, DAY + timedelta(days=1)]
    for day in days:
        write(tmp_path / str(day), line(day) + b"\n" + line(day, event_name="directory_searched") + b"\n")
        assert counted_in(tmp_path, VIEWS, "run", day) == (5, 5)
    for day in days:
        write(tmp_path / str(day), line(day, event_name="directory_searched", count=7))
    assert [counted_in(tmp_path, SEARCHES, "run", day) for day in days] == [(5, 5), (7, 7)]


# --- the comparison


def test_the_comparison_names_the_file_that_it_cannot_read(tmp_path: Path) -> None:
    names = [f"{number:032x}.ndjson" for number in range(9)]
    for number, name in enumerate(names):
        write(tmp_path / str(DAY), b"\n" + line(count=10**number) + b"\n" + line(event_name="directory_searched"), name)
    write(tmp_path / str(DAY), b"", names[4])
    with open_at(tmp_path, VIEWS) as source:
        assert source.total(DAY) == 111_101_111
    # Halves of lines that would be one line together, and files that no reader takes for lines.
    for bad in (
        b'{"count": [{}',
        b"{}]}",
        b"canary",
        line()[:-9],
        line()[-9:],
        b"[1]",
        b"{}",
        line(event_name=[]),
        line(event_name=1),
        line(count="canary"),
        line(count="5"),
        line(count=True),
        line(count=5.0),
        line(count=None),
        line().replace(b"5}", b"NaN}"),
    ):
        write(tmp_path / str(DAY), bad, names[4])
        with (
            open_at(tmp_path, VIEWS) as source,
            pytest.raises(OriginRefusedError, match=f"{DAY}/{names[4]}: .row. is not a line of JSON") as refused,
        ):
            source.total(DAY)
        assert "canary" not in str(refused.value)
        assert refused.value.__context__ is None, "the parser's error has the line"


def test_a_sum_past_the_largest_count_is_refused(tmp_path: Path) -> None:
    for name in ("a" * 32, "b" * 32):
        write(tmp_path / str(DAY), line(count=MAX_COUNT), f"{name}.ndjson")
    (problem,) = read_day(tmp_path / str(DAY), DAY)[VIEWS.asset].problems
    assert (problem.where, problem.violation.field) == (f"{DAY}/", COUNT.name)


def test_no_dump_folder_is_refused(pipeline: Pipeline, yesterday: date, said: Said) -> None:
    assert pipeline.run(["directory_searches"], yesterday).success
    shutil.rmtree(pipeline.settings.dump_dir)
    result = pipeline.run(["directory_searches"], yesterday)
    assert "dump folder: (folder) does not exist" in failures(result)["directory_searches"]
    assert "set ANALYTICS_DUMP_DIR" in (gate(pipeline, result, "directory_searches").description or "")
    assert not gate(pipeline, result, "directory_searches").passed
    assert str(pipeline.settings.dump_dir) not in said()


def test_what_stands_in_place_of_the_folder_is_not_a_day_without_counts(
    pipeline: Pipeline, yesterday: date, said: Said
) -> None:
    (pipeline.settings.dump_dir / str(yesterday)).write_text("canary")
    result = pipeline.run(DUMP_FED, yesterday)
    for asset in DUMP_FED:
        assert f"- {yesterday}/: (file) cannot be read" in (gate(pipeline, result, asset).description or "")
    assert pipeline.sql("select count(*) from analytics.collected_days") == [(0,)]
    assert "canary" not in said()


@pytest.mark.parametrize("closed", ["folder", "file"])
def test_what_may_not_be_read_is_not_a_day_without_counts(closed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 # open to the login below
        day = Path(folder) / str(DAY)
        write(day, line(), f"{'a' * 32}.ndjson")
        (day if closed == "folder" else day / f"{'a' * 32}.ndjson").chmod(0)
        assert as_nobody(lambda: [str(problem.violation) for problem in read_day(day, DAY)[VIEWS.asset].problems]) == [
            str(UNREADABLE)
        ]


def test_no_folder_of_the_day_is_a_day_without_counts(pipeline: Pipeline, yesterday: date) -> None:
    assert pipeline.run(DUMP_FED, yesterday).success
    assert sorted(pipeline.sql("select asset, rows from analytics.collected_days")) == [(name, 0) for name in DUMP_FED]


def test_a_live_file_is_read(pipeline: Pipeline, yesterday: date) -> None:
    zone = pipeline.settings.time_zone
    noon = moments(yesterday, zone, 2)[1].timestamp()
    with Telemetry(pipeline.settings.dump_dir, time_zone=zone, clock=lambda: noon) as telemetry:
        for times in (1, 2, 4):
            for event_id in range(100):
                telemetry.count("directory_searched", event_id=event_id, times=times)
            assert pipeline.run(["directory_searches"], yesterday).success
            assert set(pipeline.stored("directory_searches", yesterday).values()) == {2 * times - 1}


# --- properties

searching = settings(deadline=None, max_examples=80, derandomize=True)
ids = st.integers(0, 10**19 - 1).map(str) | st.uuids().map(str)
core_keys = st.fixed_dictionaries(
    {"event_name": st.sampled_from(["directory_page_viewed", "directory_searched"]), "event_id": ids},
    optional={"source": st.sampled_from(["web", "admin"])},
)
response_keys = st.fixed_dictionaries(
    {
        "event_name": st.just("http_response"),
        "endpoint": st.sampled_from(["GET /", "POST /events/{event_id}", "(unmatched)", "GET /" + "z" * 195]),
        "status_code": st.integers(100, 599),
    }
)
counts = st.lists(st.tuples(core_keys | response_keys, st.integers(1, 10**9) | st.integers(1, 9)), max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated")


def emptied(folder: Path) -> Path:
    """The folder of the day, without any file."""
    shutil.rmtree(folder / str(DAY), ignore_errors=True)
    return folder / str(DAY)


def count(telemetry: Telemetry, key: dict[str, Any], times: int) -> None:
    if key["event_name"] != "http_response":
        telemetry.count(**key, times=times)
        return
    method, _, route = key["endpoint"].partition(" ")
    telemetry.count_response(method, route or None, key["status_code"], times=times)


@searching
@given(processes=st.lists(counts, max_size=3))
def test_what_telemetry_counts_is_what_is_read(folder: Path, processes: list[list[tuple[dict[str, Any], int]]]) -> None:
    day = emptied(folder)
    expected: Counter[tuple[object, ...]] = Counter()
    noon = moments(DAY, "UTC", 2)[1].timestamp()
    for counted in processes:
        with Telemetry(folder, clock=lambda: noon) as telemetry:
            for key, times in counted:
                count(telemetry, key, times)
                expected[tuple(sorted(key.items()))] += times
    found: dict[tuple[object, ...], int] = {}
    for fed in (VIEWS, SEARCHES, RATES):
        read = read_day(day, DAY)[fed.asset]
        assert read.problems == []
        for row in read.rows:
            key = {n: v for n, v in row.items() if v is not None and n not in {"event_date", "count"}}
            found[tuple(sorted((key | {"event_name": fed.event_names[0]}).items()))] = row["count"]
        with open_dumps(fed, replace(Settings.from_env({}), dump_dir=folder)) as source:
            assert source.total(DAY) == sum(row["count"] for row in read.rows)
    assert found == dict(expected)


_canary = st.text(max_size=4).map("canary{}".format)
_scalar = (
    st.none() | st.booleans() | st.integers() | st.floats() | _canary | st.sampled_from([10**20, 1e300, "7", "web"])
)
_value = _scalar | st.lists(_scalar, max_size=2) | st.dictionaries(_canary, _scalar, max_size=2)
_name = (
    st.sampled_from(["event_date", "event_name", "event_id", "source", "count", "endpoint", "status_code"]) | _canary
)
_good = st.sampled_from(
    [
        json.loads(line()),
        json.loads(line(event_name="directory_searched", source=None, count=MAX_COUNT)),
        {"event_date": str(DAY), "event_name": "http_response", "endpoint": "GET /", "status_code": 200, "count": 3},
    ]
)
_mutated = st.builds(
    lambda row, change: json.dumps(row | change).encode(), _good, st.dictionaries(_name, _value, max_size=2)
)
_cut = st.builds(lambda data, start, end: data[start:end], _mutated, st.integers(0, 3), st.integers(10, 200))
_glued = st.builds(lambda *parts: b"".join(parts), _mutated, st.binary(max_size=3), _mutated)
_lines = st.lists(_mutated | _mutated | _cut | _glued | st.binary(max_size=30), max_size=8).map(b"\n".join)


_written = st.builds(
    lambda name, event_id, count, blanks: written(count, blanks=" " * blanks, event_name=name, event_id=event_id),
    st.sampled_from(["directory_page_viewed", "directory_searched"]),
    st.sampled_from(["7", "8"]),
    st.integers(1, MAX_COUNT).map("{:12}".format) | st.text("0123456789 -+.e_\t", max_size=14),
    st.integers(0, 7),
)
_spoiled = st.builds(
    lambda text, at, new, old: text[: at % len(text)] + new + text[at % len(text) + old :],
    _written,
    st.integers(0, 200),
    st.binary(max_size=2) | st.sampled_from([b" ", b"0", b"1", b"}", b'"', b'"count":', b"\\", b",", b"-", b"{"]),
    st.integers(0, 2),
).map(lambda text: text.replace(b"\n", b" "))


@settings(searching, max_examples=1000)
@given(lines=st.lists(_written | _spoiled | _mutated, max_size=8))
def test_every_line_is_read_as_the_parser_reads_it(folder: Path, lines: list[bytes]) -> None:
    assert_read_as_strictly(emptied(folder), lines)


@settings(searching, max_examples=300)
@given(content=_lines | st.binary(max_size=200), end=st.sampled_from([b"", b"\n"]))
def test_no_file_is_too_strange(folder: Path, content: bytes, end: bytes) -> None:
    """It is read or refused; no row that the guard would refuse comes out, and no value goes into a text."""
    day, refusals = emptied(folder), list[str]()
    write(day, content + end)
    for fed in (VIEWS, SEARCHES, RATES):
        read = read_day(day, DAY)[fed.asset]
        assert "canary" not in repr(read.problems) + "".join(map(str, read.problems))
        if not read.problems:
            assert not [row for row in read.rows if row_violations(row, fed.fields, fed.event_names)]
            assert all(set(row) == {field.name for field in fed.fields} for row in read.rows)
        with open_dumps(fed, replace(Settings.from_env({}), dump_dir=folder)) as source:
            try:
                at_source = source.total(DAY)
            except OriginRefusedError as error:
                refusals.append(str(error))
            else:
                assert read.problems or at_source == sum(row["count"] for row in read.rows)
    assert "canary" not in "".join(refusals)
