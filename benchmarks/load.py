"""Many backfills at once, behind a connection pooler, while everything else goes on: `make bench-load`.

On the embedded PostgreSQL, with the demonstration's made-up activity, three databases are reached through PgBouncer
with transaction pooling: the host application's, the one of the counts, and Dagster's. The real webserver and daemon
run as `analytics-assets up` starts them, with their schedule and sensors. Backfills of one day of every metric are
launched at once, and other clients keep reading the runs and the assets by GraphQL meanwhile.

It prints how long all of it took, how long the clients' requests took, and how many connections there were. It fails
with status 1 unless each backfill has succeeded with one run, each day is recorded once, the counts are those of the
application's own tables, no request and no tick has failed, and the connections to PostgreSQL stayed below the pooler's
limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Final

import dagster as dg
import requests
import sqlalchemy as sa
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus
from dagster._core.scheduler.instigation import TickStatus
from rich.progress import Progress
from runs import disposed, find_undone
from ship import free_port

from analytics_assets.contract import METRICS
from analytics_assets.demo.activity import create_demo_app, record_activity
from analytics_assets.demo.webserver import Webserver, WebserverError
from analytics_assets.local.postgres import embedded_postgres, ensure_database
from analytics_assets.local.server import HOST, dagster_dev, dagster_instance, wait_until_ready
from analytics_assets.settings import Settings
from analytics_assets.store.setup import init_db

ASSETS: Final = [metric.asset for metric in METRICS]
LOGINS: Final = ("postgres", "analytics_source_reader", "analytics_writer")
POOL: Final = 5
"""Connections that PgBouncer opens to PostgreSQL at most, of one database and login. There are three of these pairs."""
DATABASES: Final = ("host", "counts", "dagster")
CONFIGURATION: Final = """
[databases]
* = host={socket}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 1000
auth_type = trust
auth_file = {folder}/users
logfile = {folder}/log
"""
LOOK: Final = """
query Look { runsOrError(limit: 25) { ... on Runs { results { runId status tags { key value } } } } }
"""


@dataclass
class Seen:
    """What the clients and the observer have seen."""

    seconds: list[float] = field(default_factory=list)
    """Of each request."""
    failed: int = 0
    """Requests."""
    connections: Counter[str] = field(default_factory=Counter)
    """To PostgreSQL through the pooler: the most at a time, by database."""


def main() -> int:
    """Run the load. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backfills", type=int, default=50, help="backfills, each of one day (default: 50)")
    parser.add_argument("--clients", type=int, default=20, help="clients that read by GraphQL (default: 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as folder:
        Path(folder).chmod(0o755)  # as root, the embedded server runs as another user
        settings = Settings.from_env({"ANALYTICS_DATA_DIR": folder})
        with embedded_postgres(settings.data_dir) as server, pooler(server, Path(folder, "pooler")) as pooled:
            yesterday = settings.today() - timedelta(days=1)
            days = [yesterday - timedelta(days=n) for n in reversed(range(options.backfills))]
            ready = prepare(server, pooled, settings, days)
            seen, port = Seen(), free_port()
            webserver = Webserver(f"http://{HOST}:{port}")
            with dagster_instance(ready) as instance, dagster_dev(ready, port, Path(folder, "log")) as process:
                wait_until_ready(process, port)
                started = time.monotonic()
                with at_work(webserver, server, options.clients, seen):
                    backfills = run_backfills(webserver, instance, days)
                seconds = time.monotonic() - started
                problems = find_problems(instance, backfills, seen)
            with disposed(server.set(database="host").render_as_string(hide_password=False)) as host:
                if undone := find_undone(ready, host, "load", days):
                    problems.append(undone)
    print(f"{len(days)} backfills of a day of {len(ASSETS)} assets: {seconds:.0f} s")
    if seen.seconds:
        slow = sorted(seen.seconds)[int(len(seen.seconds) * 0.95)]
        print(
            f"{options.clients} clients, {len(seen.seconds):,} requests: {median(seen.seconds):.2f} s (median),"
            f" {slow:.2f} s (95 of 100 are faster), {seen.failed} failed"
        )
    most = ", ".join(f"{database}: {number}" for database, number in sorted(seen.connections.items()))
    print(f"connections to PostgreSQL at a time, at most: {most} (the pooler allows {POOL} per database and login)")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


@contextmanager
def pooler(server: sa.URL, folder: Path) -> Iterator[sa.URL]:
    """Start PgBouncer before a server. Yield its URL, without a database."""
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        sys.exit("pgbouncer is not installed: `make test-programs` installs it")
    folder.mkdir()
    port, folder_of_socket = free_port(), str(server.query["host"])
    (folder / "users").write_text("".join(f'"{login}" ""\n' for login in LOGINS))
    (folder / "ini").write_text(CONFIGURATION.format(socket=folder_of_socket, port=port, pool=POOL, folder=folder))
    command = [program, "--quiet", str(folder / "ini")]
    if not os.geteuid():  # it refuses to run as root, and the server's user may reach the socket
        user = Path(folder_of_socket).owner()
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
        command[1:1] = ["--user", user]
    with subprocess.Popen(command) as process:
        try:
            yield server.set(host="127.0.0.1", port=port, query={})
        finally:
            process.terminate()


def prepare(server: sa.URL, pooled: sa.URL, settings: Settings, days: list[date]) -> Settings:
    """Make the three databases, with the activity of some days. Returns the settings that reach them by the pooler."""
    urls = {name: ensure_database(server, name).render_as_string(hide_password=False) for name in DATABASES}
    with disposed(urls["host"]) as host, host.connect() as connection:
        create_demo_app(connection)
        record_activity(connection, settings.dump_dir, days, settings.time_zone)
    init_db(urls["counts"], settings)

    def through(database: str, login: str) -> str:
        return pooled.set(database=database, username=login).render_as_string(hide_password=False)

    return replace(
        settings,
        source_url=through("host", "analytics_source_reader"),
        database_url=through("counts", "analytics_writer"),
        dagster_url=through("dagster", "postgres"),
    )


@contextmanager
def at_work(webserver: Webserver, server: sa.URL, clients: int, seen: Seen) -> Iterator[None]:
    """Let clients read, and observe the connections, until the end."""
    stop = threading.Event()
    threads = [threading.Thread(target=read_on, args=(webserver, seen, stop)) for _ in range(clients)]
    threads.append(threading.Thread(target=observe, args=(server, seen, stop)))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def run_backfills(webserver: Webserver, instance: dg.DagsterInstance, days: list[date]) -> list[str]:
    """Launch a backfill of each day, and wait until they have ended. Returns their ids."""
    backfills = [webserver.launch_backfill(ASSETS, [day]) for day in days]
    with Progress(transient=True) as progress:
        task = progress.add_task("backfills", total=len(backfills))
        waiting = list(backfills)
        while waiting:
            time.sleep(1)
            waiting = [each for each in waiting if not is_over(instance, each)]
            progress.update(task, completed=len(backfills) - len(waiting))
    return backfills


def is_over(instance: dg.DagsterInstance, backfill_id: str) -> bool:
    """Whether a backfill has ended."""
    backfill = instance.get_backfill(backfill_id)
    return backfill is not None and backfill.status in BULK_ACTION_TERMINAL_STATUSES


def read_on(webserver: Webserver, seen: Seen, stop: threading.Event) -> None:
    """Read as somebody with an open page does, until the end."""
    while not stop.wait(1):
        started = time.perf_counter()
        try:
            webserver.query(LOOK)
            webserver.materialized_days(ASSETS)
        except (WebserverError, requests.RequestException):
            seen.failed += 1
        seen.seconds.append(time.perf_counter() - started)


def observe(server: sa.URL, seen: Seen, stop: threading.Event) -> None:
    """Note how many connections the pooler has, until the end."""
    # The pooler comes by the server's socket, as this does, but this is in another database.
    query = sa.text(
        "select datname, count(*) from pg_stat_activity"
        " where datname = any(:databases) and backend_type = 'client backend' group by 1"
    )
    with disposed(server.set(database="postgres").render_as_string(hide_password=False)) as direct:
        while not stop.wait(0.2):
            with direct.connect() as connection:
                for database, number in connection.execute(query, {"databases": list(DATABASES)}):
                    seen.connections[database] = max(seen.connections[database], number)


def find_problems(instance: dg.DagsterInstance, backfills: list[str], seen: Seen) -> list[str]:
    """Return what has not gone as it should."""
    problems = []
    for backfill_id in backfills:
        backfill = instance.get_backfill(backfill_id)
        if backfill is None or backfill.status is not BulkActionStatus.COMPLETED_SUCCESS:
            problems.append("a backfill has not succeeded")
        runs = instance.get_runs(dg.RunsFilter.for_backfill(backfill_id))
        if [run.status for run in runs] != [dg.DagsterRunStatus.SUCCESS]:
            problems.append(f"a backfill has {len(runs)} runs, or one that has not succeeded")
    for asset in ASSETS:
        records = instance.fetch_materializations(dg.AssetKey(asset), limit=10 * len(backfills)).records
        times = Counter(record.partition_key for record in records)
        if set(times.values()) != {1} or len(times) != len(backfills):
            problems.append(f"{asset}: a day is not recorded, or more than once")
    ticks = Counter(
        tick.status
        for state in instance.all_instigator_state()
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
    )
    if not ticks:
        problems.append("neither the schedule nor a sensor was evaluated")
    if ticks[TickStatus.FAILURE]:
        problems.append(f"{ticks[TickStatus.FAILURE]} of {ticks.total()} ticks of schedule and sensors have failed")
    if seen.failed:
        problems.append(f"{seen.failed} requests have failed")
    if any(number > POOL for number in seen.connections.values()) or seen.connections.keys() != set(DATABASES):
        problems.append("there were other connections than the pooler allows")
    return problems


if __name__ == "__main__":
    sys.exit(main())
