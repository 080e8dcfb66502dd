"""The daily schedule."""

from datetime import timedelta
from zoneinfo import ZoneInfo

import dagster as dg

from analytics_assets.contract import LOOKBACK_DAYS
from analytics_assets.defs.jobs import daily_metrics_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets.settings import Settings
from analytics_assets.store.counts import DAILY_RUN


def make_daily_schedule(time_zone: str) -> dg.ScheduleDefinition:
    """Return the schedule that runs the daily job at 01:15 in the configured time zone."""

    @dg.schedule(
        name="daily_metrics_schedule",
        job=daily_metrics_job,
        cron_schedule=f"{DAILY_RUN.minute} {DAILY_RUN.hour} * * *",
        execution_timezone=time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Requests one run a day, of yesterday and the {LOOKBACK_DAYS} days before it.",
    )
    def schedule(context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.RunRequest:
        today = context.scheduled_execution_time.astimezone(ZoneInfo(settings.time_zone)).date()
        last = today - timedelta(days=1)
        first = last - timedelta(days=min(LOOKBACK_DAYS, settings.retention_days - 1))
        return dg.RunRequest(run_key=last.isoformat(), tags=range_tags(first, last))

    return schedule
