"""A dump whose first bytes were overwritten: refused as it is, and counted without loss once it is repaired."""

from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

from analytics_assets.cli import main
from analytics_assets.contract import METRICS, CounterDumps
from analytics_assets.sources.counter_dumps import read_day
from analytics_assets.sources.repair import repair_dumps
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.telemetry import Clock, totals

DAY = date(2026, 11, 22)
DUMP_FED = [metric for metric in METRICS if isinstance(metric.origin, CounterDumps)]
HEADS = {
    name: f'{{"event_date":"{DAY}","event_name":"{name}",'.encode()
    for metric in DUMP_FED
    for name in metric.event_names
}


def count(folder: Path, first: str) -> Path:
    """A dump of all event names, which begins with one. Returns its path."""
    with Telemetry(folder, clock=Clock()) as telemetry:
        calls = {
            "directory_page_viewed": lambda: telemetry.count("directory_page_viewed", event_id=1, source="web"),
            "directory_searched": lambda: telemetry.count("directory_searched", event_id=2, times=5),
            "http_response": lambda: telemetry.count_response("GET", "/events/{event_id}", 404, times=7),
        }
        for name in (first, *(calls.keys() - {first})):
            calls[name]()
    (path,) = folder.glob("*/*.ndjson")
    return path


def overwrite(path: Path, stray: bytes) -> None:
    with path.open("r+b") as file:
        file.write(stray)


@pytest.mark.parametrize("first", HEADS)
def test_a_head_that_was_overwritten_up_to_the_event_name_is_restored(tmp_path: Path, first: str) -> None:
    path = count(tmp_path, first)
    intact, counted = path.read_bytes(), totals(tmp_path)
    for length in range(1, len(HEADS[first]) + 1):
        for stray in (b"\0" * length, b"." * length, b"\n" * length, bytes(range(1, length + 1))):
            overwrite(path, stray)
            assert len(read_day(path.parent, DAY)[DUMP_FED[0].asset].problems) >= 1
            repaired = repair_dumps(tmp_path)
            assert repaired.restored == (f"{DAY}/{path.name} line 1",), stray
            assert repaired.problems == ()
            assert path.read_bytes() == intact
    assert totals(tmp_path) == counted
    assert repair_dumps(tmp_path).restored == ()


def test_what_was_overwritten_past_the_event_name_is_told_and_left(tmp_path: Path) -> None:
    path = count(tmp_path, "directory_searched")
    overwrite(path, b"\0" * (len(HEADS["directory_searched"]) + 1))
    damaged = path.read_bytes()
    repaired = repair_dumps(tmp_path)
    assert repaired.restored == ()
    assert [str(problem) for problem in repaired.problems] == [
        f"{DAY}/{path.name} line 1: (row) is damaged past the event name; correct or remove it"
    ]
    assert path.read_bytes() == damaged


def test_a_live_dump_is_repaired_while_it_is_counted_into(tmp_path: Path) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count("directory_searched", event_id=1)
        (path,) = tmp_path.glob("*/*")
        overwrite(path, b"\0\0\0")
        telemetry.count("directory_searched", event_id=1)
        assert len(repair_dumps(tmp_path).restored) == 1
        for event_id in (1, 2):
            telemetry.count("directory_searched", event_id=event_id)
        assert telemetry.dropped == {}
    assert sorted(totals(tmp_path).values()) == [1, 3]


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    path = count(tmp_path, "http_response")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"\0" + path.read_bytes()[1:])
    (path.parent / f"{'a' * 32}.ndjson").symlink_to(elsewhere)
    (path.parent / f"{'b' * 32}.ndjson").write_bytes(b"")
    (path.parent / "canary.txt").write_bytes(b"\0")
    # An event name that is not in this contract, of the length of one that is.
    other = path.read_bytes().replace(b"http_response", b"http_canarycn")
    (path.parent / f"{'c' * 32}.ndjson").write_bytes(other)
    (tmp_path / "canary").mkdir()
    (tmp_path / "20261122").mkdir()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    repaired = repair_dumps(tmp_path)
    assert repaired.restored == ()
    assert [(problem.where, problem.violation.field) for problem in repaired.problems] == [
        (f"{DAY}/{'a' * 32}.ndjson line 1", "(file)")
    ]
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}


def test_the_command_says_what_it_restored_and_fails_for_what_it_could_not(tmp_path: Path) -> None:
    env = {"ANALYTICS_DUMP_DIR": str(tmp_path / "dumps"), "ANALYTICS_DATA_DIR": str(tmp_path / "data")}

    def run() -> tuple[int, str]:
        ended = CliRunner().invoke(main, ["repair-dumps"], env=env)
        return ended.exit_code, ended.output

    assert run() == (1, "Error: cannot read the dump folder: set ANALYTICS_DUMP_DIR to the telemetry's\n")
    path = count(tmp_path / "dumps", "http_response")
    assert run() == (0, "No dump has damaged first bytes.\n")
    overwrite(path, b"\0\0\0")
    assert run() == (0, f"{DAY}/{path.name} line 1: restored\n")
    overwrite(path, b"\0" * 100)
    assert run() == (
        1,
        f"{DAY}/{path.name} line 1: (row) is damaged past the event name; correct or remove it\n"
        "Error: 1 dump(s) could not be repaired\n",
    )
    assert not (tmp_path / "data").exists()
