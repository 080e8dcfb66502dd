"""An attacker with linear programs finds what the closed form leaves, and finds every planted leak."""

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_assets.days import span
from analytics_assets.publication.fives import (
    NOTHING,
    Bounds,
    closed_weeks,
    possible_values,
    publish_days,
    true_sum,
)
from analytics_assets_tests.support.attacker import (
    Attacker,
    Cell,
    Statement,
    between,
    exactly,
    figure,
    rounded_down,
    running_totals,
    said,
)

Series = Mapping[str, Sequence[int]]
"""Event -> its count on each of successive days."""

DAYS = span(date(2026, 6, 1), date(2026, 7, 5))  # five ISO weeks
SIGNUPS: Series = {
    "7": (0, 2, 1, 0, 3, 0, 0, 9, 4, 1, 0, 0, 2, 0, 0, 0, 1, 14, 6, 2, 0, 0, 0, 3, 0, 1, 0, 0, 5, 0, 2, 0, 0, 0, 1),
    "8": (0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 7, 3, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 3, 0, 0, 1),
}


def cells(event: str, first: int = 0, last: int = len(DAYS)) -> list[Cell]:
    return [(event, day) for day in range(first, last)]


def everything(series: Series) -> list[Cell]:
    return [cell for event, counts in series.items() for cell in cells(event, 0, len(counts))]


def steps_of(counts: Sequence[int]) -> list[int]:
    return [step for step in publish_days(counts)[0] if step is not None]


def published(series: Series) -> list[Statement]:
    """All that is ever published of these series."""
    return [
        statement
        for event, counts in series.items()
        for statement in running_totals(cells(event, 0, len(counts)), steps_of(counts))
    ]


def windows(days: int) -> list[tuple[int, int]]:
    """What pages show: each day, trailing 7 and 28 days, each ISO week (they start with one), everything so far."""
    return [
        *((day, day + 1) for day in range(days)),
        *((last - length, last) for length in (7, 28) for last in range(length, days + 1)),
        *((monday, monday + 7) for monday in range(0, days - 6, 7)),
        *((0, last) for last in range(1, days + 1)),
    ]


def pages(series: Series) -> list[Statement]:
    """What pages say about the true sum of each window, of each event and of all: "at least 420, at most 436"."""
    statements = []
    for first, last in windows(min(map(len, series.values()))):
        bounds = {
            event: true_sum(sum(steps_of(counts)[first:last]), from_start=first == 0)
            for event, counts in series.items()
        }
        statements += [between(cells(event, first, last), one.low, one.high) for event, one in bounds.items()]
        both = sum(bounds.values(), NOTHING)
        statements.append(
            between([cell for event in series for cell in cells(event, first, last)], both.low, both.high)
        )
    return statements


def closed_form(series: Series) -> dict[Cell, Bounds]:
    return {
        cell: bounds
        for event, counts in series.items()
        for cell, bounds in zip(cells(event, 0, len(counts)), possible_values(steps_of(counts)), strict=True)
        if bounds
    }


# The attacker itself.


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_in_whole_numbers_it_finds_what_trying_everything_finds(data: st.DataObject) -> None:
    numbers = range(4)
    truth = data.draw(st.lists(st.integers(0, 4), min_size=4, max_size=4))
    statements = [between([number], 0, 4) for number in numbers]
    for _ in range(data.draw(st.integers(0, 5))):
        chosen = data.draw(st.lists(st.sampled_from(numbers), min_size=1, unique=True))
        value = sum(truth[number] for number in chosen)
        statements.append(between(chosen, value - data.draw(st.integers(0, 2)), value + data.draw(st.integers(0, 2))))
    possible = [
        tried
        for tried in product(range(5), repeat=len(numbers))
        if all(s.low <= sum(tried[n] for n in numbers if n in s.weights) <= s.high for s in statements)
    ]
    in_whole_numbers, in_fractions = Attacker(statements, whole=True), Attacker(statements)
    for number in numbers:
        found = {tried[number] for tried in possible}
        assert in_whole_numbers.possible(number) == Bounds(min(found), max(found))
        assert in_fractions.possible(number).low <= min(found)
        assert in_fractions.possible(number).high >= max(found)


def test_whole_numbers_can_say_more_than_fractions() -> None:
    numbers = range(5)
    statements = [between(pair, 0, 1) for pair in combinations(numbers, 2)]
    statements.append(exactly([*numbers, "rest"], 3))
    assert Attacker(statements).possible("rest") == Bounds(1, 3)  # five halves and a half
    assert Attacker(statements, whole=True).possible("rest") == Bounds(2, 3)


def test_statements_that_contradict_each_other_or_say_too_little_are_no_answer() -> None:
    with pytest.raises(ValueError, match="Infeasible"):
        Attacker([exactly(["a"], 1), exactly(["a", "b"], 0)]).possible("b")
    with pytest.raises(ValueError, match="Unbounded"):
        Attacker([between(["a"], 1, float("inf"))]).possible("a")


# What is published.


@pytest.mark.parametrize("whole", [False, True])
def test_it_finds_exactly_the_closed_form(whole: bool) -> None:
    attacker = Attacker(published(SIGNUPS), whole=whole)
    assert {cell: attacker.possible(cell) for cell in everything(SIGNUPS)} == closed_form(SIGNUPS)
    assert attacker.narrowed(everything(SIGNUPS)) == {}


def test_days_that_were_not_collected_tell_it_nothing() -> None:
    steps: list[int | None] = [0, None, 5, None, None, 0]
    attacker = Attacker(running_totals(range(6), steps))
    for day, bounds in enumerate(possible_values(steps)):
        if bounds is None:
            with pytest.raises(KeyError):
                attacker.possible(day)
        else:
            assert attacker.possible(day) == bounds


def test_sums_of_published_days_tell_it_nothing_new() -> None:
    attacker = Attacker([*published(SIGNUPS), *pages(SIGNUPS)])
    assert {cell: attacker.possible(cell) for cell in everything(SIGNUPS)} == closed_form(SIGNUPS)


# Planted leaks.


def leaks(series: Series, *planted: Statement) -> dict[Cell, Bounds]:
    """The days that keep fewer than five possible values, the true one among them, for who also knows the planted."""
    assert Attacker(published(series)).narrowed(everything(series)) == {}
    found = Attacker([*published(series), *planted]).narrowed(everything(series))
    for event, counts in series.items():
        for cell, count in zip(cells(event, 0, len(counts)), counts, strict=True):
            assert cell not in found or found[cell].low <= count <= found[cell].high
    return found


def test_a_true_zero_is_found_and_so_is_every_day_that_is_not_shown_as_one() -> None:
    steps, counts = steps_of(SIGNUPS["7"]), SIGNUPS["7"]
    below = {("7", day): counts[day] for day in range(len(DAYS)) if not steps[day]}
    planted = [exactly([cell], 0) if count == 0 else between([cell], 1, 4) for cell, count in below.items()]
    found = leaks(SIGNUPS, *planted)
    zeros = {cell for cell, count in below.items() if count == 0}
    assert found.keys() == below.keys()
    assert {cell for cell, bounds in found.items() if bounds == Bounds(0, 0)} == zeros
    assert all(found[cell].low == 1 for cell in below.keys() - zeros)


@pytest.mark.parametrize("length", [7, 28])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_trailing_window_from_raw_counts_is_found(length: int, rounded: bool) -> None:
    planted = []
    for last in range(length, len(DAYS) + 1):
        raw = sum(SIGNUPS["7"][last - length : last])
        window = cells("7", last - length, last)
        planted.append(rounded_down(window, raw - raw % 5) if rounded else exactly(window, raw))
    assert leaks(SIGNUPS, *planted)


def test_an_exact_total_is_found() -> None:
    found = leaks(SIGNUPS, exactly(cells("8"), sum(SIGNUPS["8"])))
    # 22 sign-ups, of which 20 are published: the days since the last step share at most 2.
    assert found[("8", len(DAYS) - 1)] == Bounds(0, 2)


def test_a_separately_rounded_total_of_all_events_is_found() -> None:
    planted = []
    for last in range(1, len(DAYS) + 1):
        raw = sum(sum(counts[:last]) for counts in SIGNUPS.values())
        planted.append(rounded_down([cell for event in SIGNUPS for cell in cells(event, 0, last)], raw - raw % 5))
    assert leaks(SIGNUPS, *planted)


def test_a_frozen_day_that_is_published_again_after_a_late_row_is_found() -> None:
    counts, recounted = (2, 2, 0), (3, 2, 0)
    planted = [
        rounded_down([*cells("7", 0, last), "late"], sum(steps_of(recounted)[:last]))
        for last in range(1, len(counts) + 1)
    ]
    # The late row is of the first day. With it the total reached 5, but only on the second day: that day had one, too.
    assert leaks({"7": counts}, *planted)[("7", 1)] == Bounds(1, 4)


SENTENCE = re.compile(r"([0-9]+) sign-ups from ([0-9-]+) to ([0-9-]+)")


def page(week: int, label: int) -> str:
    monday = DAYS[week * 7]
    text = f"sign-ups from {monday} to {monday + timedelta(days=6)}"
    shown = sum(steps_of(SIGNUPS["7"])[week * 7 : week * 7 + 7])
    return f'<figure aria-label="{label} {text}"><figcaption>{shown} {text}</figcaption></figure>'


def read(html: str) -> list[Statement]:
    statements = []
    for shown, first, last in SENTENCE.findall("\n".join(said(html))):
        days = slice(DAYS.index(date.fromisoformat(first)), DAYS.index(date.fromisoformat(last)) + 1)
        statements += figure(cells("7")[days], int(shown), sum(steps_of(SIGNUPS["7"])[days]))
    return statements


def test_a_raw_figure_in_an_aria_label_is_found() -> None:
    last_week = 4
    raw, shown = sum(SIGNUPS["7"][28:]), sum(steps_of(SIGNUPS["7"])[28:])
    assert raw != shown
    assert read(page(last_week, shown)) == []
    assert leaks(SIGNUPS, *read(page(last_week, raw)))


def test_the_number_of_events_with_a_count_is_a_raw_figure() -> None:
    # "At most 4 more for each of 2 events", where it said 1 event the day before: the other one has begun.
    begun = next(day for day, count in enumerate(SIGNUPS["8"]) if count)
    found = leaks(SIGNUPS, exactly(cells("8", 0, begun), 0), between([("8", begun)], 1, float("inf")))
    assert found[("8", begun)] == Bounds(1, 4)


# What is not promised.


def test_a_reader_who_knows_how_two_series_hang_together_knows_more() -> None:
    views, searches = (4, 2, 1), (3, 1, 1)
    series = {"views": views, "searches": searches}
    every_search_needs_a_view = [
        Statement({("views", day): 1, ("searches", day): -1}, low=0) for day in range(len(views))
    ]
    # On the last day, searches have a step and views have none.
    assert leaks(series, *every_search_needs_a_view)[("searches", 2)] == Bounds(1, 4)


def test_a_reader_who_adds_occurrences_of_their_own_knows_more() -> None:
    counts = (1, 2, 1, 1)  # one a day of their own
    assert leaks({"7": counts}, *(between([("7", day)], 1, float("inf")) for day in range(len(counts))))


# A real application.

REALWORLD = Path(__file__).parents[3] / "shared" / "realworld"

realworld = pytest.mark.skipif(not REALWORLD.is_dir(), reason=f"needs a real application's counts in {REALWORLD}")


def real_counts(event_name: str) -> tuple[list[date], Series]:
    """All days of the data, and the counts of each event on them."""
    with (REALWORLD / "expected_daily_counts.csv").open(newline="") as file:
        rows = [(date.fromisoformat(row.pop("event_date")), row) for row in csv.DictReader(file)]
    days = span(min(day for day, _ in rows), max(day for day, _ in rows))
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * len(days))
    for day, row in rows:
        if row["event_name"] == event_name:
            counts[row["event_id"]][(day - days[0]).days] = int(row["count"])
    return days, counts


@realworld
def test_on_every_real_series_it_finds_exactly_the_closed_form() -> None:
    _, signups = real_counts("event_signup")
    assert len(signups) == 25
    for event, counts in signups.items():
        series = {event: counts}
        attacker = Attacker(published(series))
        assert {cell: attacker.possible(cell) for cell in everything(series)} == closed_form(series)


@realworld
def test_the_pages_of_real_series_tell_it_nothing_new() -> None:
    _, signups = real_counts("event_signup")
    series = {event: signups[event] for event in ("19", "16", "22")}  # the busiest, the quietest, one in between
    attacker = Attacker([*published(series), *pages(series)])
    left = closed_form(series)
    some = everything(series)[::10]
    assert {cell: attacker.possible(cell) for cell in some} == {cell: left[cell] for cell in some}


@realworld
@pytest.mark.parametrize("event_name", ["consent_turned_on", "consent_turned_off", "profile_visibility_toggled"])
def test_on_the_real_weeks_of_all_events_it_finds_exactly_the_closed_form(event_name: str) -> None:
    days, counts = real_counts(event_name)
    weeks = closed_weeks(
        {day: sum(of_day) for day, of_day in zip(days, zip(*counts.values(), strict=True), strict=True)}
    )
    assert len(weeks) == 28
    steps, _ = publish_days(weeks.values())
    attacker = Attacker(running_totals([*weeks], steps))
    assert [attacker.possible(week) for week in weeks] == possible_values(steps)


@realworld
@pytest.mark.parametrize(("length", "what"), [(7, "event-weeks"), (28, "spans of 28 days")])
def test_the_page_states_how_much_of_what_goes_on_shows_a_number(length: int, what: str) -> None:
    days, signups = real_counts("event_signup")
    starts = [n for n in range(len(days) - length + 1) if length != 7 or days[n].weekday() == 0]
    windows = [slice(start, start + length) for start in starts]
    active = [(counts, window) for counts in signups.values() for window in windows if sum(counts[window])]
    shown = sum(sum(steps_of(counts)[window]) > 0 for counts, window in active)
    stated = re.search(rf"(\d+)% of the ([\d,]+) {what}", PAGE.read_text(encoding="utf-8"))
    assert stated
    assert (stated[1], stated[2]) == (f"{100 * shown / len(active):.0f}", f"{len(active):,}")


PAGE = Path(__file__).parents[2] / "docs" / "publication.md"


@realworld
def test_days_and_windows_that_are_rounded_one_by_one_would_give_real_days_away() -> None:
    days, signups = real_counts("event_signup")
    counts = signups["2"]
    mondays = [n for n, day in enumerate(days[:-6]) if day.weekday() == 0]
    spans = [
        *((n, n + 1) for n in range(len(days))),
        *((n, n + 7) for n in mondays),
        *((last - length, last) for length in (7, 28) for last in range(length, len(days) + 1)),
    ]
    sums = {(first, last): sum(counts[first:last]) for first, last in spans}
    attacker = Attacker(rounded_down(range(*window), total - total % 5) for window, total in sums.items())
    hidden = [n for n, count in enumerate(counts) if count < 5]
    assert len(attacker.narrowed(hidden)) > len(hidden) / 2
