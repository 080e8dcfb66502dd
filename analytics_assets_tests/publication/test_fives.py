"""Running totals in fives: what is published, and that the closed forms say exactly what a reader can know.

The closed forms are compared with brute force over all short series: the true series that lead to the same publication
are what a reader cannot tell apart.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from itertools import combinations_with_replacement, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_assets.publication.fives import (
    BASE,
    NOTHING,
    Bounds,
    closed_weeks,
    possible_values,
    publish_day,
    publish_days,
    state,
    true_sum,
)

quick = settings(deadline=None, max_examples=100, derandomize=True)
counts = st.lists(st.none() | st.integers(0, 30), max_size=20)
bases = st.integers(2, 12)

Steps = tuple[int | None, ...]
Series = tuple[int, ...]


# What is published.


def test_a_series_is_published_in_fives_and_the_rest_is_carried_on() -> None:
    assert publish_days([4, 1, 0, None, 12, 3]) == ([0, 5, 0, None, 10, 5], 0)
    assert publish_days([2, 2]) == ([0, 0], 4)
    assert publish_day(3, 4) == (5, 2)


@pytest.mark.parametrize(
    ("count", "carry", "base", "rule"),
    [
        (-1, 0, 5, "a count must not be negative"),
        (1, -1, 5, "a carry must be at least 0 and below the base"),
        (1, 5, 5, "a carry must be at least 0 and below the base"),
        (0, 0, 1, "the base must be at least 2"),
    ],
)
def test_what_cannot_be_is_refused_by_its_rule(count: int, carry: int, base: int, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{rule}$"):
        publish_day(count, carry, base=base)


@quick
@given(counts, bases, st.data())
def test_a_running_total_is_at_most_four_below_the_count_and_never_above(
    counts: list[int | None], base: int, data: st.DataObject
) -> None:
    carry = first_carry = data.draw(st.integers(0, base - 1))
    counted = published = 0
    for count in counts:
        (step,), carry = publish_days([count], carry, base=base)
        assert (step is None) == (count is None)
        counted, published = counted + (count or 0), published + (step or 0)
        assert published % base == 0
        assert first_carry + counted == published + carry
        assert 0 <= carry < base


@quick
@given(counts, counts, bases)
def test_days_published_in_portions_have_the_same_steps(
    before: list[int | None], after: list[int | None], base: int
) -> None:
    first, carry = publish_days(before, base=base)
    second, last = publish_days(after, carry, base=base)
    assert (first + second, last) == publish_days(before + after, base=base)


def test_a_day_is_a_value_or_below_or_not_collected() -> None:
    assert [state(step) for step in publish_days([4, None, 1])[0]] == ["below", "not_collected", "value"]


def test_weeks_are_published_once_all_seven_days_are_closed() -> None:
    monday = date(2026, 11, 2)
    days = [monday + timedelta(days=n) for n in range(-3, 24)]  # Friday before, to Wednesday in the fourth week
    counted: dict[date, int | None] = {day: day.day for day in days}
    counted[monday + timedelta(days=9)] = None
    weeks = closed_weeks(counted)
    assert weeks == {
        monday: sum(range(2, 9)),
        monday + timedelta(days=7): None,
        monday + timedelta(days=14): sum(range(16, 23)),
    }
    assert publish_days(weeks.values()) == ([35, None, 130], 3)


# What a reader can know: brute force.


def indistinguishable(
    length: int,
    most: int,
    base: int = BASE,
    publish: Callable[[Series], Iterable[int | None]] | None = None,
) -> dict[Steps, list[Series]]:
    """The publications of this length with no step above `most`, each with every true series that leads to it."""
    publish = publish or (lambda series: publish_days(series, base=base)[0])
    found: dict[Steps, list[Series]] = defaultdict(list)
    # A count is less than its step plus the base, so that no series is missing.
    for series in product(range(most + base), repeat=length):
        steps = tuple(publish(series))
        if all(step is None or step <= most for step in steps):
            found[steps].append(series)
    return found


def values(bounds: Bounds) -> set[int]:
    return set(range(bounds.low, bounds.high + 1))


def sum_of_steps(steps: Iterable[int | None]) -> int:
    return sum(step or 0 for step in steps)


@pytest.mark.parametrize(
    ("length", "most", "base"), [(1, 20, 5), (2, 20, 5), (3, 10, 5), (4, 10, 5), (5, 5, 5), (4, 6, 3), (6, 2, 2)]
)
def test_the_possible_values_of_every_day_are_exactly_the_closed_form(length: int, most: int, base: int) -> None:
    publications = indistinguishable(length, most, base)
    assert len(publications) == (most // base + 1) ** length
    for steps, truths in publications.items():
        closed_form = possible_values(steps, base=base)
        assert [set(day) for day in zip(*truths, strict=True)] == [values(bounds) for bounds in closed_form if bounds]
        assert all(bounds and bounds.size >= base for bounds in closed_form)


def test_days_without_steps_are_possible_zeros_and_keep_five_values() -> None:
    assert possible_values([0, 0, 5, 0, 0]) == [Bounds(0, 4), Bounds(0, 4), Bounds(1, 9), Bounds(0, 4), Bounds(0, 4)]
    assert possible_values([10, 10]) == [Bounds(10, 14), Bounds(6, 14)]


@pytest.mark.parametrize(("length", "most", "base"), [(4, 10, 5), (5, 5, 5), (4, 6, 3)])
def test_the_possible_sums_of_every_window_are_exactly_the_closed_form(length: int, most: int, base: int) -> None:
    for steps, truths in indistinguishable(length, most, base).items():
        for first, last in combinations_with_replacement(range(length), 2):
            window = slice(first, last + 1)
            closed_form = true_sum(sum_of_steps(steps[window]), from_start=first == 0, base=base)
            assert {sum(truth[window]) for truth in truths} == values(closed_form)


def test_whatever_is_summed_or_subtracted_keeps_five_possible_values() -> None:
    length = 4
    for truths in indistinguishable(length, 5).values():
        for weights in product((-1, 0, 1), repeat=length):
            if any(weights):
                sums = {sum(w * count for w, count in zip(weights, truth, strict=True)) for truth in truths}
                assert len(sums) >= BASE


def test_windows_of_several_series_add_up_exactly() -> None:
    series = indistinguishable(3, 5)
    for (left, left_truths), (right, right_truths) in product(series.items(), repeat=2):
        for first in (0, 1):
            bounds = [true_sum(sum_of_steps(steps[first:]), from_start=first == 0) for steps in (left, right)]
            sums = [{sum(truth[first:]) for truth in truths} for truths in (left_truths, right_truths)]
            assert {a + b for a, b in product(*sums)} == values(sum(bounds, NOTHING))


def test_the_bound_of_several_series_follows_from_how_many_there_are() -> None:
    from_start = [true_sum(105, from_start=True)] * 4
    assert sum(from_start, NOTHING) == Bounds(420, 436)
    inside = [true_sum(published, from_start=False) for published in (105, 315, 0, 0)]
    assert sum(inside, NOTHING) == Bounds(420 - 2 * 4, 420 + 4 * 4)


def test_a_day_can_be_published_above_its_count() -> None:
    steps, _ = publish_days([4, 1])
    assert steps == [0, 5]
    assert true_sum(5, from_start=False) == Bounds(1, 9)


@pytest.mark.parametrize("missing", range(4))
def test_a_day_that_was_not_collected_takes_nothing_from_the_others(missing: int) -> None:
    def publish(series: Series) -> list[int | None]:
        return publish_days([*series[:missing], None, *series[missing:]])[0]

    for steps, truths in indistinguishable(3, 10, publish=publish).items():
        closed_form = possible_values(steps)
        assert closed_form[missing] is None
        assert [set(day) for day in zip(*truths, strict=True)] == [values(bounds) for bounds in closed_form if bounds]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_dropping_the_carry_of_a_series_of_which_nothing_is_kept_changes_nothing(kept: int) -> None:
    def publish(series: Series) -> list[int | None]:
        steps: list[int | None] = []
        carry = 0
        for day, count in enumerate(series):
            if not any(series[max(0, day - kept) : day]):
                carry = 0
            step, carry = publish_day(count, carry)
            steps.append(step)
        return steps

    assert publish((4, *[0] * kept, 1)) != publish_days((4, *[0] * kept, 1))[0]
    for steps, truths in indistinguishable(5, 5, publish=publish).items():
        assert [set(day) for day in zip(*truths, strict=True)] == [values(b) for b in possible_values(steps) if b]
        for first in range(5):
            window = slice(first, first + kept)
            bounds = true_sum(sum_of_steps(steps[window]), from_start=first == 0)
            assert {sum(truth[window]) for truth in truths} <= values(bounds)


def test_a_filled_day_and_a_new_base_share_nothing_with_the_days_around_them() -> None:
    # Two days in fives, one filled, two in tens: each on a carry of its own.
    def publish(series: Series) -> list[int | None]:
        return [
            *publish_days(series[:2])[0],
            publish_day(series[2]).step,
            *publish_days(series[3:], base=10)[0],
        ]

    found: dict[Steps, list[Series]] = defaultdict(list)
    for series in product(range(10), range(10), range(5), range(10), range(10)):
        found[tuple(publish(series))].append(series)
    truths = found[0, 5, 0, 0, 0]
    assert [set(day) for day in zip(*truths, strict=True)] == [
        values(bounds)
        for bounds in (*possible_values([0, 5]), *possible_values([0]), *possible_values([0, 0], base=10))
        if bounds
    ]


def test_a_step_that_is_no_multiple_of_the_base_gives_its_day_away() -> None:
    assert possible_values([5, 3, 0]) == [Bounds(5, 9), Bounds(3, 3), Bounds(0, 4)]
    assert Bounds(3, 3).size == 1


def test_a_published_total_that_shrinks_leaves_no_possible_value() -> None:
    bounds = possible_values([10, -5])[1]
    assert bounds is not None
    assert bounds.size < BASE


@quick
@given(counts, bases)
def test_the_truth_is_among_the_possible_values(counts: list[int | None], base: int) -> None:
    steps, _ = publish_days(counts, base=base)
    for count, bounds in zip(counts, possible_values(steps, base=base), strict=True):
        assert (count is None) == (bounds is None)
        assert bounds is None or (count in values(bounds) and bounds.size >= base)
