"""Gaps: the days that a metric lacks, from our own notes of collected days.

Dagster does not know them: its scheduler drops every missed tick but the last, and its records may be removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import date, time, timedelta
from typing import Final

import sqlalchemy as sa

from analytics_assets.contract import METRICS
from analytics_assets.days import span
from analytics_assets.store import Store
from analytics_assets.store.counts import read_window
from analytics_assets.store.tables import COLLECTED_DAYS

DUE: Final = time(3)
"""Local time from which yesterday is missing. By then, the daily run of 01:15 has had its time."""

_DUE = sa.text("select cast(now() at time zone time_zone as time) >= :due from analytics.settings")


def missing_days(store: Store, run: Collection[date] = ()) -> dict[str, list[date]]:
    """Return the missing days of every metric by its asset, oldest first; an empty list where nothing is missing.

    A day is missing when it is kept and finished, was not collected, and comes after a collected one. So a new metric
    and an empty installation lack nothing. Yesterday counts from `DUE` on, and at once if it is in `run`, the days of
    a run that has tried to collect them.

    Raises:
        DatabaseError: the analytics database is out of reach, not set up, or set up with other settings.
    """
    window = read_window(store)
    collected: dict[str, set[date]] = defaultdict(set)
    with store.transaction("reading the collected days") as connection:
        due = bool(connection.scalar(_DUE, {"due": DUE})) or window.last in run
        for asset, day in connection.execute(sa.select(COLLECTED_DAYS.c.asset, COLLECTED_DAYS.c.event_date)):
            collected[asset].add(day)
    last = window.last if due else window.last - timedelta(days=1)
    found = {}
    for metric in METRICS:
        known = collected[metric.asset]
        first = max(window.first, min(known)) if known else date.max
        found[metric.asset] = [day for day in span(first, last) if day not in known]
    return found
