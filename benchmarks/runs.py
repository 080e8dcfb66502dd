"""Compare whole runs of the pipeline with runs of six empty assets on stock Dagster: `make bench-runs`.

The demonstration's application is filled with activity first. Then two alternatives take turns, each as a process of
its own (`one_run.py`) on empty databases:

* ours: the six metrics with every check, on our event log and run storage.
* empty: six assets that do nothing, without checks, on the stock storage of dagster-postgres, with batched events. It
  imports nothing of ours.

There are three comparisons: a range of many days in one run, as a backfill; the three days of the daily run; and the
whole daily job, which also publishes, looks for friction and writes the pages. A run counts only if every day of every
asset is recorded, if every check of ours was evaluated and none failed, and if our stored totals equal what plain SQL
counts in the application's views and what DuckDB adds up in its dumps. Otherwise the script ends with status 1.

A missed target is printed but does not fail the script, because the machine may be the reason.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter

import dagster as dg
import duckdb
import sqlalchemy as sa
from rich.progress import track

from analytics_assets.contract import METRICS, SourceView
from analytics_assets.days import bounds
from analytics_assets.demo.activity import create_demo_app, record_activity
from analytics_assets.local.postgres import embedded_postgres, ensure_database
from analytics_assets.local.server import dagster_home, dagster_instance
from analytics_assets.settings import Settings
from analytics_assets.store.counts import belongs_to
from analytics_assets.store.setup import init_db
from analytics_assets.store.tables import COUNTS

COMPARISONS = ("range", "daily", "job")
ONE_RUN = Path(__file__).with_name("one_run.py")
STOCK = """
storage:
  postgres:
    postgres_url:
      env: DAGSTER_POSTGRES_URL
telemetry:
  enabled: false
"""
SUMS = """
select event_name, cast(sum(count) as bigint)
from read_json(?, format = 'newline_delimited', columns = {event_name: 'VARCHAR', count: 'BIGINT'}) group by 1
"""
DAILY = 3
"""Days of the daily run: yesterday and the lookback."""


def run_process(name: str, settings: Settings, first: date, last: date) -> float:
    """Seconds of a whole process that executes a run. Raises CalledProcessError when the run fails."""
    home = stock_home(settings) if name == "empty" else dagster_home(settings)
    assets = [metric.asset for metric in METRICS] if name == "empty" else []
    started = perf_counter()
    subprocess.run(
        [sys.executable, "-W", "ignore", ONE_RUN, name, str(first), str(last), *assets],
        env=os.environ | settings.environment() | {"DAGSTER_HOME": str(home), "DAGSTER_EVENT_BATCH_SIZE": "1000"},
        capture_output=True,
        text=True,
        check=True,
    )
    return perf_counter() - started


def stock_home(settings: Settings) -> Path:
    """Return a folder with the least configuration of Dagster on PostgreSQL."""
    home = settings.data_dir / "stock"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(STOCK, encoding="utf-8")
    return home


def find_undone(settings: Settings, host: sa.Engine, name: str, days: list[date]) -> str | None:
    """Return what a run has not done, or None when it has done everything."""
    with dagster_instance(settings) as instance:
        for metric in METRICS:
            recorded = len(instance.get_materialized_partitions(dg.AssetKey(metric.asset)))
            if recorded != len(days):
                return f"{name}: {recorded} of {len(days)} days of an asset recorded"
    if name == "empty":
        return None
    dumped = read_dumps(settings, days)
    start, end = bounds(days[0], settings.time_zone)[0], bounds(days[-1], settings.time_zone)[1]
    with disposed(settings.database_url) as database, database.connect() as ours, host.connect() as theirs:
        for metric in METRICS:
            if isinstance(metric.origin, SourceView):
                view = ".".join(metric.origin.path)
                query = sa.text(f"select count(*) from {view} where occurred_at >= :start and occurred_at < :end")  # noqa: S608  # of the contract
                total = theirs.scalar(query, {"start": start, "end": end})
            else:
                total = sum(dumped.get(event_name, 0) for event_name in metric.event_names)
            counts = COUNTS[metric.table].c.count
            if total != ours.scalar(sa.select(sa.func.sum(counts)).where(belongs_to(metric, days))):
                return f"{name}: the stored total of {metric.asset} differs from the application's"
    return None


def read_dumps(settings: Settings, days: list[date]) -> dict[str, int]:
    """Return the sum of each event name over the dumps of some days, as DuckDB adds it up."""
    paths = [str(path) for day in days for path in (settings.dump_dir / str(day)).glob("*.ndjson")]
    with duckdb.connect() as connection:
        return dict(connection.execute(SUMS, [paths]).fetchall())


@contextmanager
def disposed(url: str | None) -> Iterator[sa.Engine]:
    """Yield an engine, and dispose of it afterwards."""
    engine = sa.create_engine(str(url))
    yield engine
    engine.dispose()


def compare(
    server: sa.URL, settings: Settings, days: list[date], rounds: int, *, ours: str, target: float | None
) -> bool:
    """Print the seconds of our run and of the empty one. Returns whether both have done their work."""
    seconds: dict[str, list[float]] = {ours: [], "empty": []}
    with disposed(server.set(database="demo_app").render_as_string(hide_password=False)) as host:
        for number in track(range(rounds), f"{len(days)} days: rounds", transient=True):
            for name, taken in seconds.items():
                own = use_new_databases(server, settings, f"{ours}_{name}_{number}")
                try:
                    taken.append(run_process(name, own, days[0], days[-1]))
                except subprocess.CalledProcessError as error:
                    print(f"{name}: {error.stderr[-2000:]}; no comparison", file=sys.stderr)
                    return False
                if undone := find_undone(own, host, name, days):
                    print(f"{undone}; no comparison", file=sys.stderr)
                    return False
    print(f"{ours}: {len(days)} days of {len(METRICS)} assets, {rounds} rounds, seconds of a whole process")
    for name, values in seconds.items():
        print(f"  {name:6}{median(values):8.2f}  ({min(values):.2f} to {max(values):.2f})")
    aim = f"target: at most {target}" if target else "no target"
    print(f"  {ours} / empty: {median(seconds[ours]) / median(seconds['empty']):.2f} ({aim})")
    return True


def use_new_databases(server: sa.URL, settings: Settings, name: str) -> Settings:
    """Return the settings with new databases, set up, for the counts and for Dagster's records."""
    counts = ensure_database(server, f"counts_{name}")
    init_db(counts.render_as_string(hide_password=False), settings)
    records = ensure_database(server, f"dagster_{name}").render_as_string(hide_password=False)
    writer = counts.set(username="analytics_writer").render_as_string(hide_password=False)
    own = replace(settings, database_url=writer, dagster_url=records)
    with dagster_instance(own):
        return own  # opening it has created the tables


def main() -> int:
    """Run the comparisons. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=180, help="days of the range run (default: 180)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (default: 5)")
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=COMPARISONS, help="comparisons to make")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as folder:
        Path(folder).chmod(0o755)  # as root, the embedded server runs as another user
        settings = Settings.from_env({"ANALYTICS_DATA_DIR": folder})
        with embedded_postgres(settings.data_dir) as server:
            app = ensure_database(server, "demo_app").render_as_string(hide_password=False)
            yesterday = settings.today() - timedelta(days=1)
            days = [yesterday - timedelta(days=n) for n in reversed(range(max(options.days, DAILY)))]
            with disposed(app) as host, host.connect() as connection:
                create_demo_app(connection)
                record_activity(connection, settings.dump_dir, days, settings.time_zone)
            reader = server.set(database="demo_app", username="analytics_source_reader")
            own = replace(settings, source_url=reader.render_as_string(hide_password=False))
            compared = [
                compare(server, own, kept, options.rounds, ours=name, target=target)
                for name, kept, target in (
                    ("range", days[-options.days :], 0.6),
                    ("daily", days[-DAILY:], 1.5),
                    ("job", days[-DAILY:], None),
                )
                if name in options.only
            ]
    return 0 if all(compared) else 1


if __name__ == "__main__":
    sys.exit(main())
