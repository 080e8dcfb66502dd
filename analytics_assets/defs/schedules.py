"""The daily job and its schedule."""

from datetime import timedelta
from typing import Final
from zoneinfo import ZoneInfo

import dagster as dg

from analytics_assets.defs.collect import GROUP
from analytics_assets.defs.login_check import LOGIN_CHECKS
from analytics_assets.defs.partitions import DAILY, range_tags
from analytics_assets.settings import Settings

AGAIN: Final = 2
"""Days before yesterday that are collected again, for rows that arrived late."""

daily_metrics_job = dg.define_asset_job(
    "daily_metrics",
    # A group stands for what can be materialized in it, which leaves out the views and their checks.
    selection=dg.AssetSelection.groups(GROUP) | dg.AssetSelection.checks(*LOGIN_CHECKS),
    description="Collects the days of the run for every metric, checks what is stored and what the login can read.",
)


@dg.schedule(
    name="daily_metrics",
    job=daily_metrics_job,
    cron_schedule="15 1 * * *",
    execution_timezone=DAILY.timezone,
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def daily_metrics(context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.RunRequest:
    """Collect yesterday, and the two days before it again, in one run."""
    today = context.scheduled_execution_time.astimezone(ZoneInfo(settings.time_zone)).date()
    last = today - timedelta(days=1)
    first = last - timedelta(days=min(AGAIN, settings.retention_days - 1))
    return dg.RunRequest(run_key=last.isoformat(), tags=range_tags(first, last))
