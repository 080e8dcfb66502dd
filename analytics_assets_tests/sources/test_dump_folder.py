"""Dumps behind a URL: read, compared, merged and judged as in a folder, also while somebody else changes them."""

import fcntl
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from threading import Event, Lock, Thread, current_thread
from typing import Any

import pytest

from analytics_assets.database import UnreachableError
from analytics_assets.dump_files import SHIPPING, is_dump
from analytics_assets.local.server import ROOT
from analytics_assets.remote import RemoteError, RemoteFolder
from analytics_assets.settings import Settings
from analytics_assets.ship import Shipper
from analytics_assets.sources import OriginRefusedError, merge
from analytics_assets.sources.counter_dumps import check_newest_days, find_problem, list_dumps, open_dumps
from analytics_assets.sources.drops import read_drops
from analytics_assets.sources.dump_folder import (
    DayFolders,
    copy_day,
    everything,
    nothing,
    open_folder,
    remove_left_copies,
    temporary_folder,
)
from analytics_assets.sources.merge import NOT_COPIED, NOT_MERGED, merge_dumps
from analytics_assets.telemetry.dumps import DumpFile
from analytics_assets_tests.support.dumps import DAY, DUMP_FED, FILES, write_day
from analytics_assets_tests.support.dumps import counts as counts_of_folder
from analytics_assets_tests.support.processes import PATIENCE
from analytics_assets_tests.support.s3 import PagesProxy, environment, forget_sessions, make_bucket, s3_server

Key = tuple[object, ...]


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    return Settings.from_env({"ANALYTICS_DUMP_DIR": url, "ANALYTICS_DATA_DIR": str(tmp_path / "data")})


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


@pytest.fixture
def remote(settings: Settings) -> RemoteFolder:
    return RemoteFolder(str(settings.dump_url))


@pytest.fixture
def _old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was shipped counts as quiet for long enough."""
    monkeypatch.setattr(merge, "_REMOTE_QUIET", timedelta(days=-1))
    monkeypatch.setattr(merge, "_QUIET_SECONDS", -86_400)


def ship(dumps: Path, remote: RemoteFolder) -> None:
    assert Shipper(dumps, remote, 180).ship(DAY + timedelta(days=1)).problems == []


def counts(settings: Settings, day: date = DAY) -> Counter[Key]:
    """The counts that are read of a day, which are also what it is compared with."""
    found: Counter[Key] = Counter()
    run_id = os.urandom(8).hex()
    for metric in DUMP_FED:
        with open_dumps(metric, settings, run_id) as reader:
            read = reader.count(day)
            assert read.problems == []
            assert reader.total(day) == sum(row["count"] for row in read.rows)
        for row in read.rows:
            found[(metric.asset, *(value for name, value in row.items() if name != "count"))] += row["count"]
    return found


def names(remote: RemoteFolder, day: date = DAY) -> set[str]:
    return set(remote.list(str(day)))


def test_the_same_is_counted_as_in_a_folder(settings: Settings, remote: RemoteFolder, dumps: Path) -> None:
    for day in (DAY, DAY + timedelta(days=1)):
        write_day(dumps, day)
    ship(dumps, remote)
    for day in (DAY, DAY + timedelta(days=1)):
        assert counts(settings, day) == counts_of_folder(dumps, day)
    assert counts(settings, DAY - timedelta(days=1)) == {}
    assert find_problem(settings) is None


def test_each_reading_asks_the_storage_again(settings: Settings, remote: RemoteFolder, dumps: Path) -> None:
    write_day(dumps, files=2)
    ship(dumps, remote)
    with open_dumps(DUMP_FED[0], settings, "run") as reader:
        total = sum(row["count"] for row in reader.count(DAY).rows)
        for name in names(remote):
            remote.remove(f"{DAY}/{name}")
        assert reader.total(DAY) == 0
        assert total > 0


def test_nothing_of_a_copy_stays(settings: Settings, remote: RemoteFolder, dumps: Path) -> None:
    write_day(dumps)
    ship(dumps, remote)
    with DayFolders(settings).open(DAY) as day, open_folder(settings, [DAY], everything) as folder:
        assert {path.name for path in day.iterdir()} == {path.name for path in (folder / str(DAY)).iterdir()}
    assert not day.exists()
    assert not folder.exists()


READS = """
import sys, time
from datetime import date
from analytics_assets.settings import Settings
from analytics_assets.sources.dump_folder import DayFolders
with DayFolders(Settings.from_env()).open(date.fromisoformat(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def test_the_next_reading_removes_what_a_killed_process_has_left_and_nothing_else(
    settings: Settings, remote: RemoteFolder, dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(dumps)
    ship(dumps, remote)
    copies = tmp_path / "tmp"
    (copies / "analytics-dumps-of-nobody").mkdir(parents=True)
    (copies / "analytics-dumps-elsewhere").symlink_to(dumps)
    (copies / "another").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    with ExitStack() as stack:
        environment = os.environ | settings.environment() | {"TMPDIR": str(copies), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", READS, str(DAY)]
        killed, reading = (
            stack.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        )
        stack.callback(reading.kill)
        stack.callback(killed.kill)
        left, in_use = (Path(process.stdout.readline().strip()) for process in (killed, reading) if process.stdout)
        killed.kill()
        killed.wait()
        assert len(list(left.iterdir())) == FILES, "this is what has to go"
        assert counts(settings) == counts_of_folder(dumps)
        assert {path.name for path in copies.iterdir()} == {
            "analytics-dumps-elsewhere",
            "another",
            in_use.parent.name,
        }
        assert len(list(in_use.iterdir())) == FILES
    remove_left_copies()
    assert not in_use.parent.exists()
    assert len(list((dumps / str(DAY)).iterdir())) == FILES, "behind the link"


def test_a_new_copy_is_made_again_when_another_process_takes_it_for_a_left_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make, made, held = tempfile.mkdtemp, list[Path](), list[int]()

    def meanwhile(**options: str) -> str:
        made.append(Path(make(**options)))
        match len(made):
            case 1:
                remove_left_copies()
            case 2:  # half removed: still locked
                held.append(os.open(made[1], os.O_RDONLY))
                fcntl.flock(held[0], fcntl.LOCK_EX)
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", meanwhile)
    with temporary_folder() as folder:
        assert [folder] == made[2:]
        remove_left_copies()
        assert folder.exists()
    os.close(held[0])
    assert not list(tmp_path.iterdir())


def test_where_nothing_was_shipped_is_told(settings: Settings) -> None:
    words = "dump folder: (ANALYTICS_DUMP_DIR) nothing is there: name the TARGET of `analytics-assets ship`"
    assert str(find_problem(settings)).startswith(words)
    assert str(check_newest_days(settings)[1][0]).startswith(words)
    with pytest.raises(OriginRefusedError, match="nothing is there"), open_dumps(DUMP_FED[0], settings):
        pass


def test_a_storage_that_is_away_is_told_without_its_place(
    settings: Settings, remote: RemoteFolder, dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(dumps)
    ship(dumps, remote)
    with open_dumps(DUMP_FED[0], settings) as reader:

        def away(*_: object) -> None:
            raise RemoteError("it cannot be reached")

        monkeypatch.setattr(RemoteFolder, "list", away)
        for read in (reader.count, reader.total):
            with pytest.raises(UnreachableError, match=r"\(ANALYTICS_DUMP_DIR\) it cannot be reached"):
                read(DAY)
    with pytest.raises(UnreachableError), open_dumps(DUMP_FED[0], settings):
        pass
    assert "it cannot be reached" in str(find_problem(settings))
    assert "it cannot be reached" in str(merge_dumps(settings, DAY).problems)
    assert str(settings.dump_url) not in repr(settings)


def test_foreign_names_are_refused_as_in_a_folder(settings: Settings, remote: RemoteFolder, dumps: Path) -> None:
    write_day(dumps)
    ship(dumps, remote)
    remote.write(f"{DAY}/{'a' * 32}{SHIPPING}", b"half a li")
    assert counts(settings)
    remote.write(f"{DAY}/canary.ndjson", b"x")
    days, problems = check_newest_days(settings)
    assert (days, len(problems)) == ([DAY], 1)
    assert "is not a counter dump" in str(problems)
    assert "canary" not in str(problems)
    remote.remove(f"{DAY}/canary.ndjson")
    assert check_newest_days(settings) == ([DAY], [])
    for name, refused in (("lost+found", False), (".snapshot", False), ("canary $", True)):
        remote.write(f"{name}/x", b"x")
        assert (find_problem(settings) is not None) == refused
    assert "has a folder that is not a day" in str(find_problem(settings))


def test_drop_files_are_read_there(settings: Settings, remote: RemoteFolder, dumps: Path) -> None:
    write_day(dumps, files=1)
    drops = DumpFile(dumps, str(DAY), ".drops")
    drops.append({"event_date": str(DAY), "reason": "refused"}, 3)
    drops.close()
    ship(dumps, remote)
    with open_folder(settings, [DAY], lambda name: not is_dump(name)) as folder:
        assert read_drops(folder, [DAY]).counts == {DAY: {"refused": 3}}
        assert [path.stat().st_size for path in folder.glob("*/*.ndjson")] == [0]


# --- merging


@pytest.mark.usefixtures("_old")
def test_a_closed_day_becomes_one_dump_there_and_shipping_again_changes_nothing(
    settings: Settings, remote: RemoteFolder, dumps: Path
) -> None:
    for day in (DAY, DAY + timedelta(days=1)):
        write_day(dumps, day)
    ship(dumps, remote)
    expected = counts(settings)
    merged = merge_dumps(settings, DAY)
    assert (merged.days, merged.dumps, merged.problems) == (1, FILES, ())
    after = names(remote)
    assert {Path(name).suffix for name in after} == {".ndjson", ".merged"}
    assert len(after) == 2
    for _ in range(2):
        ship(dumps, remote)
        assert names(remote) == after
        assert counts(settings) == expected
    assert merge_dumps(settings, DAY).days == 0
    assert len(names(remote, DAY + timedelta(days=1))) == FILES
    write_day(dumps, files=1)  # a machine that was away
    ship(dumps, remote)
    assert counts(settings) == counts_of_folder(dumps)
    assert merge_dumps(settings, DAY).dumps == 2
    assert len(names(remote)) == 2
    ship(dumps, remote)
    assert counts(settings) == counts_of_folder(dumps)


@pytest.mark.usefixtures("_old")
def test_a_day_with_a_foreign_file_is_left_as_it_is(settings: Settings, remote: RemoteFolder, dumps: Path) -> None:
    write_day(dumps)
    ship(dumps, remote)
    remote.write(f"{DAY}/notes.txt", b"canary")
    before = {name: remote.read(f"{DAY}/{name}") for name in remote.list(str(DAY))}
    for _ in range(2):
        assert merge_dumps(settings, DAY).days == 0
    assert {name: remote.read(f"{DAY}/{name}") for name in remote.list(str(DAY))} == before


@pytest.mark.usefixtures("_old")
def test_a_dump_that_arrives_while_a_day_is_copied_stays(
    settings: Settings, remote: RemoteFolder, dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(dumps)
    ship(dumps, remote)
    late = f"{DAY}/{'e' * 32}.ndjson"

    def arrive(folder: RemoteFolder, day: date, into: Path) -> Path:
        remote.write(late, b"\n")
        return copy_day(folder, day, into)

    monkeypatch.setattr("analytics_assets.sources.merge.copy_day", arrive)
    assert merge_dumps(settings, DAY).days == 0
    assert remote.read(late) == b"\n"
    assert len(remote.list(str(DAY))) == FILES + 1


def test_only_what_has_been_quiet_for_a_month_is_merged(tmp_path: Path, dumps: Path) -> None:
    """A machine without network ships what it has counted when the network is back."""
    (tmp_path / "share").mkdir()
    settings = replace(Settings.from_env({}), dump_url=f"file://{tmp_path}/share")
    write_day(dumps)
    ship(dumps, RemoteFolder(str(settings.dump_url)))
    paths = list((tmp_path / "share" / str(DAY)).iterdir())
    for days, merged in ((29, 0), (31, 1)):
        for path in paths:
            assert merge_dumps(settings, DAY).days == 0
            os.utime(path, (time.time() - days * 86_400,) * 2)
        assert merge_dumps(settings, DAY).days == merged


in_steps = pytest.mark.parametrize("url", ["file"], indirect=True)
"""The steps are the same on each storage, and many."""

OPERATIONS = ("list", "read", "write", "remove")


class Interrupt:
    """Does something before one of the operations on a storage, counted over all of its users."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
        self.steps = 0
        self.done = False
        for operation in OPERATIONS:
            patch.setattr(RemoteFolder, operation, self._around(getattr(RemoteFolder, operation), step, action))

    def _around(self, call: Callable[..., Any], step: int, action: Callable[[], object]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            if not self.done:
                self.steps += 1
                if self.steps == step:
                    self.done = True
                    action()
            return call(*arguments)

        return counted


@pytest.fixture
def shipped(settings: Settings, remote: RemoteFolder, dumps: Path) -> tuple[Settings, Counter[Key]]:
    write_day(dumps, files=3)
    ship(dumps, remote)
    return settings, counts(settings)


@pytest.mark.usefixtures("_old")
@in_steps
def test_a_reader_reads_the_same_while_a_merge_takes_place(
    shipped: tuple[Settings, Counter[Key]], remote: RemoteFolder, dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole merge between any two steps of a reader."""
    settings, expected = shipped
    for step in range(1, 200):
        remote.remove_folder(str(DAY))
        ship(dumps, remote)
        with monkeypatch.context() as patch:
            interrupt = Interrupt(patch, step, lambda: merge_dumps(settings, DAY))
            assert counts(settings) == expected, step
        if not interrupt.done:
            break
        assert len(names(remote)) == 2
    assert step > 10


@pytest.mark.usefixtures("_old")
@pytest.mark.parametrize("killed", [False, True])
@in_steps
def test_any_moment_of_a_merge_reads_the_same(
    shipped: tuple[Settings, Counter[Key]],
    remote: RemoteFolder,
    dumps: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    """A whole reading between any two steps of a merge, which then goes on or is over."""
    settings, expected = shipped

    def read() -> None:
        assert counts(settings) == expected
        if killed:
            raise KeyboardInterrupt

    seen = set()
    for step in range(1, 200):
        remote.remove_folder(str(DAY))
        ship(dumps, remote)
        with monkeypatch.context() as patch:
            interrupt = Interrupt(patch, step, read)
            try:
                merge_dumps(settings, DAY)
            except KeyboardInterrupt:
                assert killed
        seen.add(tuple(sorted({Path(name).suffix for name in names(remote)})))
        assert counts(settings) == expected, step
        ship(dumps, remote)
        merge_dumps(settings, DAY)
        assert counts(settings) == expected, step
        assert len([name for name in names(remote) if is_dump(name)]) == 1
        if not interrupt.done:
            break
    assert step > 5
    assert seen == ({(".ndjson",), (".merged", ".ndjson")} if killed else {(".merged", ".ndjson")})


@pytest.mark.usefixtures("_old")
@in_steps
def test_two_merges_that_meet_count_nothing_twice(
    shipped: tuple[Settings, Counter[Key]], remote: RemoteFolder, dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole merge of another pipeline between any two steps of a merge, unless it is its turn."""
    settings, expected = shipped
    turn, refused = Lock(), 0

    def other() -> None:
        nonlocal refused
        if turn.locked():
            refused += 1
        else:
            merge_dumps(settings, DAY, lambda: turn)

    for step in range(1, 200):
        remote.remove_folder(str(DAY))
        ship(dumps, remote)
        with monkeypatch.context() as patch:
            interrupt = Interrupt(patch, step, other)
            merge_dumps(settings, DAY, lambda: turn)
        assert counts(settings) == expected, step
        if not interrupt.done:
            break
    assert 5 <= refused < step - 5  # one more look, two writes, two times reading back


@pytest.mark.usefixtures("_old")
def test_a_day_that_changes_while_it_is_merged_is_left(
    shipped: tuple[Settings, Counter[Key]], remote: RemoteFolder, dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, expected = shipped
    (name, *_), before = sorted(names(remote)), names(remote)
    content = remote.read(f"{DAY}/{name}")
    grown = content[:-2].rstrip(b"0123456789 ") + b"999}\n"
    assert len(grown) != len(content) or grown != content
    original = merge._merge

    def meanwhile(folder: Path, day: date) -> Any:
        result = original(folder, day)
        remote.write(f"{DAY}/{name}", grown)
        return result

    monkeypatch.setattr(merge, "_merge", meanwhile)
    assert merge_dumps(settings, DAY).days == 0
    assert names(remote) == before
    assert counts(settings) != expected


@pytest.mark.usefixtures("_old")
def test_a_merged_dump_that_does_not_arrive_whole_is_taken_back(
    shipped: tuple[Settings, Counter[Key]], remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, expected = shipped
    before, write = names(remote), RemoteFolder.write
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "write", lambda self, path, content: write(self, path, content[:-5]))
        assert [problem.violation for problem in merge_dumps(settings, DAY).problems] == [NOT_MERGED]
    assert names(remote) == before
    assert counts(settings) == expected


@pytest.mark.usefixtures("_old")
def test_a_day_that_cannot_be_copied_is_left_and_told(
    shipped: tuple[Settings, Counter[Key]], remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, expected = shipped
    before = names(remote)

    def full(*_: object) -> None:
        raise OSError(28, "canary")

    with monkeypatch.context() as patch:
        patch.setattr(merge, "copy_day", full)
        merged = merge_dumps(settings, DAY)
    assert (merged.days, [problem.violation for problem in merged.problems]) == (0, [NOT_COPIED])
    assert "canary" not in str(merged)
    assert (names(remote), counts(settings)) == (before, expected)


@pytest.mark.parametrize(
    "missed",
    [
        {".merged"},  # the dump was made after the first page of names, the list before it is on that page
        {".merged", "merged"},  # the deletions were made before the last page, the merged dump after its own
        {"merged"},  # the same, and the list is on a later page than its dump: SFTP and shares sort nothing
    ],
)
@pytest.mark.usefixtures("_old")
@in_steps
def test_names_that_do_not_fit_together_are_listed_again(
    shipped: tuple[Settings, Counter[Key]], remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch, missed: set[str]
) -> None:
    """A storage lists many names in pages, and not at one moment."""
    settings, expected = shipped
    originals = {f"{DAY}/{name}": remote.read(f"{DAY}/{name}") for name in names(remote)}
    assert merge_dumps(settings, DAY).days == 1
    (merged,) = (name for name in names(remote) if is_dump(name))
    if "merged" not in missed:
        for path, content in originals.items():
            remote.write(path, content)
    listed, torn = RemoteFolder.list, [1]

    def in_pages(self: RemoteFolder, folder: str = "") -> Any:
        found = listed(self, folder)
        if folder == str(DAY) and torn:
            torn.clear()
            gone = {name for name in found if Path(name).suffix in missed or ("merged" in missed and name == merged)}
            return {name: entry for name, entry in found.items() if name not in gone}
        return found

    for metric in DUMP_FED:
        with open_dumps(metric, settings, os.urandom(8).hex()) as reader:
            torn.append(1)
            with monkeypatch.context() as patch:
                patch.setattr(RemoteFolder, "list", in_pages)
                total = sum(row["count"] for row in reader.count(DAY).rows)
            assert not torn
            assert total == sum(count for (asset, *_), count in expected.items() if asset == metric.asset)


@dataclass
class PausedMerge:
    """A merge that begins before one page of a reader's listing, and writes its dump before a later one."""

    settings: Settings
    begins: int
    goes_on: int
    pages: int = 0
    thread: Thread | None = None
    list_is_there: Event = field(default_factory=Event)
    may_go_on: Event = field(default_factory=Event)

    def before_page(self) -> None:
        if self.thread and (self.may_go_on.is_set() or not self.list_is_there.is_set()):
            return  # the merge's own
        self.pages += 1
        if self.pages == self.begins:
            self.thread = Thread(target=merge_dumps, args=(self.settings, DAY))
            self.thread.start()
            assert self.list_is_there.wait(PATIENCE)
        if self.pages == self.goes_on:
            self.end()

    def end(self) -> None:
        self.may_go_on.set()
        if self.thread:
            self.thread.join()
            assert self.list_is_there.is_set()

    def write(self, write: Callable[..., None]) -> Callable[..., None]:
        def paused(remote: RemoteFolder, path: str, content: bytes) -> None:
            if current_thread() is self.thread and path.endswith(".ndjson"):
                self.list_is_there.set()
                assert self.may_go_on.wait(PATIENCE)
            write(remote, path, content)

        return paused


@pytest.mark.usefixtures("_old")
def test_a_merge_between_two_pages_of_a_listing_leaves_names_that_fit_together(
    dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was merged before is merged again, with dumps that came later. S3 lists names in their order."""
    with (
        s3_server(MOTO_S3_DEFAULT_MAX_KEYS="2") as server,
        (proxy := PagesProxy(server.port)).running() as port,
    ):
        make_bucket(server.port, "paged")
        for name, value in environment(port).items():
            monkeypatch.setenv(name, value)
        forget_sessions()
        settings = replace(Settings.from_env({}), dump_url="s3://paged/dumps")
        remote = RemoteFolder("s3://paged/dumps")
        for _ in range(2):
            write_day(dumps, files=2)
            ship(dumps, remote)
            before = {name: remote.read(f"{DAY}/{name}") for name in names(remote)}
            merge_dumps(settings, DAY)
        expected = set(filter(is_dump, before))
        for begins in range(1, 99):
            goes_on = begins + begins % 2
            merged = "0f"[begins // 2 % 2] * 32  # before every other name, or after
            monkeypatch.setattr(secrets, "token_hex", lambda _, name=merged: name)
            for name, content in before.items():
                remote.write(f"{DAY}/{name}", content)
            for name in names(remote) - before.keys():
                remote.remove(f"{DAY}/{name}")
            merging = PausedMerge(settings, begins, goes_on)
            with monkeypatch.context() as patch:
                patch.setattr(RemoteFolder, "write", merging.write(RemoteFolder.write))
                patch.setattr(proxy, "before_page", merging.before_page)
                found = set(list_dumps(copy_day(remote, DAY, tmp_path, nothing))[0])
                assert found in (expected, {f"{merged}.ndjson"}), (begins, goes_on)
                merging.end()
            if merging.thread is None:
                break
            assert {Path(name).stem for name in names(remote)} == {merged}
        assert begins > 4


@in_steps
def test_a_day_that_never_stays_the_same_is_told(
    shipped: tuple[Settings, Counter[Key]], remote: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]
    listed = RemoteFolder.list

    def changing(self: RemoteFolder, folder: str = "") -> Any:
        calls[0] += 1
        found = listed(self, folder)
        return found if calls[0] % 2 else dict(list(found.items())[1:])

    monkeypatch.setattr(RemoteFolder, "list", changing)
    with pytest.raises(RemoteError, match="a day was changed each time that it was read"):
        copy_day(remote, DAY, tmp_path)
