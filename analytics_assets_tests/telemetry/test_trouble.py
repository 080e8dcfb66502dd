"""Telemetry in trouble: no error reaches the application, every drop is reported, and counting continues afterwards.

Each scenario runs in its own process, on a real file system that a mount namespace makes small or read-only. Where
namespaces are not permitted, a file size limit replaces them, because it also stops writing. test_crash covers kills,
test_counters covers what the contract refuses.
"""

import errno
import functools
import itertools
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics_assets.telemetry import Telemetry, counters
from analytics_assets.telemetry.dumps import DumpFile, Line
from analytics_assets_tests.support.telemetry import drops

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
DAY_SECONDS = 86_400
CANARY = "canary"
"""Part of the name of every dump folder."""
FIRST_ID = 31_337_000_000
"""Ids start at this number, so that a log line with an id can be found."""
UNWRITTEN = "the number of dropped counts cannot be written: "


def dumped(folder: Path) -> int:
    """Sum of all counts below a folder; every line must be JSON."""
    lines = [line for path in folder.rglob("*.ndjson") for line in path.read_bytes().split(b"\n") if line]
    return sum(json.loads(line)["count"] for line in lines)


class Host(logging.Handler):
    """An application that counts, and records its number of calls and the log records."""

    def __init__(self, folder: Path, max_keys: int = 2000) -> None:
        super().__init__()
        self.folder = folder
        self.now = NOON
        self.calls = 0
        self.records: list[logging.LogRecord] = []
        self.telemetry = Telemetry(folder, max_keys=max_keys, clock=self.clock)
        logging.getLogger().addHandler(self)

    def clock(self) -> float:
        return self.now

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def search(self, *numbers: int) -> None:
        for number in numbers:
            self.calls += 1
            self.telemetry.count("directory_searched", event_id=FIRST_ID + number)

    def search_until_counted(self, number: int) -> None:
        """Retry for up to a minute, because this test does not fix the pause between attempts."""
        before, give_up = dumped(self.folder), time.monotonic() + 60
        while dumped(self.folder) == before:
            assert time.monotonic() < give_up, "it does not recover"
            self.search(number)
            time.sleep(0.01)

    @property
    def dropped(self) -> Mapping[str, int]:
        return self.telemetry.dropped

    def check(self, *reasons: str) -> None:
        """Every call is counted or dropped; each reason is logged once, without folder and value."""
        assert set(self.dropped) == set(reasons), self.dropped
        assert dumped(self.folder) + sum(self.dropped.values()) == self.calls, (dumped(self.folder), self.dropped)
        assert drops(self.folder) == self.dropped
        told = [record.getMessage() for record in self.records if not record.getMessage().startswith(UNWRITTEN)]
        assert sorted(text.partition(":")[0] for text in told) == sorted(f"not counted ({why})" for why in reasons), (
            told
        )
        everything = repr([vars(record) for record in self.records])
        assert CANARY not in everything
        assert str(FIRST_ID)[:5] not in everything
        assert not any(record.exc_info for record in self.records)


def in_a_process(scenario: Callable[[Path, str], None], folder: Path, trouble: str = "") -> None:
    """Run a scenario with a folder and a trouble. Any exception, or any output on standard error, fails it."""
    script = f"import sys; from {__name__} import *; prepare({scenario.__name__}, *sys.argv[1:])"
    command = [sys.executable, "-W", "error", "-c", script, str(folder), trouble]
    done = subprocess.run(
        [*(["unshare", "-Urm"] if trouble in MOUNTED else []), *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")


def prepare(scenario: Callable[[Path, str], None], folder: str, trouble: str) -> None:
    """Runs inside the process: waits are short, and each reason is logged only once."""
    counters._RETRY_SECONDS = 0.05  # type: ignore[misc]
    counters._LOCK_SECONDS = 0.001  # type: ignore[misc]
    counters._LOG_SECONDS = 1e9  # type: ignore[misc]
    scenario(Path(folder), trouble)


# The first `next` prepares a trouble, the second starts it, the third ends it.
Trouble = Generator[None, None, None]


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def repeat_until_there_is_no_space(step: Callable[[int], object]) -> None:
    try:
        for number in itertools.count():
            step(number)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def full(folder: Path) -> Trouble:
    """A disk that other files fill."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", folder)
    yield
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        repeat_until_there_is_no_space(lambda _: file.write(bytes(4096)))
    yield
    ballast.unlink()
    yield


def out_of_inodes(folder: Path) -> Trouble:
    """A disk that takes no more files."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "nr_inodes=50,mode=700", "tmpfs", folder)
    yield
    repeat_until_there_is_no_space(lambda number: (folder / f"ballast{number}").touch())
    yield
    for path in folder.glob("ballast*"):
        path.unlink()
    yield


def limited(folder: Path) -> Trouble:
    """A file size limit of 0, so that no new file can be written."""
    folder.mkdir()
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    yield


def read_only(folder: Path) -> Trouble:
    """A file system that is remounted read-only, which requires that no file is open for writing."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "mode=700", "tmpfs", folder)
    yield
    mount("-o", "remount,ro", folder)
    yield
    mount("-o", "remount,rw", folder)
    yield


def below_a_file(folder: Path) -> Trouble:
    """A file has the name of the folder."""
    yield
    folder.write_text("")
    yield
    folder.unlink()
    yield


def forbidden(folder: Path) -> Trouble:
    """A folder that its user may not enter."""
    folder.mkdir()
    if os.geteuid() == 0:  # root ignores permissions
        os.chown(folder, 65534, 65534)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    yield
    folder.chmod(0)
    yield
    folder.chmod(0o700)
    yield


TROUBLES = {made.__name__: made for made in (full, out_of_inodes, limited, read_only, below_a_file, forbidden)}
MOUNTED = {"full", "out_of_inodes", "read_only"}


@functools.cache
def may_mount() -> bool:
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", str(ROOT)]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def possible(trouble: str) -> str:
    """The trouble, or `limited` where mounting is not permitted, so that no scenario is skipped."""
    return "limited" if trouble in MOUNTED and not may_mount() else trouble


def start(folder: Path, trouble: str) -> tuple[Host, Trouble]:
    # Use a relative path: an unprivileged user may not traverse the parents of pytest's folders.
    os.chdir(folder)
    folder.chmod(0o711)
    place = Path(CANARY)
    made = TROUBLES[trouble](place)
    next(made)
    return Host(place), made


def from_the_beginning(folder: Path, trouble: str) -> None:
    host, made = start(folder, trouble)
    next(made)
    host.search(*range(100), *range(100))
    assert host.dropped == {"io": 200}
    next(made)
    assert dumped(host.folder) == 0
    host.search_until_counted(0)
    dropped = host.dropped["io"]
    host.search(*range(200), *range(200))
    assert host.dropped == {"io": dropped}
    host.telemetry.close()
    host.check("io")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_written_is_dropped_until_it_can_be(tmp_path: Path, trouble: str) -> None:
    in_a_process(from_the_beginning, tmp_path, possible(trouble))


def while_counting(folder: Path, trouble: str) -> None:
    host, made = start(folder, trouble)
    host.search(*range(100))
    next(made)
    host.now += 1
    host.search(*range(100))
    assert host.dropped == {}
    host.search(*range(100, 200))
    written = 200 - host.dropped.get("io", 0)
    host.now += 1
    host.search(*range(written), *range(written))
    host.now += DAY_SECONDS
    host.search(*range(100))
    next(made)
    assert host.dropped == {"io": 300 - written}
    host.search_until_counted(0)
    dropped = host.dropped["io"]
    host.search(*range(100))
    assert host.dropped == {"io": dropped}
    host.telemetry.close()
    host.check("io")


# read_only and below_a_file are impossible while the dump is open.
@pytest.mark.parametrize("trouble", ["full", "out_of_inodes", "limited", "forbidden"])
def test_what_has_a_line_is_counted_in_the_trouble_and_the_next_day_after_it(tmp_path: Path, trouble: str) -> None:
    in_a_process(while_counting, tmp_path, possible(trouble))


def filled_by_the_counts(folder: Path, trouble: str) -> None:
    host, made = start(folder, trouble)
    if trouble == "limited":
        next(made)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    host.search(*range(2000))
    written = 2000 - host.dropped["io"]
    assert 100 < written < 1000
    host.search(*range(written))
    assert host.dropped == {"io": 2000 - written}
    if trouble == "limited":
        next(made)
    else:
        mount("-o", "remount,size=1m", host.folder)
    host.search_until_counted(written)
    dropped = host.dropped["io"]
    host.search(*range(2000))
    assert host.dropped == {"io": dropped}
    host.telemetry.close()
    host.check("io")


@pytest.mark.parametrize("trouble", ["full", "limited"])
def test_a_disk_that_the_counts_themselves_fill(tmp_path: Path, trouble: str) -> None:
    in_a_process(filled_by_the_counts, tmp_path, possible(trouble))


def removed(folder: Path, what: str) -> None:
    host = Host(folder / CANARY / "dumps")
    host.search(*range(10))
    (file,) = host.folder.glob("*/*.ndjson")
    gone = {"file": file, "folder of the day": file.parent, "dump folder": host.folder, "all": host.folder.parent}[what]
    os.rename(gone, folder / "aside")
    host.search(*range(20))  # before the next check of the dump
    assert host.dropped == {}
    assert not list(host.folder.glob("*/*"))
    host.now += 2
    host.search(*range(20))
    assert host.dropped == {"removed": 30}
    assert dumped(host.folder) == 20
    host.now += 2
    host.search(*range(20))
    assert len(list(host.folder.glob("*/*.ndjson"))) == 1
    host.telemetry.close()
    host.check("removed")


@pytest.mark.parametrize("what", ["file", "folder of the day", "dump folder", "all"])
def test_a_removed_dump_is_told_with_what_it_held_and_counting_goes_on_in_a_new_one(tmp_path: Path, what: str) -> None:
    in_a_process(removed, tmp_path, what)


def removed_before_midnight(folder: Path, _: str) -> None:
    host = Host(folder / CANARY)
    host.search(*range(10))
    shutil.rmtree(host.folder)
    host.search(*range(10))
    host.now += DAY_SECONDS
    host.search(*range(10))
    assert host.dropped == {"removed": 20}
    host.telemetry.close()
    host.check("removed")


def test_a_dump_removed_on_the_last_day_is_told_on_the_next(tmp_path: Path) -> None:
    in_a_process(removed_before_midnight, tmp_path)


def replaced_by_a_file(folder: Path, _: str) -> None:
    host = Host(folder / CANARY)
    host.search(*range(10))
    os.rename(host.folder, folder / "aside")
    host.folder.write_text("")
    host.now += 2
    host.search(*range(10))
    assert host.dropped == {"removed": 10, "io": 10}
    host.folder.unlink()
    host.search_until_counted(0)
    host.telemetry.close()
    host.check("removed", "io")


def test_a_folder_replaced_by_a_file_is_a_removed_one_that_cannot_be_made_again(tmp_path: Path) -> None:
    in_a_process(replaced_by_a_file, tmp_path)


def removed_under_load(folder: Path, _: str) -> None:
    sys.setswitchinterval(1e-5)
    host = Host(folder / CANARY / "dumps")
    stop = threading.Event()
    calls = [0] * 4

    def work(slot: int) -> None:
        while not stop.is_set():
            host.telemetry.count("directory_searched", event_id=FIRST_ID + calls[slot] % 50)
            calls[slot] += 1

    counters._LOCK_SECONDS = 60.0  # type: ignore[misc]  # a busy machine is another trouble
    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(len(calls))]
    for thread in threads:
        thread.start()
    moved = 0
    while moved < 20:
        reached = sum(calls) + 200
        while sum(calls) < reached:
            time.sleep(0.001)
        if list(host.folder.glob("*/*")):
            os.rename(host.folder, folder / f"aside{moved}")
            moved += 1
        host.now += 2
    stop.set()
    for thread in threads:
        thread.join()
    host.now += 2
    host.calls = sum(calls)
    host.search_until_counted(0)
    host.telemetry.close()
    # The folder may be removed after telemetry has created it and before it creates the file.
    host.check("removed", *({"io"} & set(host.dropped)))
    assert host.dropped["removed"] == sum(dumped(aside) for aside in folder.glob("aside*"))


def test_folders_removed_again_and_again_under_load_are_told_exactly(tmp_path: Path) -> None:
    in_a_process(removed_under_load, tmp_path)


def interrupted_inside(folder: Path, _: str) -> None:
    host = Host(folder / CANARY)
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        host.search(2)

    def clock() -> float:
        # Telemetry calls the clock under its lock, so the signal arrives under the lock.
        signal.raise_signal(signal.SIGUSR1)
        return NOON

    signal.signal(signal.SIGUSR1, handle)
    host.telemetry = Telemetry(host.folder, clock=clock)
    for _number in range(50):
        host.search(1)
    host.telemetry.close()
    assert handled == 50
    assert host.dropped == {"busy": 50}
    host.check("busy")


def test_a_signal_handler_that_counts_inside_a_count_is_not_waited_for_forever(tmp_path: Path) -> None:
    in_a_process(interrupted_inside, tmp_path)


def interrupted_anywhere(folder: Path, _: str) -> None:
    counters._LOCK_SECONDS = 0.0  # type: ignore[misc]
    host = Host(folder / CANARY, max_keys=100)
    handled = outside = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        # New keys, seen keys and keys over the cap: signals interrupt dropping as well as counting.
        host.telemetry.count("directory_searched", event_id=FIRST_ID + handled)
        host.telemetry.count("directory_searched", event_id=-1)

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    while handled < 1500:
        outside += 1
        host.telemetry.count("directory_searched", event_id=FIRST_ID + outside % 200)
    signal.setitimer(signal.ITIMER_REAL, 0)
    host.calls = 2 * handled + outside
    host.telemetry.close()
    host.check("capped", "refused", *({"busy"} & set(host.dropped)))


def test_whatever_a_counting_signal_handler_interrupts_every_call_is_accounted_for(tmp_path: Path) -> None:
    in_a_process(interrupted_anywhere, tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / CANARY)
    yield made
    made.telemetry.close()
    logging.getLogger().removeHandler(made)


def test_behind_a_hanging_writer_a_call_returns_and_is_dropped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, go_on, returned = threading.Event(), threading.Event(), threading.Event()

    class Hanging(DumpFile):
        def append(self, row: Mapping[str, object], count: int) -> Line:
            hanging.set()
            go_on.wait()
            return super().append(row, count)

    def behind() -> None:
        for _ in range(3):
            host.telemetry.count("directory_searched", event_id=1, times=10)
        returned.set()

    monkeypatch.setattr(counters, "DumpFile", Hanging)
    monkeypatch.setattr(counters, "_LOCK_SECONDS", 0.01)
    writer = threading.Thread(target=host.search, args=(0,))
    other = threading.Thread(target=behind)
    writer.start()
    try:
        hanging.wait()
        other.start()
        assert returned.wait(60), "it waits for as long as the writer hangs"
        assert host.dropped == {"busy": 30}
    finally:
        go_on.set()
        writer.join()
        other.join()
    host.search(0, 1)
    host.calls += 30
    assert dumped(host.folder) == 3
    host.check("busy")


class Taken:
    """A lock that is never released; it records how long each call waits."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    def acquire(self, blocking: bool, timeout: float = -1) -> bool:
        if blocking:
            self.waited.append(timeout)
        return False


def test_the_full_patience_is_for_the_first_that_waits_in_vain_until_the_file_system_answers(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, free = Taken(), host.telemetry._lock
    for _ in range(2):
        monkeypatch.setattr(host.telemetry, "_lock", taken)
        host.search(1, 2, 3)
        monkeypatch.setattr(host.telemetry, "_lock", free)
        host.now += 2
        host.search(1)
    assert taken.waited == [counters._LOCK_SECONDS, *[counters._HANGING_LOCK_SECONDS] * 2] * 2
    host.check("busy")


@dataclass
class Seconds:
    """Stands in for the module's `time`."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_failing_file_system_is_asked_once_a_second(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = Seconds()
    asked: list[float] = []

    class Failing(DumpFile):
        def append(self, row: Mapping[str, object], count: int) -> Line:
            asked.append(seconds.now)
            if seconds.now < 1002.5:
                raise OSError(errno.EIO, CANARY, CANARY)
            return super().append(row, count)

    monkeypatch.setattr(counters, "DumpFile", Failing)
    monkeypatch.setattr(counters, "time", seconds)
    for tenth in range(30):
        seconds.now = 1000 + tenth / 10
        host.search(*range(5))
    seconds.now = 1003.5
    host.search(*range(5), *range(5))
    # Five keys, and the number of drops.
    assert asked == [1000, 1001, 1002, *[1003.5] * 6]
    assert host.dropped == {"io": 150}
    assert host.records[0].getMessage() == (
        "not counted (io): the dump cannot be written: Input/output error; 1 since this process started"
    )
    host.check("io")
