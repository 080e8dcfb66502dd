"""The daily schedule: the days of every night, and the days that are missing."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import dagster as dg
from dagster._core.storage.tags import PRIORITY_TAG

from analytics_assets.contract import FRICTION_PATH, LOOKBACK_DAYS
from analytics_assets.database import DatabaseError
from analytics_assets.days import format_range, ranges
from analytics_assets.defs.jobs import daily_metrics_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.store import open_store
from analytics_assets.store.gaps import missing_days

MAX_GAP_RUNS: Final = 10
"""Runs that one tick requests for missing days, beside the daily run. A range of any length is one run."""


class Gap(NamedTuple):
    """A range of days, both ends included, that the same metrics lack."""

    last: date
    first: date
    assets: Sequence[str]


def make_daily_schedule(time_zone: str) -> dg.ScheduleDefinition:
    """Return the schedule that runs the daily job at 01:15 in the configured time zone."""

    @dg.schedule(
        name="daily_metrics_schedule",
        job=daily_metrics_job,
        cron_schedule="15 1 * * *",
        execution_timezone=time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Requests a run of yesterday and the {LOOKBACK_DAYS} days before it. Missing days before these"
        f" extend it if every metric lacks them. Others get runs of their own, at most {MAX_GAP_RUNS} a night.",
    )
    def schedule(context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings]) -> list[dg.RunRequest]:
        today = context.scheduled_execution_time.astimezone(ZoneInfo(settings.time_zone)).date()
        last = today - timedelta(days=1)
        first = last - timedelta(days=min(LOOKBACK_DAYS, settings.retention_days - 1))
        try:
            with open_store(settings) as store:
                missing = missing_days(store)
        except (DatabaseError, SettingsError) as error:
            # A failed tick would not be repeated before the next night. The daily run waits for the database or fails.
            context.log.error(f"missing days are not requested tonight, only the daily run: {error}")
            missing = {}
        first = extend(first, missing)
        gaps = choose(find_gaps(first, missing), today)
        return [
            # First, so that what the daily run publishes can wait for them; but after it when slots are scarce.
            *(
                dg.RunRequest(
                    run_key=f"{last}, missing: {format_range(gap.first, gap.last)}",
                    tags=range_tags(gap.first, gap.last) | {PRIORITY_TAG: "-1"},
                    asset_selection=[*map(dg.AssetKey, gap.assets), dg.AssetKey(FRICTION_PATH)],
                )
                for gap in gaps
            ),
            dg.RunRequest(run_key=str(last), tags=range_tags(first, last)),
        ]

    return schedule


def extend(first: date, missing: Mapping[str, Sequence[date]]) -> date:
    """Return the first day of the daily run, given the first of its usual days.

    The run takes over the days right before them as long as every metric lacks them.
    """
    everywhere = set[date].intersection(*map(set, missing.values())) if missing else set()
    while (before := first - timedelta(days=1)) in everywhere:
        first = before
    return first


def find_gaps(first: date, missing: Mapping[str, Sequence[date]]) -> list[Gap]:
    """Return the missing days before `first` as ranges, newest first. Metrics with the same range are in one."""
    assets: dict[tuple[date, date], list[str]] = defaultdict(list)
    for asset, days in missing.items():
        for found in ranges(day for day in days if day < first):
            assets[found].append(asset)
    return sorted((Gap(end, start, lacking) for (start, end), lacking in assets.items()), reverse=True)


def choose(gaps: Sequence[Gap], today: date) -> list[Gap]:
    """Return the gaps to request on a night, newest first, at most MAX_GAP_RUNS.

    Where there are more, half of them are the newest. The other half takes turns, or older days would never be tried
    while newer ones are refused every night.
    """
    if len(gaps) <= MAX_GAP_RUNS:
        return list(gaps)
    half = MAX_GAP_RUNS // 2
    newest, others = gaps[:half], gaps[half:]
    turn = today.toordinal() * half % len(others)
    return sorted([*newest, *([*others, *others][turn : turn + MAX_GAP_RUNS - half])], reverse=True)
