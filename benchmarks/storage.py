"""Compare the cost of the event log and of removing a day with their alternatives: `make bench-storage`.

There are two comparisons. Their alternatives take turns in one run on the embedded PostgreSQL:

* Event log: 6 empty assets run over a range of days, so the run only writes events, once with our storage and once with
  the stock storage of dagster-postgres. Both must have recorded every day of every asset, or it fails with status 1.
* Removal of a large day and of a small day: by the retention job, by dropping the partition only, and by deleting the
  rows.

A missed target is printed but does not fail the run, because the machine may be the reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import dagster as dg
import sqlalchemy as sa
from dagster_postgres.event_log import PostgresEventLogStorage
from rich.progress import Progress, track

from analytics_assets.defs.partitions import range_tags
from analytics_assets.local.postgres import embedded_postgres, ensure_database
from analytics_assets.local.server import dagster_instance, databases
from analytics_assets.retention.sweep import MANUAL, apply_retention
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.expiry import drop_day

ASSETS = 6
TABLE = "daily_event_counts"
QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
"""Run configuration: record the events without printing them."""


def empty_job(first: date, days: int) -> dg.JobDefinition:
    """Job of six assets that do nothing and materialize a range in one run."""
    daily = dg.DailyPartitionsDefinition(start_date=first.isoformat(), end_offset=0)

    def empty(name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, partitions_def=daily, backfill_policy=dg.BackfillPolicy.single_run())
        def nothing() -> None: ...

        return nothing

    assets = [empty(f"empty_{number}") for number in range(ASSETS)]
    return dg.Definitions(assets=assets, executor=dg.in_process_executor).resolve_implicit_global_asset_job_def()


def compare_event_logs(server: sa.URL, settings: Settings, days: int, rounds: int) -> bool:
    """Print the seconds of a range run with each storage. Returns whether both have recorded everything."""
    first = settings.today() - timedelta(days=days)
    job = empty_job(first, days)
    tags = range_tags(first, settings.today() - timedelta(days=1))
    seconds: dict[str, list[float]] = {"ours": [], "stock": []}
    for number in track(range(rounds), "event log: rounds", transient=True):
        for name, taken in seconds.items():
            own = use_database(server, settings, f"{name}_{number}")
            with dagster_instance(own) as instance:
                if name == "stock":
                    # Only the event log storage differs; the rest of the instance is the same.
                    stock = PostgresEventLogStorage(str(own.dagster_url))
                    stock.register_instance(instance)
                    instance._event_storage = stock
                started = perf_counter()
                job.execute_in_process(QUIET, instance=instance, tags=tags)
                taken.append(perf_counter() - started)
                for asset in job.asset_layer.asset_graph.materializable_asset_keys:
                    recorded = len(instance.get_materialized_partitions(asset))
                    if recorded != days:
                        print(f"{name}: {recorded} of {days} days of an asset recorded; no comparison", file=sys.stderr)
                        return False
    print(f"event log: each has recorded {days} of {days} days of {ASSETS} assets, {rounds} rounds, seconds")
    ours, stock_seconds = (median(seconds[name]) for name in ("ours", "stock"))
    print(f"  ours   {ours:8.2f}\n  stock  {stock_seconds:8.2f}")
    print(f"  ours / stock: {ours / stock_seconds:.2f} (target: at most 0.5)")
    return True


def use_database(server: sa.URL, settings: Settings, name: str) -> Settings:
    """Return the settings with Dagster's records in the database of that name. Create it if it does not exist."""
    return replace(settings, dagster_url=ensure_database(server, name).render_as_string(hide_password=False))


def compare_removals(admin: sa.Engine, settings: Settings, small: int, large: int, rounds: int) -> bool:
    """Print the seconds of removing days of two sizes. Returns whether every day was removed."""
    seconds: dict[str, list[float]] = {
        f"{how} {size}": [] for how in ("remove", "drop", "delete") for size in ("small", "large")
    }
    with (
        Progress(transient=True) as progress,
        open_store(settings) as store,
        dagster_instance(settings) as instance,
    ):
        task = progress.add_task("removal: days", total=rounds * len(seconds))
        first = read_window(store).first
        for number in range(rounds):
            for offset, name in enumerate(seconds):
                day = first - timedelta(days=1 + number * len(seconds) + offset)
                ways: dict[str, Callable[[], object]] = {
                    "remove": lambda: apply_retention(settings, instance, MANUAL),
                    "drop": partial(drop_day, store, day),
                    "delete": partial(delete, admin, day),
                }
                with admin.begin() as connection:
                    make_day(connection, day, small if name.endswith("small") else large)
                seconds[name].append(measure(ways[name.split()[0]]))
                with admin.begin() as connection:
                    query = sa.text("select count(*) from analytics.daily_event_counts where event_date = :day")
                    if connection.scalar(query, {"day": day}):
                        print(f"{name}: rows are left; no comparison", file=sys.stderr)
                        return False
                    connection.exec_driver_sql(f"drop table if exists analytics.{TABLE}_{day:%Y%m%d}")
                progress.advance(task)
    print(f"removal: days of {small:,} and {large:,} rows, {rounds} rounds, seconds")
    for name, values in seconds.items():
        print(f"  {name:14}{median(values):8.4f}")
    ratios = {how: median(seconds[f"{how} large"]) / median(seconds[f"{how} small"]) for how in ways}
    print(f"  remove large / remove small: {ratios['remove']:.2f} (target: at most 2)")
    print(f"  drop large / drop small: {ratios['drop']:.2f}, delete large / delete small: {ratios['delete']:.2f}")
    print(f"  drop large / delete large: {median(seconds['drop large']) / median(seconds['delete large']):.3f}")
    return True


def make_day(connection: sa.Connection, day: date, rows: int) -> None:
    """Create an expired day with that many rows, and with the constraints and the key of every day."""
    name = f"analytics.{TABLE}_{day:%Y%m%d}"
    connection.exec_driver_sql("set local role analytics_owner")
    connection.exec_driver_sql(
        f"create table {name} partition of analytics.daily_event_counts"
        f" for values from ('{day}') to ('{day + timedelta(days=1)}')"
    )
    insert = sa.text(
        f"insert into {name} (event_date, event_name, event_id, source, count)"  # noqa: S608  # a date
        " select :day, 'event_signup', cast(n as text), 'web', 1 from generate_series(1, :rows) as n"
    )
    connection.execute(insert, {"day": day, "rows": rows})


def delete(admin: sa.Engine, day: date) -> None:
    """Delete the rows of a day, which leaves their space to a vacuum."""
    with admin.begin() as connection:
        statement = sa.text("delete from analytics.daily_event_counts where event_date = :day")
        connection.execute(statement, {"day": day})


def measure(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    started = perf_counter()
    action()
    return perf_counter() - started


def main() -> int:
    """Run both comparisons. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=180, help="days of the range run (default: 180)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (default: 5)")
    parser.add_argument("--small", type=int, default=10_000, help="rows of the small day (default: 10,000)")
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the large day (default: 1,000,000)")
    options = parser.parse_args()
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")  # for both storages, like `analytics-assets up`
    warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as folder:
        Path(folder).chmod(0o755)  # as root, the embedded server runs as another user
        settings = Settings.from_env({"ANALYTICS_DATA_DIR": folder})
        settings.dump_dir.mkdir()
        with embedded_postgres(settings.data_dir) as server, databases(settings) as ready:
            admin = sa.create_engine(server.set(database="analytics"))
            compared = [
                compare_event_logs(server, ready, options.days, options.rounds),
                # The records of one of these runs make Dagster's database as full as one in use.
                compare_removals(
                    admin, use_database(server, ready, "ours_0"), options.small, options.large, options.rounds
                ),
            ]
            admin.dispose()
    return 0 if all(compared) else 1


if __name__ == "__main__":
    sys.exit(main())
