"""Friction in the analytics database: the exact counts that it is found in, and what was found.

The statistic is in `publication.friction`. What was found of a day is replaced whole, as the day itself is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import pandas as pd
import sqlalchemy as sa

from analytics_assets.database import read_rows
from analytics_assets.store.tables import COUNTS, FRICTION

_EVENTS = COUNTS["daily_event_counts"].c
_RESPONSES = COUNTS["daily_response_counts"].c


def read_event_counts(connection: sa.Connection, event_name: str) -> pd.DataFrame:
    """Return `event_date`, `series` (the event) and `count` of everything that is kept of an event name."""
    query = (
        sa.select(_EVENTS.event_date, _EVENTS.event_id.label("series"), _sum(_EVENTS.count, "count"))
        .where(_EVENTS.event_name == event_name)
        .group_by(_EVENTS.event_date, _EVENTS.event_id)
    )
    return _read(connection, query)


def read_responses(connection: sa.Connection) -> pd.DataFrame:
    """Return `event_date`, `series` (the endpoint), `requests` and `errors` (400 and above) of everything kept."""
    errors = sa.case((_RESPONSES.status_code >= 400, _RESPONSES.count), else_=0)
    query = sa.select(
        _RESPONSES.event_date,
        _RESPONSES.endpoint.label("series"),
        _sum(_RESPONSES.count, "requests"),
        _sum(errors, "errors"),
    ).group_by(_RESPONSES.event_date, _RESPONSES.endpoint)
    return _read(connection, query)


def _read(connection: sa.Connection, query: sa.Select[*tuple[Any, ...]]) -> pd.DataFrame:
    # An event of the name "NA" is no missing value.
    return pd.read_csv(
        read_rows(connection, query), dtype={"series": str}, parse_dates=["event_date"], keep_default_na=False
    )


def replace_friction(connection: sa.Connection, days: Sequence[date], rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace what was found of these days. Two at once take turns."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(str(FRICTION)))))
    connection.execute(sa.delete(FRICTION).where(FRICTION.c.event_date.in_(days)))
    if rows:
        connection.execute(sa.insert(FRICTION), [dict(row) for row in rows])


def read_friction(connection: sa.Connection, first: date, last: date) -> list[sa.RowMapping]:
    """Return what was found of the days from `first` to `last`."""
    query = sa.select(FRICTION).where(FRICTION.c.event_date.between(first, last))
    return list(connection.execute(query).mappings())


def _sum(counts: sa.ColumnElement[int], name: str) -> sa.Label[int]:
    # The sum of bigint is numeric, which pandas would keep as objects.
    return sa.cast(sa.func.sum(counts), sa.BigInteger).label(name)
