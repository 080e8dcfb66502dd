"""Missing days: what the schedule requests, that running it fills them, and the check that names them meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from analytics_assets.contract import FRICTION_PATH, metric
from analytics_assets.days import span
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.evaluation import NO_MISSING_DAYS, evaluate
from analytics_assets.defs.jobs import daily_metrics_job
from analytics_assets.defs.partitions import MARGIN_DAYS, daily_partitions, range_tags
from analytics_assets.defs.schedules import MAX_GAP_RUNS, Gap, choose
from analytics_assets.operations import Level
from analytics_assets.operations.runs import FAILED_RUNS, days_of_run
from analytics_assets.operations.status import read_status
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.setup import init_db
from analytics_assets_tests.support.clock import clock_at, noon_of, set_clock
from analytics_assets_tests.support.database import admin_url
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import (
    ALL,
    EVENT_FED,
    Pipeline,
    checks,
    failures,
    replace_day,
    run_check,
    tick,
)

LATE, *OTHERS = ALL


def note(settings: Settings, assets: Sequence[str], days: Sequence[date]) -> None:
    """Collect days without a count."""
    with open_store(settings) as store:
        for asset in assets:
            for day in days:
                replace_day(store, metric(asset), day, [])


def night(settings: Settings, today: date) -> list[dg.RunRequest]:
    """What the schedule requests at 01:15 of a day."""
    return tick(settings, datetime.combine(today, time(1, 15), ZoneInfo(settings.time_zone)).astimezone(UTC))


def asked(requests: Sequence[dg.RunRequest]) -> list[tuple[list[str], date, date]]:
    """Metrics (all of them, if none is named), first and last day of each request, in the order of running."""
    return [
        (
            [m.asset for m in map(metric, ALL) if dg.AssetKey(m.asset) in (request.asset_selection or ())],
            days_of_run(request.tags)[0],
            days_of_run(request.tags)[-1],
        )
        for request in requests
    ]


def play(pipeline: Pipeline, requests: Sequence[dg.RunRequest]) -> list[dg.ExecuteInProcessResult]:
    """Run what was requested."""
    job = pipeline.definitions().resolve_job_def(daily_metrics_job.name)
    return [
        job.execute_in_process(
            instance=pipeline.instance,
            tags=request.tags,
            asset_selection=request.asset_selection,
            raise_on_error=False,
        )
        for request in requests
    ]


def collected(pipeline: Pipeline, asset: str) -> list[date]:
    query = "select event_date from analytics.collected_days where asset = :asset order by 1"
    return [day for (day,) in pipeline.sql(query, asset=asset)]


@pytest.mark.parametrize("off", [8, 100])
def test_after_days_off_one_run_collects_and_publishes_every_day(pipeline: Pipeline, host: Host, off: int) -> None:
    settings = pipeline.settings
    today = settings.today()
    days = span(today - timedelta(days=off + 3), today - timedelta(days=1))
    for day in days:
        host.occur("signups", moments(day, settings.time_zone, 5))
    with clock_at(settings, noon_of(settings, today - timedelta(days=off))):
        assert all(result.success for result in play(pipeline, night(settings, today - timedelta(days=off))))
    assert collected(pipeline, "event_signups") == days[:3]
    red = run_check(pipeline, "event_signups", NO_MISSING_DAYS)
    assert not red.passed
    assert red.severity is dg.AssetCheckSeverity.ERROR
    assert f"- {days[3]} to {days[-1]}\n" in (red.description or "")
    assert red.metadata["missing days"].value == off

    requests = night(settings, today)
    assert asked(requests) == [([], days[3], days[-1])]
    (result,) = play(pipeline, requests)
    assert result.success
    for asset in ALL:
        assert collected(pipeline, asset) == days
        assert checks(pipeline, result, asset)[NO_MISSING_DAYS].passed
    assert {sum(pipeline.stored("event_signups", day).values()) for day in days} == {5}
    states = pipeline.sql("select event_date, state from published.days where event_name = 'event_signup' order by 1")
    assert states == [(day, "published") for day in days[:-2]]


def test_a_day_that_another_run_stores_meanwhile_is_not_missing(settings: Settings, yesterday: date) -> None:
    """That run is in progress when the days are read, and has ended when runs are looked for."""
    note(settings, ALL, [yesterday - timedelta(days=2), yesterday])

    def end_the_other_run() -> dict[str, set[date]]:
        note(settings, [LATE], [yesterday - timedelta(days=1)])
        return {}

    with open_store(settings) as store:
        for in_progress, passed in ((dict, False), (end_the_other_run, True)):
            (result,) = evaluate(
                store, metric(LATE), [yesterday], run_id="", names=[NO_MISSING_DAYS], in_progress=in_progress
            )
            assert result.passed is passed


def test_a_metric_that_lags_is_selected_alone_and_metrics_that_lack_the_same_are_one_run(
    pipeline: Pipeline, yesterday: date
) -> None:
    settings = pipeline.settings
    days = span(yesterday - timedelta(days=11), yesterday)
    late = [LATE, OTHERS[2]]
    note(settings, OTHERS, days[:1])
    note(settings, [asset for asset in ALL if asset not in late], days)
    note(settings, late, [*days[:2], *days[4:6]])
    note(settings, [LATE], [days[6]])
    requests = night(settings, settings.today())
    assert asked(requests) == [
        ([LATE], days[7], days[8]),
        ([OTHERS[2]], days[6], days[8]),
        (late, days[2], days[3]),
        ([], days[9], days[11]),
    ]
    for request in requests[:-1]:
        assert request.asset_selection
        assert request.asset_selection[-1] == dg.AssetKey(FRICTION_PATH)
    assert run_check(pipeline, OTHERS[0], NO_MISSING_DAYS).passed
    text = run_check(pipeline, LATE, NO_MISSING_DAYS).description or ""
    assert text.startswith(f"- {days[2]} to {days[3]}\n- {days[7]} to {days[11]}\n")

    results = play(pipeline, requests)
    assert [result.success for result in results] == [True] * 4
    assert not checks(pipeline, results[0], LATE)[NO_MISSING_DAYS].passed
    assert checks(pipeline, results[-1], LATE)[NO_MISSING_DAYS].passed
    assert collected(pipeline, LATE) == collected(pipeline, OTHERS[2]) == days
    assert checks(pipeline, results[0], OTHERS[0]) == {}
    assert asked(night(settings, settings.today())) == [([], days[9], days[11])]


def test_a_refused_day_is_requested_again_every_night_until_it_is_collected(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    settings = pipeline.settings
    asset = "event_signups"
    bad, today = yesterday - timedelta(days=5), settings.today()
    note(settings, ALL, [day for day in span(bad - timedelta(days=1), yesterday) if day != bad])
    note(settings, [other for other in ALL if other != asset], [bad])
    host.occur("signups", moments(bad, settings.time_zone, 2), event_id="canary")

    keys = set()
    for n in range(3):
        first, daily = night(settings, today + timedelta(days=n))
        assert asked([first]) == [([asset], bad, bad)]
        keys |= {first.run_key, daily.run_key}
    refused = play(pipeline, night(settings, today))[0]
    assert asset in failures(refused)
    assert (checks(pipeline, refused, asset)[NO_MISSING_DAYS].description or "").startswith(f"- {bad}\n")
    assert len(keys) == 6, "no night is taken for another"
    assert {request.run_key for request in night(settings, today)} < keys, "the same night is asked for once"

    host.sql("delete from signups where event_id = 'canary'")
    assert all(result.success for result in play(pipeline, night(settings, today)))
    assert run_check(pipeline, asset, NO_MISSING_DAYS).passed
    assert len(night(settings, today)) == 1


def test_one_night_requests_at_most_ten_ranges_and_the_others_take_turns(settings: Settings, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=63), yesterday)
    note(settings, ["event_signups"], days[::2])
    note(settings, ["event_signups"], days[-3:])
    missing = set(days[1:-3:2])
    tried: set[date] = set()
    nights = 0
    while tried != missing:
        *gaps, daily = asked(night(settings, settings.today() + timedelta(days=nights)))
        found = [first for _, first, _ in gaps]
        assert len(found) == len(set(found)) == MAX_GAP_RUNS
        assert found == sorted(found, reverse=True), "newest first"
        assert max(missing) in found
        assert daily[0] == []
        tried |= set(found)
        nights += 1
        assert nights <= len(missing)
    assert nights <= 7, "five of the older ones a night"


def test_up_to_the_bound_every_range_is_requested() -> None:
    gaps = [Gap(day, day, [LATE]) for day in reversed(span(date(2026, 3, 1), date(2026, 3, 30)))]
    for number in range(MAX_GAP_RUNS + 1):
        assert choose(gaps[:number], date(2026, 4, 1)) == gaps[:number]
    assert len(choose(gaps[: MAX_GAP_RUNS + 1], date(2026, 4, 1))) == MAX_GAP_RUNS


@pytest.mark.parametrize(
    ("time_zone", "change"),
    [
        ("Europe/Berlin", date(2026, 3, 29)),
        ("Europe/Berlin", date(2026, 10, 25)),
        ("America/Santiago", date(2026, 9, 6)),  # midnight is missing
        ("America/Havana", date(2026, 11, 1)),  # midnight comes twice
    ],
)
def test_a_gap_across_a_change_of_the_clocks_is_one_range(settings: Settings, time_zone: str, change: date) -> None:
    settings = replace(settings, time_zone=time_zone)
    today = change + timedelta(days=5)
    # Before the zone, because days that have expired by today's clock would stay so.
    set_clock(settings, noon_of(settings, today))
    init_db(admin_url(settings), settings)
    start = change - timedelta(days=3)
    note(settings, ALL, [start])
    last = today - timedelta(days=1)
    assert asked(night(settings, today)) == [([], start + timedelta(days=1), last)]
    note(settings, OTHERS, span(start, last))
    assert asked(night(settings, today)) == [
        ([LATE], start + timedelta(days=1), last - timedelta(days=3)),
        ([], last - timedelta(days=2), last),
    ]


def test_a_new_metric_is_not_collected_for_days_before_it_was_there(settings: Settings, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=8), yesterday)
    note(settings, OTHERS, days[:2])
    assert asked(night(settings, settings.today())) == [(OTHERS, days[2], days[5]), ([], days[6], days[8])]


NOWHERE = "postgresql+psycopg2://someone:canary@/nowhere?host=/nowhere"


@pytest.mark.parametrize("change", [{"database_url": None}, {"database_url": NOWHERE}, {"retention_days": 90}])
def test_without_the_database_the_daily_run_is_requested_and_the_tick_says_what_is_not(
    settings: Settings, yesterday: date, capfd: pytest.CaptureFixture[str], change: dict[str, object]
) -> None:
    note(settings, ALL, [yesterday - timedelta(days=9)])
    away = replace(settings, **change)  # type: ignore[arg-type]
    assert asked(night(away, settings.today())) == [([], yesterday - timedelta(days=2), yesterday)]
    said = capfd.readouterr().err
    assert "missing days are not requested tonight, only the daily run: " in said
    assert "canary" not in said
    with Pipeline.open(replace(away, dagster_url=settings.dagster_url)) as pipeline:
        (result,) = play(pipeline, night(away, settings.today()))
        assert set(failures(result)) >= set(ALL), "the run is red"


def queue(pipeline: Pipeline, asset: str, first: date, last: date, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """A run of another process, that waits or works."""
    job = pipeline.definitions().resolve_job_def(daily_metrics_job.name)
    return pipeline.instance.create_run_for_job(
        job, status=status, tags=range_tags(first, last), asset_selection=frozenset([dg.AssetKey(asset)])
    )


def test_a_day_that_a_run_is_the_first_to_try_is_not_missing(pipeline: Pipeline, yesterday: date) -> None:
    def found(asset: str) -> tuple[str, ...]:
        """The missing days that `status` and the check agree on."""
        passed = run_check(pipeline, asset, NO_MISSING_DAYS).passed
        repository = pipeline.definitions().get_repository_def()
        lines = {line.key: line for line in read_status(pipeline.settings, pipeline.instance, repository)}
        line = lines[f"days: {asset}"]
        assert (line.level is Level.OK) is passed is (not line.facts)
        return line.facts

    days = span(yesterday - timedelta(days=5), yesterday)
    lacking = tuple(map(str, days[1:-1]))
    note(pipeline.settings, ALL, [days[0], days[-1]])
    assert found(LATE) == lacking
    for status in (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED):
        run = queue(pipeline, LATE, days[1], days[-2], status)
        assert found(LATE) == ()
        assert found(OTHERS[0]) == lacking, "it is about another metric"
        pipeline.instance.delete_run(run.run_id)
    queue(pipeline, LATE, days[1], days[2], dg.DagsterRunStatus.STARTED)
    assert found(LATE) == lacking[2:]
    assert (run_check(pipeline, LATE, NO_MISSING_DAYS).description or "").startswith(f"- {days[3]} to {days[-2]}\n")
    queue(pipeline, LATE, days[2], days[2], dg.DagsterRunStatus.FAILURE)
    assert found(LATE) == lacking[1:], "a day that was refused is tried every night"


def test_publishing_waits_for_a_day_that_a_run_is_about_to_collect_until_three_have_failed(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    asset = EVENT_FED[0]
    days = span(yesterday - timedelta(days=9), yesterday)
    note(pipeline.settings, ALL, days[:3])
    note(pipeline.settings, [other for other in ALL if other != asset], days)
    daily = [dg.RunRequest(tags=range_tags(days[-3], days[-1]))]

    def published(name: str) -> list[date]:
        query = "select event_date from published.days where event_name = :name order by 1"
        return [day for (day,) in pipeline.sql(query, name=name)]

    waiting = queue(pipeline, asset, days[3], days[6], dg.DagsterRunStatus.NOT_STARTED)
    assert all(result.success for result in play(pipeline, daily))
    assert published("event_signup") == days[:3]
    assert published("directory_searched") == days[:-2], "another metric does not wait"
    pipeline.instance.delete_run(waiting.run_id)

    host.occur("signups", moments(days[4], pipeline.settings.time_zone, 1), event_id="canary")
    gap = dg.RunRequest(tags=range_tags(days[3], days[6]), asset_selection=[dg.AssetKey(asset)])
    for failed in range(1, FAILED_RUNS + 1):
        (refused,) = play(pipeline, [gap])
        assert set(failures(refused)) == {asset}
        assert all(result.success for result in play(pipeline, daily))
        assert published("event_signup") == (days[:4] if failed < FAILED_RUNS else days[:-2])
    states = pipeline.sql("select event_date from published.days where state = 'not_collected'")
    assert states == [(days[4],)]


def test_a_backfill_of_every_kept_day_survives_a_reload_on_a_later_day(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = settings.today()
    kept = {str(day) for day in span(today - timedelta(days=settings.retention_days), today - timedelta(days=1))}
    for late in range(MARGIN_DAYS + 1):
        monkeypatch.setattr(Settings, "today", lambda _, late=late: today + timedelta(days=late))
        assert kept <= set(daily_partitions(settings).get_partition_keys())
    monkeypatch.setattr(Settings, "today", lambda _: today + timedelta(days=MARGIN_DAYS + 1))
    assert min(kept) not in daily_partitions(settings).get_partition_keys()


def test_every_metric_has_the_check() -> None:
    found = build_definitions(Settings.from_env({})).resolve_asset_graph().asset_check_keys
    assert {key.asset_key.to_user_string() for key in found if key.name == NO_MISSING_DAYS} == set(ALL)
