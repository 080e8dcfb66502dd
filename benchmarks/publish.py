"""What publishing costs, beside one CREATE TABLE AS of the daily aggregate: `make bench-publish`.

On the embedded PostgreSQL, in one run:

* the alternative: one `create table as` of the counts per day and event, sources summed;
* the first fill: every day of the retention period, in one transaction;
* the nightly step: one more day for as many series;
* the two checks on everything that is published;
* finding friction in the three newest days of as many series;
* the pages of some events, with their charts: how many a minute, and how large.

The published sum must equal the rule of `publication.fives` on each series, or the run fails with status 1. A missed
target is printed and fails nothing: it may be the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter

import sqlalchemy as sa

from analytics_assets.contract import LOOKBACK_DAYS, METRICS, PUBLISHED_BASE, Published
from analytics_assets.local.postgres import embedded_postgres
from analytics_assets.local.server import databases
from analytics_assets.publication.audit import find_recoverable
from analytics_assets.publication.findings import refresh_friction
from analytics_assets.publication.pages.core import MAX_EVENTS, Health
from analytics_assets.publication.pages.publish import find_untrue_pages, write_core_pages, write_published_pages
from analytics_assets.publication.publish import publish_closed
from analytics_assets.settings import Settings
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.published import find_altered

DAILY = [m for m in METRICS if m.published is Published.BY_DAY_AND_EVENT]
NAMES = [name for m in DAILY for name in m.event_names]

COUNTS = """
insert into analytics.daily_event_counts
select day, name, event::text, source, 1 + (hashint8(event * 1000 + day::date - date '2000-01-01') & 15)
from generate_series(cast(:first as date), cast(:last as date), interval '1 day') day,
     unnest(cast(:names as text[])) name, generate_series(1, :events) event, unnest(array['web', 'admin']) source
"""
NOTES = """
insert into analytics.collected_days
select asset, day, 1, now() from generate_series(cast(:first as date), cast(:last as date), interval '1 day') day,
     unnest(cast(:assets as text[])) asset
"""
RESPONSES = """
insert into analytics.daily_response_counts
select day, 'GET /directory/section-' || endpoint || '/{item_id}', status,
       1 + (endpoint * status + day::date - date '2000-01-01') % 90
from generate_series(cast(:first as date), cast(:last as date), interval '1 day') day,
     generate_series(1, :endpoints) endpoint, unnest(array[200, 404]) status
"""
AGGREGATE = """
create table analytics.aggregate as
select event_date, event_name, event_id, sum(count)::bigint as count
from analytics.daily_event_counts where event_date <= :last group by 1, 2, 3
"""
WRONG = """
select count(*) from (
    select event_name, event_id, sum(count) as total from analytics.daily_event_counts
    where event_date <= :last group by 1, 2
) counted
left join (select event_name, event_id, sum(count) as total from published.daily_counts group by 1, 2) published
    using (event_name, event_id)
where counted.total - counted.total % :base <> coalesce(published.total, 0)
"""


def collect(admin: sa.Engine, first: date, last: date, events: int) -> None:
    """Store counts of each day for every event and event name, and note the days."""
    parameters = {"names": NAMES, "assets": [m.asset for m in DAILY], "events": events, "first": first, "last": last}
    with admin.begin() as connection:
        for number in range((last - first).days + 1):
            connection.execute(sa.select(sa.func.analytics.create_days(first + timedelta(days=number))))
        connection.execute(sa.text(COUNTS), parameters)
        connection.execute(sa.text(NOTES), parameters)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("analyze")


def seconds(action: Callable[[], object]) -> float:
    """Run and time it."""
    started = perf_counter()
    action()
    return perf_counter() - started


def aggregate(admin: sa.Engine, last: date) -> None:
    """The alternative."""
    with admin.begin() as connection:
        connection.exec_driver_sql("drop table if exists analytics.aggregate")
        connection.execute(sa.text(AGGREGATE), {"last": last})


def start_again(admin: sa.Engine) -> None:
    """Forget what is published."""
    with admin.begin() as connection:
        connection.exec_driver_sql(
            "truncate published.daily_counts, published.days, published.weekly_counts, published.weeks,"
            " analytics.publications, analytics.published_carries"
        )


def measure(admin: sa.Engine, settings: Settings, events: int, nightly_events: int, rounds: int) -> bool:
    """Print each cost and whether it meets its target. Returns whether the numbers are right."""
    with open_store(settings) as store:
        window = read_window(store)
        last = window.last_closed
        collect(admin, window.first, last - timedelta(days=1), events)
        collect(admin, last, last, nightly_events)
        night = last - timedelta(days=1)
        # From the last day that is closed to today: a day more before the hour of the daily run.
        until_today = window.last - last + timedelta(days=1)
        alternative, first_fill, nightly = [], [], []
        for _ in range(rounds):
            start_again(admin)
            alternative.append(seconds(lambda: aggregate(admin, night)))
            at_first = sa.text("delete from analytics.collected_days where event_date = :last")
            with admin.begin() as connection:
                connection.execute(at_first, {"last": last})
                connection.exec_driver_sql(HOLD.format(today=night + until_today))
            first_fill.append(seconds(lambda: publish_closed(store)))
            with admin.begin() as connection:
                notes = {"assets": [m.asset for m in DAILY], "first": last, "last": last}
                connection.execute(sa.text(NOTES), notes)
                connection.exec_driver_sql(HOLD.format(today=last + until_today))
            nightly.append(seconds(lambda: publish_closed(store)))
        checks = {"only_fives": find_altered, "no_hidden_day_recoverable": find_recoverable}
        costs = {name: seconds(lambda check=check: check(store)) for name, check in checks.items()}  # type: ignore[misc]
        with admin.connect() as connection:
            wrong = connection.scalar(sa.text(WRONG), {"last": last, "base": PUBLISHED_BASE})
        findings = [finding for check in checks.values() for finding in check(store)]
    days = (night - window.first).days + 1
    print(f"create table as, {days} days x {events:,} events x {len(NAMES)} names: {median(alternative):.2f} s")
    ratio = median(first_fill) / median(alternative)
    print(
        f"first fill: {median(first_fill):.2f} s, {ratio:.1f} times as long (target: at most 5) {verdict(ratio <= 5)}"
    )
    share = median(nightly) / median(first_fill)
    print(
        f"nightly step, {nightly_events * len(NAMES):,} series: {median(nightly):.2f} s, {share:.2f} of the first fill"
        f" (target: at most 0.10) {verdict(share <= 0.1)}"
    )
    for name, cost in costs.items():
        print(f"check {name}: {cost:.2f} s")
    print(f"series with a wrong total: {wrong}; findings of the checks: {len(findings)}")
    return not wrong and not findings


def measure_friction(settings: Settings) -> None:
    """Print what a night's friction costs."""
    with open_store(settings) as store:
        window = read_window(store)
        days = [window.last_closed - timedelta(days=number) for number in range(LOOKBACK_DAYS + 1)]
        cost = seconds(lambda: refresh_friction(store, days))
    print(f"friction in {len(days)} days: {cost:.1f} s")


def measure_pages(admin: sa.Engine, settings: Settings, events: int) -> bool:
    """Print how fast pages are written and how large they are. Returns whether all are there and true."""
    start_again(admin)
    with admin.begin() as connection:
        connection.exec_driver_sql("truncate analytics.daily_event_counts, analytics.collected_days")
    with open_store(settings) as store:
        window = read_window(store)
        collect(admin, window.first, window.last_closed, events)
        with admin.begin() as connection:
            parameters = {"first": window.first, "last": window.last_closed, "endpoints": MAX_EVENTS}
            connection.execute(sa.text(RESPONSES), parameters)
            notes = {"assets": ["endpoint_error_rates"], "first": window.first, "last": window.last_closed}
            connection.execute(sa.text(NOTES), notes)
        publish_closed(store)
        costs = [seconds(lambda write=write: write(store)) for write in WRITERS]  # type: ignore[misc]
        untrue = find_untrue_pages(store)
    sizes = {path: path.stat().st_size for path in settings.publish_dir.rglob("*.html")}
    index = sizes[settings.publish_dir / "core/index.html"]
    largest = max(size for path, size in sizes.items() if path.name == "index.html" and path.parts[-3] == "events")
    rate = 60 * events / costs[1]
    print(
        f"published pages of {events} events: {rate:.0f} events a minute (target: at least 200) {verdict(rate >= 200)};"
        f" core pages: {60 * events / costs[0]:.0f} events a minute"
    )
    print(f"largest event page: {largest / 1000:.0f} kB (target: below 150) {verdict(largest < 150_000)}")
    print(f"core page: {index / 1000:.0f} kB (target: below 500) {verdict(index < 500_000)}")
    print(f"pages: {len(sizes)}; differences from what is published: {len(untrue)}")
    return len(sizes) == 2 * (events + 1) and not untrue


WRITERS: tuple[Callable[[Store], object], ...] = (
    lambda store: write_core_pages(store, Health()),
    write_published_pages,
)


# The database's word on today.
HOLD = """
create or replace function analytics.today() returns date language sql stable security definer
set search_path = pg_catalog, pg_temp as $$ select date '{today}' $$
"""


def verdict(met: bool) -> str:
    """Say whether a target is met."""
    return "met" if met else "MISSED"


def main() -> int:
    """Run the comparison. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000, help="events of the first fill (2,000)")
    parser.add_argument("--nightly-events", type=int, default=4_000, help="events of the nightly step (4,000)")
    parser.add_argument("--pages", type=int, default=200, help="events with pages (200)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as folder:
        Path(folder).chmod(0o755)  # the embedded server runs as another user when this one is root
        settings = Settings.from_env({"ANALYTICS_DATA_DIR": folder})
        with embedded_postgres(settings.data_dir) as server, databases(settings) as ready:
            admin = sa.create_engine(server.set(database="analytics"))
            right = measure(admin, ready, options.events, options.nightly_events, options.rounds)
            measure_friction(ready)
            right &= measure_pages(admin, ready, options.pages)
            admin.dispose()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
