"""Removing expired days from the analytics database, and the ledger that says so.

Functions of the database remove, and they refuse every day that is still kept. Only findings of friction are deleted by
the service account itself, because it replaces them anyway. `retention` decides when, and what else
keeps days.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import sqlalchemy as sa

from analytics_assets.contract import SCHEMA
from analytics_assets.database import DatabaseError
from analytics_assets.store import Store
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
