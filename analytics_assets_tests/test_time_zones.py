"""Days of 23, 24 and 25 hours: each moment is counted once, on the day that the wall clock of the zone shows."""

import zoneinfo
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from analytics_assets.contract import metric
from analytics_assets.days import bounds, span
from analytics_assets.defs.evaluation import open_reader
from analytics_assets.settings import Settings
from analytics_assets.sources.counter_dumps import open_dumps
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.host import Host

ZONES = sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})
CHANGES = [
    ("Europe/Berlin", date(2026, 3, 29), 23),
    ("Europe/Berlin", date(2026, 10, 25), 25),
    ("America/Santiago", date(2026, 4, 4), 25),  # its last hour comes twice
    ("America/Santiago", date(2026, 9, 6), 23),  # it has no midnight
    ("America/Havana", date(2026, 11, 1), 25),  # it has two
    ("Asia/Kathmandu", date(2026, 3, 29), 24),  # its midnight is no full hour of UTC
]
"""Zone, day and how many hours it has."""

TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(("time_zone", "day", "hours"), CHANGES)
def test_hours_of_a_day(time_zone: str, day: date, hours: int) -> None:
    start, end = bounds(day, time_zone)
    assert end - start == timedelta(hours=hours)
    assert start.utcoffset() == end.utcoffset() == timedelta(0)


@examples(max_examples=500, deadline=None)
@given(st.sampled_from(ZONES), st.datetimes(datetime(2020, 1, 1), datetime(2037, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_every_moment_lies_in_its_day_and_no_other(time_zone: str, moment: datetime) -> None:
    day = moment.astimezone(zoneinfo.ZoneInfo(time_zone)).date()
    before, this, after = (bounds(day + timedelta(days=n), time_zone) for n in (-1, 0, 1))
    assert this[0] <= moment < this[1]
    assert before[1] == this[0]
    assert this[1] == after[0]


@pytest.mark.parametrize(("time_zone", "day", "hours"), CHANGES)
def test_both_readers_and_telemetry_agree_around_a_change(
    settings: Settings, host: Host, time_zone: str, day: date, hours: int
) -> None:
    settings = replace(settings, time_zone=time_zone)
    start, end = bounds(day, time_zone)
    ticks = [start + n * timedelta(minutes=30) for n in range(2 * hours)]
    # The first and the last moment of the day, those next to it, and both sides of each half hour.
    moments = sorted({t + d for t in (*ticks, end) for d in (-TICK, timedelta(0), TICK)})
    expected = Counter(moment.astimezone(zoneinfo.ZoneInfo(time_zone)).date() for moment in moments)
    assert expected[day] == len(moments) - 3

    host.occur("signups", moments)
    now = iter(moments)
    with Telemetry(settings.dump_dir, time_zone=time_zone, clock=lambda: next(now).timestamp()) as telemetry:
        for _ in moments:
            telemetry.count("directory_searched", event_id=1)

    around = [day - timedelta(days=1), day, day + timedelta(days=1)]
    for source in (
        open_reader(metric("event_signups"), settings),
        open_dumps(metric("directory_searches"), settings),
    ):
        with source as opened:
            assert {d: sum(row["count"] for row in opened.count(d).rows) for d in around} == expected
            assert {d: opened.total(d) for d in around} == expected


@pytest.mark.parametrize("time_zone", ["Europe/Berlin", "America/Santiago", "Asia/Kathmandu"])
def test_a_year_of_hours_is_grouped_as_postgresql_groups_it(settings: Settings, host: Host, time_zone: str) -> None:
    host.sql(
        "insert into signups (event_id, occurred_at, source) select '1', hour, 'web'"
        " from generate_series(timestamptz '2026-01-01 00:00Z', '2026-12-31 23:00Z', '1 hour') as hour"
    )
    grouped = host.connection.execute(
        sa.text("select (occurred_at at time zone :zone)::date, count(*) from signups group by 1"), {"zone": time_zone}
    )
    with open_reader(metric("event_signups"), replace(settings, time_zone=time_zone)) as source:
        counted = {
            day: rows[0]["count"]
            for day in span(date(2025, 12, 31), date(2027, 1, 1))
            if (rows := source.count(day).rows)
        }
    assert counted == {row[0]: row[1] for row in grouped}
    assert sum(counted.values()) == 365 * 24
