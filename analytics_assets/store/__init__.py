"""The analytics database, as the pipeline's login sees it.

`counts` reads and replaces days, `expiry` removes them, `inspection` compares what is live with the contract. `setup`
creates and upgrades the schema with an administrator's login, and the pipeline never runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from analytics_assets.database import DatabaseError, engine, explain_postgresql, redacted_errors, sqlstate
from analytics_assets.settings import Settings

_LACKING: Final = {"42P01", "42703", "42883"}
"""SQLSTATEs of a table, a column and a function that is not there."""


@dataclass(frozen=True)
class Store:
    """An open analytics database."""

    engine: sa.Engine
    settings: Settings

    @contextmanager
    def transaction(self, doing: str) -> Iterator[sa.Connection]:
        """Yield a connection with a transaction. Raises DatabaseError without values, whatever the driver raises."""
        with redacted_errors(doing, _explain), self.engine.begin() as connection:
            yield connection


@contextmanager
def open_store(settings: Settings) -> Iterator[Store]:
    """Open the analytics database. Raises SettingsError when no URL is known."""
    with engine(settings.database_url, "ANALYTICS_DATABASE_URL") as database:
        yield Store(database, settings)


def _explain(error: sa.exc.DBAPIError) -> tuple[type[DatabaseError], str]:
    kind, text = explain_postgresql(error)
    if sqlstate(error) in _LACKING:
        text += ", so the schema is not of this version of the package: run `analytics-assets init-db`"
    return kind, text
