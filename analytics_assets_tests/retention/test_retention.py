"""Retention end to end: real days, really collected, under a clock that is set forward."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.contract import RETENTION_DAYS
from analytics_assets.days import bounds, span
from analytics_assets.defs.evaluation import AT_SOURCE, CHECK_NAMES, NO_MISSING_DAYS
from analytics_assets.defs.sensors import retention_sensor
from analytics_assets.publication.publish import publish_closed
from analytics_assets.retention.sweep import MANUAL, apply_retention
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.setup import init_db
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import admin_url
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, Pipeline, checks, failures
from analytics_assets_tests.support.retention import TARGETS, collected, dagster, ledger


def said_of(pipeline: Pipeline, day: date) -> list[str]:
    """Where Dagster's event log still has something of a day."""
    found = dagster(
        pipeline,
        """
        select 'event of partition' from event_logs where partition = :day union all
        select 'event' from event_logs where dagster_event_type in ('ASSET_MATERIALIZATION', 'ASSET_CHECK_EVALUATION')
            and event like '%' || :day || '%' union all
        select 'tag' from asset_event_tags where value = :day
            or not exists (select from event_logs where id = event_id) union all
        select 'check' from asset_check_executions where partition = :day or evaluation_event like '%' || :day || '%'
            union all
        select 'asset' from asset_keys where last_materialization like '%' || :day || '%'
            or cached_status_data like '%' || :day || '%'
        """,
        day=str(day),
    )
    return [what for (what,) in found]


def tick(pipeline: Pipeline, cursor: str | None = None) -> tuple[dg.RunRequest | dg.SkipReason, str | None]:
    """One evaluation of the sensor: its result, and the cursor that it leaves."""
    context = dg.build_sensor_context(
        instance=pipeline.instance, resources={"settings": pipeline.settings}, cursor=cursor
    )
    result = retention_sensor(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result, context.cursor


def test_a_day_is_kept_for_180_days_and_then_leaves_every_target(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    settings = pipeline.settings
    days = span(yesterday - timedelta(days=2), yesterday)
    fill(host, settings, days)
    assert pipeline.run(ALL, days[0], days[-1]).success
    with open_store(settings) as store:
        assert len(publish_closed(store)) == 3, "event names; of the weeks none is closed"
    assert pipeline.retain().success
    assert collected(pipeline) == set(days)
    today = settings.today()
    oldest = [*[days[0]] * 4, None, days[0], None, days[0], yesterday, today, today, None]
    assert ledger(pipeline) == {target: (0, 0, day) for target, day in zip(TARGETS, oldest, strict=True)}

    # The oldest of the three is now 181 days old, the others 180 and 179.
    set_clock(settings, noon_of(settings, days[0] + timedelta(days=181)))
    assert pipeline.retain().success
    assert collected(pipeline) == set(days[1:])
    assert ledger(pipeline)["daily counts"] == (1, 7, days[1])
    assert ledger(pipeline)["collected days"] == (1, 6, days[1])
    assert ledger(pipeline)["published days"] == (1, 2 + 3 + 3, None), "steps, states, notes"
    assert ledger(pipeline)["published carries"] == (1, 3, None)
    assert ledger(pipeline)["counter dumps"] == (1, 1, days[1])
    assert ledger(pipeline)["partition records"][::2] == (1, days[1])
    assert said_of(pipeline, days[0]) == []
    assert said_of(pipeline, days[1])

    # Now everything is older, all runs included, so none must remove itself.
    set_clock(settings, noon_of(settings, yesterday + timedelta(days=400)))
    _, reports = apply_retention(settings, pipeline.instance, MANUAL)
    assert not any(report.problem for report in reports)
    assert collected(pipeline) == set()
    for day in days:
        assert said_of(pipeline, day) == []
    assert {oldest for _, _, oldest in ledger(pipeline).values()} == {None}
    for table in ("runs", "run_tags", "event_logs", "asset_event_tags", "asset_check_executions"):
        assert dagster(pipeline, f"table {table}") == []
    assert list(pipeline.settings.data_dir.glob("dagster/storage/*")) == []


def test_a_gap_of_thirty_days_without_any_run(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    days = span(yesterday - timedelta(days=32), yesterday)
    fill(host, settings, days[:2])
    fill(host, settings, days[-3:])
    for day in days[2:-3]:
        (settings.dump_dir / str(day)).mkdir()
    assert pipeline.run(ALL, days[0], days[-1]).success
    assert isinstance(tick(pipeline)[0], dg.SkipReason)

    set_clock(settings, noon_of(settings, days[-3] + timedelta(days=180)))
    request, _ = tick(pipeline)
    assert isinstance(request, dg.RunRequest)
    assert request.run_key == str(days[-3])
    assert request.run_config["ops"]["remove_expired_days"]["config"]["dry_run"] is False
    assert pipeline.retain().success
    assert collected(pipeline) == set(days[-3:])
    assert ledger(pipeline)["daily counts"][:2] == (30, 14)
    skipped, _ = tick(pipeline)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == f"nothing is older than the cut-off, {days[-3]}"


def test_a_hand_launch_shows_what_would_go_and_removes_nothing(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    fill(host, settings, [yesterday])
    assert pipeline.run(ALL, yesterday).success
    set_clock(settings, noon_of(settings, yesterday + timedelta(days=181)))
    job = pipeline.retain(dry_run=True)
    assert job.success
    (output,) = [event for event in job.all_node_events if event.event_type_value == "STEP_OUTPUT"]
    shown = output.step_output_data.metadata
    assert shown["first day kept"].value == str(yesterday + timedelta(days=1))
    assert "| daily counts | 1 | 7 |" in str(shown["would be removed"].value)
    assert "| counter dumps | 1 | 1 |" in str(shown["would be removed"].value)
    assert collected(pipeline) == {yesterday}
    assert pipeline.sql("select * from analytics.retention_ledger") == []


@pytest.mark.parametrize(
    ("midnight", "hours"),
    [
        # After the day on which the clock skips an hour, the one on which it repeats one, and a usual one.
        ("2026-03-29T22:00:00Z", 23),
        ("2026-10-25T23:00:00Z", 25),
        ("2026-07-01T22:00:00Z", 24),
    ],
)
def test_a_day_expires_at_local_midnight(settings: Settings, midnight: str, hours: int) -> None:
    berlin = replace(settings, time_zone="Europe/Berlin")
    set_clock(settings, datetime(2025, 1, 1, tzinfo=UTC))  # or the floor, which never sinks, would be above
    init_db(admin_url(settings), berlin)
    end = datetime.fromisoformat(midnight)
    over = end.astimezone(ZoneInfo("Europe/Berlin")).date() - timedelta(days=1)
    assert bounds(over, "Europe/Berlin") == (end - timedelta(hours=hours), end)
    with open_store(berlin) as store:
        set_clock(berlin, end - timedelta(microseconds=1))
        assert read_window(store).first == over - timedelta(days=180)
        set_clock(berlin, end)
        assert read_window(store).first == over - timedelta(days=179)


def test_a_range_that_has_expired_in_part(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    days = span(yesterday - timedelta(days=3), yesterday)
    fill(host, settings, days)
    host.occur("signups", [noon_of(settings, days[0]), noon_of(settings, days[3])], event_id="canary")
    result = pipeline.run(["event_signups"], days[0], days[-1])
    assert pipeline.materialized("event_signups") == set(days[1:3])
    assert str(days[0]) in (checks(pipeline, result, "event_signups")[AT_SOURCE].description or "")

    set_clock(settings, noon_of(settings, days[2] + timedelta(days=180)))
    assert (
        "expired: the first day that is kept"
        in failures(pipeline.run(["consent_changes"], days[0], days[-1]))["consent_changes"]
    )
    assert pipeline.materialized("consent_changes") == set(days[2:])
    assert pipeline.retain().success
    assert pipeline.materialized("event_signups") == {days[2]}
    assert pipeline.materialized("consent_changes") == set(days[2:])
    for day in days[:2]:
        assert said_of(pipeline, day) == []
    found = checks(pipeline, pipeline.run(["directory_searches"], days[2], days[3]), "directory_searches")
    # The clock was set forward, so the days since have not been collected.
    assert {name for name, evaluation in found.items() if not evaluation.passed} == {NO_MISSING_DAYS}
    assert set(found) == set(CHECK_NAMES)


def test_the_copy_of_the_newest_materialization_follows(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    days = span(yesterday - timedelta(days=1), yesterday)
    fill(host, settings, days)
    key = dg.AssetKey("event_signups")
    for day in (days[1], days[0]):
        assert pipeline.run(["event_signups"], day).success

    def newest() -> str | None:
        event = pipeline.instance.get_latest_materialization_event(key)
        return event.get_dagster_event().partition if event else None

    assert newest() == str(days[0])
    set_clock(settings, noon_of(settings, days[1] + timedelta(days=180)))
    assert pipeline.retain().success
    assert newest() == str(days[1])
    set_clock(settings, noon_of(settings, days[1] + timedelta(days=181)))
    assert pipeline.retain().success
    assert newest() is None


def test_a_shorter_period_takes_effect_and_a_longer_one_revives_nothing(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    settings = pipeline.settings
    days = span(yesterday - timedelta(days=9), yesterday)
    fill(host, settings, days)
    assert pipeline.run(ALL, days[0], days[-1]).success

    def keep(retention_days: int) -> Pipeline:
        changed = replace(settings, retention_days=retention_days)
        assert "init-db" in failures(replace(pipeline, settings=changed).retain())["remove_expired_days"]
        init_db(admin_url(settings), changed)
        return replace(pipeline, settings=changed)

    shorter = keep(5)
    assert isinstance(tick(shorter)[0], dg.RunRequest)
    assert shorter.retain().success
    assert collected(shorter) == set(days[-5:])

    longer = keep(RETENTION_DAYS)
    assert isinstance(tick(longer)[0], dg.SkipReason)
    refused = failures(longer.run(["event_signups"], days[0], days[-1]))["event_signups"]
    assert f"5 of 10 days were not stored:\\n- {days[0]} to {days[4]}: expired: the first day that is kept" in refused
    assert collected(longer) == set(days[-5:])
    # As time goes on, the longer period is reached again.
    set_clock(settings, noon_of(settings, days[5] + timedelta(days=180)))
    with open_store(longer.settings) as store:
        assert read_window(store).first == days[5]


def test_shortening_and_lengthening_between_two_runs_revives_nothing_either(settings: Settings) -> None:
    for period in (3, RETENTION_DAYS, 30):
        init_db(admin_url(settings), replace(settings, retention_days=period))
        with open_store(replace(settings, retention_days=period)) as store:
            assert read_window(store).first == settings.today() - timedelta(days=3)


def test_the_sensor_runs_by_default_and_requests_one_run_per_cutoff(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    sensor = pipeline.definitions().get_repository_def().get_sensor_def(retention_sensor.name)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    fill(host, pipeline.settings, [yesterday])
    assert pipeline.run(ALL, yesterday).success
    set_clock(pipeline.settings, noon_of(pipeline.settings, yesterday + timedelta(days=181)))
    cutoff = yesterday + timedelta(days=1)
    # Dagster launches one run per key, so that a lost cursor launches no second one.
    (first, cursor), (again, _) = tick(pipeline), tick(pipeline)
    assert isinstance(first, dg.RunRequest)
    assert isinstance(again, dg.RunRequest)
    assert first.run_key == again.run_key == cursor == str(cutoff)
    assert isinstance(tick(pipeline, cursor)[0], dg.SkipReason)
    assert collected(pipeline) == {yesterday}, "looking removes nothing"
    set_clock(pipeline.settings, noon_of(pipeline.settings, yesterday + timedelta(days=182)))
    following, moved = tick(pipeline, cursor)
    assert isinstance(following, dg.RunRequest)
    assert following.run_key == moved == str(cutoff + timedelta(days=1))


def test_a_tick_with_nothing_new_costs_one_query(pipeline: Pipeline) -> None:
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        # The driver's own first questions are asked of the catalog.
        if "analytics" in statement or "event_logs" in statement:
            asked.append(statement)

    _, cursor = tick(pipeline)
    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        tick(pipeline, cursor)
        once = len(asked)
        tick(pipeline)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert once == 1
    assert len(asked) > 2, "a tick with a new cut-off asks every target"


def test_the_writer_can_neither_lose_a_day_that_is_kept_nor_keep_one_that_has_expired(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    fill(host, pipeline.settings, [yesterday])
    assert pipeline.run(ALL, yesterday).success
    first = pipeline.settings.today() - timedelta(days=180)
    for statement, reason in (
        (f"select analytics.drop_day('{yesterday}')", "only a day past the retention period can be dropped"),
        (f"select analytics.drop_day('{first}')", "only a day past the retention period can be dropped"),
        (f"select analytics.forget_days('{first + timedelta(days=1)}')", "only days past the retention period"),
        (f"select analytics.create_days('{first - timedelta(days=1)}')", "only a finished day inside the retention"),
        (
            f"insert into analytics.collected_days values ('event_signups', '{first - timedelta(days=1)}', 0, now())",  # noqa: S608
            "only a day inside the retention period can be kept",
        ),
        ("update analytics.collected_days set event_date = '2020-01-01'", "permission denied"),
        ("drop table analytics.daily_event_counts", "must be owner"),
    ):
        with pytest.raises(sa.exc.DBAPIError, match=reason):
            pipeline.sql(statement)
    assert collected(pipeline) == {yesterday}
