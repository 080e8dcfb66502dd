"""Nothing is lost: counting under load while processes are killed, restarted and forked, and midnight passes.

The dumps are compared with a ledger in shared memory, per key and day. Each thread has its own words in the ledger. A
word is written by one aligned store of eight bytes, so a SIGKILL leaves the old word or the new one:

* `count` calls the clock once, in its critical section. The clock first increments the turn of its process, and then
  writes into the thread's word what is about to be counted: turn, key, day, and the resulting sum.
* When `count` has returned, the thread adds the increment to its sum of that key and day: it is acknowledged.

A process may be killed between the two steps. If the clock was called for a later turn, the critical section had been
left, so the increment was counted without an acknowledgement: it is settled. Only an unacknowledged increment of the
latest turn is undecided. That is at most one increment per killed process, and its key and day are known. So, per key
and day, the sum over the dump files

* equals acknowledged + settled if no process was killed inside its critical section. In every other round, a process is
  killed when one of its threads calls the clock: no other thread is in the section then. In these rounds, the test
  asserts equality for all keys and days.
* is at least acknowledged + settled, and exceeds it at most by the undecided increments, if processes are killed at any
  moment. No outside observer can know more, because a store and its acknowledgement are two steps.
"""

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

import pytest

from analytics_assets.telemetry import Telemetry, counters

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 50
WORKERS: Final = 8
THREADS: Final = 8
FORKS: Final = 2
"""How often a worker forks."""
KEYS: Final = 12
FIRST_DAY: Final = date(2026, 11, 22)
DAYS: Final = 4
DAY_SECONDS: Final = 86_400
MIDNIGHT: Final = int(datetime.combine(FIRST_DAY, datetime.min.time(), UTC).timestamp())

Key = tuple[str, str | int | None, str | int | None]
"""Event name, and event id and source or endpoint and status code."""


class Ledger:
    """The shared words, of eight bytes each."""

    NOW, STOP = 0, 1
    CELLS = KEYS * DAYS
    OF_THREAD = 1 + CELLS
    """Words per thread: the increment that is about to be counted, then the acknowledged sums."""
    OF_PROCESS = 2 + THREADS * OF_THREAD
    """Words per process: the latest turn, whether to be killed, then the words of its threads."""
    PROCESSES = 1 + 60 * (1 + FORKS)

    def __init__(self, path: Path) -> None:
        size = 8 * (2 + self.PROCESSES * self.OF_PROCESS)
        with path.open("a+b") as file:
            file.truncate(size)
            self.words = memoryview(mmap.mmap(file.fileno(), size)).cast("Q")

    def of_process(self, process: int) -> int:
        return 2 + process * self.OF_PROCESS

    def of_thread(self, process: int, thread: int) -> int:
        return self.of_process(process) + 2 + thread * self.OF_THREAD

    def turns(self, process: int) -> int:
        return self.words[self.of_process(process)]

    def total_turns(self) -> int:
        return sum(map(self.turns, range(self.PROCESSES)))

    def compare(self) -> tuple[Counter[tuple[Key, str]], Counter[tuple[Key, str]]]:
        """Key and day -> acknowledged and settled increments; key and day -> undecided increments."""
        certain: Counter[tuple[Key, str]] = Counter()
        undecided: Counter[tuple[Key, str]] = Counter()
        for process in filter(self.turns, range(self.PROCESSES)):
            for thread in range(THREADS):
                intent, *sums = self.words[self.of_thread(process, thread) :][: self.OF_THREAD]
                for cell, number in enumerate(sums):
                    if number:
                        certain[place(process, cell)] += number
                turn, times, cell, after = unpacked(intent)
                if after > sums[cell]:
                    settled = turn < self.turns(process)
                    (certain if settled else undecided)[place(process, cell)] += times
        return certain, undecided


def packed(turn: int, times: int, cell: int, after: int) -> int:
    return turn << 36 | times << 32 | cell << 24 | after


def unpacked(word: int) -> tuple[int, int, int, int]:
    return word >> 36, word >> 32 & 0xF, word >> 24 & 0xFF, word & 0xFFFFFF


def place(process: int, cell: int) -> tuple[Key, str]:
    number, day = divmod(cell, DAYS)
    return key_of(process, number), (FIRST_DAY + timedelta(days=day)).isoformat()


def key_of(process: int, number: int) -> Key:
    """All processes share the keys, except key 0, which differs per process."""
    if number < KEYS // 2:
        return "directory_searched", str(number or 1000 + process), "web" if number % 2 else None
    return "http_response", f"GET /r{number % 3}", 200 + number


class Process:
    """One counting process: a worker with its threads, a child forked by one of them, or the parent of all workers."""

    def __init__(self, ledger: Ledger, number: int, dumps: Path) -> None:
        self.ledger = ledger
        self.telemetry = Telemetry(dumps, clock=self.clock)
        self.thread = threading.local()
        self.become(number)

    def become(self, number: int) -> None:
        """Take a number in the ledger, also after a fork. Telemetry must notice the fork without being told."""
        self.number = number
        self.turn = 0

    def clock(self) -> float:
        words, base, mine = self.ledger.words, self.ledger.of_process(self.number), self.thread
        self.turn += 1
        words[base] = self.turn
        if words[base + 1]:
            os.kill(os.getpid(), signal.SIGKILL)
        now = words[Ledger.NOW]
        mine.cell = mine.key * DAYS + (now - MIDNIGHT) // DAY_SECONDS
        after = words[mine.base + 1 + mine.cell] + mine.times
        words[mine.base] = packed(self.turn, mine.times, mine.cell, after)
        return now

    def count(self, thread: int, rng: random.Random, times: int) -> None:
        """Count, then acknowledge."""
        mine = self.thread
        mine.base, mine.key, mine.times = self.ledger.of_thread(self.number, thread), rng.randrange(KEYS), times
        name, which, of_what = key_of(self.number, mine.key)
        if name == "http_response":
            method, _, route = str(which).partition(" ")
            self.telemetry.count_response(method, route, int(str(of_what)), times=times)
        else:
            self.telemetry.count(name, event_id=which, source="web" if of_what else None, times=times)
        assert not self.telemetry.dropped
        self.ledger.words[mine.base + 1 + mine.cell] += times

    def run(self, seed: int, exact: bool) -> NoReturn:
        """Run a worker until the round ends or the worker is killed."""

        def work(thread: int) -> None:
            rng = random.Random(seed * THREADS + thread)  # noqa: S311 # to be repeated
            forks = [rng.randrange(100) for _ in range(FORKS)] if thread == 0 else []
            calls = 0
            while not self.ledger.words[Ledger.STOP]:
                for fork, call in enumerate(forks):
                    if call == calls and not os.fork():
                        ends_the_process(lambda fork=fork: self.run_forked(1 + fork, rng, exact))
                self.count(thread, rng, times=1 if rng.random() < 0.9 else 3)
                calls += 1
                if not calls % 30:
                    # While all 64 threads are busy, some kernels delay a kill for seconds.
                    time.sleep(0.02)

        together(work, THREADS)
        self.telemetry.close()
        os._exit(0)

    def run_forked(self, offset: int, rng: random.Random, exact: bool) -> NoReturn:
        """Run a child that a thread of a worker has forked while the other threads were counting."""
        self.become(self.number + offset)
        end = rng.choice(["exit", "close", "kill"])

        def work(thread: int) -> None:
            rng = random.Random(thread)  # noqa: S311 # to be repeated
            for _ in range(60):
                self.count(thread, rng, times=1)
            if end == "kill":
                if exact:
                    self.ledger.words[self.ledger.of_process(self.number) + 1] = 1
                else:
                    os.kill(os.getpid(), signal.SIGKILL)

        together(work, 3)
        if end == "close":
            self.telemetry.close()
        os._exit(0)


def together(work: Callable[[int], None], number: int) -> None:
    """Run in threads; a failure of one ends the process."""
    threads = [threading.Thread(target=ends_the_process, args=(work, n)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ends_the_process(work: Callable[..., None], *arguments: int) -> None:
    """Call; when that raises, show it and end the process, not the thread alone."""
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class Server:
    """The first process of a server: it forks the workers, kills them, forks others in their place, and counts too."""

    def __init__(self, folder: Path, seed: int, exact: bool) -> None:
        self.seed = seed
        self.exact = exact
        self.dumps = folder / "dumps"
        self.ledger = Ledger(folder / "ledger")
        self.ledger.words[Ledger.NOW] = MIDNIGHT + DAY_SECONDS - 5
        self.rng = random.Random(seed)  # noqa: S311 # to be repeated
        self.preloaded = Process(self.ledger, 0, self.dumps) if seed % 4 < 2 else None
        self.numbers = iter(range(1, Ledger.PROCESSES, 1 + FORKS))
        self.alive: dict[int, int] = {}
        """Process id -> number in the ledger."""

    def start(self) -> None:
        number = next(self.numbers)
        if self.preloaded:
            self.preloaded.count(0, self.rng, times=1)
        child = os.fork()
        if not child:
            process = self.preloaded or Process(self.ledger, number, self.dumps)
            process.become(number)
            ends_the_process(lambda: process.run(self.seed * 1000 + number, self.exact))
        self.alive[child] = number

    def kill(self, number: int) -> None:
        """Kill some, then start as many."""
        killed = self.rng.sample(sorted(self.alive), number)
        for child in killed:
            if self.exact:
                self.ledger.words[self.ledger.of_process(self.alive[child]) + 1] = 1
            else:
                os.kill(child, signal.SIGKILL)
        for child in killed:
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
            del self.alive[child]
            self.start()

    def stop(self) -> None:
        self.ledger.words[Ledger.STOP] = 1
        for child in list(self.alive):
            assert os.waitpid(child, 0)[1] == 0
            del self.alive[child]
        if self.preloaded:
            self.preloaded.telemetry.close()

    def wait_for_turns(self, number: int) -> None:
        enough = self.ledger.total_turns() + number
        self.wait_until(lambda: self.ledger.total_turns() >= enough)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < give_up, "nobody counts any more"
            time.sleep(0.0005)

    def all_count_and_somebody_has_forked(self) -> bool:
        turns = self.ledger.turns
        return all(turns(number) >= 100 for number in self.alive.values()) and any(
            turns(number + fork) for number in self.alive.values() for fork in range(1, 1 + FORKS)
        )


def play(folder: str, seed: int, exact: bool) -> None:
    """One round, in a process of its own."""
    # A busy machine may delay a thread, so no count may time out here; frequent switching is what this test is about.
    counters._LOCK_SECONDS = 100.0  # type: ignore[misc]
    sys.setswitchinterval(1e-5)
    server = Server(Path(folder), seed, exact)
    words, rng = server.ledger.words, server.rng
    # Each action passes one second: one midnight comes by that at the fifth action, the others by a jump.
    kills = [1] * 6 + [3] * 2 + [WORKERS]
    actions = kills + [0] * (DAYS - 2)
    rng.shuffle(actions)
    try:
        for _ in range(WORKERS):
            server.start()
        server.wait_for_turns(500)
        for killed in actions:
            server.wait_for_turns(rng.choice([0, 10, 300, 1000]))
            words[Ledger.NOW] += 1  # the next count checks the dump file
            if killed:
                server.kill(killed)
            else:
                server.wait_for_turns(100)
                words[Ledger.NOW] += DAY_SECONDS
                # Enough turns for some processes to count on the new day, and too few for all.
                server.wait_for_turns(20)
        server.wait_for_turns(100)
        server.wait_until(server.all_count_and_somebody_has_forked)
        server.stop()
    finally:
        for child in server.alive:
            os.kill(child, signal.SIGKILL)


def dumped(folder: Path) -> Iterator[tuple[tuple[Key, str], int]]:
    for path in folder.glob("*/*"):
        for line in filter(None, path.read_bytes().split(b"\n")):
            row = json.loads(line)
            assert row["event_date"] == path.parent.name
            if row["event_name"] == "http_response":
                key: Key = row["event_name"], row["endpoint"], row["status_code"]
            else:
                key = row["event_name"], row["event_id"], row.get("source")
            yield (key, row["event_date"]), row["count"]


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_the_dumps_hold_exactly_what_was_counted_whatever_is_killed_and_forked(tmp_path: Path, seed: int) -> None:
    exact = seed % 2 == 0
    script = f"from {__name__} import play; play({str(tmp_path)!r}, {seed}, {exact})"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        # Ends when every process has closed its standard error, including children of killed workers.
        _, errors = process.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, errors) == (0, ""), f"seed {seed}"
    ledger = Ledger(tmp_path / "ledger")
    certain, undecided = ledger.compare()
    found: Counter[tuple[Key, str]] = Counter()
    for key, number in dumped(tmp_path / "dumps"):
        found[key] += number
    wrong = {
        (key, found[key], certain[key], undecided[key])
        for key in {*found, *certain, *undecided}
        if not certain[key] <= found[key] <= certain[key] + undecided[key]
    }
    assert not wrong, f"seed {seed}"
    if exact:
        assert not undecided, f"seed {seed}"
    assert {day for _, day in found} == {place(0, day)[1] for day in range(DAYS)}
