"""Publication after a daily run that failed: what the sensor requests, what then runs, and what a series waits for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import dagster as dg
import pytest
from dagster._core.storage.tags import PRIORITY_TAG, SCHEDULE_NAME_TAG, SENSOR_NAME_TAG

from analytics_assets.contract import FRICTION_PATH, LOOKBACK_DAYS, PUBLISHED_PATH
from analytics_assets.days import span
from analytics_assets.defs.checks import published_checks, published_pages_check
from analytics_assets.defs.evaluation import DOCUMENTED
from analytics_assets.defs.jobs import daily_metrics_job, publication_job, retention_job
from analytics_assets.defs.pages import CORE, PUBLISHED
from analytics_assets.defs.partitions import range_tags
from analytics_assets.defs.sensors import publication_sensor
from analytics_assets.demo.webserver import Webserver
from analytics_assets.local.server import HOST, dagster_dev, wait_until_ready
from analytics_assets.operations.runs import FAILED_RUNS, days_awaited, days_of_run
from analytics_assets.store.tables import DAILY_NAMES
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.clock import clock_at, noon_of
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, Pipeline, failures, hurry
from analytics_assets_tests.support.processes import PATIENCE, free_port, wait_until

BROKEN, BROKEN_NAME = "event_signups", "event_signup"


def break_signups(host: Host) -> None:
    """Give the view of the sign-ups a column that the contract refuses."""
    host.sql(
        "alter table signups add phone text; drop view analytics_source.signups;"
        " create view analytics_source.signups as select event_id, occurred_at, source, phone from signups"
    )


def run_job(
    pipeline: Pipeline, name: str, days: Sequence[date], *assets: str, nightly: bool = False
) -> dg.ExecuteInProcessResult:
    """Run a job for a range of days, with all of its assets unless some are named. `nightly`: as the schedule does."""
    job = pipeline.definitions().resolve_job_def(name)
    return job.execute_in_process(
        instance=pipeline.instance,
        tags=range_tags(days[0], days[-1]) | ({SCHEDULE_NAME_TAG: "daily_metrics_schedule"} if nightly else {}),
        asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
        raise_on_error=False,
    )


def tick(pipeline: Pipeline, cursor: str | None) -> tuple[list[dg.RunRequest], str | None]:
    """One evaluation of the sensor: what it requests, and the cursor that it leaves."""
    sensor = pipeline.definitions().get_repository_def().get_sensor_def(publication_sensor.name)
    with dg.build_sensor_context(instance=pipeline.instance, cursor=cursor) as context:
        data = sensor.evaluate_tick(context)
    return list(data.run_requests or []), data.cursor


def published(pipeline: Pipeline, state: str = "published") -> dict[str, list[date]]:
    """Event name -> days in a state."""
    found: dict[str, list[date]] = {}
    query = "select event_name, event_date from published.days where state = :state order by 2"
    for name, day in pipeline.sql(query, state=state):
        found.setdefault(name, []).append(day)
    return found


@pytest.fixture
def days(pipeline: Pipeline, host: Host, yesterday: date) -> list[date]:
    """Ten days of activity up to yesterday."""
    days = span(yesterday - timedelta(days=9), yesterday)
    fill(host, pipeline.settings, days)
    return days


def test_a_broken_metric_waits_for_three_failed_runs_and_stops_nobody_else(
    pipeline: Pipeline, host: Host, days: list[date]
) -> None:
    assert FAILED_RUNS == LOOKBACK_DAYS + 1, "so many daily runs collect a day"
    nightly = days[-LOOKBACK_DAYS - 1 :]
    before = days[: -LOOKBACK_DAYS - 1]
    with clock_at(pipeline.settings, noon_of(pipeline.settings, nightly[0])):
        assert run_job(pipeline, daily_metrics_job.name, before).success
    assert published(pipeline) == dict.fromkeys(DAILY_NAMES, before[:-LOOKBACK_DAYS])
    core = pipeline.settings.publish_dir / "core/index.html"
    old = core.read_text(encoding="utf-8")

    break_signups(host)
    _, cursor = tick(pipeline, None)
    for failed in range(1, FAILED_RUNS + 1):
        run = run_job(pipeline, daily_metrics_job.name, nightly)
        assert set(failures(run)) == {BROKEN}
        (request,), cursor = tick(pipeline, cursor)
        assert request.run_key == run.run_id
        assert days_of_run(request.tags) == nightly
        result = run_job(pipeline, publication_job.name, days_of_run(request.tags))
        assert result.success
        others = {name: days[:-LOOKBACK_DAYS] for name in DAILY_NAMES if name != BROKEN_NAME}
        assert published(pipeline) == others | {BROKEN_NAME: before}
        # The closed day of the broken metric.
        given_up = {BROKEN_NAME: nightly[:1]} if failed == FAILED_RUNS else {}
        assert published(pipeline, "not_collected") == given_up, failed

    events = result.get_asset_materialization_events()
    made = {e.asset_key.to_user_string(): e.materialization.metadata for e in events if e.asset_key}
    friction = dg.AssetKey(FRICTION_PATH).to_user_string()
    assert set(made) == {dg.AssetKey(PUBLISHED_PATH).to_user_string(), friction, CORE, PUBLISHED}
    assert "days judged" in made[friction]
    assert {evaluation.check_name for evaluation in result.get_asset_check_evaluations()} == {
        spec.name for shared in (published_checks, published_pages_check) for spec in shared.check_specs
    }
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    assert core.read_text(encoding="utf-8") != old, "the core team sees what the others have collected"


def test_each_failed_run_is_answered_once_and_no_other_run_is(pipeline: Pipeline, host: Host, days: list[date]) -> None:
    requests, cursor = tick(pipeline, None)
    assert requests == []
    assert run_job(pipeline, daily_metrics_job.name, days[:2], BROKEN).success
    break_signups(host)
    assert not pipeline.run([BROKEN], days[2]).success, "by hand"
    (pipeline.settings.dump_dir / "canary").mkdir()
    assert not pipeline.retain().success
    assert tick(pipeline, cursor)[0] == []

    failed = [run_job(pipeline, daily_metrics_job.name, [day], BROKEN) for day in days[3:5]]
    found = []
    for _ in range(4):
        requests, cursor = tick(pipeline, cursor)
        found += requests
    assert [request.run_key for request in found] == [run.run_id for run in failed]
    assert [days_of_run(request.tags) for request in found] == [[day] for day in days[3:5]]
    assert run_job(pipeline, publication_job.name, days[3:5]).success
    assert tick(pipeline, cursor)[0] == []


def test_it_runs_before_a_backfill_as_the_daily_run_does(pipeline: Pipeline) -> None:
    definitions = pipeline.definitions()
    priorities = {
        name: definitions.resolve_job_def(name).tags[PRIORITY_TAG]
        for name in (daily_metrics_job.name, publication_job.name, retention_job.name)
    }
    assert priorities[publication_job.name] == priorities[daily_metrics_job.name] < priorities[retention_job.name]


def test_a_day_is_awaited_until_the_third_run_of_the_daily_job_has_failed_on_it(
    pipeline: Pipeline, yesterday: date
) -> None:
    days = span(yesterday - timedelta(days=9), yesterday)
    job = pipeline.definitions().resolve_job_def(daily_metrics_job.name)
    by_hand = pipeline.definitions().resolve_implicit_global_asset_job_def()

    def note(
        job: dg.JobDefinition,
        status: dg.DagsterRunStatus,
        days: Sequence[date],
        *assets: str,
        parent: str | None = None,
    ) -> str:
        """Note a run, and return its id. It is a re-execution if it has a parent."""
        run = pipeline.instance.create_run_for_job(
            job,
            status=status,
            tags=range_tags(days[0], days[-1]),
            asset_selection=frozenset(map(dg.AssetKey, assets)) or None,
            parent_run_id=parent,
            root_run_id=parent,
        )
        return run.run_id

    def awaited() -> list[date]:
        return sorted(days_awaited(pipeline.instance, {})[BROKEN])

    failed = dg.DagsterRunStatus.FAILURE
    for _ in range(FAILED_RUNS):
        note(by_hand, failed, days[:5], BROKEN)
        note(job, failed, days[:5], ALL[-1])
    check = dg.AssetCheckKey(dg.AssetKey(BROKEN), DOCUMENTED)
    tags = range_tags(days[0], days[4])
    pipeline.instance.add_run(
        dg.DagsterRun(job.name, status=failed, tags=tags, asset_check_selection=frozenset([check]))
    )
    assert awaited() == [], "nothing repeats a run by hand; another metric, or a check, is another matter"
    for tried, expected in (
        (days[:3], days[:3]),
        (days[:5], days[:5]),
        (days[1:3], [days[0], *days[3:5]]),
        (days[:1], days[3:5]),
        (days[3:5], days[3:5]),
    ):
        parent = note(job, failed, tried)
        note(job, failed, tried, parent=parent)
        assert awaited() == expected
    note(job, dg.DagsterRunStatus.NOT_STARTED, days)
    assert awaited() == days[3:], "a queued run does not bring back a day that was given up"


def test_a_nightly_run_gives_up_no_day_that_none_has_failed_on(pipeline: Pipeline, days: list[date]) -> None:
    """After six days off, the schedule could not ask which days are missing. So the run has its usual days only."""
    with clock_at(pipeline.settings, noon_of(pipeline.settings, days[2])):
        assert run_job(pipeline, daily_metrics_job.name, days[:2]).success
    assert run_job(pipeline, daily_metrics_job.name, days[-3:], nightly=True).success
    assert published(pipeline) == dict.fromkeys(DAILY_NAMES, days[:2])
    assert published(pipeline, "not_collected") == {}
    assert run_job(pipeline, daily_metrics_job.name, days[2:-3]).success, "the next night asks for them"
    assert published(pipeline) == dict.fromkeys(DAILY_NAMES, days[:-LOOKBACK_DAYS])


LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""


@pytest.mark.server
def test_the_real_daemon_publishes_after_a_failed_daily_run(pipeline: Pipeline, host: Host, days: list[date]) -> None:
    break_signups(host)
    instance = pipeline.instance
    port = free_port()

    def evaluated() -> bool:
        states = [s for s in instance.all_instigator_state() if s.instigator_name == publication_sensor.name]
        return any(instance.get_ticks(s.instigator_origin_id, s.selector_id, limit=1) for s in states)

    def of_the_sensor() -> list[dg.DagsterRun]:
        return list(instance.get_runs(dg.RunsFilter(tags={SENSOR_NAME_TAG: publication_sensor.name})))

    def published_after_it() -> bool:
        hurry(instance, publication_sensor.name)
        return any(run.is_finished for run in of_the_sensor())

    with dagster_dev(pipeline.settings, port, pipeline.settings.data_dir / "dagster.log") as process:
        wait_until_ready(process, port)
        wait_until(evaluated)
        selector = {
            "repositoryLocationName": "analytics_assets",
            "repositoryName": "__repository__",
            "jobName": daily_metrics_job.name,
        }
        tags = [{"key": key, "value": value} for key, value in range_tags(days[0], days[-1]).items()]
        params = {"selector": selector, "runConfigData": "{}", "executionMetadata": {"tags": tags}}
        launched = Webserver(f"http://{HOST}:{port}").query(LAUNCH, params=params)["launchRun"]["run"]["runId"]
        wait_until(published_after_it, seconds=2 * PATIENCE)
    (run,) = of_the_sensor()
    assert run.job_name == publication_job.name
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.tags["dagster/run_key"] == launched
    assert days_of_run(run.tags) == days
    closed = days[:-LOOKBACK_DAYS]
    assert published(pipeline) == {name: closed for name in DAILY_NAMES if name != BROKEN_NAME}
    collected = {asset for (asset,) in pipeline.sql("select distinct asset from analytics.collected_days")}
    assert collected == {*ALL} - {BROKEN}
