"""The days as Dagster partitions, and which of them runs are about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Final

import dagster as dg
from dagster._core.storage import tags as dagster_tags

from analytics_assets.operations.runs import days_by_asset, days_of_run
from analytics_assets.settings import Settings

MARGIN_DAYS: Final = 14
"""Expired days that are still partitions.

Dagster fails a backfill when a partition that it targets is no longer defined after a reload. A backfill that was
queued today may run after an outage of that many days.
"""

_AT_WORK: Final = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)
_WAITING: Final = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Return the partitions of every metric, in the configured time zone: the days kept today, and some before them.

    The first day is fixed until the code location reloads. The assets refuse the days that have expired.
    """
    first = settings.today() - timedelta(days=settings.retention_days + MARGIN_DAYS)
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), timezone=settings.time_zone)


def range_tags(first: date, last: date) -> dict[str, str]:
    """Return the tags that make one run out of a range of days."""
    return {
        dagster_tags.ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
        dagster_tags.ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
    }


def days_awaited(instance: dg.DagsterInstance, run_id: str) -> dict[str, set[date]]:
    """Return the days that runs other than `run_id`, queued or at work, are the first to try, by asset.

    A range that a run has failed on is not awaited again: it may fail every night.
    """
    return days_by_asset(
        run
        for run in _other_runs(instance, run_id, _WAITING + _AT_WORK)
        if (days := days_of_run(run.tags)) and not _has_failed(instance, days)
    )


def _other_runs(
    instance: dg.DagsterInstance, run_id: str, statuses: Sequence[dg.DagsterRunStatus]
) -> list[dg.DagsterRun]:
    found = instance.get_runs(dg.RunsFilter(statuses=list(statuses)))
    return [run for run in found if run.run_id != run_id]


def _has_failed(instance: dg.DagsterInstance, days: Sequence[date]) -> bool:
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags=range_tags(days[0], days[-1]))
    return bool(instance.get_runs(failed, limit=1))
