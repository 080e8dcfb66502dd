"""What Dagster's records say about runs: their days, their assets, and which failed ones are made good. Only read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import dagster as dg
from dagster._core.storage import tags as dagster_tags

from analytics_assets.contract import METRICS
from analytics_assets.days import span

RECENT_DAYS: Final = 7
"""A failed run is red for as long, unless it is made good. Dropped counts warn for as long."""
DAILY_JOB: Final = "daily_metrics_job"
FAILED_RUNS: Final = 3
"""Publication gives up a day on which so many runs of the daily job have failed.

It is the number of daily runs that collect a day: yesterday, and each day of the lookback.
"""
RETENTION_JOB: Final = "retention_job"
RETENTION_OP: Final = "remove_expired_days"


def days_of_run(tags: Mapping[str, str]) -> list[date]:
    """Return the days that a run was launched for, from its tags; none for a run without partition."""
    first = tags.get(dagster_tags.ASSET_PARTITION_RANGE_START_TAG, tags.get(dagster_tags.PARTITION_NAME_TAG))
    last = tags.get(dagster_tags.ASSET_PARTITION_RANGE_END_TAG, first)
    if first is None or last is None:
        return []
    return span(date.fromisoformat(first), date.fromisoformat(last))


def days_by_asset(runs: Iterable[dg.DagsterRun]) -> dict[str, set[date]]:
    """Return the days that some runs were launched for, by the asset of each metric."""
    found: dict[str, set[date]] = {metric.asset: set() for metric in METRICS}
    for run in runs:
        selected = {key.to_user_string() for key in run.asset_selection or ()}
        # A run of the whole job names no asset: None, or in this process an empty set.
        if run.job_name == DAILY_JOB and not run.asset_selection and not run.asset_check_selection:
            selected = set(found)
        for asset in selected & set(found):
            found[asset].update(days_of_run(run.tags))
    return found


def days_in_progress(instance: dg.DagsterInstance, run_id: str | None = None) -> dict[str, set[date]]:
    """Return the days that runs other than `run_id`, queued or at work, are the first to try, by asset.

    These days are not missing yet. One that a run has failed on lately is tried every night: it stays missing, so that
    nobody is told every night that it is not.
    """
    expected = instance.get_runs(dg.RunsFilter(statuses=_IN_PROGRESS))
    lately = datetime.now(UTC) - timedelta(days=RECENT_DAYS)
    failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=lately))
    tried = days_by_asset(failed)
    found = days_by_asset(run for run in expected if run.run_id != run_id)
    return {asset: days - tried[asset] for asset, days in found.items()}


_IN_PROGRESS: Final = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def days_awaited(
    instance: dg.DagsterInstance, missing: Mapping[str, Collection[date]], run: dg.DagsterRun | None = None
) -> dict[str, set[date]]:
    """Return the days that publication waits for, by asset. Some of them may be collected already.

    A run that the schedule or a sensor has requested waits for every missing day, because the schedule requests it
    again every night. A person who publishes waits only for days that other runs, queued or at work, are about to
    collect, and for days that the daily job has failed on. A day on which FAILED_RUNS of its runs have failed is given
    up. A re-execution does not count, or an operator who tries three times in an hour would give up the day.
    """
    failed = instance.get_runs(dg.RunsFilter(job_name=DAILY_JOB, statuses=[dg.DagsterRunStatus.FAILURE]))
    failures = Counter(
        (asset, day)
        for each in failed
        if each.parent_run_id is None
        for asset, days in days_by_asset([each]).items()
        for day in days
    )
    in_progress = instance.get_runs(dg.RunsFilter(statuses=_IN_PROGRESS))
    others = (other for other in in_progress if run is None or other.run_id != run.run_id)
    expected = days_by_asset([*others, *failed])
    if run is not None and {dagster_tags.SCHEDULE_NAME_TAG, dagster_tags.SENSOR_NAME_TAG} & run.tags.keys():
        for asset, days in missing.items():
            expected[asset].update(days)
    return {asset: {day for day in days if failures[asset, day] < FAILED_RUNS} for asset, days in expected.items()}


def find_failed_runs(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    since: datetime,
    is_settled: Callable[[dg.AssetKey, date], bool],
) -> list[dg.RunRecord]:
    """Return the failed runs of this code location since a moment that are not made good, newest first.

    A run is made good when each of its assets was done by a later run that succeeded, and so was each of its days, or
    it is settled. A job without assets is made good by its next run; one that only looks makes nothing good.
    """
    graph = repository.asset_graph
    ours = {*graph.get_all_asset_keys(), *(key.asset_key for key in graph.asset_check_keys)}
    jobs = own_jobs(repository)
    done: dict[dg.AssetKey, set[date]] = {}
    jobs_done: set[str] = set()
    failed = []
    statuses = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    for record in instance.get_run_records(dg.RunsFilter(statuses=statuses, updated_after=since)):  # newest first
        run = record.dagster_run
        assets = _assets_of(repository, run)
        if run.job_name not in jobs and not (run.job_name.startswith("__") and assets & ours):
            continue  # of another code location
        days = days_of_run(run.tags)
        if run.status is dg.DagsterRunStatus.FAILURE:
            made_good = all(
                asset in done and all(day in done[asset] or is_settled(asset, day) for day in days) for asset in assets
            )
            if not (made_good if assets else run.job_name in jobs_done):
                failed.append(record)
        elif not _only_looks(run):
            jobs_done.add(run.job_name)
            for asset in assets:
                done.setdefault(asset, set()).update(days)
    return failed


def own_jobs(repository: dg.RepositoryDefinition) -> Collection[str]:
    """Return the names of the jobs, without the one that Dagster makes for what is launched by hand."""
    return [name for name in repository.job_names if not name.startswith("__")]


def selected_assets(run: dg.DagsterRun) -> set[dg.AssetKey]:
    """Return the assets that a run names, or whose checks it names; none for a run of a whole job."""
    return {*(run.asset_selection or ()), *(key.asset_key for key in run.asset_check_selection or ())}


def _assets_of(repository: dg.RepositoryDefinition, run: dg.DagsterRun) -> set[dg.AssetKey]:
    """Return the assets of a run. Every code location has a job for what is launched by hand: its runs name assets."""
    selected = selected_assets(run)
    if not selected and not run.job_name.startswith("__") and repository.has_job(run.job_name):
        return set(repository.get_job(run.job_name).asset_layer.executable_asset_keys)
    return selected


def _only_looks(run: dg.DagsterRun) -> bool:
    """Whether it is a dry run of the retention job, which is the default of a launch by hand."""
    config: Any = run.run_config
    for name in ("ops", RETENTION_OP, "config"):
        config = config.get(name) or {}
    return run.job_name == RETENTION_JOB and bool(config.get("dry_run", True))
