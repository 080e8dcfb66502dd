"""Shipping dumps: nothing is lost, doubled or turned back, whatever runs, stops or is shipped at the same time."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from analytics_assets.dump_files import SHIPPING
from analytics_assets.local.server import ROOT
from analytics_assets.remote import RemoteError, RemoteFolder
from analytics_assets.ship import Fate, Round, Shipper, sum_counts
from analytics_assets.ship import ship as command
from analytics_assets.sources.merge import merge_closed_days
from analytics_assets.telemetry import Telemetry, TelemetryError
from analytics_assets.telemetry.dumps import DumpFile
from analytics_assets_tests.support.dumps import DAY, FILES, write_day
from analytics_assets_tests.support.processes import COMMAND, wait_until

TODAY = DAY + timedelta(days=1)
RETENTION_DAYS = 180
ROW = {"event_date": str(DAY), "event_name": "directory_searched", "event_id": "7"}


@pytest.fixture
def target(url: str) -> RemoteFolder:
    return RemoteFolder(url)


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    (tmp_path / "dumps").mkdir()
    return tmp_path / "dumps"


def ship(dumps: Path, target: RemoteFolder, today: date = TODAY) -> Round:
    """A round of a process of its own, which remembers nothing."""
    return Shipper(dumps, target, RETENTION_DAYS).ship(today)


def shipped(done: Round) -> int:
    assert done.problems == []
    return done.fates[Fate.SHIPPED]


def contents(target: RemoteFolder, day: date = DAY) -> dict[str, bytes]:
    return {name: target.read(f"{day}/{name}") for name in target.list(str(day))}


def local(dumps: Path, day: date = DAY) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (dumps / str(day)).iterdir()}


def test_everything_is_shipped_once(dumps: Path, target: RemoteFolder) -> None:
    for day in (DAY, DAY - timedelta(days=20)):
        write_day(dumps, day)
    shipper = Shipper(dumps, target, RETENTION_DAYS)
    assert shipped(shipper.ship(TODAY)) == 2 * FILES
    for again in (shipper, shipper, Shipper(dumps, target, RETENTION_DAYS)):
        done = again.ship(TODAY)
        assert (shipped(done), done.fates[Fate.UNCHANGED]) == (0, 2 * FILES)
    assert str(done) == f"0 shipped, {2 * FILES} unchanged"
    for day in (DAY, DAY - timedelta(days=20)):
        assert contents(target, day) == local(dumps, day)


def test_a_count_that_grows_in_a_file_of_the_same_size_and_time_is_shipped_again(
    dumps: Path, target: RemoteFolder
) -> None:
    dump = DumpFile(dumps, str(DAY))
    line = dump.append(ROW, 1)
    (path,) = (dumps / str(DAY)).iterdir()
    before = path.stat()
    shipper = Shipper(dumps, target, RETENTION_DAYS)
    for number in range(12):
        assert shipped((shipper if number % 2 else Shipper(dumps, target, RETENTION_DAYS)).ship(TODAY)) == 1
        assert contents(target) == local(dumps)
        assert sum_counts(target.read(f"{DAY}/{path.name}")) == line.count
        dump.add(line, 1)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
    dump.close()


def test_an_older_copy_never_takes_the_place_of_a_newer_one(dumps: Path, target: RemoteFolder) -> None:
    dump = DumpFile(dumps, str(DAY))
    line = dump.append(ROW, 5)
    shutil.copytree(dumps, dumps.with_name("older"))
    dump.add(line, 1)
    dump.append({**ROW, "event_id": "8"}, 1)
    assert shipped(ship(dumps, target)) == 1
    for shipper in [Shipper(dumps.with_name("older"), target, RETENTION_DAYS)] * 2:
        done = shipper.ship(TODAY)
        assert (done.fates, done.problems) == ({Fate.AHEAD: 1}, [])
        assert contents(target) == local(dumps)
    assert str(done) == "0 shipped, 0 unchanged, 1 with higher counts at the target"
    dump.close()


def test_an_older_copy_that_came_in_last_is_made_good_by_the_next_round(dumps: Path, target: RemoteFolder) -> None:
    write_day(dumps)
    shipper = Shipper(dumps, target, RETENTION_DAYS)
    assert shipped(shipper.ship(TODAY)) == FILES
    (name, *_), before = local(dumps), local(dumps)
    dump = (dumps / str(DAY) / name).read_bytes()
    target.write(f"{DAY}/{name}", dump[: dump.index(b"\n") + 1])
    assert shipped(shipper.ship(TODAY)) == 1
    assert contents(target) == before


def test_a_dump_that_was_repaired_here_is_shipped_again(dumps: Path, target: RemoteFolder) -> None:
    write_day(dumps, files=1)
    (name,), before = local(dumps), local(dumps)
    target.write(f"{DAY}/{name}", b"\0\0\0" + before[name][3:])
    assert shipped(ship(dumps, target)) == 1
    assert contents(target) == before


def test_drop_files_travel_and_nothing_else(dumps: Path, target: RemoteFolder) -> None:
    write_day(dumps, files=1)
    drops = DumpFile(dumps, str(DAY), ".drops")
    drops.append({"event_date": str(DAY), "reason": "refused"}, 3)
    expected = local(dumps)
    folder = dumps / str(DAY)
    for name in ("canary", f"{'a' * 32}.merging", f"{'a' * 32}{SHIPPING}"):
        (folder / name).write_text("canary")
    (folder / f"{'b' * 32}.ndjson").symlink_to(folder / "canary")
    (folder / f"{'c' * 32}.ndjson").touch()  # a process that has not counted yet
    (folder / f"{'d' * 32}.ndjson").mkdir()
    (dumps / "canary").mkdir()
    (dumps / "2026-11-21").symlink_to(folder)
    assert shipped(ship(dumps, target)) == 2
    assert contents(target) == expected
    assert list(target.list()) == [str(DAY)]
    drops.close()


def test_a_list_arrives_before_the_dump_that_it_belongs_to(
    dumps: Path, target: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(dumps)
    assert shipped(ship(dumps, target)) == FILES
    assert merge_closed_days(dumps, DAY).days == 1
    (merged,) = (path.stem for path in (dumps / str(DAY)).glob("*.merged"))
    write = target.write

    def lose_the_network(path: str, content: bytes) -> None:
        raise RemoteError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(target, "write", lose_the_network)
        assert len(ship(dumps, target).problems) == 1  # of the list; the dump is not tried
    order: list[str] = []

    def note(path: str, content: bytes) -> None:
        order.append(path)
        write(path, content)

    monkeypatch.setattr(target, "write", note)
    assert shipped(ship(dumps, target)) == 2
    assert order == [f"{DAY}/{merged}.merged", f"{DAY}/{merged}.ndjson"]


def test_what_was_merged_at_the_target_is_not_shipped_again(dumps: Path, target: RemoteFolder) -> None:
    write_day(dumps)
    before = list(local(dumps))
    shipper = Shipper(dumps, target, RETENTION_DAYS)
    assert shipped(shipper.ship(TODAY)) == FILES
    target.write(f"{DAY}/{'a' * 32}.merged", "".join(f"{name}\n" for name in before).encode())
    target.write(f"{DAY}/{'a' * 32}.ndjson", b"\n".join(local(dumps).values()))
    for name in before:
        target.remove(f"{DAY}/{name}")
    for again in (shipper, Shipper(dumps, target, RETENTION_DAYS)):
        done = again.ship(TODAY)
        assert (done.fates, done.problems) == ({Fate.MERGED: FILES}, [])
    assert set(contents(target)) == {f"{'a' * 32}.merged", f"{'a' * 32}.ndjson"}


def test_a_damaged_list_at_the_target_holds_up_its_day_only(dumps: Path, target: RemoteFolder) -> None:
    for day in (DAY, TODAY):
        write_day(dumps, day, files=1)
    for suffix in ("merged", "ndjson"):
        target.write(f"{DAY}/{'a' * 32}.{suffix}", b"canary")
    done = ship(dumps, target)
    assert done.problems == [f"{DAY}/: a list of merged dumps at the target is damaged"]
    assert contents(target, TODAY) == local(dumps, TODAY)


@pytest.mark.parametrize(
    ("age", "travels"), [(0, True), (-400, True), (RETENTION_DAYS - 1, True), (RETENTION_DAYS, False), (400, False)]
)
def test_a_day_that_expires_soon_is_not_shipped(dumps: Path, target: RemoteFolder, age: int, travels: bool) -> None:
    """Retention removes it by another clock, and it must not come back."""
    write_day(dumps, TODAY - timedelta(days=age), files=1)
    done = ship(dumps, target)
    assert shipped(done) == travels
    assert done.expired == (not travels)
    assert str(done) == ("1 shipped, 0 unchanged" if travels else "0 shipped, 0 unchanged, 1 day(s) too old to ship")
    assert len(list(dumps.iterdir())) == 1  # the target keeps no other day that would vouch for the clock


def test_a_day_leaves_this_machine_once_it_has_expired_by_both_clocks(dumps: Path, target: RemoteFolder) -> None:
    last_kept, expired = (TODAY - timedelta(days=RETENTION_DAYS + days) for days in (0, 1))
    for day in (TODAY, last_kept, expired):
        write_day(dumps, day, files=1)
    target.write(f"{expired}/{'a' * 32}.ndjson", b"the pipeline has not removed it yet")
    assert shipped(ship(dumps, target)) == 1
    assert {path.name for path in dumps.iterdir()} == {str(TODAY), str(last_kept), str(expired)}
    target.remove_folder(str(expired))
    assert shipped(ship(dumps, target)) == 0
    assert {path.name for path in dumps.iterdir()} == {str(TODAY), str(last_kept)}


def test_a_wrong_clock_removes_nothing_that_was_never_shipped(dumps: Path, target: RemoteFolder) -> None:
    for day in (TODAY - timedelta(days=1), TODAY):
        write_day(dumps, day, files=1)
    target.write(f"{TODAY - timedelta(days=1)}/{'a' * 32}.ndjson", b"of another machine")
    Shipper(dumps, target, RETENTION_DAYS).ship(TODAY + timedelta(days=400))
    assert {path.name for path in dumps.iterdir()} == {str(TODAY - timedelta(days=1)), str(TODAY)}


def test_an_expired_day_that_cannot_be_removed_is_told(
    dumps: Path, target: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (TODAY, TODAY - timedelta(days=400)):
        write_day(dumps, day, files=1)

    def refuse(_: Path) -> None:
        raise PermissionError("canary")  # root may remove anything here

    monkeypatch.setattr(shutil, "rmtree", refuse)
    ship(dumps, target)
    (problem,) = ship(dumps, target).problems
    assert problem.endswith("/: has expired and cannot be removed here: PermissionError")


def test_a_file_that_cannot_be_shipped_does_not_stop_the_others(
    dumps: Path, target: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(dumps)
    (unlucky, *_), write = sorted(local(dumps)), target.write

    def sometimes(path: str, content: bytes) -> None:
        if path.endswith(unlucky):
            raise RemoteError("no network")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(target, "write", sometimes)
        done = ship(dumps, target)
    assert done.problems == [f"{DAY}/{unlucky}: no network"]
    assert str(done) == f"{FILES - 1} shipped, 0 unchanged, 1 problem(s)"
    assert shipped(ship(dumps, target)) == 1


def test_a_day_that_cannot_be_read_does_not_stop_the_others(
    dumps: Path, target: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (DAY, TODAY):
        write_day(dumps, day, files=1)
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == str(DAY):
            raise PermissionError("canary")  # root may read everything here
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        done = ship(dumps, target)
    assert (done.fates, done.problems) == ({Fate.SHIPPED: 1}, [f"{DAY}/: cannot be read here: PermissionError"])


def test_a_file_that_vanishes_is_left_to_the_next_round(
    dumps: Path, target: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(dumps, TODAY - timedelta(days=20), files=1)
    shipper = Shipper(dumps, target, RETENTION_DAYS)

    def vanish(*_: object) -> None:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(target, "write", vanish)
        assert shipper.ship(TODAY).fates == {Fate.GONE: 1}
    assert shipped(shipper.ship(TODAY)) == 1


def test_a_list_that_a_later_list_has_taken_over_is_not_shipped_again(dumps: Path, target: RemoteFolder) -> None:
    """The dumps of a machine with a pipeline of its own, merged here and then once more at the target."""
    write_day(dumps)
    assert merge_closed_days(dumps, DAY).days == 1
    (merged,) = (path.name for path in (dumps / str(DAY)).glob("*.ndjson"))
    target.write(f"{DAY}/{'a' * 32}.merged", f"{merged}\n".encode())
    target.write(f"{DAY}/{'a' * 32}.ndjson", local(dumps)[merged])
    assert ship(dumps, target).fates == {Fate.MERGED: 2}
    assert len(target.list(str(DAY))) == 2


def test_many_processes_at_once_ship_what_one_does(dumps: Path, target: RemoteFolder) -> None:
    dump = DumpFile(dumps, str(DAY))
    line = dump.append(ROW, 1)
    write_day(dumps, files=10)
    rounds: list[Round] = []
    threads = [Thread(target=lambda: rounds.append(ship(dumps, target))) for _ in range(4)]
    for thread in threads:
        thread.start()
        dump.add(line, 1)
    for thread in threads:
        thread.join()
    ship(dumps, target)
    assert [problem for done in rounds for problem in done.problems] == []
    assert contents(target) == local(dumps)
    dump.close()


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_a_copy_that_was_left_half_written_goes_when_nobody_writes_it_any_more(
    dumps: Path, target: RemoteFolder, tmp_path: Path
) -> None:
    left, of_now = ("a" * 32 + SHIPPING, "b" * 32 + SHIPPING)
    write_day(dumps, files=1)
    for name, hours in ((left, 2), (of_now, 0)):
        target.write(f"{DAY}/{name}", b"half a li")
        os.utime(tmp_path / "share" / str(DAY) / name, (time.time() - hours * 3600,) * 2)
    assert shipped(ship(dumps, target)) == 1
    assert set(contents(target)) == {of_now, *local(dumps)}


# --- the command


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "200"} | environment
    return subprocess.run([*COMMAND, "ship", *arguments], env=env, capture_output=True, text=True, check=False)


def test_the_command_says_what_it_did(dumps: Path, s3_url: str) -> None:
    write_day(dumps, date.today(), files=2)  # noqa: DTZ011  # of the command itself, any zone does
    done = run(s3_url, "--from", str(dumps))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{s3_url}: 2 shipped, 0 unchanged\n", "")
    done = run(s3_url, ANALYTICS_DUMP_DIR=str(dumps), FORCE_COLOR="1")
    assert done.returncode == 0
    assert "shipping" in done.stdout
    assert done.stdout.endswith(f"{s3_url}: 0 shipped, 2 unchanged\n")


def test_the_command_fails_without_a_secret_when_a_file_was_not_shipped(dumps: Path, s3_url: str) -> None:
    write_day(dumps, date.today(), files=30)  # noqa: DTZ011  # as above
    done = run("s3://bucket-of-nobody/dumps", "--from", str(dumps))
    assert done.returncode == 1
    assert done.stdout == "s3://bucket-of-nobody/dumps: 0 shipped, 0 unchanged, 30 problem(s)\n"
    assert "and 10 more" in done.stderr
    assert done.stderr.count(": the bucket or folder does not exist\n") == 20
    assert done.stderr.endswith("Error: not everything is at the target; running it again continues\n")
    assert "canary" not in done.stdout + done.stderr
    done = run(s3_url, "--from", str(dumps), AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    assert (done.returncode, done.stdout) == (1, f"{s3_url}: 0 shipped, 0 unchanged, 1 problem(s)\n")
    assert "target: it cannot be reached or used: EndpointConnectionError" in done.stderr
    assert "127.0.0.1" not in done.stderr
    done = run(s3_url, "--from", str(dumps / "nowhere"))
    assert done.returncode == 1
    assert "--from: cannot be read or locked: FileNotFoundError" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sftp://user:canary@host/dumps", "--from", "dumps"], "TARGET: must not hold a password"),
        (["canary", "--from", "dumps"], "TARGET: is not a URL of a folder"),
        (["s3://bucket/dumps", "--from", "s3://canary/dumps"], "--from: is a URL: name the folder"),
        (["s3://bucket/dumps", "--from", "dumps", "--time-zone", "canary"], "--time-zone: is not an IANA time zone"),
        (["s3://bucket/dumps"], "Missing option '--from'"),
    ],
)
def test_wrong_arguments_are_refused_without_them(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "canary" not in done.stderr


def test_it_stays_and_ships_once_more_on_sigterm(dumps: Path, s3_url: str) -> None:
    target, today = RemoteFolder(s3_url), date.today()  # noqa: DTZ011  # as above
    dump = DumpFile(dumps, str(today))
    line = dump.append({**ROW, "event_date": str(today)}, 1)
    stays = [*COMMAND, "ship", s3_url, "--from", str(dumps), "--every", "3600"]
    with subprocess.Popen(stays, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == f"{s3_url}: 1 shipped, 0 unchanged\n"
        dump.add(line, 41)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == f"{s3_url}: 1 shipped, 0 unchanged\n"
    assert process.returncode == 0
    assert sum(map(sum_counts, contents(target, today).values())) == 42
    dump.close()


def test_it_goes_on_until_the_folder_is_there(tmp_path: Path, s3_url: str) -> None:
    """A container's telemetry makes the folder with its first count."""
    stays = [*COMMAND, "ship", s3_url, "--from", str(tmp_path / "dumps"), "--every", "1"]
    with subprocess.Popen(stays, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        assert "1 problem(s)" in process.stdout.readline()
        write_day(tmp_path / "dumps", date.today(), files=1)  # noqa: DTZ011  # as above
        wait_until(lambda: "1 shipped" in str(process.stdout and process.stdout.readline()))
        process.terminate()
        process.communicate()
    assert process.returncode == 0


def test_it_runs_where_the_pipeline_is_not_installed() -> None:
    script = (
        "import sys\n"
        "for name in ('dagster', 'sqlalchemy', 'pydantic', 'psycopg2'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['analytics-assets', 'ship', '--help']\n"
        "from analytics_assets.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--every SECONDS" in done.stdout


def test_the_page_names_only_options_and_messages_that_exist() -> None:
    page = (ROOT / "docs/several-machines.md").read_text(encoding="utf-8")
    options = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page)) <= options
    sources = "".join((ROOT / f"analytics_assets/{name}.py").read_text() for name in ("ship", "remote", "sftp"))
    told = re.findall(r"^\| `([^`]+)` \| ", page.partition("## When something is wrong")[2], re.MULTILINE)
    assert len(told) == 9
    for message in told[1:8]:
        assert message in sources


def test_telemetry_refuses_a_url_and_says_who_takes_one() -> None:
    with pytest.raises(TelemetryError, match="analytics-assets ship"):
        Telemetry("s3://bucket/dumps")
