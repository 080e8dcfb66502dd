"""What Dagster's own database keeps of days: records of partitions, check evaluations, runs, ticks.

The first two go with the day that they are about, the others with the day on which they were written: a run can only be
about days before it. A record names days and says how many rows a day had, never what was in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.runs.schema import BackfillTagsTable, BulkActionsTable, RunsTable, RunTagsTable
from dagster._core.storage.schedules.schema import AssetDaemonAssetEvaluationsTable, JobTickTable
from dagster_postgres.utils import DagsterPostgresException

from analytics_assets.database import DatabaseError, UnreachableError, without_values
from analytics_assets.days import bounds, zone
from analytics_assets.defs.partitions import DAY_TAGS
from analytics_assets.retention.event_log import EVENTS, EXECUTIONS, TAGS, EventLogStorage, forget_partitions
from analytics_assets.retention.targets import Amount


@dataclass(frozen=True)
class Records:
    """Dagster's database, through the connection of its event log: dagster.yaml puts all of Dagster into one."""

    instance: dg.DagsterInstance

    @contextmanager
    def connection(self, doing: str) -> Iterator[sa.Connection]:
        """Yield a connection with a transaction.

        Raises:
            DatabaseError: the database refuses; or the event log is not ours, and could not forget a partition.
        """
        storage = self.instance.event_log_storage
        if not isinstance(storage, EventLogStorage):
            raise DatabaseError("Dagster's event log cannot forget days: start Dagster with the project's dagster.yaml")
        try:
            with without_values(doing), storage.index_transaction() as connection:
                yield connection
        except DagsterPostgresException:
            raise UnreachableError(f"{doing}: the database of DAGSTER_POSTGRES_URL cannot be reached") from None


_A_DAY: Final = "____-__-__"
"""What LIKE takes for the key of a daily partition."""


@dataclass(frozen=True)
class PartitionRecords:
    """Events of a partition of any asset, and the checks planned for it."""

    records: Records
    name = "partition records"
    covers = ("dagster.event_logs", "dagster.asset_event_tags", "dagster.asset_keys", "dagster.asset_check_executions")

    def oldest(self) -> date | None:
        """The oldest partition with a record."""
        with self.records.connection("reading the partition records") as connection:
            found = [connection.scalar(sa.select(sa.func.min(c)).where(c.like(_A_DAY))) for c in _PARTITIONS]
        return min((date.fromisoformat(key) for key in found if key), default=None)

    def expired(self, before: date) -> Amount:
        """Partitions, and records of them."""
        with self.records.connection("reading the partition records") as connection:
            return self._expired(connection, before)

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the records, asset by asset, in one transaction."""
        with self.records.connection("deleting partition records") as connection:
            amount = self._expired(connection, before)
            assets = sa.select(EVENTS.c.asset_key).where(
                EVENTS.c.asset_key.is_not(None), _before(EVENTS.c.partition, before)
            )
            for asset in connection.scalars(assets.distinct()).all():
                forget_partitions(connection, asset, _before(EVENTS.c.partition, before))
            connection.execute(sa.delete(EXECUTIONS).where(_before(EXECUTIONS.c.partition, before)))
        yield amount

    def _expired(self, connection: sa.Connection, before: date) -> Amount:
        keys = sa.union_all(*(sa.select(column.label("key")).where(_before(column, before)) for column in _PARTITIONS))
        query = sa.select(sa.func.count(keys.subquery().c.key.distinct()), sa.func.count())
        return Amount(*connection.execute(query).one())


_PARTITIONS: Final = (EVENTS.c.partition, EXECUTIONS.c.partition)


def _before(column: sa.Column[str], day: date) -> sa.ColumnElement[bool]:
    return column.like(_A_DAY) & (column < day.isoformat())


@dataclass(frozen=True)
class CheckEvaluations:
    """Evaluations of checks: of the last day of their run, or of the oldest day that their text names.

    An evaluation by itself, which names no day, is about none; it goes with its run. What the UI's wipe records names
    the days, too, and goes likewise.
    """

    records: Records
    name = "check evaluations"
    covers = ("dagster.event_logs", "dagster.asset_check_executions")

    def oldest(self) -> date | None:
        """The oldest day that one is of."""
        with self.records.connection("reading the check evaluations") as connection:
            return min(self._days(connection).values(), default=None)

    def expired(self, before: date) -> Amount:
        """Days, and evaluations of them."""
        with self.records.connection("reading the check evaluations") as connection:
            return self._expired(connection, before)[0]

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete them."""
        with self.records.connection("deleting check evaluations") as connection:
            amount, ids = self._expired(connection, before)
            connection.execute(sa.delete(EXECUTIONS).where(EXECUTIONS.c.evaluation_event_storage_id.in_(ids)))
            connection.execute(sa.delete(EVENTS).where(EVENTS.c.id.in_(ids)))
        yield amount

    def _expired(self, connection: sa.Connection, before: date) -> tuple[Amount, list[int]]:
        expired = {number: day for number, day in self._days(connection).items() if day < before}
        return Amount(len(set(expired.values())), len(expired)), list(expired)

    def _days(self, connection: sa.Connection) -> dict[int, date]:
        """Id of an evaluation's event -> its day."""
        evaluation = EVENTS.c.dagster_event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION.value
        last_day = sa.func.max(RunTagsTable.c.value)
        of_runs = (
            sa.select(EVENTS.c.id, last_day)
            .join(RunTagsTable, RunTagsTable.c.run_id == EVENTS.c.run_id)
            .where(evaluation, RunTagsTable.c.key.in_(DAY_TAGS), RunTagsTable.c.value.like(_A_DAY))
            .group_by(EVENTS.c.id)
        )
        wipe = EVENTS.c.dagster_event_type == dg.DagsterEventType.ASSET_WIPED.value
        text = EVENTS.c.event
        naming = sa.select(EVENTS.c.id, text).where(sa.or_(evaluation, wipe), text.like(f"%{_A_DAY}%"))
        days = {number: date.fromisoformat(day) for number, day in connection.execute(of_runs)}
        for number, event in connection.execute(naming):
            for day in _days_in(event):
                days[number] = min(day, days.get(number, day))
        return days


def _days_in(text: str) -> Iterator[date]:
    for match in re.findall(r"(?<!\d)\d{4}-\d\d-\d\d(?!\d)", text):
        try:
            yield date.fromisoformat(match)
        except ValueError:
            continue


@dataclass(frozen=True)
class Written:
    """Rows that go with the day on which they were written, in some tables of Dagster's."""

    records: Records
    name: str
    moments: Mapping[sa.Table, sa.ColumnElement[datetime]]
    """Table -> when a row was written."""
    orphans: Sequence[sa.Delete]
    """Deletes what refers to a row that is gone."""
    covers: Sequence[str]
    time_zone: str
    """The zone of the day."""

    def oldest(self) -> date | None:
        """The oldest day on which any of it was written."""
        with self.records.connection(f"reading {self.name}") as connection:
            found = [connection.scalar(sa.select(sa.func.min(moment))) for moment in self.moments.values()]
        moments = [moment for moment in found if moment is not None]
        return min(moments).astimezone(zone(self.time_zone)).date() if moments else None

    def expired(self, before: date) -> Amount:
        """Days, and rows that were written on them."""
        with self.records.connection(f"reading {self.name}") as connection:
            return self._expired(connection, before)

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the rows, in one transaction."""
        with self.records.connection(f"deleting {self.name}") as connection:
            amount = self._expired(connection, before)
            for table, moment in self.moments.items():
                connection.execute(sa.delete(table).where(moment < self._start(before)))
            for statement in self.orphans:
                connection.execute(statement)
        yield amount

    def _expired(self, connection: sa.Connection, before: date) -> Amount:
        written = sa.union_all(
            *(sa.select(moment.label("moment")).where(moment < self._start(before)) for moment in self.moments.values())
        ).subquery()
        day = sa.cast(sa.func.timezone(self.time_zone, written.c.moment), sa.Date)
        return Amount(*connection.execute(sa.select(sa.func.count(day.distinct()), sa.func.count())).one())

    def _start(self, before: date) -> datetime:
        return bounds(before, self.time_zone)[0]


def _by_session(column: sa.Column[datetime]) -> sa.ColumnElement[datetime]:
    # The columns have no time zone. Dagster fills them by the session's clock, so the session's zone gives the moment
    # back. Only those of the event log are in UTC.
    return sa.cast(column, sa.DateTime(timezone=True))


def runs(records: Records, time_zone: str) -> Written:
    """Runs and backfills with their events, older than the retention period."""
    return Written(
        records,
        name="runs",
        moments={
            RunsTable: _by_session(RunsTable.c.create_timestamp),  # their tags go with them
            BulkActionsTable: _by_session(BulkActionsTable.c.timestamp),
            EVENTS: sa.func.timezone("utc", EVENTS.c.timestamp, type_=sa.DateTime(timezone=True)),
            EXECUTIONS: _by_session(EXECUTIONS.c.create_timestamp),
        },
        orphans=(
            sa.delete(BackfillTagsTable).where(
                BackfillTagsTable.c.backfill_id.not_in(sa.select(BulkActionsTable.c.key))
            ),
            sa.delete(TAGS).where(TAGS.c.event_id.not_in(sa.select(EVENTS.c.id))),
        ),
        covers=tuple(
            f"dagster.{name}"
            for name in (
                "runs",
                "run_tags",
                "bulk_actions",
                "backfill_tags",
                "event_logs",
                "asset_event_tags",
                "asset_check_executions",
            )
        ),
        time_zone=time_zone,
    )


def ticks(records: Records, time_zone: str) -> Written:
    """Ticks of schedules and sensors, older than the retention period."""
    evaluations = AssetDaemonAssetEvaluationsTable
    return Written(
        records,
        name="ticks",
        moments={
            JobTickTable: _by_session(JobTickTable.c.timestamp),
            evaluations: _by_session(evaluations.c.create_timestamp),
        },
        orphans=(),
        covers=("dagster.job_ticks", "dagster.asset_daemon_asset_evaluations"),
        time_zone=time_zone,
    )
