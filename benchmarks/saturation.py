"""Where each part saturates: `make bench-saturation`.

The load on one part at a time is doubled again and again. The knee is the first load after which no larger one brings
10 % more. What is exhausted is judged at the load after the knee: one core, where a part can use only one; the cores of
the machine; or neither. What statements in PostgreSQL waited for is printed, too, and the processor time that each
query, run, event and so on has cost at the knee: that holds on a busy machine, too.

* webserver: clients that ask what the UI asks for its pages of assets, partitions and runs;
* daemon: the smallest runs, queued at once: each executes one check;
* events: processes that store materializations in our event log, one by one;
* batches: the same, a hundred in each statement;
* counts: processes that replace days of 1,000 rows in the analytics database;
* broker: workers of ours, which are given tasks that do nothing, by Redis as docs/scale.md configures it;
* storage: threads of one process that read dumps of 10 kB, as a step does, from moto. That is a server of S3 in Python,
  which saturates sooner than a real one;
* share: the same from a folder (`file://`).

Everything is on one machine, so that the load costs processors, too: it is printed as `clients`. What none of these
processes has used is printed as `others`: where that is more than a few hundredths, the machine was not quiet and the
figures say little. An action that fails, or has another result than expected, ends this with status 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import chain, cycle
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import dagster as dg
import psutil
import redis
import sqlalchemy as sa
from collect import SIGNUPS, DifferentError
from dagster._core.events import DagsterEvent, StepMaterializationData
from dumps import DAY, write_dumps
from load import ASSETS, LOOK, prepare
from runs import disposed, run_process, use_new_databases
from ship import free_port, s3_server

from analytics_assets.days import span
from analytics_assets.defs.checks import CUTOFF_IS_CERTAIN
from analytics_assets.demo.webserver import Webserver
from analytics_assets.local.postgres import embedded_postgres, find_postmaster
from analytics_assets.local.processes import stop
from analytics_assets.local.server import HOST, dagster_dev, dagster_instance, exit_on_sigterm, wait_until_ready
from analytics_assets.remote import RemoteFolder
from analytics_assets.retention.event_log import EVENTS, EventLogStorage
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.counts import Stored, read_window, replace_days

GAIN: Final = 1.1
"""Past the knee, no load brings so many times the throughput."""
FULL: Final = 0.9
"""From this share of its cores on, a processor counts as exhausted."""
PATIENCE: Final = 600
"""Seconds for what must happen to happen."""
SPAWN: Final = get_context("spawn")

PROCESSES: Final = {
    "dagster_webserver": "webserver",
    "dagster._daemon": "daemon",
    "analytics_assets.definitions": "code server, runs",
    "grpc": "code server, runs",
    "moto.server": "moto",
    "redis-server": "Redis",
    "analytics_assets worker": "workers",
    "postgres": "PostgreSQL",
}
"""What is in a command line -> the part. Any other process is of the part of the one that started it, or a client."""

ON_PROCESSOR: Final = "a processor"
CONNECTIONS: Final = """
select case when state = 'active' then coalesce(wait_event_type || ' ' || wait_event, :on_processor) end
from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
"""

Act = Callable[[], int]
"""Do it once. Returns how many were done."""
Finish = Callable[[], int]
"""Let the load, which is ready, do its work. Returns how many were done."""


@dataclass(frozen=True)
class Level:
    """What one load brought."""

    load: int
    rate: float
    """Per second."""
    cores: Mapping[str, float]
    """In use, by part. `others` are none of ours."""
    waits: Counter[str]
    """What statements in PostgreSQL waited for, by how often it was seen."""
    connections: int
    """To PostgreSQL, at most."""


@dataclass(frozen=True)
class Part:
    """What is put under load."""

    title: str
    unit: str
    load: str
    """What is doubled."""
    most: int
    """The largest load."""
    open: Callable[[Bench], AbstractContextManager[Callable[[int], Finish]]]
    """Yields what makes a load of that size ready."""
    one_core: tuple[str, ...] = ()
    """What is one process that executes one thread at a time."""
    seconds: int = 1
    """The unit is per so many."""


@dataclass(frozen=True)
class Bench:
    """What the parts share."""

    settings: Settings
    server: sa.URL
    folder: Path
    seconds: float
    """For each load."""
    number: int
    """Of the tasks of the broker."""
    s3: str
    pool: ProcessPoolExecutor
    """Of the writers: starting one takes seconds, so parts share them."""
    manager: Any
    """Of the barriers of processes."""


# --- a load


def repeat(
    make: Callable[..., AbstractContextManager[Act]], number: int, load: int, barrier: Any, seconds: float, *given: Any
) -> int:
    """Do something again and again, beginning with all the others of the load. Returns how many were done."""
    try:
        with make(number, load, *given) as act:
            barrier.wait(PATIENCE)
            end, done = perf_counter() + seconds, 0
            while perf_counter() < end:
                done += act()
            return done
    except BaseException:
        barrier.abort()  # nobody waits for this one
        raise


def start(executor: Executor, barrier: Any, load: int, bench: Bench, make: Callable[..., Any], *given: Any) -> Finish:
    """Start those who do something. They wait for the barrier."""
    futures = [executor.submit(repeat, make, number, load, barrier, bench.seconds, *given) for number in range(load)]

    def finish() -> int:
        with suppress(threading.BrokenBarrierError):  # one of them says why
            barrier.wait(PATIENCE)
        return sum(future.result() for future in futures)

    return finish


@contextmanager
def in_threads(bench: Bench, most: int, make: Callable[..., Any], *given: Any) -> Iterator[Callable[[int], Finish]]:
    """Yield what makes a load of threads ready."""
    with ThreadPoolExecutor(most) as executor:
        yield lambda load: start(executor, threading.Barrier(load + 1), load, bench, make, *given)


def in_processes(bench: Bench, make: Callable[..., Any], *given: Any) -> Callable[[int], Finish]:
    """Return what makes a load of processes ready."""
    return lambda load: start(bench.pool, bench.manager.Barrier(load + 1), load, bench, make, *given)


# --- the parts


@contextmanager
def asking(number: int, _load: int, webserver: Webserver) -> Iterator[Act]:
    """Ask the queries in turn, beginning with another one than the others of the load."""
    queries: list[Callable[[], object]] = [
        lambda: webserver.materialized_days(ASSETS),
        lambda: webserver.check_statuses(ASSETS),
        lambda: webserver.query(LOOK),
    ]
    turns = cycle(queries[number % 3 :] + queries[: number % 3])

    def ask() -> int:
        next(turns)()  # raises when the webserver refuses
        return 1

    yield ask


@contextmanager
def open_dagster(bench: Bench) -> Iterator[Webserver]:
    """Start the webserver and the daemon, as `analytics-assets up` does."""
    port = free_port()
    with dagster_dev(bench.settings, port, bench.folder / "dagster.log") as process:
        wait_until_ready(process, port)
        yield Webserver(f"http://{HOST}:{port}")


@contextmanager
def open_webserver(bench: Bench) -> Iterator[Callable[[int], Finish]]:
    """Clients in threads: a request costs the webserver many times what it costs its client."""
    with open_dagster(bench) as webserver, in_threads(bench, PARTS["webserver"].most, asking, webserver) as ready:
        yield ready


@contextmanager
def open_daemon(bench: Bench) -> Iterator[Callable[[int], Finish]]:
    """Runs of one check, launched together."""
    with open_dagster(bench) as webserver, dagster_instance(bench.settings) as instance:

        def ready(load: int) -> Finish:
            def finish() -> int:
                checks = [("analytics/retention_ledger", CUTOFF_IS_CERTAIN)]
                ids = [webserver.launch_run([], checks) for _ in range(load)]
                end = time.monotonic() + PATIENCE
                while time.monotonic() < end:
                    statuses = Counter(run.status for run in instance.get_runs(dg.RunsFilter(run_ids=ids)))
                    if statuses[dg.DagsterRunStatus.FAILURE]:
                        raise DifferentError("a run of the daemon has failed")
                    if statuses[dg.DagsterRunStatus.SUCCESS] == load:
                        return load
                    time.sleep(0.1)
                raise DifferentError("a run of the daemon did not end")

            return finish

        yield ready


@contextmanager
def storing(number: int, _load: int, url: str, batch: int) -> Iterator[Act]:
    """Store materializations in our event log."""
    storage, asset, run = EventLogStorage(url), dg.AssetKey(ASSETS[number % len(ASSETS)]), f"run {number}"

    def event() -> dg.EventLogEntry:
        made = dg.AssetMaterialization(asset, partition=str(DAY))
        return dg.EventLogEntry(  # type: ignore[no-untyped-call]  # Dagster's class has no annotations
            error_info=None,
            level=10,
            user_message="",
            run_id=run,
            timestamp=time.time(),
            dagster_event=DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                job_name="job",
                event_specific_data=StepMaterializationData(made),
            ),
        )

    def store() -> int:
        if batch == 1:
            storage.store_event(event())
        else:
            storage.store_event_batch([event() for _ in range(batch)])
        return batch

    yield store
    storage.dispose()


@contextmanager
def open_events(bench: Bench, batch: int) -> Iterator[Callable[[int], Finish]]:
    """Writers of the event log. What they say they have stored must be there."""
    own = use_new_databases(bench.server, bench.settings, f"events_{batch}")
    start_load, stored = in_processes(bench, storing, own.dagster_url, batch), 0

    def ready(load: int) -> Finish:
        finish = start_load(load)

        def count() -> int:
            nonlocal stored
            done = finish()
            stored += done
            return done

        return count

    yield ready
    with disposed(own.dagster_url) as engine, engine.connect() as connection:
        if connection.scalar(sa.select(sa.func.count()).select_from(EVENTS)) != stored:
            raise DifferentError("the event log has not the events that were stored")


@contextmanager
def replacing(number: int, load: int, settings: Settings) -> Iterator[Act]:
    """Replace days that no other process of the load has, one after the other."""
    with open_store(settings) as store:
        window = read_window(store)
        days = cycle(span(window.first, window.last)[number::load])

        def replace_next() -> int:
            day = next(days)
            rows = [
                {"event_date": day, "event_name": "event_signup", "event_id": str(event), "source": source, "count": 7}
                for event in range(500)
                for source in ("web", "admin")
            ]
            if replace_days(store, SIGNUPS, {day: rows}) != {day: Stored(len(rows), 7 * len(rows))}:
                raise DifferentError("a day was not stored")
            return 1

        yield replace_next


@contextmanager
def open_counts(bench: Bench) -> Iterator[Callable[[int], Finish]]:
    """Writers of the analytics database. Every day is there before, as after some nights."""
    own = use_new_databases(bench.server, bench.settings, "days")
    with replacing(0, 1, own) as replace_next:
        for _ in range(own.retention_days):
            replace_next()
    yield in_processes(bench, replacing, own)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start Redis as docs/scale.md configures it. Yields its URL."""
    port = free_port()
    folder.mkdir()
    options = {"port": port, "dir": folder, "bind": HOST, "appendonly": "yes", "appendfsync": "always", "save": ""}
    command = ["redis-server", *chain.from_iterable((f"--{name}", str(value)) for name, value in options.items())]
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit("redis-server is not installed: `make test-programs` installs it")
    with process, redis.Redis(port=port) as client:
        try:
            for _ in range(PATIENCE * 10):
                with suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.1)
            yield f"redis://{HOST}:{port}/0"
        finally:
            process.terminate()


@contextmanager
def open_broker(bench: Bench) -> Iterator[Callable[[int], Finish]]:
    """More and more workers, which share the same number of tasks."""
    from analytics_assets.workers import make_worker

    with ExitStack() as stack:
        url = stack.enter_context(redis_server(bench.folder / "redis"))
        own = replace(bench.settings, executor=url, dump_dir=bench.folder / "shared")
        environment = os.environ | own.environment()
        os.environ.update(own.environment())  # the application loads the definitions
        app = make_worker(url)
        workers: list[subprocess.Popen[bytes]] = []

        def ready(load: int) -> Finish:
            while len(workers) < load:
                command = [sys.executable, "-m", "analytics_assets", "worker"]
                log = stack.enter_context((bench.folder / f"worker{len(workers)}.log").open("wb"))
                worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                stack.callback(stop, worker)
                workers.append(worker)
            end = time.monotonic() + PATIENCE
            while len(app.control.ping(timeout=10, limit=load)) < load:
                if time.monotonic() > end or any(worker.poll() is not None for worker in workers):
                    raise DifferentError("a worker did not start")

            def finish() -> int:
                tasks = [app.send_task("celery.ping") for _ in range(bench.number)]
                if any(task.get(timeout=PATIENCE) != "pong" for task in tasks):
                    raise DifferentError("a task had another result")
                return len(tasks)

            return finish

        yield ready


@contextmanager
def reading(number: int, _load: int, folder: RemoteFolder, names: Sequence[str]) -> Iterator[Act]:
    """Read one file after the other, beginning with another one than the others of the load."""
    turns = cycle([*names[number:], *names[:number]])

    def read() -> int:
        if not folder.read(next(turns)).endswith(b"}\n"):
            raise DifferentError("a dump was not read")
        return 1

    yield read


@contextmanager
def open_files(bench: Bench, *, s3: bool) -> Iterator[Callable[[int], Finish]]:
    """Readers of dumps, which are put where they are read from first."""
    local = bench.folder / ("files_s3" if s3 else "files")
    write_dumps(local, files=100, keys=60, seed=1)
    folder = RemoteFolder(bench.s3 if s3 else f"file://{local}")
    names = [f"{DAY}/{path.name}" for path in (local / str(DAY)).iterdir()]
    if s3:
        for name in names:
            folder.write(name, (local / name).read_bytes())
    with in_threads(bench, PARTS["storage"].most, reading, folder, names) as ready:
        yield ready


PARTS: Final = {
    "webserver": Part("webserver", "queries/s", "clients", 32, open_webserver, ("webserver", "clients")),
    "daemon": Part("daemon", "runs/min", "queued runs", 8, open_daemon, ("daemon",), seconds=60),
    "events": Part("event log, one by one", "events/s", "writers", 8, lambda bench: open_events(bench, 1)),
    "batches": Part("event log, by the hundred", "events/s", "writers", 8, lambda bench: open_events(bench, 100)),
    "counts": Part("analytics database", "days/s", "writers", 8, open_counts),
    "broker": Part("Redis and Celery", "tasks/s", "workers", 4, open_broker, ("Redis", "clients")),
    "storage": Part(
        *("object storage (moto)", "files/s", "readers", 16, lambda bench: open_files(bench, s3=True)),
        one_core=("moto", "clients"),
    ),
    "share": Part(
        *("share (file://)", "files/s", "readers", 16, lambda bench: open_files(bench, s3=False)),
        one_core=("clients",),
    ),
}


# --- measuring


@dataclass
class Observer:
    """Looks at the server of the databases while a load is at work."""

    server: sa.URL
    waits: Counter[str] = field(default_factory=Counter)
    connections: int = 0

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look ten times a second until the end."""
        end = threading.Event()
        thread = threading.Thread(target=self._look, args=(end,))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _look(self, end: threading.Event) -> None:
        url = self.server.set(database="postgres").render_as_string(hide_password=False)
        with disposed(url) as engine, engine.connect() as connection:
            while not end.wait(0.1):
                found = connection.scalars(sa.text(CONNECTIONS), {"on_processor": ON_PROCESSOR}).all()
                connection.rollback()  # within a transaction, all looks see the same
                self.waits.update(filter(None, found))
                self.connections = max(self.connections, len(found))


def used_seconds(data_dir: Path) -> Mapping[str, float]:
    """Return the processor time that each part has used until now, with that of its ended processes."""
    used: defaultdict[str, float] = defaultdict(float)
    postmaster = find_postmaster(data_dir / "postgres")
    tops = [psutil.Process(), *([postmaster] if postmaster else [])]
    parts: dict[int, str] = {}
    for process in chain.from_iterable((top, *top.children(recursive=True)) for top in tops):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            above = parts.get(process.ppid(), "clients")
            parts[process.pid] = next((part for text, part in PROCESSES.items() if text in command), above)
            used[parts[process.pid]] += sum(process.cpu_times()[:4])
    return used


def machine_seconds() -> float:
    """Return the processor time that everybody has used until now."""
    times = psutil.cpu_times()
    return float(sum(times)) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)


def measure(bench: Bench, load: int, finish: Finish) -> Level:
    """Let a load do its work."""
    observer = Observer(bench.server)
    with observer.looking():
        used, machine, started = used_seconds(bench.settings.data_dir), machine_seconds(), perf_counter()
        done = finish()
        taken = perf_counter() - started
        busy = machine_seconds() - machine
        after = used_seconds(bench.settings.data_dir)
    cores = {part: (after[part] - used[part]) / taken for part in after}
    cores["others"] = busy / taken - sum(cores.values())
    return Level(load, done / taken, cores, observer.waits, observer.connections)


def saturate(bench: Bench, part: Part, most: int) -> list[Level]:
    """Double the load until the largest. Returns what each brought."""
    levels: list[Level] = []
    with part.open(bench) as ready:
        load = 1
        while load <= most:
            levels.append(measure(bench, load, ready(load)))
            load *= 2
    return levels


def find_knee(levels: Sequence[Level]) -> int:
    """Return the position of the first load after which none brings GAIN times as much. It may be the last one."""
    return next(
        position
        for position, level in enumerate(levels)
        if all(larger.rate < GAIN * level.rate for larger in levels[position + 1 :])
    )


def exhausted(part: Part, level: Level, cores: int) -> str:
    """Return the processors that were in use all the time, or what PostgreSQL waited for most of the time."""
    found = [f"the one core of {name}" for name in part.one_core if level.cores.get(name, 0) >= FULL]
    if sum(level.cores.values()) >= FULL * cores:
        found.append("the cores of the machine")
    if not found:
        found = [wait for wait, number in level.waits.most_common(1) if number >= level.waits.total() / 2]
        return f"no processor; PostgreSQL waited for {found[0]}" if found else "no processor"
    return " and ".join(found)


def report(part: Part, levels: Sequence[Level]) -> None:
    """Print what each load brought, and where more brought no more."""
    print(f"{part.title}: {part.unit} by {part.load}")
    for level in levels:
        in_use = sorted(level.cores.items(), key=lambda each: -each[1])
        cores = ", ".join(f"{name} {number:.2f}" for name, number in in_use if number >= 0.01)
        print(f"  {level.load:>4} {level.rate * part.seconds:10,.1f}   cores: {cores}")
    position = find_knee(levels)
    knee, past = levels[position], levels[min(position + 1, len(levels) - 1)]
    waits = ", ".join(f"{wait} {number / past.waits.total():.0%}" for wait, number in past.waits.most_common(3))
    if past.connections:
        print(f"  PostgreSQL: at most {past.connections} connections{waits and '; statements waited for '}{waits}")
    costs = ", ".join(
        f"{name} {1000 * number / knee.rate:.2f} ms"
        for name, number in knee.cores.items()
        if number >= 0.01 and name != "others"
    )
    print(f"  processor time for each: {costs}")
    print(
        f"  {'no knee up to' if knee is past else 'knee:'} {knee.load} {part.load}, {knee.rate * part.seconds:,.0f}"
        f" {part.unit}; exhausted: {exhausted(part, past, os.cpu_count() or 1)}"
    )


def main() -> int:
    """Put every part under load. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to put under load")
    parser.add_argument("--seconds", type=float, default=6, help="for each load (6)")
    parser.add_argument("--quick", action="store_true", help="two small loads each, to see that everything works")
    options = parser.parse_args()
    exit_on_sigterm()  # it has started many processes
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as name, s3_server() as s3:
        folder = Path(name)
        folder.chmod(0o755)  # as root, the embedded server runs as another user
        settings = Settings.from_env({"ANALYTICS_DATA_DIR": name})
        with (
            embedded_postgres(settings.data_dir) as server,
            SPAWN.Manager() as manager,
            ProcessPoolExecutor(max(part.most for part in PARTS.values()), SPAWN) as pool,
        ):
            yesterday = settings.today() - timedelta(days=1)
            days = span(yesterday - timedelta(days=2 if options.quick else 59), yesterday)
            ready = prepare(server, server, settings, days)
            if {"webserver", "daemon"} & set(options.only):
                run_process("range", ready, days[0], days[-1])  # so that the pages have something to show
            number = 20 if options.quick else 1_000
            seconds = 0.2 if options.quick else options.seconds
            bench = Bench(ready, server, folder, seconds, number, s3, pool, manager)
            for part in (PARTS[each] for each in PARTS if each in options.only):
                try:
                    levels = saturate(bench, part, 2 if options.quick else part.most)
                except DifferentError as difference:
                    print(f"{part.title}: {difference}; nothing is measured", file=sys.stderr)
                    return 1
                report(part, levels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
