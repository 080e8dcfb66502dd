"""What collecting from a source view costs, beside the plain SQL that does the same: `make bench-collect`.

On the embedded PostgreSQL, over a sign-up table with an index on the time, ours and the alternative take turns, also in
who is first to read the rows of a day:

* Count one day: the alternative is `insert ... select ... group by` of the same rows, on an open connection and in a
  process of psql.
* Compare one day: `select count(*)`.
* Store that day, for the first time and again: `COPY` of the same rows into the same table, which has the day and is
  empty.
* Check what is stored of that day: `select` of it into the client.
* A whole process that collects every day of the asset and executes its checks: one `create table as` over the whole
  sign-up table.
* Count all days, with the index and then without it: ours is told all days beforehand, so that PostgreSQL's plan may
  count them together; the alternative is told none. With the index, the plan counts day by day, so both do the same.

Both sides must have the same numbers, or it fails with status 1. A missed target is printed but does not fail the run,
because the machine may be the reason.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from analytics_assets.contract import metric
from analytics_assets.days import bounds, span
from analytics_assets.defs.evaluation import open_reader
from analytics_assets.local.postgres import PROGRAMS, embedded_postgres, ensure_database
from analytics_assets.local.server import dagster_home, dagster_instance, databases
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, Reader
from analytics_assets.sources.hosts.postgresql import GRANTS
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import read_window, replace_days
from analytics_assets.store.inspection import count_row_violations

SIGNUPS: Final = metric("event_signups")
TABLE: Final = "analytics.daily_event_counts"

TARGETS: Final = {"count": 1.5, "count, psql": 1.5, "store again": 2, "whole run": 2.5}
"""What is measured -> at most so many times as long as the alternative."""

HOST_TABLES: Final = (
    "create table signups (id bigint, event_id bigint not null, occurred_at timestamptz not null, source text)",
    "create schema analytics_source",
    "create view analytics_source.signups as select event_id, occurred_at, source from signups",
    "create view analytics_source.profile_visibility_changes as select * from analytics_source.signups",
    "create view analytics_source.consent_changes as select *, true as turned_on from analytics_source.signups",
    "create table plain_day (event_id bigint, source text, count bigint)",
)
FILL: Final = (
    "insert into signups select n, 1 + (hashint8(n) & 2147483647) % :events,"
    " :start + (n - 1) * (cast(:end as timestamptz) - :start) / :rows,"
    " case when n % 3 = 0 then 'admin' else 'web' end from generate_series(1, :rows) n"
)
PLAIN: Final = """
insert into plain_day select event_id, source, count(*) from signups
where occurred_at >= %(start)s and occurred_at < %(end)s group by 1, 2
"""
TOTAL: Final = "select count(*) from signups where occurred_at >= %(start)s and occurred_at < %(end)s"
STORED: Final = f"select event_id, source, count from {TABLE} where event_date = %(day)s"  # noqa: S608  # a constant
WHOLE: Final = """
create table plain_days as
select cast(occurred_at at time zone %(time_zone)s as date) as event_date, event_id, source, count(*) as count
from signups group by 1, 2, 3
"""

T = TypeVar("T")
Counts = dict[tuple[str, ...], int]


class DifferentError(Exception):
    """Both sides do not have the same numbers."""


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Run it. Returns the seconds and what it returned."""
    started = perf_counter()
    result = action()
    return perf_counter() - started, result


def as_counts(rows: Iterable[Sequence[Any]]) -> Counts:
    """Return rows whose last column is the count by what the other columns are as text."""
    return {tuple(map(str, row[:-1])): row[-1] for row in rows}


def require_equal(name: str, ours: object, alternative: object) -> None:
    """Raise DifferentError unless both are the same."""
    if ours != alternative:
        raise DifferentError(f"{name}: ours and the alternative have different numbers; no comparison")


class Times:
    """The seconds of ours and of the alternative, by what is measured and by round."""

    def __init__(self) -> None:
        self._taken: dict[str, list[tuple[float, float]]] = {}

    def add(self, name: str, ours: float, alternative: float) -> None:
        """Note a round."""
        self._taken.setdefault(name, []).append((ours, alternative))

    def plain(self, *names: str) -> float:
        """Seconds of the alternatives to these, one after the other."""
        return sum(median(alternative for _, alternative in self._taken[name]) for name in names)

    def report(self) -> None:
        """Print the medians and the spread of both sides, and the median of the rounds' ratios."""
        for name, rounds in self._taken.items():
            ratio = median(ours / alternative for ours, alternative in rounds)
            sides = [
                f"{1000 * median(side):8.1f} ({1000 * min(side):.1f} to {1000 * max(side):.1f}) ms"
                for side in zip(*rounds, strict=True)
            ]
            target = TARGETS.get(name)
            verdict = f" (target: at most {target:g}) {'met' if ratio <= target else 'MISSED'}" if target else ""
            print(f"{name:18} ours {sides[0]}, alternative {sides[1]}, ratio {ratio:.2f}{verdict}")


class Databases:
    """The host's database with its sign-ups and the analytics database, and a connection to each."""

    def __init__(self, server: sa.URL, settings: Settings, days: int) -> None:
        """Make the tables, without sign-ups. `days` are the last finished ones."""
        url = ensure_database(server, "host")
        self.host = sa.create_engine(url, isolation_level="AUTOCOMMIT").connect()
        self.admin = sa.create_engine(server.set(database="analytics"), isolation_level="AUTOCOMMIT").connect()
        reader = url.set(username="analytics_source_reader").render_as_string(hide_password=False)
        self.settings = replace(settings, source_url=reader)
        with open_store(settings) as store:
            last = read_window(store).last
        self.days = span(last - timedelta(days=days - 1), last)
        for statement in HOST_TABLES:
            self.host.exec_driver_sql(statement)
        self.host.exec_driver_sql(GRANTS)

    def add_signups(self, days: Sequence[date], rows: int, events: int) -> None:
        """Make so many sign-ups of so many events, evenly over consecutive days."""
        start = bounds(days[0], self.settings.time_zone)[0]
        end = bounds(days[-1], self.settings.time_zone)[1]
        self.host.execute(sa.text(FILL), {"events": events, "rows": rows, "start": start, "end": end})
        # Once the rows are there: a table with an index is filled more slowly.
        self.host.exec_driver_sql("create index if not exists signups_occurred_at on signups (occurred_at)")
        self.host.exec_driver_sql("vacuum analyze signups")

    def close(self) -> None:
        """Close both connections."""
        self.host.engine.dispose()
        self.admin.engine.dispose()

    def forget_days(self) -> None:
        """Drop every partition of the counts, and the notes of the collected days."""
        partitions = self.admin.exec_driver_sql(
            "select inhrelid::regclass::text from pg_inherits where inhparent in (select partrelid from"
            " pg_partitioned_table)"
        ).scalars()
        for partition in partitions.all():
            self.admin.exec_driver_sql(f"drop table if exists {partition}")
        self.admin.exec_driver_sql("delete from analytics.collected_days")

    def psql(self, statement: str, parameters: dict[str, object]) -> None:
        """Execute a statement in the host's database, in a process of PostgreSQL's own client."""
        cursor: Any = self.host.connection.cursor()
        url = self.host.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        subprocess.run(
            [
                PROGRAMS / "psql",
                "-q",
                url,
                "-c",
                cursor.mogrify(statement, parameters).decode(),
            ],
            check=True,
        )

    def copy(self, text: str) -> None:
        """`COPY` into the table of counts, by the driver's own means."""
        cursor: Any = self.admin.connection.cursor()
        cursor.copy_expert(f"copy {TABLE} from stdin", io.StringIO(text))


def compare_days(found: Databases, rounds: int) -> Times:
    """Compare each step of a day, with another day in each round. The first day only warms up.

    Raises:
        DifferentError: ours and an alternative have different numbers.
    """
    first, *days = found.days[-1 - rounds :]
    times = Times()
    with open_store(found.settings) as store, open_reader(SIGNUPS, found.settings) as reader:
        compare_day(found, store, reader, first, Times())
        for number, day in enumerate(days):
            compare_day(found, store, reader, day, times, ours_first=number % 2 == 0)
    return times


def compare_day(
    found: Databases, store: Store, reader: Reader, day: date, times: Times, *, ours_first: bool = True
) -> None:
    """Do every step of a day, and what it is compared with. Raises as `compare_days` does.

    Who reads the host's rows first warms them up for the other.
    """
    start, end = bounds(day, found.settings.time_zone)
    parameters: dict[str, object] = {"day": day, "start": start, "end": end}

    def count() -> tuple[float, Counted]:
        return timed(lambda: reader.count(day))

    if ours_first:
        ours, counted = count()
    found.host.exec_driver_sql("truncate plain_day")
    plain, _ = timed(lambda: found.host.exec_driver_sql(PLAIN, parameters))
    if not ours_first:
        ours, counted = count()
    times.add("count", ours, plain)
    rows = counted.rows
    expected = as_counts(found.host.exec_driver_sql("table plain_day"))
    found.host.exec_driver_sql("truncate plain_day")
    plain, _ = timed(lambda: found.psql(PLAIN, parameters))
    times.add("count, psql", ours, plain)
    require_equal("count, psql", as_counts(found.host.exec_driver_sql("table plain_day")), expected)
    require_equal("count", as_counts((row["event_id"], row["source"], row["count"]) for row in rows), expected)

    ours, total = timed(lambda: reader.total(day))
    plain, plain_total = timed(lambda: found.host.exec_driver_sql(TOTAL, parameters).scalar())
    times.add("compare", ours, plain)
    require_equal("compare", total, plain_total)

    def stored() -> Counts:
        return as_counts(found.admin.exec_driver_sql(STORED, parameters))

    text = "".join("\t".join(map(str, row.values())) + "\n" for row in rows)
    store_new, _ = timed(lambda: replace_days(store, SIGNUPS, {day: rows}))
    store_again, _ = timed(lambda: replace_days(store, SIGNUPS, {day: rows}))
    require_equal("store", stored(), expected)
    found.admin.exec_driver_sql(f"delete from {TABLE} where event_date = %(day)s", parameters)  # noqa: S608  # a constant
    plain, _ = timed(lambda: found.copy(text))
    require_equal("store", stored(), expected)
    times.add("store a new day", store_new, plain)
    times.add("store again", store_again, plain)

    ours, violations = timed(lambda: count_row_violations(store, SIGNUPS, [day]))
    plain, selected = timed(lambda: found.admin.exec_driver_sql(STORED, parameters).all())
    times.add("check", ours, plain)
    require_equal("check", (not violations, len(expected)), (True, len(selected)))


def compare_runs(found: Databases, rounds: int) -> Times:
    """Compare a process that collects every day with one statement.

    Raises:
        DifferentError: both have different numbers.
        CalledProcessError: the process has failed.
    """
    times = Times()
    home = dagster_home(found.settings)
    with dagster_instance(found.settings):
        pass  # Dagster's tables are made once, and not by a run that is measured
    keys = f"{found.days[0]}...{found.days[-1]}"
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "analytics_assets.definitions"]
    # The batches, as `analytics-assets up` has them.
    environment = os.environ | found.settings.environment() | {"DAGSTER_HOME": str(home)}
    environment.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")

    def collect() -> None:
        subprocess.run(
            [*command, "--select", SIGNUPS.asset, "--partition-range", keys],
            env=environment,
            cwd=home,
            check=True,
            capture_output=True,
        )

    for _ in range(rounds):
        found.forget_days()
        ours, _ = timed(collect)
        found.host.exec_driver_sql("drop table if exists plain_days")
        plain, _ = timed(lambda: found.host.exec_driver_sql(WHOLE, {"time_zone": found.settings.time_zone}))
        times.add("whole run", ours, plain)
        stored = found.admin.exec_driver_sql(f"select event_date, event_id, source, count from {TABLE}")  # noqa: S608  # a constant
        require_equal("whole run", as_counts(stored), as_counts(found.host.exec_driver_sql("table plain_days")))
    return times


def compare_together(found: Databases, name: str) -> Times:
    """Compare all days, which may be counted together, with the same days one by one. Each side is first once.

    Raises:
        DifferentError: both have different numbers.
    """
    times = Times()

    def count(beforehand: Sequence[date]) -> list[Counted]:
        with open_reader(SIGNUPS, found.settings, days=beforehand) as reader:
            return [reader.count(day) for day in found.days]

    def counts(days: Iterable[Counted]) -> list[Counts]:
        return [as_counts((row["event_id"], row["source"], row["count"]) for row in day.rows) for day in days]

    for ours_first in (True, False):
        taken = {}
        for ours in (ours_first, not ours_first):
            seconds, days = timed(lambda: count(found.days if ours else ()))  # noqa: B023  # called at once
            taken[ours] = seconds, counts(days)
        times.add(name, taken[True][0], taken[False][0])
        require_equal(name, taken[True][1], taken[False][1])
    return times


def main() -> int:
    """Run the comparisons. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="sign-ups (default: 10,000,000)")
    parser.add_argument("--events", type=int, default=2_000, help="events, each with two sources (default: 2,000)")
    parser.add_argument("--days", type=int, default=180, help="days with sign-ups (default: 180)")
    parser.add_argument("--no-index", action="store_true", help="without the index on the time")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the steps of a day (default: 20)")
    parser.add_argument("--runs", type=int, default=3, help="rounds of the whole run (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as folder:
        Path(folder).chmod(0o755)  # as root, the embedded server runs as another user
        settings = Settings.from_env({"ANALYTICS_DATA_DIR": folder})
        settings.dump_dir.mkdir()
        with embedded_postgres(settings.data_dir) as server, databases(settings) as ready:
            found = Databases(server, ready, options.days)
            found.add_signups(found.days, options.rows, options.events)
            if options.no_index:
                found.host.exec_driver_sql("drop index signups_occurred_at")
            without = ", no index" if options.no_index else ""
            print(f"{options.rows:,} sign-ups of {options.events:,} events, {options.days} days{without}")
            try:
                steps = compare_days(found, options.rounds)
                steps.report()
                runs = compare_runs(found, options.runs)
                runs.report()
                if not options.no_index:
                    compare_together(found, "all days, index").report()
                    found.host.exec_driver_sql("drop index signups_occurred_at")
                compare_together(found, "all days, no index").report()
            except DifferentError as difference:
                print(difference, file=sys.stderr)
                return 1
            finally:
                found.close()
            each_day = options.days * steps.plain("count", "compare", "store a new day", "check")
            print(f"the plain statements of each day, one after the other (computed): {each_day:.1f} s,", end=" ")
            print(f"{each_day / runs.plain('whole run'):.2f} of the alternative to the whole run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
