"""Dagster's event log in PostgreSQL, with what the stock storage lacks: partition wipe, a pool, and larger batches.

`dagster.yaml` names the class. `sweep` decides when records are removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg
import sqlalchemy as sa
from dagster._core.events import ASSET_EVENTS
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster._serdes import ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import pg_url_from_config

from analytics_assets.contract import ASSET_PATHS
from analytics_assets.run_storage import keep_connection

EVENTS: Final = SqlEventLogStorageTable
TAGS: Final = AssetEventTagsTable
EXECUTIONS: Final = AssetCheckExecutionsTable
KEYS: Final = AssetKeyTable

_MATERIALIZATION: Final = dg.DagsterEventType.ASSET_MATERIALIZATION.value
_BATCHED: Final = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
}
_BATCH: Final = 500
"""Partitions named in one statement."""


class EventLogStorage(PostgresEventLogStorage):
    """The stock storage with partition wipe, and one kept connection per process instead of one per statement.

    The stock storage raises NotImplementedError for a partition wipe (Dagster 1.13), in the UI, too.
    """

    def __init__(self, postgres_url: str, **kwargs: Any) -> None:
        super().__init__(postgres_url, **kwargs)
        self._engine.dispose()
        self._engine = keep_connection(postgres_url)
        self._tables: set[str] = set()
        self._columns: set[str] = set()

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> EventLogStorage:
        """Create the storage from `dagster.yaml`. The inherited method creates its own class instead."""
        return cls(
            pg_url_from_config(config_value),
            inst_data=inst_data,
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
        )

    def dispose(self) -> None:
        """Close the kept connection, too."""
        super().dispose()
        self._engine.dispose()

    def has_table(self, table_name: str) -> bool:
        """Look for a table until it is there. The stock storage asks the database for each event."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def has_asset_key_col(self, column_name: str) -> bool:
        """Look for a column until it is there. The stock storage asks the database for each record."""
        if column_name not in self._columns and super().has_asset_key_col(column_name):
            self._columns.add(column_name)
        return column_name in self._columns

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Store materializations, and what is planned, with one statement, whose text does not grow with them.

        The stock storage stores each planned one by itself, with three statements.
        """
        batch = [event for event in events if event.dagster_event_type in _BATCHED]
        super().store_event_batch([event for event in events if event.dagster_event_type not in _BATCHED])
        if not batch:
            return
        plans: list[dict[str, Any]] = []
        with self.index_transaction() as connection:
            insert = EVENTS.insert().returning(EVENTS.c.id, sort_by_parameter_order=True)
            ids = connection.scalars(insert, list(map(self._event_to_row, batch))).all()
            newest: dict[dg.AssetKey | None, tuple[dg.EventLogEntry, int]] = {}
            for event, number in zip(batch, ids, strict=True):
                if event.dagster_event_type in ASSET_EVENTS:
                    newest[event.get_dagster_event().asset_key] = event, number
                else:
                    plans += self._plan_check(event, number)
            self._store_asset_event_tags(connection, batch, ids)  # has none of a check
            for event, number in newest.values():  # the row of an asset has its newest event
                self._store_asset_event(connection, event, number)
            if plans:
                connection.execute(EXECUTIONS.insert(), plans)

    def _store_asset_check_evaluation_planned(self, event: dg.EventLogEntry, event_id: int | None) -> None:
        with self.index_connection() as connection:
            connection.execute(EXECUTIONS.insert(), self._plan_check(event, event_id))

    def _plan_check(self, event: dg.EventLogEntry, event_id: int | None) -> list[dict[str, Any]]:
        """Return the rows of a planned check: one per partition. A check of ours has one row, because it has none.

        Dagster (1.13) plans one without partitions for each partition of the run, and no evaluation ends these plans.
        """
        planned: Any = event.get_dagster_event().event_specific_data
        ours = tuple(planned.asset_key.path) in ASSET_PATHS
        subset = None if ours else planned.partitions_subset
        written = datetime.fromtimestamp(event.timestamp, UTC).replace(tzinfo=None)  # as Dagster stores it
        return [
            {
                "asset_key": planned.asset_key.to_string(),
                "check_name": planned.check_name,
                "partition": partition,
                "run_id": event.run_id,
                "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
                "evaluation_event": dg.serialize_value(event),
                "evaluation_event_timestamp": written,
                "evaluation_event_storage_id": event_id,
            }
            for partition in (subset.get_partition_keys() if subset else [None])
        ]

    def wipe_asset_partitions(self, asset_key: dg.AssetKey, partition_keys: Sequence[str]) -> None:
        """Remove every record of these partitions of one asset."""
        with self.index_transaction() as connection:
            for start in range(0, len(partition_keys), _BATCH):
                keys = partition_keys[start : start + _BATCH]
                forget_partitions(connection, asset_key.to_string(), EVENTS.c.partition.in_(keys))


def forget_partitions(connection: sa.Connection, asset: str, of_event: sa.ColumnElement[bool]) -> None:
    """Remove the events of an asset that the condition selects, and everything recorded about their partitions.

    That is their tags, the evaluations of the checks that targeted them, and the checks planned for them. The UI's
    copies of the newest materialization and of the cached status are reset.
    """
    selected = sa.and_(EVENTS.c.asset_key == asset, EVENTS.c.partition.is_not(None), of_event)
    ids = sa.select(EVENTS.c.id).where(selected)
    partitions = sa.select(EVENTS.c.partition).where(selected)
    evaluated = sa.and_(EXECUTIONS.c.asset_key == asset, EXECUTIONS.c.materialization_event_storage_id.in_(ids))
    evaluations = sa.select(EXECUTIONS.c.evaluation_event_storage_id).where(evaluated)
    connection.execute(sa.delete(EVENTS).where(EVENTS.c.id.in_(evaluations)))
    planned = sa.and_(EXECUTIONS.c.asset_key == asset, EXECUTIONS.c.partition.in_(partitions))
    connection.execute(sa.delete(EXECUTIONS).where(sa.or_(evaluated, planned)))
    connection.execute(sa.delete(TAGS).where(TAGS.c.event_id.in_(ids)))
    connection.execute(sa.delete(EVENTS).where(selected))
    _reset_copies(connection, asset)


def _reset_copies(connection: sa.Connection, asset: str) -> None:
    """Set the asset row's copies: the newest materialization that is left, and no cached status."""
    # Lock the row first: a materialization recorded meanwhile would be overwritten by an older one.
    connection.execute(sa.select(KEYS.c.id).where(KEYS.c.asset_key == asset).with_for_update())
    newest = connection.execute(
        sa.select(EVENTS.c.id, EVENTS.c.event)
        .where(EVENTS.c.asset_key == asset, EVENTS.c.dagster_event_type == _MATERIALIZATION)
        .order_by(EVENTS.c.id.desc())
        .limit(1)
    ).one_or_none()
    values: dict[str, str | None] = {"last_materialization": None, "cached_status_data": None}
    if newest is not None:
        entry = dg.deserialize_value(newest.event, dg.EventLogEntry)
        record = dg.EventLogRecord(storage_id=newest.id, event_log_entry=entry)
        values["last_materialization"] = dg.serialize_value(record)
    connection.execute(sa.update(KEYS).where(KEYS.c.asset_key == asset).values(values))
