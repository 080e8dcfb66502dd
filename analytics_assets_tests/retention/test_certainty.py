"""A wrong clock removes nothing: a cut-off that time cannot have moved waits for a person."""

from dataclasses import replace
from datetime import date, timedelta

import dagster as dg
import pytest

from analytics_assets.database import DatabaseError
from analytics_assets.defs.checks import CUTOFF_IS_CERTAIN, NO_EXPIRED_DAYS, check_expired_days
from analytics_assets.defs.sensors import retention_sensor
from analytics_assets.local.server import set_up
from analytics_assets.publication.publish import publish_closed
from analytics_assets.retention.sweep import MANUAL, apply_retention
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.store import open_store
from analytics_assets.store.expiry import UncertainError, confirm_cutoff, read_cutoff
from analytics_assets.store.setup import init_db
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import admin_url, as_superuser
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, LEDGER, Pipeline, checks, failures, run_check
from analytics_assets_tests.support.retention import collected


def jump(settings: Settings, days: int) -> date:
    """Set the database's clock wrong by a number of days. Returns the cut-off by it."""
    today = settings.today() + timedelta(days=days)
    set_clock(settings, noon_of(settings, today), time_has_passed=False)
    return today - timedelta(days=settings.retention_days)


def tick(pipeline: Pipeline, cursor: str | None) -> tuple[dg.RunRequest | dg.SkipReason, str | None]:
    """One evaluation of the sensor: its result, and the cursor that it leaves."""
    context = dg.build_sensor_context(
        instance=pipeline.instance, resources={"settings": pipeline.settings}, cursor=cursor
    )
    result = retention_sensor(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result, context.cursor


def latest(pipeline: Pipeline) -> list[bool]:
    """Whether the check passed, of each evaluation that the sensor or the job has reported, oldest first."""
    key = dg.AssetCheckKey(dg.AssetKey(LEDGER.split("/")), CUTOFF_IS_CERTAIN)
    records = pipeline.instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
    return [record.status.value == "SUCCEEDED" for record in reversed(records)]


def certain(settings: Settings) -> bool:
    with open_store(settings) as store:
        return read_cutoff(store).doubt is None


def test_a_clock_that_is_a_year_ahead_for_a_while_removes_nothing(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    settings = pipeline.settings
    days = [yesterday - timedelta(days=1), yesterday]
    fill(host, settings, days)
    assert pipeline.run(ALL, *days).success
    _, cursor = tick(pipeline, None)

    cutoff = jump(settings, 365)
    said, uncertain = tick(pipeline, cursor)
    assert isinstance(said, dg.SkipReason)
    assert f"`analytics-assets retention --confirm-cutoff {cutoff}`" in (said.skip_message or "")
    assert f"{settings.today()} by this machine's" in (said.skip_message or "")
    assert latest(pipeline) == [False]
    again, _ = tick(pipeline, uncertain)
    assert isinstance(again, dg.SkipReason)
    assert latest(pipeline) == [False], "once"

    assert "has moved 364 days further than time can have passed" in failures(pipeline.retain())["remove_expired_days"]
    assert pipeline.retain(dry_run=True).success
    assert not run_check(pipeline, LEDGER, CUTOFF_IS_CERTAIN).passed
    assert run_check(pipeline, LEDGER, NO_EXPIRED_DAYS).passed, "what a wrong clock calls expired is not"
    with pytest.raises(UncertainError):
        apply_retention(settings, pipeline.instance, MANUAL)
    # A run of days that the wrong clock calls expired does not forget their records either.
    assert not pipeline.run(ALL, *days).success
    with open_store(settings) as store, pytest.raises(UncertainError):
        publish_closed(store)
    assert collected(pipeline) == set(days)

    jump(settings, 0)
    said, _ = tick(pipeline, uncertain)
    assert isinstance(said, dg.SkipReason)
    assert latest(pipeline)[-1] is True, "green again by itself"
    assert pipeline.retain().success
    assert collected(pipeline) == set(days)


def test_a_person_confirms_the_date_that_is_shown_and_no_other(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    fill(host, settings, [yesterday])
    assert pipeline.run(ALL, yesterday).success
    cutoff = jump(settings, 200)
    _, cursor = tick(pipeline, None)
    with open_store(settings) as store:
        for wrong in (cutoff - timedelta(days=1), cutoff + timedelta(days=1)):
            with pytest.raises(DatabaseError, match=f"the date is not the cut-off, which is {cutoff}"):
                confirm_cutoff(store, wrong)
        assert read_cutoff(store).doubt
        confirm_cutoff(store, cutoff)
        assert read_cutoff(store).doubt is None
    request, _ = tick(pipeline, cursor)
    assert isinstance(request, dg.RunRequest)
    assert latest(pipeline) == [False, True]
    apply_retention(settings, pipeline.instance, MANUAL)  # not a run, which would remove its own record
    assert collected(pipeline) == set()


@pytest.mark.parametrize(("days", "expected"), [(-30, True), (0, True), (1, True), (2, False), (30, False)])
def test_how_far_a_cutoff_may_move_at_once(pipeline: Pipeline, days: int, expected: bool) -> None:
    """One day may be a midnight; two may not."""
    assert pipeline.retain().success
    jump(pipeline.settings, days)
    assert certain(pipeline.settings) is expected


@pytest.mark.parametrize("days", [1, 8, 100, 400])
def test_an_outage_needs_nobody(pipeline: Pipeline, days: int) -> None:
    settings = pipeline.settings
    assert pipeline.retain().success
    set_clock(settings, noon_of(settings, settings.today() + timedelta(days=days)))
    assert certain(settings)
    apply_retention(settings, pipeline.instance, MANUAL)


def test_time_is_what_has_passed_by_both_clocks(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database whose clock is wrong agrees with its own ledger. The pipeline's machine tells."""
    settings = pipeline.settings
    assert pipeline.retain().success
    today = settings.today()
    set_clock(settings, noon_of(settings, today + timedelta(days=90)))
    assert certain(settings)
    # As this machine has it if the database's clock, and so the ledger, is 90 days ahead.
    monkeypatch.setattr(Settings, "today", lambda _: today - timedelta(days=90))
    assert not certain(settings)


def test_a_period_changed_in_sql_waits_for_a_person(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    """Not by init-db, so that nobody was told what goes."""
    days = [yesterday - timedelta(days=40), yesterday]
    fill(host, pipeline.settings, days)
    for day in days:
        assert pipeline.run(ALL, day).success
    as_superuser(pipeline.settings, "update analytics.settings set retention_days = 7")
    shorter = replace(pipeline, settings=replace(pipeline.settings, retention_days=7))
    assert "further than time can have passed" in failures(shorter.retain())["remove_expired_days"]
    assert collected(shorter) == set(days)


def test_a_change_of_the_settings_is_known(settings: Settings) -> None:
    shorter = replace(settings, retention_days=7)
    init_db(admin_url(settings), shorter)
    assert certain(shorter)
    init_db(admin_url(settings), settings)
    assert certain(settings)


def test_new_settings_do_not_confirm_a_wrong_clock(settings: Settings) -> None:
    longer = replace(settings, retention_days=settings.retention_days + 100)
    jump(settings, 365)
    with pytest.raises(SettingsError, match="the settings cannot be changed now: the cut-off is"):
        set_up(admin_url(settings), longer)
    jump(settings, 0)
    set_up(admin_url(settings), longer)
    with open_store(longer) as store:
        assert read_cutoff(store).doubt is None


def test_an_upgrade_takes_the_ledger_s_word(settings: Settings) -> None:
    """The columns are new: their first values are the last entry's."""
    as_superuser(
        settings,
        "insert into analytics.retention_ledger (run_id, cutoff, target, days, rows, removed_at)"
        " values ('x', analytics.first_kept_day() - 3, 'x', 0, 0, now() - interval '3 days')",
        "alter table analytics.settings drop column cutoff, drop column cutoff_at",
        "drop function analytics.confirm_cutoff",
        "update analytics.alembic_version set version_num = '0007'",
    )
    with open_store(settings) as store, pytest.raises(DatabaseError, match="of an earlier version: run `analytics-"):
        read_cutoff(store)
    init_db(admin_url(settings), settings)
    with open_store(settings) as store:
        found = read_cutoff(store)
    assert found.doubt is None
    assert found.furthest == found.day + timedelta(days=1)


def test_the_check_of_expired_days_still_finds_what_is_expired_for_certain(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    (settings.dump_dir / "2020-01-01").mkdir()
    jump(settings, 365)
    with open_store(settings) as store:
        assert not check_expired_days(store, pipeline.instance).passed


def test_the_daily_job_has_the_check(pipeline: Pipeline) -> None:
    job = pipeline.definitions().resolve_job_def("daily_metrics_job")
    keys = job.asset_layer.asset_graph.asset_check_keys
    assert dg.AssetCheckKey(dg.AssetKey(LEDGER.split("/")), CUTOFF_IS_CERTAIN) in keys


def test_what_the_job_reports_is_recorded(pipeline: Pipeline) -> None:
    jump(pipeline.settings, 365)
    result = pipeline.retain()
    assert not result.success
    assert latest(pipeline) == [False]
    assert not checks(pipeline, result, LEDGER), "of no run: it is not a check of the job"
