"""Finding friction in what is stored: which days are judged, by which statistic, and keeping what was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, timedelta
from typing import Final, cast

import sqlalchemy as sa

from analytics_assets.contract import FUNNEL, METRICS, RESPONSE_FIELDS, Metric
from analytics_assets.days import span
from analytics_assets.publication.friction import (
    DROP_WEEKS,
    Finding,
    Kind,
    daily_matrix,
    drop_offs,
    drops,
    error_spikes,
    spikes,
)
from analytics_assets.store import Store
from analytics_assets.store.counts import Window, read_window
from analytics_assets.store.friction import read_event_counts, read_friction, read_responses, replace_friction
from analytics_assets.store.published import read_collected

HISTORY_DAYS: Final = 7 * (DROP_WEEKS + 1) - 1
"""Days before a day that the statistic with the longest memory, that of drops, looks at."""


def list_judged(window: Window, days: Collection[date] = ()) -> list[date]:
    """Return those of `days`, or of all kept ones if none are given, whose history has not begun to expire.

    A day whose history is going keeps what was found of it. Where less is kept than a history takes, only the days that
    the daily job collects are judged.
    """
    since = min(window.first + timedelta(days=HISTORY_DAYS), window.last_closed)
    return [day for day in sorted(days or span(window.first, window.last)) if since <= day <= window.last]


def find_friction(store: Store, metric: Metric, days: Collection[date] = ()) -> list[Finding]:
    """Return what is found of a metric on `days`, as far as `list_judged` says and they were collected.

    Raises:
        DatabaseError: the analytics database is out of reach.
    """
    window = read_window(store)
    with store.transaction("reading the counts for friction") as connection:
        return _find(connection, metric, list_judged(window, days), read_collected(connection), window)


def refresh_friction(store: Store, days: Collection[date] = ()) -> tuple[list[date], list[Finding]]:
    """Replace the findings of `days` in `analytics.friction`. Returns the days that were judged, and the findings.

    Raises as `find_friction` does. Then nothing has changed.
    """
    window = read_window(store)
    judged = list_judged(window, days)
    with store.transaction("finding friction") as connection:
        collected = read_collected(connection)
        found = [finding for metric in METRICS for finding in _find(connection, metric, judged, collected, window)]
        rows = [
            {
                "event_date": finding.day,
                "event_name": finding.event_name,
                "series": finding.series,
                "kind": finding.kind,
                "score": finding.score,
            }
            for finding in found
        ]
        replace_friction(connection, judged, rows)
    return judged, found


def read_findings(connection: sa.Connection, first: date, last: date) -> list[Finding]:
    """Return what was found of the days from `first` to `last`."""
    return [
        Finding(
            cast(Kind, row["kind"]),
            row["event_name"],
            row["series"],
            row["event_date"],
            row["score"],
            _step_before(row["event_name"]) if row["kind"] == "drop-off" else None,
        )
        for row in read_friction(connection, first, last)
    ]


def _find(
    connection: sa.Connection,
    metric: Metric,
    days: Collection[date],
    collected: Mapping[str, Collection[date]],
    window: Window,
) -> list[Finding]:
    """Judge the collected ones of `days` by everything that is kept."""
    known = collected.get(metric.asset, ())
    judged = [day for day in days if day in known]
    if not judged:
        return []
    kept = span(window.first, max(judged))
    if metric.fields == RESPONSE_FIELDS:
        (name,) = metric.event_names
        responses = read_responses(connection)
        endpoints = sorted(set(responses["series"]))
        errors, requests = (
            daily_matrix(responses.rename(columns={column: "count"}), kept, known, endpoints)
            for column in ("errors", "requests")
        )
        return error_spikes(errors, requests, name, judged)
    found = []
    for name in metric.event_names:
        counts = read_event_counts(connection, name)
        events = sorted(set(counts["series"]))
        matrix = daily_matrix(counts, kept, known, events)
        found += spikes(matrix, name, judged) + drops(matrix, name, judged)
        if before := _step_before(name):
            (asset,) = (m.asset for m in METRICS if before in m.event_names)
            entered = daily_matrix(read_event_counts(connection, before), kept, collected.get(asset, ()), events)
            found += drop_offs({before: entered, name: matrix}, judged)
    return found


def _step_before(event_name: str) -> str | None:
    step = FUNNEL.index(event_name) if event_name in FUNNEL else 0
    return FUNNEL[step - 1] if step else None
