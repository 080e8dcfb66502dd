"""A clean day, from both kinds of source to the tables, the checks and Dagster's records."""

from dataclasses import replace
from datetime import date, timedelta

import pytest
import sqlalchemy as sa

from analytics_assets.contract import metric
from analytics_assets.database import DatabaseError
from analytics_assets.days import bounds, span
from analytics_assets.defs.collect import _CHUNK_ROWS, CollectConfig, _collect_days
from analytics_assets.defs.evaluation import CHECK_NAMES
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, Reader
from analytics_assets.sources.app_views import CHUNK_DAYS
from analytics_assets.store import open_store
from analytics_assets.store.counts import Stored, read_collected_days, read_window, replace_days
from analytics_assets.store.gaps import missing_days
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.database import event
from analytics_assets_tests.support.host import Host, last_moment, moments
from analytics_assets_tests.support.pipeline import ALL, Pipeline, checks, everything_said, replace_day


def test_a_day_of_every_metric(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    zone = pipeline.settings.time_zone
    host.occur("signups", moments(yesterday, zone, 5), event_id="7")
    host.occur("signups", [last_moment(yesterday, zone)], event_id="7", source=None)
    host.occur("signups", [bounds(yesterday, zone)[1]], event_id="7")
    host.occur("visibility", moments(yesterday, zone, 3), source="admin")
    host.occur("consent", moments(yesterday, zone, 4), turned_on=True)
    host.occur("consent", moments(yesterday, zone, 2), turned_on=False)
    noon = moments(yesterday, zone, 2)[1].timestamp()
    with Telemetry(pipeline.settings.dump_dir, time_zone=zone, clock=lambda: noon) as telemetry:
        telemetry.count("directory_page_viewed", event_id=7, source="web", times=9)
        telemetry.count("directory_searched", event_id=7)
        telemetry.count_response("GET", "/events/{event_id}", 200, times=30)
        telemetry.count_response("GET", "/events/{event_id}", 500, times=10)

    result = pipeline.run(ALL, yesterday)

    assert result.success
    assert pipeline.stored("event_signups", yesterday) == {
        ("event_signup", "7", "web"): 5,
        ("event_signup", "7", None): 1,
    }
    assert pipeline.stored("profile_visibility_toggles", yesterday) == {("profile_visibility_toggled", "1", "admin"): 3}
    assert pipeline.stored("consent_changes", yesterday) == {
        ("consent_turned_on", "1", "web"): 4,
        ("consent_turned_off", "1", "web"): 2,
    }
    assert pipeline.stored("directory_page_views", yesterday) == {("directory_page_viewed", "7", "web"): 9}
    assert pipeline.stored("directory_searches", yesterday) == {("directory_searched", "7", None): 1}
    assert pipeline.sql("select endpoint, status_code, requests, error_rate from analytics.daily_error_rates") == [
        ("GET /events/{event_id}", 200, 40, 0.25),
        ("GET /events/{event_id}", 500, 40, 0.25),
    ]
    for asset in ALL:
        evaluations = checks(pipeline, result, asset)
        assert set(evaluations) == set(CHECK_NAMES)
        assert all(evaluation.passed for evaluation in evaluations.values())
        assert pipeline.materialized(asset) == {yesterday}
    assert "canary" not in everything_said(pipeline.instance)


def test_zero_and_not_collected_differ(pipeline: Pipeline, yesterday: date) -> None:
    assert pipeline.run(["event_signups"], yesterday).success
    assert pipeline.sql("select asset, event_date, rows from analytics.collected_days") == [
        ("event_signups", yesterday, 0)
    ]


def test_the_numbers_of_each_day_are_in_its_own_record(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    before = yesterday - timedelta(days=1)
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 5))
    host.occur("signups", moments(before, pipeline.settings.time_zone, 3), source=None)
    result = pipeline.run(["event_signups"], before, yesterday)
    numbers = {
        materialization.partition: {name: value.value for name, value in materialization.metadata.items()}
        for materialization in result.asset_materializations_for_node("event_signups")
    }
    assert numbers == {
        str(before): {"dagster/partition_row_count": 1, "total": 3},
        str(yesterday): {"dagster/partition_row_count": 1, "total": 5},
    }


@pytest.mark.parametrize(("rows", "days_of_chunk"), [(0, CHUNK_DAYS), (_CHUNK_ROWS // 5, 5), (_CHUNK_ROWS, 1)])
def test_one_chunk_is_counted_ahead_and_no_more(
    settings: Settings, yesterday: date, rows: int, days_of_chunk: int
) -> None:
    days = span(yesterday - timedelta(days=3 * days_of_chunk), yesterday)
    collected: list[tuple[date, int]] = []

    def count(day: date) -> Counted:
        with open_store(settings) as another, another.transaction("looking") as connection:
            found = connection.exec_driver_sql("select count(*) from analytics.collected_days").scalar_one()
        collected.append((day, found))
        return Counted([event(day, event_id=str(number)) for number in range(rows)], [])

    with open_store(settings) as store:
        reader = Reader(count=count, total=lambda _: 0)
        outcome = _collect_days(
            store, reader, metric("event_signups"), days, window=read_window(store), config=CollectConfig()
        )
        assert missing_days(store)["event_signups"] == []
    assert list(outcome.stored) == days == [day for day, _ in collected]
    for number, (_, found) in enumerate(collected):
        chunk = number // days_of_chunk
        assert found in {max(0, chunk - 1) * days_of_chunk, chunk * days_of_chunk}


def test_a_day_that_the_database_refuses_costs_no_other_of_its_chunk(settings: Settings, yesterday: date) -> None:
    first, bad, last = span(yesterday - timedelta(days=2), yesterday)
    rows = {day: [event(day)] for day in (first, last)} | {bad: [event(bad, source="canary")]}
    with open_store(settings) as store:
        outcomes = replace_days(store, metric("event_signups"), rows)
        assert read_collected_days(store, read_window(store))["event_signups"] == {first, last}
    assert outcomes[first] == outcomes[last] == Stored(rows=1, total=1)
    assert isinstance(outcomes[bad], DatabaseError)
    assert "canary" not in str(outcomes[bad])


def test_the_day_itself_waits_for_the_disk(settings: Settings, yesterday: date) -> None:
    """Its empty partition does not."""
    url = sa.make_url(settings.database_url or "").update_query_dict({"options": "-c synchronous_commit=on"})
    with open_store(replace(settings, database_url=url.render_as_string(hide_password=False))) as store:
        replace_day(store, metric("event_signups"), yesterday, [])
        with store.transaction("looking") as connection:
            assert connection.exec_driver_sql("show synchronous_commit").scalar() == "on"
