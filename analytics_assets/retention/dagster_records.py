"""Retention targets in Dagster's own database: records of partitions, check evaluations, runs, ticks.

Partition records and check evaluations expire with the day they describe, runs and ticks with the day they were
written: a run is only about earlier days. A record names days and says how many rows a day had, never what was in them.

Other code locations may keep their records in the same database. Those are never touched, unless the settings say that
nothing else uses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage import tags
from dagster._core.storage.runs.schema import BackfillTagsTable, BulkActionsTable, RunsTable, RunTagsTable
from dagster._core.storage.schedules.schema import AssetDaemonAssetEvaluationsTable, JobTable, JobTickTable
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import DagsterPostgresException

from analytics_assets.contract import ABOUT, ASSET_PATHS
from analytics_assets.database import DatabaseError, NotStartedError, UnreachableError, failure_cause, redacted_errors
from analytics_assets.days import bounds, zone
from analytics_assets.retention.event_log import EVENTS, EXECUTIONS, TAGS, EventLogStorage, forget_partitions
from analytics_assets.retention.targets import Amount
from analytics_assets.settings import Settings

_MODULE: Final = "analytics_assets.definitions"
"""What a code location of ours loads."""


@dataclass(frozen=True)
class DagsterStorage:
    """Dagster's database and folder, to look at: opening a whole instance would create tables and folders."""

    event_log_storage: EventLogStorage
    folder: Path
    """What DAGSTER_HOME names."""

    def storage_directory(self) -> str:
        """Return the folder of the run logs."""
        return str(self.folder / "storage")


@contextmanager
def open_dagster_storage(url: str, folder: Path) -> Iterator[DagsterStorage]:
    """Open Dagster's database and folder, and create nothing. Every target reports a database that is out of reach."""
    storage = EventLogStorage(url, should_autocreate_tables=False)
    try:
        yield DagsterStorage(storage, folder)
    finally:
        storage.dispose()


@dataclass(frozen=True)
class Records:
    """Dagster's database, over its event log's connection: dagster.yaml puts all of Dagster into one database."""

    instance: dg.DagsterInstance | DagsterStorage
    settings: Settings

    @contextmanager
    def connection(self, doing: str) -> Iterator[sa.Connection]:
        """Yield a connection with a transaction.

        Raises:
            DatabaseError: the database refuses, or the event log is not in PostgreSQL.
        """
        storage = self.instance.event_log_storage
        # Dagster's Helm chart configures the stock one. Its tables are the same.
        if not isinstance(storage, PostgresEventLogStorage):
            raise DatabaseError("Dagster's event log cannot forget days: start Dagster with the project's dagster.yaml")
        try:
            with redacted_errors(doing), storage.index_transaction() as connection:
                if not sa.inspect(connection).has_table(RunsTable.name):
                    raise NotStartedError("Dagster has never been started on this database")
                yield connection
        except DagsterPostgresException as error:
            cause = failure_cause(str(error.__cause__))
            raise UnreachableError(
                f"{doing}: the database of DAGSTER_POSTGRES_URL cannot be reached: {cause}"
            ) from None

    def of_our_asset(self, column: sa.Column[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a column names an asset of ours."""
        return sa.true() if self.settings.owns_dagster else column.in_(self._assets())

    def of_our_run(self, column: sa.Column[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a column names a run of ours: our code was loaded for it, or it has our assets."""
        if self.settings.owns_dagster:
            return sa.true()
        loaded = RunsTable.c.run_body.contains(f'"module": "{_MODULE}"', autoescape=True)
        selected = self.naming_our_asset(RunsTable.c.run_body)
        return sa.or_(
            column.in_(sa.select(RunsTable.c.run_id).where(loaded | selected)),
            column.in_(sa.select(EVENTS.c.run_id).where(EVENTS.c.asset_key.in_(self._assets()))),
            column.in_(sa.select(EXECUTIONS.c.run_id).where(EXECUTIONS.c.asset_key.in_(self._assets()))),
        )

    def of_our_step(self, column: sa.Column[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a column names a step of ours, which is called like its asset."""
        if self.settings.owns_dagster:
            return sa.true()
        return column.in_([path[-1] for path in ASSET_PATHS])

    def naming_our_asset(self, column: sa.Column[str]) -> sa.ColumnElement[bool]:
        """Return the condition that the JSON in a column has an asset key of ours."""
        if self.settings.owns_dagster:
            return sa.true()
        return sa.or_(*(column.contains(f'"path": {asset}', autoescape=True) for asset in self._assets()))

    def of_our_instigator(self, column: sa.Column[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a column names a schedule or sensor of a code location that loads our code."""
        if self.settings.owns_dagster:
            return sa.true()
        names = ('"location_name": "analytics_assets"', f'"module_name": "{_MODULE}"')
        ours = sa.or_(*(JobTable.c.job_body.contains(name, autoescape=True) for name in names))
        return column.in_(sa.select(JobTable.c.selector_id).where(ours))

    def our_runs(self) -> set[str]:
        """Return the ids of our runs."""
        with self.connection("reading the runs") as connection:
            return set(connection.scalars(sa.select(RunsTable.c.run_id).where(self.of_our_run(RunsTable.c.run_id))))

    def _assets(self) -> list[str]:
        return list(map(json.dumps, ASSET_PATHS))


_LIKE_DAY: Final = "____-__-__"
"""LIKE pattern of a daily partition's key."""

DAY_TAGS: Final = (tags.PARTITION_NAME_TAG, tags.ASSET_PARTITION_RANGE_START_TAG, tags.ASSET_PARTITION_RANGE_END_TAG)
"""Tags of a run whose value is a day."""


@dataclass(frozen=True)
class PartitionRecords:
    """Events of our assets' partitions, and the checks planned for them."""

    records: Records
    name = "partition records"
    covers = ("dagster.event_logs", "dagster.asset_event_tags", "dagster.asset_keys", "dagster.asset_check_executions")

    def oldest(self) -> date | None:
        """Return the oldest partition with a record."""
        with self.records.connection("reading the partition records") as connection:
            found = [
                connection.scalar(
                    sa.select(sa.func.min(table.c.partition)).where(
                        table.c.partition.like(_LIKE_DAY), self.records.of_our_asset(table.c.asset_key)
                    )
                )
                for table in (EVENTS, EXECUTIONS)
            ]
        return min((date.fromisoformat(key) for key in found if key), default=None)

    def expired(self, before: date) -> Amount:
        """Return partitions, and records of them."""
        with self.records.connection("reading the partition records") as connection:
            return self._expired(connection, before)

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the records, asset by asset, in one transaction."""
        with self.records.connection("deleting partition records") as connection:
            amount = self._expired(connection, before)
            assets = sa.select(EVENTS.c.asset_key).where(EVENTS.c.asset_key.is_not(None), self._before(EVENTS, before))
            for asset in connection.scalars(assets.distinct()).all():
                forget_partitions(connection, asset, self._before(EVENTS, before))
            connection.execute(sa.delete(EXECUTIONS).where(self._before(EXECUTIONS, before)))
        yield amount

    def _expired(self, connection: sa.Connection, before: date) -> Amount:
        keys = sa.union_all(
            *(
                sa.select(table.c.partition.label("key")).where(self._before(table, before))
                for table in (EVENTS, EXECUTIONS)
            )
        )
        query = sa.select(sa.func.count(keys.subquery().c.key.distinct()), sa.func.count())
        return Amount(*connection.execute(query).one())

    def _before(self, table: sa.Table, day: date) -> sa.ColumnElement[bool]:
        # The partitions of another asset may be months, whose keys look like days.
        key = table.c.partition
        return key.like(_LIKE_DAY) & (key < day.isoformat()) & self.records.of_our_asset(table.c.asset_key)


@dataclass(frozen=True)
class CheckEvaluations:
    """Evaluations of our checks, and the wipes of our partitions in the UI.

    An evaluation is dated by the oldest day that it is about, which its metadata names, else by the last partition of
    its run. One without any day expires with its run. A date in its text may be part of any name. The record of a wipe
    is dated by the oldest of its partitions.
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
        executed = EXECUTIONS.c.evaluation_event_storage_id
        ours = sa.select(executed).where(executed.is_not(None), self.records.of_our_asset(EXECUTIONS.c.asset_key))
        evaluations = sa.and_(
            EVENTS.c.dagster_event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
            sa.true() if self.records.settings.owns_dagster else EVENTS.c.id.in_(ours),
        )
        first_day, last_day = sa.func.min(RunTagsTable.c.value), sa.func.max(RunTagsTable.c.value)
        # Results of earlier versions do not say what they are about: it may be any day of the run.
        said = EVENTS.c.event.contains(f'"{ABOUT}": {{', autoescape=True)
        of_runs = (
            sa.select(EVENTS.c.id, sa.case((said, last_day), else_=first_day))
            .join(RunTagsTable, RunTagsTable.c.run_id == EVENTS.c.run_id)
            .where(evaluations, RunTagsTable.c.key.in_(DAY_TAGS), RunTagsTable.c.value.like(_LIKE_DAY))
            .group_by(EVENTS.c.id)
        )
        days = dict(connection.execute(of_runs).all())
        # A quote inside a text is escaped, so no text matches.
        about = sa.func.substring(EVENTS.c.event, rf'"{ABOUT}": \{{[^{{}}]*"text": "(\d{{4}}-\d\d-\d\d)"')
        of_days = sa.select(EVENTS.c.id, about).where(evaluations, about.is_not(None))
        days |= dict(connection.execute(of_days).all())
        wipe = EVENTS.c.dagster_event_type == dg.DagsterEventType.ASSET_WIPED.value
        wiped = sa.select(EVENTS.c.id, EVENTS.c.event).where(wipe, self.records.of_our_asset(EVENTS.c.asset_key))
        for number, event in connection.execute(wiped):
            data: Any = dg.deserialize_value(event, dg.EventLogEntry).get_dagster_event().event_specific_data
            if keys := [key for key in data.partition_keys or () if re.fullmatch(r"\d{4}-\d\d-\d\d", key)]:
                days[number] = min(keys)
        return {number: date.fromisoformat(day) for number, day in days.items()}


@dataclass(frozen=True)
class WrittenRows:
    """Rows of some of Dagster's tables that expire with the day on which they were written."""

    records: Records
    name: str
    moments: Mapping[sa.Table, sa.ColumnElement[datetime]]
    """Table -> the instant at which a row was written."""
    ours: Callable[[], Mapping[sa.Table, sa.ColumnElement[bool]]]
    """Returns table -> the condition that a row is ours."""
    orphans: Sequence[sa.Delete]
    """Statements that delete rows which refer to a deleted row."""
    covers: Sequence[str]
    time_zone: str
    """The time zone of the day."""

    def oldest(self) -> date | None:
        """Return the oldest day on which a row was written."""
        with self.records.connection(f"reading {self.name}") as connection:
            found = [
                connection.scalar(sa.select(sa.func.min(moment)).where(self.ours()[table]))
                for table, moment in self.moments.items()
            ]
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
            # In one statement: the rows of one table tell whose those of another are.
            gone = [
                sa.delete(table).where(self._is_expired(table, before)).returning(table.c.id).cte(f"gone_{table.name}")
                for table in self.moments
            ]
            connection.execute(sa.select(*(sa.select(sa.func.count()).select_from(c).scalar_subquery() for c in gone)))
            for statement in self.orphans:
                connection.execute(statement)
        yield amount

    def _expired(self, connection: sa.Connection, before: date) -> Amount:
        written = sa.union_all(
            *(
                sa.select(moment.label("moment")).where(self._is_expired(table, before))
                for table, moment in self.moments.items()
            )
        ).subquery()
        day = sa.cast(sa.func.timezone(self.time_zone, written.c.moment), sa.Date)
        return Amount(*connection.execute(sa.select(sa.func.count(day.distinct()), sa.func.count())).one())

    def _is_expired(self, table: sa.Table, before: date) -> sa.ColumnElement[bool]:
        return (self.moments[table] < bounds(before, self.time_zone)[0]) & self.ours()[table]


def _in_session_zone(column: sa.Column[datetime]) -> sa.ColumnElement[datetime]:
    # Dagster fills these columns, which have no time zone, by the session's clock. So the session's zone gives the
    # instant. Only the event log's columns are in UTC.
    return sa.cast(column, sa.DateTime(timezone=True))


def runs(records: Records, time_zone: str, logs: Path) -> WrittenRows:
    """Our runs and backfills with their events, older than the retention period.

    A run whose logs could not be removed from their folder stays: without it, nobody could tell whose they are.
    """

    def ours() -> Mapping[sa.Table, sa.ColumnElement[bool]]:
        with_logs: list[str] = []
        if not records.settings.owns_dagster:
            with_logs += [folder.parent.name for folder in logs.glob("*/compute_logs")]
        # Dagster removes the events with their run. These were written after the midnight at which their run expired.
        orphaned = (EVENTS.c.run_id != "") & EVENTS.c.run_id.not_in(sa.select(RunsTable.c.run_id))
        of_our_event = sa.or_(
            records.of_our_run(EVENTS.c.run_id),
            records.of_our_asset(EVENTS.c.asset_key),
            orphaned & records.of_our_step(EVENTS.c.step_key),
        )
        return {
            EVENTS: of_our_event & EVENTS.c.run_id.not_in(with_logs),
            EXECUTIONS: records.of_our_asset(EXECUTIONS.c.asset_key) & EXECUTIONS.c.run_id.not_in(with_logs),
            BulkActionsTable: records.naming_our_asset(BulkActionsTable.c.body),
            RunsTable: records.of_our_run(RunsTable.c.run_id) & RunsTable.c.run_id.not_in(with_logs),
        }

    return WrittenRows(
        records,
        name="runs",
        moments={
            EVENTS: sa.func.timezone("utc", EVENTS.c.timestamp, type_=sa.DateTime(timezone=True)),
            EXECUTIONS: _in_session_zone(EXECUTIONS.c.create_timestamp),
            BulkActionsTable: _in_session_zone(BulkActionsTable.c.timestamp),
            RunsTable: _in_session_zone(RunsTable.c.create_timestamp),  # their tags go with them
        },
        ours=ours,
        orphans=(
            sa.delete(BackfillTagsTable).where(
                BackfillTagsTable.c.backfill_id.not_in(sa.select(BulkActionsTable.c.key))
            ),
            sa.delete(TAGS).where(
                TAGS.c.event_id.not_in(sa.select(EVENTS.c.id)), records.of_our_asset(TAGS.c.asset_key)
            ),
        ),
        covers=(
            *("dagster.runs", "dagster.run_tags", "dagster.bulk_actions", "dagster.backfill_tags"),
            *("dagster.event_logs", "dagster.asset_event_tags", "dagster.asset_check_executions"),
        ),
        time_zone=time_zone,
    )


def ticks(records: Records, time_zone: str) -> WrittenRows:
    """Ticks of our schedules and sensors, older than the retention period."""
    evaluations = AssetDaemonAssetEvaluationsTable
    return WrittenRows(
        records,
        name="ticks",
        moments={
            JobTickTable: _in_session_zone(JobTickTable.c.timestamp),
            evaluations: _in_session_zone(evaluations.c.create_timestamp),
        },
        ours=lambda: {
            JobTickTable: records.of_our_instigator(JobTickTable.c.selector_id),
            evaluations: records.of_our_asset(evaluations.c.asset_key),
        },
        orphans=(),
        covers=("dagster.job_ticks", "dagster.asset_daemon_asset_evaluations"),
        time_zone=time_zone,
    )
