"""Which days a metric lacks: what counts as missing, and what does not."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, time, timedelta

import pytest
import sqlalchemy as sa

from analytics_assets.contract import metric
from analytics_assets.days import format_range, ranges, span
from analytics_assets.settings import Settings
from analytics_assets.store import gaps, open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.expiry import forget_days
from analytics_assets.store.gaps import missing_days
from analytics_assets.store.setup import init_db
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import insert, set_up_as_of
from analytics_assets_tests.support.pipeline import ALL, replace_day


def every(days: list[date]) -> dict[str, list[date]]:
    """The same missing days for every metric."""
    return dict.fromkeys(ALL, days)


NOTHING = every([])


def collect(settings: Settings, days: list[date], assets: list[str] = ALL) -> None:
    """Note the days as collected, without a count."""
    with open_store(settings) as store:
        for asset in assets:
            for day in days:
                replace_day(store, metric(asset), day, [])


def found(settings: Settings, run: list[date] | None = None) -> dict[str, list[date]]:
    with open_store(settings) as store:
        return missing_days(store, run or [])


def test_an_empty_installation_lacks_nothing(settings: Settings) -> None:
    assert found(settings) == NOTHING


def test_the_days_between_collected_ones_and_those_since_are_missing(settings: Settings, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=9), yesterday)
    collect(settings, [days[0], days[4]])
    assert found(settings) == every([*days[1:4], *days[5:]])


def test_each_metric_has_gaps_of_its_own_and_a_new_one_has_none(settings: Settings, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=9), yesterday)
    new, late, *others = ALL
    collect(settings, days, others)
    collect(settings, [days[3], *days[6:]], [late])
    assert found(settings) == NOTHING | {late: days[4:6]}
    assert new in found(settings)


@pytest.mark.parametrize("off", [8, 100, 200])
def test_all_kept_days_since_are_missing_after_an_outage_of_any_length(
    settings: Settings, yesterday: date, off: int
) -> None:
    collect(settings, [yesterday])
    set_clock(settings, noon_of(settings, yesterday + timedelta(days=off)))
    with open_store(settings) as store:
        window = read_window(store)
        missing = span(max(window.first, yesterday + timedelta(days=1)), window.last)
        assert len(missing) == min(off - 1, settings.retention_days)
        assert found(settings) == every(missing)
        # Retention forgets which days were collected, not that they were.
        forget_days(store, window.first)
    assert found(settings) == every(missing)


def test_a_gap_stays_when_the_collected_days_before_it_expire(settings: Settings, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=5), yesterday)
    collect(settings, [days[0], *days[3:]])
    set_clock(settings, noon_of(settings, days[1] + timedelta(days=settings.retention_days)))
    with open_store(settings) as store:
        forget_days(store, days[1])
        assert missing_days(store)[ALL[0]][:3] == [days[1], days[2], yesterday + timedelta(days=1)]


def test_a_database_that_was_set_up_before_knows_since_when_it_collects(
    settings: Settings, make_database: Callable[[str], sa.URL], yesterday: date
) -> None:
    url = make_database("upgraded")
    engine = sa.create_engine(url)
    first = yesterday - timedelta(days=3)
    with engine.begin() as connection:
        set_up_as_of(connection, "0005")
        connection.exec_driver_sql(insert("settings", retention_days=180, time_zone=settings.time_zone))
        for day in (first, yesterday):
            note = insert("collected_days", asset=ALL[0], event_date=day, rows=0, collected_at="now")
            connection.exec_driver_sql(note)
    engine.dispose()
    text = url.render_as_string(hide_password=False)
    init_db(text, settings)
    upgraded = replace(settings, database_url=text)
    assert found(upgraded) == NOTHING | {ALL[0]: span(first + timedelta(days=1), yesterday - timedelta(days=1))}


def test_yesterday_is_missing_once_the_daily_run_has_had_its_time_or_has_tried(
    settings: Settings, yesterday: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = yesterday - timedelta(days=1)
    collect(settings, [before])
    # The tests run in a zone in which it is about noon.
    assert found(settings) == every([yesterday])
    monkeypatch.setattr(gaps, "DUE", time(23, 59, 59))
    assert found(settings) == NOTHING
    assert found(settings, [before]) == NOTHING
    assert found(settings, [before, yesterday]) == every([yesterday])


def test_contiguous_days_are_one_range() -> None:
    days = span(date(2026, 10, 23), date(2026, 10, 28))  # across the end of daylight saving
    assert ranges([]) == []
    assert ranges(reversed(days)) == [(days[0], days[-1])]
    assert ranges([*days[:2], *days[3:], days[0]]) == [(days[0], days[1]), (days[3], days[-1])]
    assert format_range(days[0], days[-1]) == "2026-10-23 to 2026-10-28"
    assert format_range(days[0], days[0]) == "2026-10-23"
