"""Removing expired days from the analytics database, and the ledger that says so.

Functions of the database remove, and they refuse every day that is still kept. `retention` decides when, and what else
keeps days.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import sqlalchemy as sa

from analytics_assets.contract import SCHEMA
from analytics_assets.database import DatabaseError
from analytics_assets.store import Store
from analytics_assets.store.tables import COLLECTED_DAYS, RETENTION_LEDGER


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
    day = COLLECTED_DAYS.c.event_date
    expired = day < before
    query = sa.select(sa.func.count(day.distinct()).filter(expired), sa.func.count().filter(expired), sa.func.min(day))
    with store.transaction("reading the collected days") as connection:
        days, rows, oldest = connection.execute(query).one()
    return days, rows, oldest


def sum_collected_rows(store: Store, days: Sequence[date]) -> int:
    """Return how many rows all metrics together have stored on these days."""
    rows = sa.func.coalesce(sa.func.sum(COLLECTED_DAYS.c.rows), 0)
    with store.transaction("reading the collected days") as connection:
        return int(connection.scalar(sa.select(rows).where(COLLECTED_DAYS.c.event_date.in_(days))) or 0)


def forget_days(store: Store, before: date) -> tuple[int, int]:
    """Delete the rows of `collected_days` before a day. Returns days and rows. Raises as `drop_day` does."""
    with store.transaction("deleting from the collected days") as connection:
        query = sa.text("select days, rows from analytics.forget_days(:before)")
        days, rows = connection.execute(query, {"before": before}).one()
    return days, rows


def write_ledger(store: Store, **entry: object) -> None:
    """Append an entry to the retention ledger."""
    with store.transaction("writing the retention ledger") as connection:
        connection.execute(sa.insert(RETENTION_LEDGER).values(**entry))
