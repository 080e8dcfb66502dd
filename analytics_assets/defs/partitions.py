"""The days as Dagster partitions, and which of them runs are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Final

import dagster as dg
from dagster._core.storage import tags as dagster_tags

from analytics_assets.contract import METRICS
from analytics_assets.days import span
from analytics_assets.settings import Settings

DAILY_JOB: Final = "daily_metrics_job"

MARGIN_DAYS: Final = 14
"""Expired days that are still partitions.

Dagster fails a backfill when a partition that it targets is no longer defined after a reload. A backfill that was
queued today may run after an outage of that many days.
"""

FAILED_RUNS: Final = 3
"""Publication gives up a day on which so many runs of the daily job have failed.

It is the number of daily runs that collect a day: yesterday, and each day of the lookback.
"""

_AT_WORK: Final = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)
_WAITING: Final = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Return the partitions of every metric, in the configured time zone: the days kept today, and some before them.

    The first day is fixed until the code location reloads. The assets refuse the days that have expired.
    """
    first = settings.today() - timedelta(days=settings.retention_days + MARGIN_DAYS)
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


def days_at_work(instance: dg.DagsterInstance, run_id: str) -> dict[str, set[date]]:
    """Return the days that runs other than `run_id` are collecting now, by asset."""
    return _days_by_asset(_other_runs(instance, run_id, _AT_WORK))


def days_awaited(instance: dg.DagsterInstance, run_id: str) -> dict[str, set[date]]:
    """Return the days that publication waits for, by asset. Some of them may be collected already.

    Runs other than `run_id`, queued or at work, are about to collect them, or runs of the daily job have failed to: the
    schedule requests a missing day every night. A day on which FAILED_RUNS of these have failed is not awaited.
    """
    failed = instance.get_runs(dg.RunsFilter(job_name=DAILY_JOB, statuses=[dg.DagsterRunStatus.FAILURE]))
    failures = Counter((asset, day) for run in failed for asset, days in _days_by_asset([run]).items() for day in days)
    expected = _days_by_asset([*_other_runs(instance, run_id, _WAITING + _AT_WORK), *failed])
    return {asset: {day for day in days if failures[asset, day] < FAILED_RUNS} for asset, days in expected.items()}


def _other_runs(
    instance: dg.DagsterInstance, run_id: str, statuses: Sequence[dg.DagsterRunStatus]
) -> list[dg.DagsterRun]:
    found = instance.get_runs(dg.RunsFilter(statuses=list(statuses)))
    return [run for run in found if run.run_id != run_id]


def _days_by_asset(runs: Iterable[dg.DagsterRun]) -> dict[str, set[date]]:
    found: dict[str, set[date]] = {metric.asset: set() for metric in METRICS}
    for run in runs:
        selected = {key.to_user_string() for key in run.asset_selection or ()}
        # A run of the whole job names no asset: None, or in this process an empty set.
        if run.job_name == DAILY_JOB and not run.asset_selection and not run.asset_check_selection:
            selected = set(found)
        for asset in selected & set(found):
            found[asset].update(days_of_run(run.tags))
    return found
