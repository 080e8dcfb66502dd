"""Retention targets in Dagster's own database: records of partitions, check evaluations, runs, ticks.

Partition records and check evaluations expire with the day they describe, runs and ticks with the day they were
written: a run is only about earlier days. A record names days and says how many rows a day had, never what was in them.
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
from dagster._core.storage import tags
from dagster._core.storage.runs.schema import BackfillTagsTable, BulkActionsTable, RunsTable, RunTagsTable
from dagster._core.storage.schedules.schema import AssetDaemonAssetEvaluationsTable, JobTickTable
from dagster_postgres.utils import DagsterPostgresException

from analytics_assets.database import DatabaseError, UnreachableError, failure_cause, redacted_errors
from analytics_assets.days import bounds, zone
from analytics_assets.retention.event_log import EVENTS, EXECUTIONS, TAGS, EventLogStorage, forget_partitions
from analytics_assets.retention.targets import Amount


@dataclass(frozen=True)
class Records:
    """Dagster's database, over its event log's connection: dagster.yaml puts all of Dagster into one database."""

    instance: dg.DagsterInstance

    @contextmanager
    def connection(self, doing: str) -> Iterator[sa.Connection]:
        """Yield a connection with a transaction.

        Raises:
            DatabaseError: the database refuses, or the event log is not ours and cannot forget a partition.
        """
        storage = self.instance.event_log_storage
        if not isinstance(storage, EventLogStorage):
            raise DatabaseError("Dagster's event log cannot forget days: start Dagster with the project's dagster.yaml")
        try:
            with redacted_errors(doing), storage.index_transaction() as connection:
                yield connection
        except DagsterPostgresException as error:
            cause = failure_cause(str(error.__cause__))
            raise UnreachableError(
                f"{doing}: the database of DAGSTER_POSTGRES_URL cannot be reached: {cause}"
            ) from None


_LIKE_DAY: Final = "____-__-__"
"""LIKE pattern of a daily partition's key."""

DAY_TAGS: Final = (tags.PARTITION_NAME_TAG, tags.ASSET_PARTITION_RANGE_START_TAG, tags.ASSET_PARTITION_RANGE_END_TAG)
"""Tags of a run whose value is a day."""


@dataclass(frozen=True)
class PartitionRecords:
    """Events of any asset's partitions, and the checks planned for them."""

    records: Records
    name = "partition records"
    covers = ("dagster.event_logs", "dagster.asset_event_tags", "dagster.asset_keys", "dagster.asset_check_executions")

    def oldest(self) -> date | None:
        """Return the oldest partition with a record."""
        with self.records.connection("reading the partition records") as connection:
            found = [connection.scalar(sa.select(sa.func.min(c)).where(c.like(_LIKE_DAY))) for c in _PARTITIONS]
        return min((date.fromisoformat(key) for key in found if key), default=None)

    def expired(self, before: date) -> Amount:
        """Return partitions, and records of them."""
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
    return column.like(_LIKE_DAY) & (column < day.isoformat())


@dataclass(frozen=True)
class CheckEvaluations:
    """Evaluations of checks, and the wipes of the UI.

    An evaluation is dated by the oldest day that its text names, else by the last partition of its run. One without any
    day expires with its run. The record of a wipe names its days, and is dated likewise.
    """

    records: Records
    name = "check evaluations"
    covers = ("dagster.event_logs", "dagster.asset_check_executions")

    def oldest(self) -> date | None:
        """Return the oldest day that an evaluation is dated by."""
        with self.records.connection("reading the check evaluations") as connection:
            return min(self._days(connection).values(), default=None)

    def expired(self, before: date) -> Amount:
        """Return days, and evaluations dated by them."""
        with self.records.connection("reading the check evaluations") as connection:
            return self._expired(connection, before)[0]

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the evaluations, in one transaction."""
        with self.records.connection("deleting check evaluations") as connection:
            amount, ids = self._expired(connection, before)
            connection.execute(sa.delete(EXECUTIONS).where(EXECUTIONS.c.evaluation_event_storage_id.in_(ids)))
            connection.execute(sa.delete(EVENTS).where(EVENTS.c.id.in_(ids)))
        yield amount

    def _expired(self, connection: sa.Connection, before: date) -> tuple[Amount, list[int]]:
        expired = {number: day for number, day in self._days(connection).items() if day < before}
        return Amount(len(set(expired.values())), len(expired)), list(expired)

    def _days(self, connection: sa.Connection) -> dict[int, date]:
        """Return the day of each evaluation, by the id of its event."""
        evaluation = EVENTS.c.dagster_event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION.value
        last_day = sa.func.max(RunTagsTable.c.value)
        of_runs = (
            sa.select(EVENTS.c.id, last_day)
            .join(RunTagsTable, RunTagsTable.c.run_id == EVENTS.c.run_id)
            .where(evaluation, RunTagsTable.c.key.in_(DAY_TAGS), RunTagsTable.c.value.like(_LIKE_DAY))
            .group_by(EVENTS.c.id)
        )
        wipe = EVENTS.c.dagster_event_type == dg.DagsterEventType.ASSET_WIPED.value
        text = EVENTS.c.event
        naming = sa.select(EVENTS.c.id, text).where(sa.or_(evaluation, wipe), text.like(f"%{_LIKE_DAY}%"))
        days = {number: date.fromisoformat(day) for number, day in connection.execute(of_runs)}
        for number, event in connection.execute(naming):
            for day in _find_days(event):
                days[number] = min(day, days.get(number, day))
        return days


def _find_days(text: str) -> Iterator[date]:
    for match in re.findall(r"(?<!\d)\d{4}-\d\d-\d\d(?!\d)", text):
        try:
            yield date.fromisoformat(match)
        except ValueError:
            continue


@dataclass(frozen=True)
class WrittenRows:
    """Rows of some of Dagster's tables that expire with the day on which they were written."""

    records: Records
    name: str
    moments: Mapping[sa.Table, sa.ColumnElement[datetime]]
    """Table -> the instant at which a row was written."""
    orphans: Sequence[sa.Delete]
    """Statements that delete rows which refer to a deleted row."""
    covers: Sequence[str]
    time_zone: str
    """The time zone of the day."""

    def oldest(self) -> date | None:
        """Return the oldest day on which a row was written."""
        with self.records.connection(f"reading {self.name}") as connection:
            found = [connection.scalar(sa.select(sa.func.min(moment))) for moment in self.moments.values()]
        moments = [moment for moment in found if moment is not None]
        return min(moments).astimezone(zone(self.time_zone)).date() if moments else None

    def expired(self, before: date) -> Amount:
        """Return days, and rows that were written on them."""
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


def _in_session_zone(column: sa.Column[datetime]) -> sa.ColumnElement[datetime]:
    # Dagster fills these columns, which have no time zone, by the session's clock. So the session's zone gives the
    # instant. Only the event log's columns are in UTC.
    return sa.cast(column, sa.DateTime(timezone=True))


def runs(records: Records, time_zone: str) -> WrittenRows:
    """Runs and backfills with their events, older than the retention period."""
    return WrittenRows(
        records,
        name="runs",
        moments={
            RunsTable: _in_session_zone(RunsTable.c.create_timestamp),  # their tags go with them
            BulkActionsTable: _in_session_zone(BulkActionsTable.c.timestamp),
            EVENTS: sa.func.timezone("utc", EVENTS.c.timestamp, type_=sa.DateTime(timezone=True)),
            EXECUTIONS: _in_session_zone(EXECUTIONS.c.create_timestamp),
        },
        orphans=(
            sa.delete(BackfillTagsTable).where(
                BackfillTagsTable.c.backfill_id.not_in(sa.select(BulkActionsTable.c.key))
            ),
            sa.delete(TAGS).where(TAGS.c.event_id.not_in(sa.select(EVENTS.c.id))),
        ),
        covers=(
            *("dagster.runs", "dagster.run_tags", "dagster.bulk_actions", "dagster.backfill_tags"),
            *("dagster.event_logs", "dagster.asset_event_tags", "dagster.asset_check_executions"),
        ),
        time_zone=time_zone,
    )


def ticks(records: Records, time_zone: str) -> WrittenRows:
    """Ticks of schedules and sensors, older than the retention period."""
    evaluations = AssetDaemonAssetEvaluationsTable
    return WrittenRows(
        records,
        name="ticks",
        moments={
            JobTickTable: _in_session_zone(JobTickTable.c.timestamp),
            evaluations: _in_session_zone(evaluations.c.create_timestamp),
        },
        orphans=(),
        covers=("dagster.job_ticks", "dagster.asset_daemon_asset_evaluations"),
        time_zone=time_zone,
    )
