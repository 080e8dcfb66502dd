"""Reading, replacing and dropping days of the analytics database.

The only module that writes counts. A day is replaced whole, in one transaction: a crash leaves the old day or the new.
It is dropped whole, too. Which days are to go, and what else is kept of them, is the business of `retention`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from analytics_assets.contract import SCHEMA, Metric, vocabulary
from analytics_assets.database import DatabaseError, engine, without_values
from analytics_assets.guard import Row, Violation, row_violations
from analytics_assets.settings import Settings
from analytics_assets.store.comments import undocumented
from analytics_assets.store.tables import COLLECTED_DAYS, COUNTS, RETENTION_LEDGER


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
    """The days that are kept and finished, both ends included, by the database's own clock, zone and retention."""

    first: date
    last: date

    def refuse_outside(self, day: date) -> None:
        """Raise DayRefusedError for a day that is expired or not over."""
        if day < self.first:
            raise DayRefusedError(f"expired: the first day that is kept is {self.first}")
        if day > self.last:
            raise DayRefusedError(f"not finished: the last full day is {self.last}")


@contextmanager
def open_store(settings: Settings) -> Iterator[Store]:
    """Open the analytics database. Raises SettingsError when no URL is known."""
    with engine(settings.database_url, "ANALYTICS_DATABASE_URL") as database:
        yield Store(database, settings)


class Store:
    """The analytics database, as the pipeline's login sees it. Every error is a DatabaseError without values."""

    def __init__(self, database: sa.Engine, settings: Settings) -> None:
        self._settings = settings
        self._engine = database

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[sa.Connection]:
        with without_values(doing), self._engine.begin() as connection:
            yield connection

    def window(self) -> Window:
        """Days that may be written now.

        Raises:
            DatabaseError: the schema is not there, or it was set up with another time zone or retention period.
        """
        with self._transaction("reading the retention period") as connection:
            if not sa.inspect(connection).has_table("settings", SCHEMA):
                raise DatabaseError("schema analytics is not set up: run `analytics-assets init-db`")
            row = connection.execute(
                sa.text(
                    "select analytics.first_kept_day() as first, analytics.today() as today, retention_days, time_zone"
                    " from analytics.settings"
                )
            ).one()
        if (row.retention_days, row.time_zone) != (self._settings.retention_days, self._settings.time_zone):
            raise DatabaseError(
                "ANALYTICS_RETENTION_DAYS or ANALYTICS_TIMEZONE differ from what the database enforces:"
                " run `analytics-assets init-db` to set them there too"
            )
        return Window(row.first, row.today - timedelta(days=1))

    def replace_day(self, metric: Metric, day: date, rows: Sequence[Row], *, allow_empty: bool = False) -> Stored:
        """Replace what `metric` has on `day` by `rows` and note the day as collected.

        `rows` have every field of the metric's table; an absent source is None.

        Two callers at once take turns; the later one wins whole.

        Raises:
            DayRefusedError: `rows` is empty, the stored day is not, and `allow_empty` is false.
            DatabaseError: a constraint or the retention period refuses; what stood there stays.
        """
        table = COUNTS[metric.table]
        with self._transaction("making the partition of the day") as connection:
            # Committed on its own: attaching a partition holds a lock that the counting of other days would wait for.
            connection.execute(sa.select(sa.func.analytics.create_day(day)))
        with self._transaction("replacing the day") as connection:
            connection.execute(
                sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(metric.asset), day.toordinal()))
            )
            mine = _belongs(metric, day)
            if not rows and not allow_empty and connection.scalar(sa.select(sa.exists().where(mine))):
                raise DayRefusedError(
                    "the source is empty now, but counts are stored; if the source is right, run the day again with"
                    " allow_empty: true in the run's config"
                )
            connection.execute(sa.delete(table).where(mine))
            if rows:
                connection.execute(sa.insert(table), [dict(row) for row in rows])
            note = postgresql.insert(COLLECTED_DAYS).values(
                asset=metric.asset, event_date=day, rows=len(rows), collected_at=sa.func.now()
            )
            connection.execute(
                note.on_conflict_do_update(
                    index_elements=["asset", "event_date"],
                    set_={"rows": note.excluded.rows, "collected_at": note.excluded.collected_at},
                )
            )
        return Stored(len(rows), sum(row["count"] for row in rows))

    def read_day(self, metric: Metric, day: date) -> Stored:
        """Rows and total that are stored."""
        count = COUNTS[metric.table].c.count
        with self._transaction("reading the day") as connection:
            query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(count), 0)).where(_belongs(metric, day))
            rows, total = connection.execute(query).one()
        return Stored(rows, int(total))

    def latest_collected(self, metric: Metric) -> date | None:
        """The newest day that was collected, None before the first."""
        query = sa.select(sa.func.max(COLLECTED_DAYS.c.event_date)).where(COLLECTED_DAYS.c.asset == metric.asset)
        with self._transaction("reading the collected days") as connection:
            latest: date | None = connection.scalar(query)
        return latest

    def collected_since(self, moment: datetime) -> int:
        """How many days of how many metrics, multiplied, were stored at or after `moment`."""
        query = sa.select(sa.func.count()).where(COLLECTED_DAYS.c.collected_at >= moment)
        with self._transaction("reading the collected days") as connection:
            return connection.scalar(query) or 0

    def partitioned_days(self) -> list[date]:
        """Days that have a partition, oldest first, whether there is a row in it or not.

        Raises:
            DatabaseError: there is a partition of something else than one day, which may keep anything.
        """
        with self._transaction("reading the partitions") as connection:
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
            raise DatabaseError(
                "a table of counts has a partition that is not one day: find out what is in it, drop it"
            )
        return [row.first for row in found]

    def drop_day(self, day: date) -> int:
        """Drop the partitions of a day. Returns how many rows were collected of it.

        Raises:
            DatabaseError: the day is still to be kept; or somebody has been reading the tables for too long, and
                waiting on would have kept everybody else from reading.
        """
        with self._transaction("dropping the partition of a day") as connection:
            return int(connection.scalar(sa.select(sa.func.analytics.drop_day(day))) or 0)

    def collected_before(self, before: date) -> tuple[int, int, date | None]:
        """Days and rows of `collected_days` before a day, and the oldest day of all."""
        day = COLLECTED_DAYS.c.event_date
        expired = day < before
        query = sa.select(
            sa.func.count(day.distinct()).filter(expired), sa.func.count().filter(expired), sa.func.min(day)
        )
        with self._transaction("reading the collected days") as connection:
            days, rows, oldest = connection.execute(query).one()
        return days, rows, oldest

    def rows_collected(self, days: Sequence[date]) -> int:
        """Rows that all metrics together have stored on these days."""
        rows = sa.func.coalesce(sa.func.sum(COLLECTED_DAYS.c.rows), 0)
        with self._transaction("reading the collected days") as connection:
            return int(connection.scalar(sa.select(rows).where(COLLECTED_DAYS.c.event_date.in_(days))) or 0)

    def forget_days(self, before: date) -> tuple[int, int]:
        """Delete what `collected_days` has before a day. Returns days and rows. Raises as `drop_day` does."""
        with self._transaction("deleting from the collected days") as connection:
            query = sa.text("select days, rows from analytics.forget_days(:before)")
            days, rows = connection.execute(query, {"before": before}).one()
        return days, rows

    def write_ledger(self, **entry: object) -> None:
        """Append an entry to the retention ledger."""
        with self._transaction("writing the retention ledger") as connection:
            connection.execute(sa.insert(RETENTION_LEDGER).values(**entry))

    def column_violations(self, metric: Metric) -> list[Violation]:
        """Departures of the live table's columns from the contract; they name columns, which are structure."""
        with self._transaction("reading the columns") as connection:
            found = connection.execute(
                sa.text(
                    "select attname as name, format_type(atttypid, atttypmod) as type from pg_attribute"
                    " where attrelid = cast(:table as regclass) and attnum > 0 and not attisdropped"
                ),
                {"table": f"{SCHEMA}.{metric.table}"},
            )
            live: dict[str, str] = {row.name: row.type for row in found}
        expected = {column.name: str(column.type).lower() for column in COUNTS[metric.table].columns}
        return [
            *(
                Violation(name, "is a column that the contract does not allow")
                for name in live.keys() - expected.keys()
            ),
            *(Violation(name, "is a column that the table lacks") for name in expected.keys() - live.keys()),
            *(
                Violation(name, f"is a column of the wrong type: {expected[name]} is expected")
                for name in live.keys() & expected.keys()
                if live[name] != expected[name]
            ),
        ]

    def undocumented(self, metric: Metric) -> list[str]:
        """What is in the database and not in the dictionary, see `documentation.undocumented`."""
        with self._transaction("comparing the database with the dictionary") as connection:
            return undocumented(connection, metric, self._settings)

    def row_violations(self, metric: Metric, day: date) -> Counter[Violation]:
        """How many stored rows of the day break which rule, read back value by value.

        A name outside the whole vocabulary belongs to no metric, so every metric of the table reports it.
        """
        table = COUNTS[metric.table]
        rows = _belongs(metric, day)
        if "event_name" in table.c:
            stray = sa.and_(table.c.event_date == day, table.c.event_name.not_in(vocabulary(metric.table)))
            rows = sa.or_(rows, stray)
        query = sa.select(*(table.c[field.name] for field in metric.fields)).where(rows)
        with self._transaction("reading the day") as connection:
            return Counter(
                violation
                for row in connection.execute(query).mappings()
                for violation in row_violations(dict(row), metric.fields, metric.event_names)
            )


def _belongs(metric: Metric, day: date) -> sa.ColumnElement[bool]:
    table = COUNTS[metric.table]
    of_day = table.c.event_date == day
    return of_day & table.c.event_name.in_(metric.event_names) if "event_name" in table.c else of_day
