"""Merging the dumps of closed days: the counts stay the same, whenever it is killed and whoever reads meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from threading import Thread

import pytest

from analytics_assets.contract import MAX_COUNT
from analytics_assets.folders import lock, lock_shared
from analytics_assets.settings import Settings
from analytics_assets.sources import OriginRefusedError
from analytics_assets.sources.counter_dumps import find_folder_problem, open_dumps, read_day
from analytics_assets.sources.merge import NOT_CHANGEABLE, merge_closed_days
from analytics_assets.telemetry.dumps import DumpFile
from analytics_assets_tests.support.dumps import DAY, DUMP_FED, FILES, age, counts, write_day
from analytics_assets_tests.support.nobody import as_nobody
from analytics_assets_tests.support.telemetry import totals

MERGE = """
import os, signal, sys
from datetime import date
from pathlib import Path
from analytics_assets.sources.merge import merge_closed_days

folder, last, step = Path(sys.argv[1]), date.fromisoformat(sys.argv[2]), int(sys.argv[3])
steps = 0

def before_each_step(event, arguments):
    global steps
    if event in {"open", "os.rename", "os.remove", "os.listdir", "os.scandir", "fcntl.flock"}:
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(before_each_step)
merge_closed_days(folder, last)
"""
"""A process that merges, and kills itself before one of its steps on files; 0 means never."""


def dumps(folder: Path, day: date = DAY) -> set[str]:
    return {path.name for path in (folder / str(day)).glob("*.ndjson")}


def test_a_closed_day_becomes_one_ordinary_dump(tmp_path: Path) -> None:
    write_day(tmp_path)
    expected, lines, before = counts(tmp_path), totals(tmp_path), dumps(tmp_path)
    merged = merge_closed_days(tmp_path, DAY)
    assert (merged.days, merged.dumps, merged.problems) == (1, FILES, ())
    assert counts(tmp_path) == expected
    assert totals(tmp_path) == lines
    (dump,) = dumps(tmp_path)
    assert dump not in before
    assert {path.suffix for path in (tmp_path / str(DAY)).iterdir()} == {".ndjson", ".merged"}
    assert (tmp_path / str(DAY) / dump).stat().st_mode & 0o777 == 0o640
    assert merge_closed_days(tmp_path, DAY).days == 0


def test_only_closed_days_are_merged(tmp_path: Path) -> None:
    for day in (DAY, DAY + timedelta(days=1)):
        write_day(tmp_path, day)
    assert merge_closed_days(tmp_path, DAY).days == 1
    assert len(dumps(tmp_path, DAY + timedelta(days=1))) == FILES


def test_a_dump_that_has_changed_lately_is_not_merged(tmp_path: Path) -> None:
    write_day(tmp_path)
    os.utime(next((tmp_path / str(DAY)).iterdir()))
    assert merge_closed_days(tmp_path, DAY).days == 0
    assert len(dumps(tmp_path)) == FILES


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("f" * 32 + ".ndjson", b'{"event_name":"canary"}\n', "event_name"),
        ("f" * 32 + ".ndjson", b"canary", "(row)"),
        ("f" * 32 + ".merged", b"canary\n", "(file)"),
    ],
)
def test_a_day_that_is_refused_is_left_as_it_is(tmp_path: Path, name: str, content: bytes, field: str) -> None:
    write_day(tmp_path)
    (tmp_path / str(DAY) / name).write_bytes(content)
    if name.endswith(".merged"):
        dump = (tmp_path / str(DAY) / name).with_suffix(".ndjson")
        dump.write_bytes(next((tmp_path / str(DAY)).glob("*.ndjson")).read_bytes())
    age(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / str(DAY)).iterdir()}
    merged = merge_closed_days(tmp_path, DAY)
    assert merged.days == 0
    assert [problem.violation.field for problem in merged.problems] == [field]
    assert "canary" not in str(merged)
    assert {path: path.read_bytes() for path in (tmp_path / str(DAY)).iterdir()} == before


def test_sums_past_the_largest_count_are_not_merged(tmp_path: Path) -> None:
    for _ in range(2):
        dump = DumpFile(tmp_path, str(DAY))
        row = {"event_date": str(DAY), "event_name": "directory_searched", "event_id": "7"}
        dump.append(row, MAX_COUNT)
        dump.close()
    age(tmp_path)
    assert [problem.violation.field for problem in merge_closed_days(tmp_path, DAY).problems] == ["count"]
    assert len(dumps(tmp_path)) == 2


def test_a_list_that_names_no_dump_is_refused(tmp_path: Path) -> None:
    write_day(tmp_path)
    (tmp_path / str(DAY) / sorted(dumps(tmp_path))[0]).with_suffix(".merged").write_text("canary\n")
    for metric in DUMP_FED:
        (problem,) = read_day(tmp_path / str(DAY), DAY)[metric.asset].problems
        assert "is not a list of merged dumps" in str(problem)
        with (
            pytest.raises(OriginRefusedError, match="is not a list of merged dumps"),
            open_dumps(metric, replace(Settings.from_env({}), dump_dir=tmp_path)),
        ):
            pass


def test_a_dump_that_comes_back_is_not_counted_again_and_a_late_one_is(tmp_path: Path) -> None:
    folder, kept = tmp_path / "dumps", tmp_path / "kept"
    write_day(folder)
    shutil.copytree(folder, kept)
    for _ in range(2):
        expected = counts(folder)
        assert merge_closed_days(folder, DAY).days == 1
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        assert counts(folder) == expected
        write_day(folder, files=1)
        assert sum(counts(folder).values()) == sum(expected.values()) + 3
    expected = counts(folder)
    assert merge_closed_days(folder, DAY).days == 1
    assert counts(folder) == expected
    assert len(list((folder / str(DAY)).iterdir())) == 2


def start(folder: Path, step: int, last: date = DAY) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", MERGE, str(folder), str(last), str(step)])


def test_a_kill_at_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    original = tmp_path / "original"
    write_day(original)
    expected = counts(original)
    killed_with: set[tuple[str, ...]] = set()
    for step in range(1, 1000):
        folder = tmp_path / f"step {step}"
        shutil.copytree(original, folder)
        status = start(folder, step).wait()
        killed_with.add(tuple(sorted({path.suffix for path in (folder / str(DAY)).iterdir()})))
        assert counts(folder) == expected, step
        if not status:
            break
        assert status == -signal.SIGKILL
        merge_closed_days(folder, DAY)
        assert counts(folder) == expected, step
        assert len(dumps(folder)) == 1
        assert len(list((folder / str(DAY)).iterdir())) == 2
        shutil.rmtree(folder)
    assert {(".ndjson",), (".merging", ".ndjson"), (".merged", ".merging", ".ndjson"), (".merged", ".ndjson")} == (
        killed_with
    )


@pytest.mark.parametrize("left", [b"", b'{"event_date":"2026-11-22","event_na'])
def test_a_half_written_dump_is_not_counted_and_goes(tmp_path: Path, left: bytes) -> None:
    write_day(tmp_path)
    expected = counts(tmp_path)
    (tmp_path / str(DAY) / f"{'0' * 32}.merging").write_bytes(left)
    (tmp_path / str(DAY) / f"{'0' * 32}.merged").write_bytes(left)
    assert counts(tmp_path) == expected
    assert merge_closed_days(tmp_path, DAY).days == 1
    assert counts(tmp_path) == expected
    assert len(list((tmp_path / str(DAY)).iterdir())) == 2


def test_who_reads_during_a_merge_reads_the_same(tmp_path: Path) -> None:
    days = [DAY - timedelta(days=number) for number in range(8)]
    for day in days:
        write_day(tmp_path, day, files=12)
    expected = {day: counts(tmp_path, day) for day in days}
    with start(tmp_path, 0) as first, start(tmp_path, 0) as second:
        while first.poll() is None or second.poll() is None:
            for day in days:
                assert counts(tmp_path, day) == expected[day]
    assert (first.returncode, second.returncode) == (0, 0)
    for day in days:
        assert counts(tmp_path, day) == expected[day]
        assert len(dumps(tmp_path, day)) == 1


def test_reading_and_merging_wait_for_each_other(tmp_path: Path) -> None:
    """A thread that is late passes, too: the wait can only hide a fault."""
    write_day(tmp_path)
    metric, source = DUMP_FED[0], replace(Settings.from_env({}), dump_dir=tmp_path)

    def compare() -> None:
        with open_dumps(metric, source) as reader:
            reader.total(DAY)

    for held, action in (
        (lock, lambda: read_day(tmp_path / str(DAY), DAY)),
        (lock, lambda: find_folder_problem(tmp_path)),
        (lock, compare),
        (lock_shared, lambda: merge_closed_days(tmp_path, DAY)),
    ):
        waiting = Thread(target=action)
        with held(tmp_path / str(DAY)):
            waiting.start()
            waiting.join(0.5)
            assert waiting.is_alive()
            assert len(dumps(tmp_path)) == FILES
        waiting.join()
    assert len(dumps(tmp_path)) == 1


def test_readers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    write_day(tmp_path)
    with lock_shared(tmp_path / str(DAY)):
        assert counts(tmp_path)


def test_a_folder_that_may_not_be_changed_is_told_and_counted() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_day(folder)
        expected = counts(folder)
        for path in (folder, folder / str(DAY)):
            path.chmod(0o755 if not os.geteuid() else 0o555)
        for path in (folder / str(DAY)).iterdir():
            path.chmod(0o644)
        assert as_nobody(lambda: [str(problem) for problem in merge_closed_days(folder, DAY).problems]) == [
            f"{DAY}/: {NOT_CHANGEABLE}"
        ]
        assert counts(folder) == expected
        assert len(dumps(folder)) == FILES
        for path in (folder, folder / str(DAY)):
            path.chmod(0o755)
