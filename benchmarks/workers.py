"""Compare a backfill by one process with one by Celery workers: `make bench-workers`.

The real daemon launches a backfill of 180 days and six metrics:

* one process: `ANALYTICS_EXECUTOR` unset, one run;
* one worker, two workers: a Redis in it, several runs, and `analytics-assets worker` that often.

Two loads take turns with them. In the light one, the application has a few rows per day, so that a step is nearly
nothing but the records that Dagster keeps of it. In the heavy one, the view of each of three metrics calls a function
per row, as an operator may write one to leave out robots: a step takes many seconds of one core of the database.

The time is that from the start of the first run to the end of the last one; databases are new, and workers and daemon
have started before. All must store the same counts, cell by cell, or it fails with status 1. PostgreSQL, Redis, daemon,
runs and workers are on one machine and share its cores, so that two workers cannot be twice as fast as one there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final

import dagster as dg
import sqlalchemy as sa
from rich.progress import track
from runs import disposed, use_new_databases

from analytics_assets.contract import METRICS
from analytics_assets.days import span
from analytics_assets.local.postgres import embedded_postgres, ensure_database
from analytics_assets.settings import Settings
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.cluster import Cluster
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.namespaces import Network
from analytics_assets_tests.support.processes import wait_until

WORKERS: Final = {"one process": 0, "one worker": 1, "two workers": 2}
PATIENCE: Final = 3600
"""Seconds for a backfill."""
ROWS: Final = """
create function is_person(event_id text, hashes integer) returns boolean language plpgsql stable as $$
declare digest text := event_id;
begin
    for n in 1 .. hashes loop digest := md5(digest); end loop;
    return digest is not null;
end $$;
insert into signups (event_id, occurred_at, source)
    select mod(n, 50), day + n * interval '1 day' / {rows}, 'web'
    from generate_series({first}, {last}, interval '1 day') as day, generate_series(0, {rows} - 1) as n;
insert into visibility select * from signups;
insert into consent (event_id, occurred_at, source, turned_on, email)
    select event_id, occurred_at, source, true, email from signups;
create index on signups (occurred_at); create index on visibility (occurred_at); create index on consent (occurred_at);
analyze;
create or replace view analytics_source.signups as
    select event_id, occurred_at, source from signups where is_person(event_id, {hashes});
create or replace view analytics_source.profile_visibility_changes as
    select event_id, occurred_at, source from visibility where is_person(event_id, {hashes});
create or replace view analytics_source.consent_changes as
    select event_id, occurred_at, source, turned_on from consent where is_person(event_id, {hashes});
"""
CELLS: Final = (
    "select * from analytics.daily_event_counts order by event_date, event_name, event_id, source",
    "select * from analytics.daily_response_counts order by event_date, endpoint, status_code",
    'select asset, event_date, "rows" from analytics.collected_days order by 1, 2',
)

Cells = list[list[Any]]


def main() -> int:
    """Run the comparison. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=180, help="days of the backfill (180)")
    parser.add_argument("--rows", type=int, default=1_000, help="rows per day of each view in the heavy load (1,000)")
    parser.add_argument("--hashes", type=int, default=50, help="MD5 hashes per row in the heavy load (50)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--loads", nargs="+", choices=("light", "heavy"), default=("light", "heavy"))
    parser.add_argument("--only", nargs="+", choices=WORKERS, default=list(WORKERS), help="what to compare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root, the embedded server runs as another user
        with embedded_postgres(folder / "data") as server:
            settings = Settings.from_env({"ANALYTICS_DATA_DIR": name, "ANALYTICS_DUMP_DIR": f"{name}/dumps"})
            yesterday = settings.today() - timedelta(days=1)
            days = span(yesterday - timedelta(days=options.days - 1), yesterday)
            first, last = (f"'{day}Z'::timestamptz" for day in (days[0], days[-1]))
            heavy = ROWS.format(rows=options.rows, hashes=options.hashes, first=first, last=last)
            loads = {load: heavy if load == "heavy" else "" for load in options.loads}
            sources = prepare(server, settings, days, loads)
            seconds: dict[tuple[str, str], list[float]] = {(load, way): [] for load in sources for way in options.only}
            expected: dict[str, Cells] = {}
            for number in track(range(options.rounds), "rounds", transient=True):
                for (load, way), taken in seconds.items():
                    key = f"{load}_{WORKERS[way]}_{number}"
                    own = use_new_databases(server, replace(settings, source_url=sources[load]), key)
                    measured, cells = backfill(own, days, WORKERS[way], folder / key)
                    if problem := find_difference(expected.setdefault(load, cells), cells, days):
                        print(f"{load} load, {way}: {problem}; no comparison", file=sys.stderr)
                        return 1
                    taken.append(measured)
    print_table(seconds, len(days), options.rounds)
    return 0


def prepare(server: sa.URL, settings: Settings, days: Sequence[date], loads: dict[str, str]) -> dict[str, str]:
    """Make the application's database of each load, and the dumps, which are the same. Returns URLs of their views."""
    urls: dict[str, str] = {}
    for load, more in loads.items():
        with Host.create(ensure_database(server, f"host_{load}")) as host:
            fill(host, settings if not urls else replace(settings, dump_dir=settings.data_dir / "unread"), days)
            if more:
                host.sql(more)
            urls[load] = host.reader_url
    return urls


def backfill(settings: Settings, days: Sequence[date], workers: int, folder: Path) -> tuple[float, Cells]:
    """Collect the days. Returns the seconds that it took, and every stored count and collected day."""
    folder.mkdir()
    with Cluster.open(settings, Network(), folder) as cluster:
        cluster.broker.start()
        if not workers:
            cluster.settings = replace(cluster.settings, executor="in_process")
        started = [cluster.start_worker(f"worker {number}") for number in range(workers)]
        wait_until(lambda: all(" ready." in worker.log for worker in started), pause=0.5)
        cluster.backfill(days)
        cluster.start_daemon()
        # The limit is for a backfill; the runs tell how long it took.
        wait_until(lambda: cluster.collected(days), seconds=PATIENCE, pause=2)
        records = cluster.pipeline.instance.get_run_records(
            dg.RunsFilter(run_ids=[run.run_id for run in cluster.runs()])
        )
    times = [(record.start_time or 0, record.end_time or 0) for record in records]
    with disposed(settings.database_url) as database, database.connect() as connection:
        cells = [[tuple(row) for row in connection.exec_driver_sql(query)] for query in CELLS]
    return max(end for _, end in times) - min(start for start, _ in times), cells


def find_difference(expected: Cells, found: Cells, days: Sequence[date]) -> str | None:
    """Return what is not as it should be."""
    if len(found[-1]) != len(days) * len(METRICS):
        return f"{len(found[-1])} of {len(days) * len(METRICS)} days of an asset were collected"
    return None if found == expected else "other counts are stored"


def print_table(seconds: dict[tuple[str, str], list[float]], days: int, rounds: int) -> None:
    """Print what was measured, beside one process where there is one."""
    print(f"a backfill of {days} days of {len(METRICS)} assets, {rounds} rounds, all with the same counts")
    print(f"  {'seconds':<24} {'median':>8} {'from':>8} {'to':>8} {'one process is 1':>18}")
    for (load, way), taken in seconds.items():
        floor = median(seconds.get((load, "one process"), taken))
        name = f"{load} load, {way}"
        print(f"  {name:<24} {median(taken):8.1f} {min(taken):8.1f} {max(taken):8.1f} {floor / median(taken):18.2f}")


if __name__ == "__main__":
    sys.exit(main())
