"""Publishing on a real database: the SQL against the rule, closing in order, freezing, filling, crashes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from analytics_assets.contract import LOOKBACK_DAYS, METRICS, Published, metric
from analytics_assets.days import span
from analytics_assets.publication import fives
from analytics_assets.publication.audit import find_recoverable
from analytics_assets.publication.publish import Publication, PublicationError, fill, publish_closed
from analytics_assets.retention.sweep import MANUAL, apply_retention
from analytics_assets.settings import Settings
from analytics_assets.store import counts as store_counts
from analytics_assets.store import open_store, published
from analytics_assets.store.published import find_altered
from analytics_assets.store.setup import init_db
from analytics_assets.store.tables import COLLECTED_DAYS, COUNTS
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import admin_url, set_up
from analytics_assets_tests.support.pipeline import Pipeline, replace_day

DAILY = {m.asset: m.event_names for m in METRICS if m.published is Published.BY_DAY_AND_EVENT}
WEEKLY = {m.asset: m.event_names for m in METRICS if m.published is Published.BY_WEEK}
SIGNUPS, NAME = "event_signups", "event_signup"


def collect(settings: Settings, asset: str, day: date, counts: Mapping[str, Any]) -> None:
    """Collect a day, split over the sources: event -> count, of each event name or per event name."""
    with open_store(settings) as store:
        replace_day(store, metric(asset), day, rows_of(asset, day, counts), allow_empty=True, allow_decrease=True)


def rows_of(asset: str, day: date, counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = metric(asset).event_names
    by_name = counts if counts.keys() & set(names) else dict.fromkeys(names, counts)
    return [
        {"event_date": day, "event_name": name, "event_id": event_id, "source": source, "count": part}
        for name, of_name in by_name.items()
        for event_id, count in of_name.items()
        for source, part in (("web", count - count // 3), ("admin", count // 3))
        if part
    ]


def collect_at_once(settings: Settings, given: Mapping[tuple[str, date], Mapping[str, Any]]) -> None:
    """The same for many days, in one transaction."""
    rows = [row for (asset, day), counts in given.items() for row in rows_of(asset, day, counts)]
    notes = [{"asset": asset, "event_date": day, "rows": 0, "collected_at": sa.func.now()} for asset, day in given]
    with open_store(settings) as store, store.transaction("collecting") as connection:
        for day in sorted({day for _, day in given}):
            connection.execute(sa.select(sa.func.analytics.create_days(day)))
        connection.execute(sa.insert(COUNTS["daily_event_counts"]), rows)
        connection.execute(sa.insert(COLLECTED_DAYS).values(notes))


def publish(settings: Settings, day: date | None = None) -> list[Publication]:
    with open_store(settings) as store:
        return publish_closed(store) if day is None else fill(store, day)


def publish_awaiting(settings: Settings, asset: str, *awaited: date) -> list[Publication]:
    with open_store(settings) as store:
        return publish_closed(store, {asset: set(awaited)})


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
def make_settings(make_database: Callable[[str], sa.URL], tmp_path: Path) -> Callable[[], Settings]:
    """Make another analytics database."""
    return lambda: set_up(make_database("analytics"), "", tmp_path)


@pytest.fixture
def closed(settings: Settings) -> date:
    """The last closed day."""
    return settings.today() - timedelta(days=1 + LOOKBACK_DAYS)


# --- the notes


def test_the_fingerprint_of_what_was_published_never_changes(settings: Settings, closed: date) -> None:
    """Another formula would call everything altered that was published before."""
    monday = closed - timedelta(days=closed.weekday() + 7)
    missing = monday + timedelta(days=7)  # begins a week
    for day in span(monday, closed):
        if day != missing:
            collect(settings, SIGNUPS, day, {"7": 15, "10": 5, "9": 5} if day == monday else {"7": 1})
            collect(settings, "consent_changes", day, {"7": 1})
    publish(settings)
    notes = {
        (name, day): fingerprint
        for name, day, fingerprint in query(
            settings, "select event_name, event_date, fingerprint from analytics.publications"
        )
    }

    def fingerprint(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    assert notes[NAME, monday] == fingerprint("published 10=5 7=15 9=5")
    assert notes[NAME, monday + timedelta(days=1)] == fingerprint("published")
    assert notes["consent_turned_on", monday] == fingerprint("published consent_turned_on=5")
    assert notes[NAME, missing] == fingerprint("not_collected")


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
    given: dict[tuple[str, date], Mapping[str, Any]] = {}
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
            given[asset, day] = counts
    collect_at_once(settings, given)
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


def test_days_that_close_one_by_one_are_published_as_if_at_once(
    settings: Settings, closed: date, make_settings: Callable[[], Settings]
) -> None:
    one_by_one, at_once = settings, make_settings()
    every_day = span(closed - timedelta(days=15), closed)
    counts = {day: {"7": n % 4, "8": n % 3, "9": n} for n, day in enumerate(every_day)}
    for each in (one_by_one, at_once):
        collect_at_once(
            each, {(asset, day): counts[day] for asset in (SIGNUPS, "consent_changes") for day in every_day}
        )
    for day in every_day:
        set_clock(one_by_one, noon_of(one_by_one, day + timedelta(days=1 + LOOKBACK_DAYS)))
        publish(one_by_one)
        assert publish(one_by_one) == [], "running again is a no-op"
    publish(at_once)
    names = ("published.daily_counts", "published.days", "published.weekly_counts", "published.weeks")
    for name in (*names, "analytics.published_carries"):
        text = f"select * from {name} order by 1, 2, 3"  # noqa: S608
        assert query(one_by_one, text) == query(at_once, text) != []


# --- closed, then frozen


def test_late_rows_and_recounts_change_nothing_that_was_published(settings: Settings, closed: date) -> None:
    before = closed - timedelta(days=1)
    for day in (before, closed):
        collect(settings, SIGNUPS, day, {"7": 4})
    publish(settings)
    published = everything(settings)
    assert daily(settings) == {(before, "7"): "below", (closed, "7"): 5}
    collect(settings, SIGNUPS, before, {"7": 400, "8": 50})
    collect(settings, SIGNUPS, closed, {})
    assert publish(settings) == []
    assert everything(settings) == published
    set_clock(settings, noon_of(settings, settings.today() + timedelta(days=1)))
    collect(settings, SIGNUPS, closed + timedelta(days=1), {"7": 2})
    publish(settings)
    assert daily(settings) == {(before, "7"): "below", (closed, "7"): 5, (closed + timedelta(days=1), "7"): 5}


def test_before_the_daily_run_the_day_that_it_closes_is_open(
    settings: Settings, closed: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(settings, SIGNUPS, closed - timedelta(days=1), {"7": 6})
    collect(settings, SIGNUPS, closed, {"7": 6})
    monkeypatch.setattr(store_counts, "DAILY_RUN", time(23, 59, 59))
    publish(settings)
    assert set(days(settings)) == {closed - timedelta(days=1)}
    monkeypatch.undo()
    publish(settings)
    assert set(days(settings)) == {closed - timedelta(days=1), closed}


def test_a_carry_from_before_another_base_does_not_come_back(
    settings: Settings, closed: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, base in enumerate((5, 10, 5)):
        day = closed + timedelta(days=n)
        set_clock(settings, noon_of(settings, day + timedelta(days=1 + LOOKBACK_DAYS)))
        monkeypatch.setattr(published, "PUBLISHED_BASE", base)
        collect(settings, SIGNUPS, day, {"7": 4 if n != 1 else 0, "8": 20})
        publish(settings)
    assert daily(settings)[closed + timedelta(days=2), "8"] == 20
    assert carries(settings)[NAME, "7"] == 4, "not 4 + 4 - 5"
    assert not any(event == "7" for _, event in daily(settings))


def test_nothing_is_published_of_what_was_never_collected(settings: Settings, closed: date) -> None:
    assert publish(settings) == []
    collect(settings, "endpoint_error_rates", closed, {})
    collect(settings, SIGNUPS, closed + timedelta(days=1), {"7": 9})
    assert publish(settings) == []
    assert everything(settings) == [[]] * 6


def test_a_day_that_was_not_collected_stays_so_and_the_carry_passes_over_it(settings: Settings, closed: date) -> None:
    first, gap = closed - timedelta(days=2), closed - timedelta(days=1)
    for day in (first, closed):
        collect(settings, SIGNUPS, day, {"7": 9})
    assert publish(settings) == [Publication(NAME, first, closed, 2, 1, "day")]
    expected = {(first, "7"): 5, (gap, "7"): "not_collected", (closed, "7"): 10}
    assert daily(settings) == expected
    collect(settings, SIGNUPS, gap, {"7": 100})
    assert publish(settings) == []
    assert daily(settings) == expected
    assert carries(settings) == {(NAME, "7"): 3}


# --- filled by hand


def test_a_gap_is_filled_as_a_series_of_its_own(settings: Settings, closed: date) -> None:
    first, gap = closed - timedelta(days=2), closed - timedelta(days=1)
    for day in (first, closed):
        collect(settings, SIGNUPS, day, {"7": 4})
    publish(settings)
    with pytest.raises(PublicationError, match="not collected"):
        publish(settings, gap)
    collect(settings, SIGNUPS, gap, {"7": 13, "8": 4})
    assert publish(settings, gap) == [Publication(NAME, gap, gap, 1, 0, "day")]
    assert daily(settings) == {(first, "7"): "below", (gap, "7"): 10, (closed, "7"): 5}
    assert days(settings) == dict.fromkeys((first, gap, closed), "published")
    assert carries(settings) == {(NAME, "7"): 3}, "its remainder is dropped"
    frozen = everything(settings)
    with pytest.raises(PublicationError, match="published already"):
        publish(settings, gap)
    assert everything(settings) == frozen


def test_days_before_the_first_published_one_are_filled(settings: Settings, closed: date) -> None:
    collect(settings, SIGNUPS, closed, {"7": 4})
    publish(settings)
    earlier = [closed - timedelta(days=n) for n in (1, 9)]
    for day in earlier:
        collect(settings, SIGNUPS, day, {"7": 8})
    assert publish(settings) == []
    for day in earlier:
        publish(settings, day)
    assert daily(settings) == {(closed, "7"): "below"} | {(day, "7"): 5 for day in earlier}
    assert carries(settings) == {(NAME, "7"): 4}


def test_a_week_is_filled_with_any_of_its_days(settings: Settings, closed: date) -> None:
    last_sunday = closed - timedelta(days=(closed.weekday() + 1) % 7)
    week = span(last_sunday - timedelta(days=6), last_sunday)
    before = [day - timedelta(days=7) for day in week]
    for day in (*before, *week[:3], *week[4:]):
        collect(settings, "consent_changes", day, {"consent_turned_on": {"7": 1, "8": 1}, "consent_turned_off": {}})
    publish(settings)
    weeks = "select week_start, event_name, state from published.weeks"
    names = metric("consent_changes").event_names
    expected = {(before[0], name, "published") for name in names} | {(week[0], name, "not_collected") for name in names}
    assert set(query(settings, weeks)) == expected
    collect(settings, "consent_changes", week[3], {"consent_turned_on": {"9": 3}})
    made = publish(settings, week[3])
    assert {(each.event_name, each.first, each.last, each.unit) for each in made} == {
        (name, week[0], week[6], "week") for name in names
    }
    assert {state for _, _, state in query(settings, weeks)} == {"published"}
    assert query(settings, "select * from published.weekly_counts order by 1") == [
        (before[0], "consent_turned_on", 10),
        (week[0], "consent_turned_on", 15),
    ]
    assert carries(settings) == {("consent_turned_on", "all"): 4}


@pytest.mark.parametrize(
    ("days_ago", "reason"), [(1, "is not closed"), (LOOKBACK_DAYS, "is not closed"), (181, "has expired"), (20, "turn")]
)
def test_what_cannot_be_filled_is_refused(settings: Settings, days_ago: int, reason: str) -> None:
    day = settings.today() - timedelta(days=days_ago)
    if reason != "has expired":
        collect(settings, SIGNUPS, day, {"7": 5})
    with pytest.raises(PublicationError, match=reason):
        publish(settings, day)
    assert everything(settings) == [[]] * 6


# --- a new base, a new time zone


def test_a_new_base_holds_from_the_next_day_on(
    settings: Settings, closed: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, day in enumerate(span(closed, closed + timedelta(days=2))):
        set_clock(settings, noon_of(settings, day + timedelta(days=1 + LOOKBACK_DAYS)))
        if n == 1:
            monkeypatch.setattr(published, "PUBLISHED_BASE", 10)
        collect(settings, SIGNUPS, day, {"7": 18})
        publish(settings)
    # 18 in fives, then 18 and 36 in tens: the remainder of 3 is dropped.
    assert sorted(daily(settings).values(), key=str) == [10, 15, 20]
    assert carries(settings) == {(NAME, "7"): 6}
    with open_store(settings) as store:
        assert find_altered(store) == []
        assert find_recoverable(store) == []


def test_a_new_time_zone_publishes_no_day_again(settings: Settings, closed: date) -> None:
    for day in (closed - timedelta(days=1), closed):
        collect(settings, SIGNUPS, day, {"7": 7})
    publish(settings)
    frozen = everything(settings)
    west = replace(settings, time_zone="Etc/GMT+12")
    init_db(admin_url(settings), west)
    assert publish(west) == []
    assert everything(west) == frozen


# --- trouble


def publish_in_a_process(settings: Settings) -> None:
    publish(settings)


def test_a_crash_in_the_middle_publishes_nothing(settings: Settings, closed: date) -> None:
    for day in span(closed - timedelta(days=9), closed):
        collect(settings, SIGNUPS, day, {"7": 3})
    engine = sa.create_engine(admin_url(settings), isolation_level="AUTOCOMMIT")
    with engine.connect() as blocker, engine.connect() as watcher:
        blocker.exec_driver_sql("begin")
        blocker.exec_driver_sql("lock table analytics.publications in share row exclusive mode")
        process = multiprocessing.get_context("spawn").Process(target=publish_in_a_process, args=(settings,))
        process.start()
        waiting = (
            "select pid from pg_locks join pg_class c on c.oid = relation"
            " where relname = 'publications' and not granted and database = (select oid from pg_database"
            " where datname = current_database())"
        )
        while not (pids := watcher.exec_driver_sql(waiting).scalars().all()):
            assert process.is_alive()
        # The steps are inserted, the note is not.
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        blocker.exec_driver_sql("rollback")
        while watcher.execute(sa.text("select pid from pg_stat_activity where pid = any(:p)"), {"p": list(pids)}).all():
            pass
    engine.dispose()
    assert everything(settings) == [[]] * 6
    publish(settings)
    assert sum(count for count in daily(settings).values() if isinstance(count, int)) == 30


def test_two_at_once_take_turns(settings: Settings, closed: date) -> None:
    for day in span(closed - timedelta(days=9), closed):
        collect(settings, SIGNUPS, day, {"7": 3})
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(publish, [settings] * 4))
    assert sorted(map(len, made)) == [0, 0, 0, 1]
    assert sum(count for count in daily(settings).values() if isinstance(count, int)) == 30


def test_what_has_expired_is_neither_published_nor_kept(pipeline: Pipeline, closed: date) -> None:
    settings = pipeline.settings
    for day in span(closed - timedelta(days=9), closed):
        collect(settings, SIGNUPS, day, {"7": 3, str(day.day): 4})
    publish(settings)
    set_clock(settings, noon_of(settings, closed + timedelta(days=178)))
    apply_retention(settings, pipeline.instance, MANUAL)
    kept = span(closed - timedelta(days=2), closed)
    assert set(days(settings)) == set(kept)
    assert {day for day, _ in daily(settings)} <= set(kept)
    assert {event for _, event in carries(settings)} == {"7", *(str(day.day) for day in kept)}
    set_clock(settings, noon_of(settings, closed + timedelta(days=200)))
    apply_retention(settings, pipeline.instance, MANUAL)
    assert everything(settings) == [[]] * 6


def test_a_series_begins_with_the_first_day_of_a_backfill_whose_later_run_ended_first(
    settings: Settings, closed: date
) -> None:
    earlier = closed - timedelta(days=1)
    collect(settings, SIGNUPS, closed, {"7": 12})
    assert publish_awaiting(settings, SIGNUPS, earlier) == []
    assert days(settings) == {}
    collect(settings, SIGNUPS, earlier, {"7": 12})
    assert publish_awaiting(settings, SIGNUPS)
    assert days(settings) == {earlier: "published", closed: "published"}


def test_a_day_that_nobody_awaits_any_more_holds_up_no_series(settings: Settings, closed: date) -> None:
    collect(settings, SIGNUPS, closed, {"7": 12})
    assert publish_awaiting(settings, SIGNUPS)
    assert days(settings) == {closed: "published"}
