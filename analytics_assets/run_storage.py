"""Dagster's run storage in PostgreSQL, with one kept connection per process.

`dagster.yaml` names the class. The stock storage logs in to the database for each statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from dagster._serdes import ConfigurableClassData
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.utils import create_pg_engine, pg_url_from_config

from analytics_assets.database import socket_of_postgresql, try_before_use


def keep_connection(postgres_url: str) -> sa.Engine:
    """Make an engine for one of Dagster's storages. A second thread gets its own connection, closed after use."""
    made = create_pg_engine(postgres_url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=-1)
    try_before_use(made, socket_of_postgresql)
    return made


class RunStorage(PostgresRunStorage):
    """The stock storage with one kept connection per process instead of one per statement."""

    def __init__(self, postgres_url: str, **kwargs: Any) -> None:
        super().__init__(postgres_url, **kwargs)
        self._engine.dispose()
        self._engine = keep_connection(postgres_url)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> RunStorage:
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
