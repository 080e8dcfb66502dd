"""The days as Dagster partitions, and which of them a run is about."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

import dagster as dg
from dagster._core.storage import tags as dagster_tags

from analytics_assets.days import span
from analytics_assets.settings import Settings


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Return the partitions of every metric: the days that are kept today, in the configured time zone.

    The first day is fixed until the code location reloads, so the UI may offer days that have expired since. The assets
    refuse those.
    """
    first = settings.today() - timedelta(days=settings.retention_days)
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), timezone=settings.time_zone)


def days_of_run(tags: Mapping[str, str]) -> list[date]:
    """Return the days that a run was launched for, from its tags; none for a run without partition."""
    first = tags.get(dagster_tags.ASSET_PARTITION_RANGE_START_TAG, tags.get(dagster_tags.PARTITION_NAME_TAG))
    last = tags.get(dagster_tags.ASSET_PARTITION_RANGE_END_TAG, first)
    if first is None or last is None:
        return []
    return span(date.fromisoformat(first), date.fromisoformat(last))


def range_tags(first: date, last: date) -> dict[str, str]:
    """Return the tags that make one run out of a range of days."""
    return {
        dagster_tags.ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
        dagster_tags.ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
    }
