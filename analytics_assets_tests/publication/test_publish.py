"""Publishing on a real database: the SQL against the rule, closing in order, freezing, filling, crashes."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from analytics_assets.contract import LOOKBACK_DAYS, METRICS, Published, metric
from analytics_assets.days import span
from analytics_assets.publication import fives
from analytics_assets.publication.publish import Publication, fill, publish_closed
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.counts import replace_day

DAILY = {m.asset: m.event_names for m in METRICS if m.published is Published.BY_DAY_AND_EVENT}
WEEKLY = {m.asset: m.event_names for m in METRICS if m.published is Published.BY_WEEK}
SIGNUPS, NAME = "event_signups", "event_signup"

Counts = Mapping[str, int]
"""Event -> count of one day."""


def collect(settings: Settings, asset: str, day: date, counts: Mapping[str, Any]) -> None:
    """Collect a day, split over the sources: event -> count, of each event name or per event name."""
    rows = [
        {"event_date": day, "event_name": name, "event_id": event_id, "source": source, "count": part}
        for name in metric(asset).event_names
        for event_id, count in counts.get(name, counts).items()
        for source, part in (("web", count - count // 3), ("admin", count // 3))
        if part
    ]
    with open_store(settings) as store:
        replace_day(store, metric(asset), day, rows, allow_empty=True)


def publish(settings: Settings, day: date | None = None) -> list[Publication]:
    with open_store(settings) as store:
        return publish_closed(store) if day is None else fill(store, day)


def query(settings: Settings, text: str, **parameters: object) -> list[Any]:
    assert settings.database_url
    engine = sa.create_engine(settings.database_url)
    with engine.begin() as connection:
        rows = [tuple(row) for row in connection.execute(sa.text(text), parameters)]
    engine.dispose()
    return rows


def daily(settings: Settings, event_name: str = NAME) -> dict[tuple[date, str], int | str | None]:
    """(day, event) -> what the view says of it: a number, `below` or `not_collected`."""
    rows = query(settings, "select * from published.daily where event_name = :name", name=event_name)
    assert all(
        (state == "value") == bool(count) and (count is None) == (state == "not_collected")
        for _, _, _, count, state in rows
    )
    return {(day, event): count if state == "value" else state for day, _, event, count, state in rows}


def days(settings: Settings, event_name: str = NAME) -> dict[date, str]:
    return dict(query(settings, "select event_date, state from published.days where event_name = :n", n=event_name))


def carries(settings: Settings) -> dict[tuple[str, str], int]:
    rows = query(settings, "select event_name, event_id, carry from analytics.published_carries")
    return {(name, event): carry for name, event, carry in rows}


def everything(settings: Settings) -> list[Any]:
    """Every row of what was published and noted."""
    tables = (
        "published.daily_counts",
        "published.days",
        "published.weekly_counts",
        "published.weeks",
        "analytics.publications",
        "analytics.published_carries",
    )
    return [sorted(query(settings, f"select * from {table}"), key=str) for table in tables]  # noqa: S608


@pytest.fixture
def closed(settings: Settings) -> date:
    """The last closed day."""
    return settings.today() - timedelta(days=1 + LOOKBACK_DAYS)


# --- the rule


def test_a_day_is_published_once_the_daily_job_has_collected_it_for_the_last_time(
    settings: Settings, closed: date
) -> None:
    for day in span(closed - timedelta(days=1), settings.today() - timedelta(days=1)):
        collect(settings, SIGNUPS, day, {"7": 6})
    assert publish(settings) == [Publication(NAME, closed - timedelta(days=1), closed, 2, 0, "day")]
    assert daily(settings) == {(closed - timedelta(days=1), "7"): 5, (closed, "7"): 5}
    assert carries(settings) == {(NAME, "7"): 2}


@pytest.mark.parametrize("seed", range(4))
def test_the_sql_publishes_what_the_rule_publishes(settings: Settings, closed: date, seed: int) -> None:
    """Random series, gaps and portions, against `fives`, at both grains."""
    chance = random.Random(seed)  # noqa: S311  # it draws examples
    first = closed - timedelta(days=chance.randrange(20, 40))
    every_day = span(first, closed)
    true: dict[tuple[str, str], dict[date, int]] = defaultdict(dict)
    gaps: dict[str, set[date]] = defaultdict(set)
    for asset, names in (DAILY | WEEKLY).items():
        for day in every_day:
            if day != first and chance.random() < 0.1:
                gaps[asset].add(day)
                continue
            counts = {name: {str(n): chance.choice([0, 0, 1, 1, 2, 4, 5, 7, 23]) for n in range(5)} for name in names}
            for name, of_name in counts.items():
                for event, count in of_name.items():
                    true[name, event][day] = count
            collect(settings, asset, day, counts)
    publish(settings)

    for asset, names in DAILY.items():
        for name in names:
            said = daily(settings, name)
            for event in {event for of_name, event in true if of_name == name}:
                counts_of = [None if day in gaps[asset] else true[name, event][day] for day in every_day]
                steps, carry = fives.publish_days(counts_of)
                assert carries(settings).get((name, event), 0) == carry
                shown = {day: said.get((day, event), "no row") for day in every_day}
                if any(steps):
                    expected = {day: step or fives.state(step) for day, step in zip(every_day, steps, strict=True)}
                    assert shown == expected
                else:
                    assert set(shown.values()) == {"no row"}
    for asset, names in WEEKLY.items():
        for name in names:
            totals = {
                day: None if day in gaps[asset] else sum(true[name, str(n)][day] for n in range(5)) for day in every_day
            }
            weeks = fives.closed_weeks(totals)
            steps, carry = fives.publish_days(weeks.values())
            assert carries(settings).get((name, "all"), 0) == carry
            found = query(
                settings, "select week_start, count from published.weekly_counts where event_name = :n", n=name
            )
            assert dict(found) == {week: step for week, step in zip(weeks, steps, strict=True) if step}
            states = query(settings, "select week_start, state from published.weeks where event_name = :n", n=name)
            assert dict(states) == {
                week: "not_collected" if step is None else "published" for week, step in zip(weeks, steps, strict=True)
            }
