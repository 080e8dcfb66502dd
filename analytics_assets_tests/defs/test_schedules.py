"""The daily schedule: when it ticks, what it asks for, and that this is what then runs."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._utils.schedules import schedule_execution_time_iterator

from analytics_assets.contract import LOOKBACK_DAYS
from analytics_assets.days import span
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.checks import database_checks, login_checks, published_checks, published_pages_check
from analytics_assets.defs.evaluation import CHECK_NAMES
from analytics_assets.defs.jobs import daily_metrics_job
from analytics_assets.operations.runs import days_of_run
from analytics_assets.settings import Settings
from analytics_assets_tests.support.pipeline import ALL, Pipeline, tick


@contextmanager
def log_ins() -> Iterator[Counter[str | None]]:
    """Database -> how often this process has logged in to it."""
    made = Counter[str | None]()

    def note(connection: Any, _record: object) -> None:
        made[connection.info.dbname] += 1

    sa.event.listen(sa.Pool, "connect", note)
    try:
        yield made
    finally:
        sa.event.remove(sa.Pool, "connect", note)


def requested(settings: Settings, moment: datetime) -> dg.RunRequest:
    """The one run that the schedule requests at a moment at which nothing is missing."""
    (request,) = tick(settings, moment)
    return request


def test_it_ticks_at_a_quarter_past_one_without_being_switched_on(settings: Settings) -> None:
    definitions = build_definitions(settings)
    (schedule,) = definitions.schedules or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.name != schedule.job.name == daily_metrics_job.name
    assert schedule.cron_schedule == "15 1 * * *"
    partitions = {spec.partitions_def for spec in definitions.resolve_all_asset_specs()}
    zones = {daily.timezone for daily in partitions if isinstance(daily, dg.DailyPartitionsDefinition)}
    assert zones == {schedule.execution_timezone} == {settings.time_zone}
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


@pytest.mark.parametrize(
    ("time_zone", "change"),
    [
        ("Asia/Kathmandu", date(2026, 3, 29)),  # no change, but in UTC it is still yesterday at 01:15
        ("Europe/Berlin", date(2026, 3, 29)),
        ("Europe/Berlin", date(2026, 10, 25)),
        ("Europe/London", date(2026, 3, 29)),  # 01:15 is missing
        ("Europe/London", date(2026, 10, 25)),  # 01:15 comes twice
        ("America/Santiago", date(2026, 9, 6)),  # midnight is missing
        ("America/Havana", date(2026, 11, 1)),  # midnight comes twice
    ],
)
def test_each_day_is_yesterday_once(settings: Settings, time_zone: str, change: date) -> None:
    settings = replace(settings, time_zone=time_zone)
    todays = span(change - timedelta(days=1), change + timedelta(days=4))
    since = datetime.combine(todays[0], time.min, ZoneInfo(time_zone)).timestamp()
    ticks = schedule_execution_time_iterator(since, "15 1 * * *", time_zone, ascending=True)
    for today in todays:
        request = requested(settings, next(ticks).astimezone(UTC))
        assert days_of_run(request.tags) == [today - timedelta(days=n) for n in (3, 2, 1)]
        assert request.run_key == str(today - timedelta(days=1))


def test_it_asks_for_no_expired_day(settings: Settings) -> None:
    moment = datetime(2026, 7, 1, 1, 15, tzinfo=ZoneInfo(settings.time_zone))
    for kept in (1, 2, 3):
        request = requested(replace(settings, retention_days=kept), moment)
        assert days_of_run(request.tags) == span(date(2026, 7, 1) - timedelta(days=kept), date(2026, 6, 30))


def test_what_it_asks_for_is_what_runs(pipeline: Pipeline, yesterday: date) -> None:
    settings = pipeline.settings
    request = requested(
        settings, datetime.combine(settings.today(), time(1, 15), ZoneInfo(settings.time_zone)).astimezone(UTC)
    )
    job = build_definitions(settings).resolve_job_def(daily_metrics_job.name)
    with log_ins() as made:
        result = job.execute_in_process(instance=pipeline.instance, tags=request.tags)

    assert result.success
    for url in (settings.database_url, settings.source_url):
        assert made[sa.make_url(str(url)).database] == 1
    steps = [event.step_key for event in result.all_events if event.is_step_start]
    published = ["published_counts", "product_friction", "core_pages", "published_pages"]
    shared_checks = 4
    assert len(steps) == len(set(steps)) == 2 * len(ALL) + len(published) + shared_checks
    days = {yesterday - timedelta(days=n) for n in range(3)}
    assert {asset: pipeline.materialized(asset) for asset in ALL} == dict.fromkeys(ALL, days)
    collected = pipeline.sql("select asset, event_date from analytics.collected_days")
    assert set(collected) == {(asset, day) for asset in ALL for day in days}
    (published,) = pipeline.sql("select min(event_date), max(event_date) from published.days")
    assert published == (yesterday - timedelta(days=LOOKBACK_DAYS),) * 2, "the day that it will not collect again"
    assert len(result.get_asset_check_evaluations()) == len(CHECK_NAMES) * len(ALL) + sum(
        len(list(shared.check_specs))
        for shared in (database_checks, published_checks, login_checks, published_pages_check)
    )
