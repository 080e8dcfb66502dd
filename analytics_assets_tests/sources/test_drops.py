"""What telemetry has dropped, as the pipeline reads it: per day and reason, and never in a metric's way."""

import json
import os
import re
import signal
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from analytics_assets.contract import DROP_FILE_PATTERN, DROP_REASONS, MAX_COUNT, METRICS, CounterDumps
from analytics_assets.retention.targets import Files
from analytics_assets.sources.counter_dumps import UNREADABLE, find_folder_problem, read_day
from analytics_assets.sources.drops import read_drops
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.telemetry import NOON, Clock

DAY = date(2026, 11, 22)
NEXT = DAY + timedelta(days=1)
ROOT = Path(__file__).parents[2]
FILE = "f" * 32 + ".drops"


def line(**change: Any) -> bytes:
    """A line of a drop file, or what a change makes of it; None takes a field away."""
    row = {"event_date": str(DAY), "reason": "refused", "count": 5} | change
    return json.dumps({name: value for name, value in row.items() if value is not None}).encode()


def write(folder: Path, content: bytes, name: str = FILE) -> None:
    (folder / str(DAY)).mkdir(exist_ok=True)
    (folder / str(DAY) / name).write_bytes(content)


def test_drops_are_summed_per_day_and_reason_over_processes(tmp_path: Path) -> None:
    clock = Clock()
    with Telemetry(tmp_path, clock=clock, max_keys=1) as one, Telemetry(tmp_path, clock=clock) as two:
        for telemetry in (one, two):
            for event_id in (1, 2, "canary"):
                telemetry.count("directory_searched", event_id=event_id, times=2)
        clock.now += 86_400
        one.count("canary")
        # Before anything is closed: a live file is complete.
        found = read_drops(tmp_path, [DAY - timedelta(days=1), DAY, NEXT])
    assert found.counts == {DAY: {"refused": 4, "capped": 2}, NEXT: {"refused": 1}}
    assert found.problems == ()


def test_a_day_without_drops_and_a_folder_that_is_missing_are_no_problem(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=1)
    for folder in (tmp_path, tmp_path / "missing"):
        assert read_drops(folder, [DAY, NEXT]).counts == {}
        assert read_drops(folder, [DAY, NEXT]).problems == ()


def test_a_drop_file_is_no_dump_and_no_stranger(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=1)
        telemetry.count("directory_searched", event_id="canary")
    write(tmp_path, b"canary")
    assert len(list(tmp_path.glob("*/*.drops"))) == 2
    assert find_folder_problem(tmp_path) is None
    for metric in (m for m in METRICS if isinstance(m.origin, CounterDumps)):
        counted = read_day(tmp_path / str(DAY), DAY)[metric.asset]
        assert counted.problems == []
        assert sum(row["count"] for row in counted.rows) == (metric.asset == "directory_searches")


def test_what_only_looks_like_a_drop_file_is_a_stranger(tmp_path: Path) -> None:
    (metric,) = (m for m in METRICS if m.asset == "directory_searches")
    for name in ("canary.drops", FILE.upper(), FILE + ".gz"):
        write(tmp_path, line(), name)
    (tmp_path / str(DAY) / FILE).mkdir()
    (problem,) = read_day(tmp_path / str(DAY), DAY)[metric.asset].problems
    assert (problem.where, problem.rows) == (f"{DAY}/", 4)
    assert read_drops(tmp_path, [DAY]).counts == {}


def test_drops_expire_with_their_day(tmp_path: Path) -> None:
    clock = Clock()
    with Telemetry(tmp_path, clock=clock) as telemetry:
        for _ in range(2):
            telemetry.count("canary")
            clock.now += 86_400
    target = Files("counter dumps", ("data/dumps",), tmp_path, "UTC", only_days=True)
    assert (target.oldest(), target.expired(NEXT)) == (DAY, (1, 1))
    assert list(target.remove(NEXT)) == [(1, 1)]
    assert read_drops(tmp_path, [DAY, NEXT]).counts == {NEXT: {"refused": 1}}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (b"canary", "(row)"),
        (b'{"event_date":"2026-11-22","reason":"refused","cou', "(row)"),
        (b'["canary"]', "(row)"),
        (b"[" * 2000 + b"]" * 2000, "(row)"),
        (line(reason="canary"), "reason"),
        (line(reason=["canary"]), "reason"),
        (line(reason=None), "reason"),
        (line(count=0), "count"),
        (line(count="canary"), "count"),
        (line(count=MAX_COUNT + 1), "count"),
        (line(event_date="2026-11-21"), "event_date"),
        (line(canary=1), "(row)"),
        (line(event_id="canary"), "(row)"),
        (line() + b"\0\0", "(row)"),
        (line(reason="\u0667"), "reason"),
    ],
)
def test_a_bad_line_is_told_without_its_value_and_costs_no_other(tmp_path: Path, bad: bytes, field: str) -> None:
    write(tmp_path, line() + b"\n\n" + bad + b"\n" + line(count=2, reason="io") + b"\n")
    found = read_drops(tmp_path, [DAY])
    assert found.counts == {DAY: {"refused": 5, "io": 2}}
    (problem,) = found.problems
    assert (problem.where, problem.violation.field) == (f"{DAY}/{FILE} line 3", field)
    assert "canary" not in repr(found)


def test_a_file_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    write(tmp_path, line() + b"\n" + b"canary" * 10_000)
    (tmp_path / str(NEXT)).write_text("canary")
    found = read_drops(tmp_path, [DAY, NEXT])
    assert found.counts == {}
    assert [str(problem) for problem in found.problems] == [
        f"{DAY}/{FILE}: (file) is larger than a drop file; remove it from the day's folder",
        f"{NEXT}/: {UNREADABLE}",
    ]


KILLED = """
import os, signal, sys
from analytics_assets.telemetry import Telemetry

telemetry = Telemetry(sys.argv[1], clock=lambda: float(sys.argv[2]))
for number in range(123):
    telemetry.count("directory_searched", event_id="canary")
if not os.fork():
    telemetry.count("directory_searched", event_id="canary", times=1000)
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_drop_and_a_forked_one_inherits_none(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLED, tmp_path, str(NOON)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert read_drops(tmp_path, [DAY]).counts == {DAY: {"refused": 1123}}
    assert len(list(tmp_path.glob("*/*.drops"))) == 2


def test_a_drop_file_is_named_by_chance(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("canary")
    (file,) = tmp_path.glob("*/*")
    assert file.match(f"{DAY}/*.drops")
    assert re.fullmatch(DROP_FILE_PATTERN, file.name)
    assert file.read_text().replace(" ", "") == f'{{"event_date":"{DAY}","reason":"refused","count":1}}\n'


@pytest.mark.parametrize("reason", DROP_REASONS)
def test_the_largest_number_of_drops_is_reached_and_not_passed(tmp_path: Path, reason: str) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=1)
        for _ in range(2):
            telemetry.drop(reason, MAX_COUNT, "for this test")
        telemetry.count("directory_searched", event_id=1)
        telemetry.close()
        assert read_drops(tmp_path, [DAY]).counts == {DAY: {reason: MAX_COUNT}}
