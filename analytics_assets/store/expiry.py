"""Removing expired days from the analytics database, and the ledger that says so.

Functions of the database remove, and they refuse every day that is still kept. A cut-off that has moved further than
time can have passed is not certain: a wrong clock would remove everything. Only findings of friction are deleted by
the service account itself, because it replaces them anyway. `retention` decides when, and what else
keeps days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import sqlalchemy as sa

from analytics_assets.contract import SCHEMA
from analytics_assets.database import DatabaseError, sqlstate
from analytics_assets.store import Store
from analytics_assets.store.counts import read_window
from analytics_assets.store.tables import (
    COLLECTED_DAYS,
    DAILY_COUNTS,
    DAYS,
    FRICTION,
    PUBLICATIONS,
    PUBLISHED_CARRIES,
    RETENTION_LEDGER,
    WEEKLY_COUNTS,
    WEEKS,
)

_NO_COLUMN: Final = "42703"
"""SQLSTATE of a missing column."""


class UncertainError(DatabaseError):
    """The cut-off has moved further than time can have passed."""


@dataclass(frozen=True)
class Cutoff:
    """The first day that is kept, by the database's clock, and how far time can have moved it."""

    day: date
    furthest: date
    """The last day that time can have moved the cut-off to."""
    clocks: tuple[date, date]
    """Today by the database's clock, and by that of this machine."""

    @property
    def certain(self) -> date:
        """The first day that is kept for certain."""
        return min(self.day, self.furthest)

    @property
    def doubt(self) -> str | None:
        """Why it is not certain, and the way out. None when it is."""
        if self.day <= self.furthest:
            return None
        database, machine = self.clocks
        return (
            f"the cut-off is {self.day}: it has moved {(self.day - self.furthest).days} days further than time can have"
            " passed since the last removal or change of the settings. Nothing is removed. Correct the clocks (today"
            f" is {database} by the database's and {machine} by this machine's). If the cut-off is right, look with"
            " `analytics-assets retention --dry-run`, then run"
            f" `analytics-assets retention --confirm-cutoff {self.day}`"
        )


def read_cutoff(store: Store) -> Cutoff:
    """Return the cut-off, and how far time can have moved it since the last entry of the ledger or change of settings.

    Time is what has passed by both clocks, the database's and this machine's. A day is added, because a removal may
    have run past midnight.

    Raises:
        DatabaseError: as `read_window` does.
    """
    window = read_window(store)
    query = sa.text(
        "select (now() at time zone time_zone)::date as today, known.cutoff,"
        " (known.at at time zone time_zone)::date as day from analytics.settings s, lateral ("
        " select s.cutoff, s.cutoff_at as at union all select cutoff, removed_at from analytics.retention_ledger"
        " order by at desc limit 1) known"
    )
    with store.transaction("reading the retention ledger") as connection:
        try:
            row = connection.execute(query).one()
        except sa.exc.ProgrammingError as error:
            if sqlstate(error) != _NO_COLUMN:
                raise
            raise DatabaseError("schema analytics is of an earlier version: run `analytics-assets init-db`") from None
    clocks = (row.today, store.settings.today())
    return Cutoff(window.first, row.cutoff + (min(clocks) - row.day) + timedelta(days=1), clocks)


def require_certain_cutoff(store: Store) -> None:
    """Raise UncertainError, which names the way out, when the cut-off is not certain."""
    if doubt := read_cutoff(store).doubt:
        raise UncertainError(doubt)


def confirm_cutoff(store: Store, day: date) -> None:
    """Note that a person says the cut-off is right. Raises DatabaseError when `day` is not the cut-off."""
    with store.transaction("confirming the cut-off") as connection:
        connection.execute(sa.select(sa.func.analytics.confirm_cutoff(day)))


def list_partitioned_days(store: Store) -> list[date]:
    """Return the days that have a partition, oldest first, whether it has rows or not.

    Raises:
        DatabaseError: a partition covers something other than one day, so that it may keep any day.
    """
    with store.transaction("reading the partitions") as connection:
        found = connection.execute(
            sa.text(
                "select distinct cast(bounds[1] as date) as first, cast(bounds[2] as date) as next"
                " from pg_inherits join pg_class p on p.oid = inhparent join pg_class c on c.oid = inhrelid"
                " left join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), :range) bounds on true"
                " where p.relkind = 'p' and p.relnamespace = cast(:schema as regnamespace) order by 1"
            ),
            {"range": r"^FOR VALUES FROM \('(\d+-\d\d-\d\d)'\) TO \('(\d+-\d\d-\d\d)'\)$", "schema": SCHEMA},
        ).all()
    if any(row.first is None or row.next - row.first != timedelta(days=1) for row in found):
        raise DatabaseError("a table of counts has a partition that is not one day: find out what is in it, drop it")
    return [row.first for row in found]


def drop_day(store: Store, day: date) -> int:
    """Drop the partitions of a day. Returns how many rows were collected of it.

    Raises:
        DatabaseError: the day is still kept; or a reader held a lock for ten seconds, and waiting longer would block
            all others.
    """
    with store.transaction("dropping the partition of a day") as connection:
        return int(connection.scalar(sa.select(sa.func.analytics.drop_day(day))) or 0)


def summarize_collected(store: Store, before: date) -> tuple[int, int, date | None]:
    """Return days and rows of `collected_days` before a day, and the oldest day of the whole table."""
    return _summarize(store, "reading the collected days", sa.select(COLLECTED_DAYS.c.event_date), before)


def summarize_published(store: Store, before: date) -> tuple[int, int, date | None]:
    """Return days and rows of what is published before a day, and the oldest day of everything published."""
    tables = (DAILY_COUNTS, DAYS, WEEKLY_COUNTS, WEEKS, PUBLICATIONS)
    days = sa.union_all(*(sa.select(next(c for c in table.c if isinstance(c.type, sa.Date))) for table in tables))
    return _summarize(store, "reading the published days", days, before)


def summarize_carries(store: Store, before: date) -> tuple[int, int, date | None]:
    """Return days and rows of the carries that no day since `before` has added to, and the oldest day of all."""
    return _summarize(store, "reading the carries", sa.select(PUBLISHED_CARRIES.c.event_date), before)


def summarize_friction(store: Store, before: date) -> tuple[int, int, date | None]:
    """Return days and rows of the findings before a day, and the oldest day of all."""
    return _summarize(store, "reading the findings", sa.select(FRICTION.c.event_date), before)


def _summarize(
    store: Store, doing: str, days: sa.Select[date] | sa.CompoundSelect[date], before: date
) -> tuple[int, int, date | None]:
    (day,) = days.subquery().c
    expired = day < before
    query = sa.select(sa.func.count(day.distinct()).filter(expired), sa.func.count().filter(expired), sa.func.min(day))
    with store.transaction(doing) as connection:
        number, rows, oldest = connection.execute(query).one()
    return number, rows, oldest


def sum_collected_rows(store: Store, days: Sequence[date]) -> int:
    """Return how many rows all metrics together have stored on these days."""
    rows = sa.func.coalesce(sa.func.sum(COLLECTED_DAYS.c.rows), 0)
    with store.transaction("reading the collected days") as connection:
        return int(connection.scalar(sa.select(rows).where(COLLECTED_DAYS.c.event_date.in_(days))) or 0)


def forget_days(store: Store, before: date) -> tuple[int, int]:
    """Delete the rows of `collected_days` before a day. Returns days and rows. Raises as `drop_day` does."""
    return _forget(store, "deleting from the collected days", "forget_days", before)


def forget_published(store: Store, before: date) -> tuple[int, int]:
    """Delete what is published before a day. Returns days and rows. Raises as `drop_day` does."""
    return _forget(store, "deleting published days", "forget_published", before)


def forget_carries(store: Store, before: date) -> tuple[int, int]:
    """Delete the carries that no day since `before` has added to. Returns as above. Raises as `drop_day` does."""
    return _forget(store, "deleting carries", "forget_carries", before)


def forget_friction(store: Store, before: date) -> tuple[int, int]:
    """Delete the findings before a day. Returns days and rows."""
    query = sa.delete(FRICTION).where(FRICTION.c.event_date < before).returning(FRICTION.c.event_date)
    with store.transaction("deleting findings") as connection:
        days = connection.scalars(query).all()
    return len(set(days)), len(days)


def _forget(store: Store, doing: str, function: str, before: date) -> tuple[int, int]:
    query = sa.text(f"select days, rows from {SCHEMA}.{function}(:before)")  # noqa: S608  # one of the names above
    with store.transaction(doing) as connection:
        days, rows = connection.execute(query, {"before": before}).one()
    return days, rows


def write_ledger(store: Store, **entry: object) -> None:
    """Append an entry to the retention ledger."""
    with store.transaction("writing the retention ledger") as connection:
        connection.execute(sa.insert(RETENTION_LEDGER).values(**entry))
