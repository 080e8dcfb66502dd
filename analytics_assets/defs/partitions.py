"""The days as Dagster partitions."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Final

import dagster as dg
from dagster._core.storage import tags as dagster_tags

from analytics_assets.settings import Settings

MARGIN_DAYS: Final = 14
"""Expired days that are still partitions.

Dagster fails a backfill when a partition that it targets is no longer defined after a reload. A backfill that was
queued today may run after an outage of that many days.
"""


CHUNK_DAYS: Final = 60
"""Days of one run of a backfill that is spread over machines. Starting a run takes seconds, whatever its days."""


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Return the partitions of every metric, in the configured time zone: the days kept today, and some before them.

    The first day is fixed until the code location reloads. The assets refuse the days that have expired.
    """
    first = settings.today() - timedelta(days=settings.retention_days + MARGIN_DAYS)
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), timezone=settings.time_zone)


def chunks(settings: Settings) -> dg.BackfillPolicy:
    """Return how a backfill is divided into runs: one on one machine, several on several.

    No two runs of a backfill have a day in common.
    """
    if settings.executor == "in_process":
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(CHUNK_DAYS)


def range_tags(first: date, last: date) -> dict[str, str]:
    """Return the tags that make one run out of a range of days."""
    return {
        dagster_tags.ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
        dagster_tags.ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
    }
