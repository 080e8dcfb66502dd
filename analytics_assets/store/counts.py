"""Daily counts: which days may be written, replacing a day, reading days back.

No other module writes counts. A day is replaced whole, in one transaction, which may have other days, too: a crash
leaves the old day or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from analytics_assets.contract import LOOKBACK_DAYS, METRICS, CounterDumps, Metric
from analytics_assets.database import DatabaseError, UnreachableError, copy_rows, sqlstate
from analytics_assets.guard import Row
from analytics_assets.store import Store
from analytics_assets.store.tables import COLLECTED_DAYS, COUNTS

LARGE_DECREASE: Final = 0.2
"""A day that is collected again may lose this share of its stored total: people delete rows in the host's tables.

A loss of fewer than FEW is always allowed. Counter dumps only grow, so any loss there is refused.
"""
FEW: Final = 5

_NOT_SET_UP: Final = {"42P01", "3F000"}
"""SQLSTATEs of a missing table and a missing schema."""


DAILY_RUN: Final = time(1, 15)
"""When the daily job starts, in the configured time zone."""


class DayRefusedError(RuntimeError):
    """A day that must not be written, with the reason."""


@dataclass(frozen=True)
class Stored:
    """What one metric has on one day."""

    rows: int
    total: int
    """Sum of the counts."""


@dataclass(frozen=True)
class Window:
    """The days that are kept and finished, both ends included, by the database's clock, time zone and period."""

    first: date
    last: date
    last_closed: date
    """The newest day that the daily job has collected for the last time, the first day of its newest run."""
    now: datetime
    """When this was read, by the database's clock."""

    def has(self, day: date) -> bool:
        """Whether a day is kept and finished."""
        return self.first <= day <= self.last

    def refuse_outside(self, day: date) -> None:
        """Raise DayRefusedError for a day that has expired or is not over."""
        if day < self.first:
            raise DayRefusedError(f"expired: the first day that is kept is {self.first}")
        if day > self.last:
            raise DayRefusedError(f"not finished: the last full day is {self.last}")


def read_window(store: Store) -> Window:
    """Return the days that may be written now, from one query.

    Raises:
        DatabaseError: the schema is missing, or was set up with another time zone or retention period.
    """
    query = sa.text(
        "select analytics.first_kept_day() as first, analytics.today() as today, retention_days, time_zone,"
        " now() as now, cast(now() at time zone time_zone as time) < :daily_run as early from analytics.settings"
    )
    with store.transaction("reading the retention period") as connection:
        try:
            row = connection.execute(query, {"daily_run": DAILY_RUN}).one()
        except sa.exc.ProgrammingError as error:
            if sqlstate(error) not in _NOT_SET_UP:
                raise
            raise DatabaseError("schema analytics is not set up: run `analytics-assets init-db`") from None
    if (row.retention_days, row.time_zone) != (store.settings.retention_days, store.settings.time_zone):
        raise DatabaseError(
            "ANALYTICS_RETENTION_DAYS or ANALYTICS_TIMEZONE differ from what the database enforces:"
            " run `analytics-assets init-db` to set them there too"
        )
    last = row.today - timedelta(days=1)
    return Window(row.first, last, max(row.first, last - timedelta(days=LOOKBACK_DAYS + row.early)), row.now)


def replace_days(
    store: Store,
    metric: Metric,
    days: Mapping[date, Sequence[Row]],
    begun: datetime | None = None,
    /,
    *,
    allow_empty: bool = False,
    allow_decrease: bool = False,
) -> dict[date, Stored | DayRefusedError | DatabaseError]:
    """Replace what `metric` has on each day by its rows, and note the day as collected.

    The rows have every field of the metric's table; an absent source is None. Concurrent calls are serialized, and the
    later one replaces the whole day. The days are in one transaction; if the database refuses it, each day is tried by
    itself, so that a bad day costs no other. `begun` is when counting them began, by the database's clock; now, unless
    given.

    Returns what is stored of a day now, or why it is unchanged: it has counts and `rows` is empty without
    `allow_empty`, or much smaller without `allow_decrease`; or a constraint or the retention period refuses; or the
    database is out of reach (UnreachableError), where nobody knows whether the last transaction was committed.
    """
    ordered = {day: days[day] for day in sorted(days)}
    try:
        return _replace(store, metric, ordered, begun, allow_empty=allow_empty, allow_decrease=allow_decrease)
    except DatabaseError as error:
        outcomes: dict[date, Stored | DayRefusedError | DatabaseError] = dict.fromkeys(ordered, error)
        if len(ordered) == 1 or isinstance(error, UnreachableError):
            return outcomes
    for day, rows in ordered.items():
        outcomes |= replace_days(
            store, metric, {day: rows}, begun, allow_empty=allow_empty, allow_decrease=allow_decrease
        )
        if isinstance(outcomes[day], UnreachableError):
            return outcomes | {later: outcomes[day] for later in ordered if later > day}
    return outcomes


def _replace(
    store: Store,
    metric: Metric,
    days: Mapping[date, Sequence[Row]],
    begun: datetime | None,
    *,
    allow_empty: bool,
    allow_decrease: bool,
) -> dict[date, Stored | DayRefusedError | DatabaseError]:
    """Do what `replace_days` says, in the order of the days: two runs that have days in common never deadlock."""
    table = COUNTS[metric.table]
    ordinals = sa.func.unnest(sa.literal([day.toordinal() for day in days], postgresql.ARRAY(sa.Integer)))
    with store.transaction("making the partitions of the days") as connection:
        # Committed on its own: attaching a partition holds a lock that the counting of other days would wait for. The
        # next commit, which stores the days, waits for the disk for both.
        no_wait = sa.func.set_config("synchronous_commit", "off", True)
        # Attaching locks out attaching, so two runs that make several days each would wait for one another for ever.
        connection.execute(sa.select(no_wait, sa.func.pg_advisory_xact_lock(sa.func.hashtext("analytics partitions"))))
        connection.execute(
            sa.text("select analytics.create_days(variadic cast(:days as date[]))"), {"days": list(days)}
        )
    with store.transaction("replacing the days") as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(metric.asset), ordinals)))
        before = _totals(connection, metric, list(days))
        outcomes: dict[date, Stored | DayRefusedError | DatabaseError] = {
            day: _refusal(metric, rows, before.get(day, 0), allow_empty=allow_empty, allow_decrease=allow_decrease)
            or Stored(len(rows), sum(row["count"] for row in rows))
            for day, rows in days.items()
        }
        kept = [day for day, outcome in outcomes.items() if isinstance(outcome, Stored)]
        if stale := [day for day in kept if day in before]:
            connection.execute(sa.delete(table).where(belongs_to(metric, stale)))
        if rows := [row for day in kept for row in days[day]]:
            copy_rows(connection, table, rows)
        if kept:
            note = postgresql.insert(COLLECTED_DAYS).values(
                [
                    {
                        "asset": metric.asset,
                        "event_date": day,
                        "rows": len(days[day]),
                        "collected_at": begun or sa.func.now(),
                    }
                    for day in kept
                ]
            )
            connection.execute(
                note.on_conflict_do_update(
                    index_elements=["asset", "event_date"],
                    set_={"rows": note.excluded.rows, "collected_at": note.excluded.collected_at},
                )
            )
    return outcomes


def _totals(connection: sa.Connection, metric: Metric, days: Sequence[date]) -> dict[date, int]:
    table = COUNTS[metric.table]
    query = sa.select(table.c.event_date, sa.func.sum(table.c.count)).where(belongs_to(metric, days))
    return {day: int(total) for day, total in connection.execute(query.group_by(table.c.event_date))}


def _refusal(
    metric: Metric, rows: Sequence[Row], before: int, *, allow_empty: bool, allow_decrease: bool
) -> DayRefusedError | None:
    """Return why a day that has a total of `before` must not be replaced by `rows`."""
    if before and not rows and not allow_empty:
        return DayRefusedError(
            "the source is empty now, but counts are stored; if the source is right, run the day again with"
            " allow_empty: true in the run's config"
        )
    lost = before - sum(row["count"] for row in rows)
    if rows and _is_large(metric, lost, before) and not allow_decrease:
        return DayRefusedError(
            "the source has less than is stored (dump files or rows are gone); if the source is right, run the"
            " day again with allow_decrease: true in the run's config"
        )
    return None


def _is_large(metric: Metric, lost: int, before: int) -> bool:
    if isinstance(metric.origin, CounterDumps):
        return lost > 0
    return lost >= FEW and lost > LARGE_DECREASE * before


def read_days(store: Store, metric: Metric, days: Sequence[date]) -> dict[date, Stored]:
    """Return how many rows are stored of each day, and their total."""
    table = COUNTS[metric.table]
    query = (
        sa.select(table.c.event_date, sa.func.count(), sa.func.sum(table.c.count))
        .where(belongs_to(metric, days))
        .group_by(table.c.event_date)
    )
    with store.transaction("reading the days") as connection:
        found = {day: Stored(rows, int(total)) for day, rows, total in connection.execute(query)}
    return {day: found.get(day, Stored(0, 0)) for day in days}


def read_latest_collected(store: Store, metric: Metric) -> date | None:
    """Return the newest collected day, None before the first."""
    query = sa.select(sa.func.max(COLLECTED_DAYS.c.event_date)).where(COLLECTED_DAYS.c.asset == metric.asset)
    with store.transaction("reading the collected days") as connection:
        latest: date | None = connection.scalar(query)
    return latest


def read_collected_days(store: Store, window: Window) -> dict[str, set[date]]:
    """Return the days of the window that each metric has collected, by its asset."""
    query = sa.select(COLLECTED_DAYS).where(COLLECTED_DAYS.c.event_date.between(window.first, window.last))
    found: dict[str, set[date]] = {metric.asset: set() for metric in METRICS}
    with store.transaction("reading the collected days") as connection:
        for row in connection.execute(query):
            found.setdefault(row.asset, set()).add(row.event_date)
    return found


def read_dumps_read_at(store: Store, window: Window) -> dict[date, datetime]:
    """Return when reading the dumps of each collected day of the window began, for the metric where it is longest ago.

    The metrics of a run share what was read of a day.
    """
    assets = [metric.asset for metric in METRICS if isinstance(metric.origin, CounterDumps)]
    day = COLLECTED_DAYS.c.event_date
    query = sa.select(day, sa.func.min(COLLECTED_DAYS.c.collected_at).label("read_at")).group_by(day)
    query = query.where(COLLECTED_DAYS.c.asset.in_(assets), day.between(window.first, window.last))
    with store.transaction("reading the collected days") as connection:
        return {row.event_date: row.read_at for row in connection.execute(query)}


def count_collected_since(store: Store, moment: datetime) -> int:
    """Return how many days, summed over the metrics, were collected by runs that began at or after `moment`."""
    query = sa.select(sa.func.count()).where(COLLECTED_DAYS.c.collected_at >= moment)
    with store.transaction("reading the collected days") as connection:
        return connection.scalar(query) or 0


def on_days(table: sa.Table, days: Sequence[date]) -> sa.ColumnElement[bool]:
    """Return the condition that selects the rows of some days. A range is planned faster than a list."""
    column = table.c.event_date
    first, last = min(days, default=date.max), max(days, default=date.min)
    return column.between(first, last) if (last - first).days + 1 == len(set(days)) else column.in_(days)


def belongs_to(metric: Metric, days: Sequence[date]) -> sa.ColumnElement[bool]:
    """Return the condition that selects the metric's rows of some days."""
    table = COUNTS[metric.table]
    of_days = on_days(table, days)
    return of_days & table.c.event_name.in_(metric.event_names) if "event_name" in table.c else of_days
