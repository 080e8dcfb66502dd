"""Eight days off, with the real daemon: what was missed is collected, and a backfill that waited is completed."""

import time
import warnings
from datetime import date, timedelta

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.scheduler.instigation import InstigatorState, InstigatorType, ScheduleInstigatorData

from analytics_assets.contract import FRICTION_PATH
from analytics_assets.days import span
from analytics_assets.defs.evaluation import CHECK_NAMES
from analytics_assets.local.server import dagster_dev
from analytics_assets.operations.runs import days_of_run
from analytics_assets.settings import Settings
from analytics_assets_tests.support.clock import clock_at, noon_of
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import ALL, Pipeline, everything_said
from analytics_assets_tests.support.processes import PATIENCE, free_port, wait_until

pytestmark = pytest.mark.server

OFF = 8
SCHEDULE = "daily_metrics_schedule"
BACKFILL = "waiting"
LATE = "profile_visibility_toggles"
"""The metric that lacks two days more than the others."""
ENDED = {BulkActionStatus.COMPLETED, BulkActionStatus.COMPLETED_SUCCESS, BulkActionStatus.COMPLETED_FAILED}


def schedules(instance: dg.DagsterInstance) -> list[InstigatorState]:
    return [s for s in instance.all_instigator_state() if s.instigator_type is InstigatorType.SCHEDULE]


def queue_backfill(pipeline: Pipeline, asset: str, days: list[date]) -> None:
    """Put a backfill where the daemon looks for it."""
    with warnings.catch_warnings():
        # Dagster calls a function of its own that it has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        pipeline.instance.add_backfill(
            PartitionBackfill.from_asset_partitions(
                backfill_id=BACKFILL,
                asset_graph=pipeline.definitions().resolve_asset_graph(),
                partition_names=list(map(str, days)),
                asset_selection=[dg.AssetKey(asset)],
                backfill_timestamp=time.time(),
                tags={},
                dynamic_partitions_store=pipeline.instance,
                all_partitions=False,
                title=None,
                description=None,
                run_config=None,
            )
        )


def test_after_eight_days_off_every_day_is_collected_and_an_old_backfill_completes(
    settings: Settings, host: Host
) -> None:
    today = settings.today()
    days = span(today - timedelta(days=OFF + 3), today - timedelta(days=1))
    for day in days:
        host.occur("signups", moments(day, settings.time_zone, 5))
    log = settings.data_dir / "dagster.log"
    with Pipeline.open(settings) as pipeline:
        with clock_at(settings, noon_of(settings, today - timedelta(days=OFF))):
            assert pipeline.run(ALL, days[0], days[0]).success
            assert pipeline.run([asset for asset in ALL if asset != LATE], days[1], days[2]).success
        with dagster_dev(settings, free_port(), log):
            wait_until(lambda: bool(schedules(pipeline.instance)), seconds=2 * PATIENCE)
        # Dagster's own notes are set back: the daemon has ended eight days ago.
        (state,) = schedules(pipeline.instance)
        ended = noon_of(settings, today - timedelta(days=OFF)).timestamp()
        assert isinstance(state.instigator_data, ScheduleInstigatorData)
        pipeline.instance.update_instigator_state(
            state.with_data(ScheduleInstigatorData(state.instigator_data.cron_schedule, ended, ended))
        )
        # All days that were kept then.
        kept = span(today - timedelta(days=OFF + settings.retention_days), today - timedelta(days=OFF + 1))
        queue_backfill(pipeline, "consent_changes", kept)

        def over() -> bool:
            backfill = pipeline.instance.get_backfill(BACKFILL)
            assert backfill
            assert backfill.status is not BulkActionStatus.FAILED, backfill.error
            done = pipeline.sql("select asset, event_date from analytics.collected_days")
            return backfill.status in ENDED and {(asset, day) for asset in ALL for day in days} <= set(done)

        with dagster_dev(settings, free_port(), log):
            wait_until(over, seconds=3 * PATIENCE)
            query = "select event_date, state from published.days where event_name = 'event_signup' order by 1"
            wait_until(lambda: pipeline.sql(query) == [(day, "published") for day in days[:-2]], seconds=PATIENCE)
        requested = {
            days_of_run(run.tags)[-1]: run
            for run in pipeline.instance.get_runs(dg.RunsFilter(tags={"dagster/schedule_name": SCHEDULE}))
        }
        assert {last: days_of_run(run.tags)[0] for last, run in requested.items()} == {
            days[2]: days[1],
            days[-1]: days[3],
        }
        assert requested[days[2]].asset_selection == {dg.AssetKey(LATE), dg.AssetKey(FRICTION_PATH)}
        evaluations = pipeline.instance.all_logs(
            requested[days[2]].run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
        )
        assert len(evaluations) == len(CHECK_NAMES)
        assert "not trying to catch up" in log.read_text(encoding="utf-8"), "Dagster alone would have missed days"
        assert {sum(pipeline.stored("event_signups", day).values()) for day in days} == {5}
        assert pipeline.materialized("consent_changes") >= {day for day in kept if (today - day).days <= 180}
        assert f"{OFF} of {len(kept)} days were not stored" in everything_said(pipeline.instance)
