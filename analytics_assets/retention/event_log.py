"""Dagster's event log in PostgreSQL, with what the stock storage lacks: partition wipe, a pool, planning in batches.

`dagster.yaml` names the class. `sweep` decides when records are removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster._serdes import ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import create_pg_engine, pg_url_from_config

EVENTS: Final = SqlEventLogStorageTable
TAGS: Final = AssetEventTagsTable
EXECUTIONS: Final = AssetCheckExecutionsTable
KEYS: Final = AssetKeyTable

_PLANNED: Final = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
_MATERIALIZATION: Final = dg.DagsterEventType.ASSET_MATERIALIZATION.value
_BATCH: Final = 500
"""Partitions named in one statement."""


class EventLogStorage(PostgresEventLogStorage):
    """The stock storage with partition wipe, and one kept connection per process instead of one per statement.

    The stock storage raises NotImplementedError for a partition wipe (Dagster 1.13), in the UI, too. It stores the
    partitions that a run will materialize one by one, which takes seconds of a backfill of 180 days.
    """

    def __init__(self, postgres_url: str, **kwargs: Any) -> None:
        super().__init__(postgres_url, **kwargs)
        self._engine.dispose()
        # A second thread gets its own connection, which is closed after use.
        self._engine = create_pg_engine(
            postgres_url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=-1, pool_pre_ping=True
        )

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

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Store events together, also the partitions that a run will materialize."""
        planned = [event for event in events if event.dagster_event_type is _PLANNED]
        super().store_event_batch([event for event in events if event.dagster_event_type is not _PLANNED])
        if planned:
            with self._connect() as connection:
                ids = connection.scalars(self.prepare_insert_event_batch(planned).returning(EVENTS.c.id)).all()
            newest = {event.get_dagster_event().asset_key: (event, id) for event, id in zip(planned, ids, strict=True)}
            with self.index_transaction() as connection:
                for event, event_id in newest.values():
                    self._store_asset_event(connection, event, event_id)

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
