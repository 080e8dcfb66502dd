"""Running totals in fives: what is published of a series, and what a reader can know from it.

Arithmetic only: pure functions over the days of one series, no database. Standard library only. `docs/publication.md`
has the reasons, the proof in plain words and what is not promised.

* **count**: the true number of one series on one day, `c_d >= 0`. `None` stands for a day that was not collected.
* **step**: what is published of a day, `p_d`, a multiple of the base.
* **carry**: what was counted but is not yet published, `0 <= carry < base`. Whoever knows it knows too much.
* **stretch**: successive days that are published on one carry. A stretch starts with carry 0, and its last carry is
  dropped. A series is one stretch from its first published day on. A day that is filled later is a stretch of its own,
  and a new base starts a new stretch.

Let `C_d` be the running total of the counts of a stretch, and `P_d` that of its steps. Publishing keeps
`P_d = base * floor(C_d / base)`; the carry is `C_d - P_d`. A reader who knows every step ever published knows

    P_d <= C_d <= P_d + base - 1    and    c_d >= 0

for every day, and nothing else. No constraint links two stretches. Everything below follows from these two lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, Literal, NamedTuple

from analytics_assets.contract import PUBLISHED_BASE

BASE: Final = PUBLISHED_BASE
"""Published numbers are multiples of this, and every day keeps at least this many possible values."""

State = Literal["value", "below", "not_collected"]
"""What a reader is told about a published day: a number, less than the base, or that nothing was collected."""


class PublishedDay(NamedTuple):
    """What one day adds to a publication."""

    step: int
    """Published: a multiple of the base."""
    carry: int
    """Kept for the next day of the stretch, never published."""


def publish_day(count: int, carry: int = 0, *, base: int = BASE) -> PublishedDay:
    """Publish one day of a stretch from the carry of the day before.

    From carry 0, and with the new carry dropped, this publishes a day that is filled later.

    Raises:
        ValueError: the count is negative, the carry is negative or not below the base, or the base is below 2.
    """
    if base < 2:
        raise ValueError("the base must be at least 2")
    if count < 0:
        raise ValueError("a count must not be negative")
    if not 0 <= carry < base:
        raise ValueError("a carry must be at least 0 and below the base")
    left = (carry + count) % base
    return PublishedDay(carry + count - left, left)


def publish_days(counts: Iterable[int | None], carry: int = 0, *, base: int = BASE) -> tuple[list[int | None], int]:
    """Publish successive days of a stretch; return their steps and the carry after the last one.

    Days published in portions, each from the carry of the portion before, have the same steps as in one go. The carry
    passes over a day that was not collected (`None`); its step is `None`.

    Raises:
        ValueError: as in `publish_day`.
    """
    steps: list[int | None] = []
    for count in counts:
        if count is None:
            steps.append(None)
        else:
            step, carry = publish_day(count, carry, base=base)
            steps.append(step)
    return steps, carry


def state(step: int | None) -> State:
    """What a reader is told about a day, or a week, with this step.

    A day without a step had 0 to `base - 1`: the carry before it and its count together stayed below the base.
    """
    if step is None:
        return "not_collected"
    return "value" if step else "below"


@dataclass(frozen=True, slots=True)
class Bounds:
    """A true number is one of the whole numbers from `low` to `high`, and may be any of them."""

    low: int
    high: int

    @property
    def size(self) -> int:
        """How many values are possible."""
        return max(0, self.high - self.low + 1)

    def __add__(self, other: Bounds) -> Bounds:
        """The bounds of the sum of two numbers that no constraint links, such as windows of two series."""
        return Bounds(self.low + other.low, self.high + other.high)


NOTHING: Final = Bounds(0, 0)
"""Where adding bounds starts: `sum(bounds_of_each_series, NOTHING)`."""


def true_sum(published: int, *, from_start: bool, base: int = BASE) -> Bounds:
    """What the true sum over a window can be when the steps in it sum to `published`.

    A window is the days a to b of one stretch, without a gap. (Days that were not collected count neither as days nor
    as gaps.) The true sum is `C_b - C_(a-1)`: `published`, plus the carry after b, minus the carry before a. Hence

    * from the first collected day of the stretch (`from_start`), the carry before is 0, and the true sum is
      `published` to `published + base - 1`;
    * in any other window, the true sum is `published - (base - 1)`, but at least 0, to `published + base - 1`.

    Every value in between is possible. With a step in the window, the two carries are independent of each other;
    without one, a carry of 0 before the window leaves the carry after it free.

    So a running total is never above the count, but **a day, a week or a trailing window can be**: after a carry of 4,
    a count of 1 is published as 5.

    Bounds of several series (or stretches) add up, because no constraint links them. Take m windows, s of which have a
    step and do not begin with their stretch. Their true sum is `published - s * (base - 1)` to
    `published + m * (base - 1)`; a published 420 over four series from their start means at least 420, at most 436.
    Take m from what is published, or is public anyway. How many series have a stored count is a raw figure: when it
    rises from 4 to 5, some series that is still below the base has at least 1.

    A carry that is dropped because none of its counts is kept any more changes nothing here, as long as the window is
    within the days kept.
    """
    low = published if from_start else max(0, published - base + 1)
    return Bounds(low, published + base - 1)


def possible_values(steps: Iterable[int | None], *, base: int = BASE) -> list[Bounds | None]:
    """What each day of a stretch can be for a reader who knows all its steps, first day first.

    The exact closed form; it is `true_sum` for a window of one day:

    * first collected day: `p_d` to `p_d + base - 1`, which are `base` values;
    * later day without a step: 0 to `base - 1`, which are `base` values;
    * later day with a step: `p_d - (base - 1)` to `p_d + base - 1`, which are `2 * base - 1` values;
    * day that was not collected: `None`, because nothing is known about it.

    Why at least `base` values are left, whatever is summed or subtracted: the steps themselves are a possible truth,
    the one in which every carry is 0. In it, take any day d and any v from 0 to `base - 1`, and move v occurrences to
    d from the next day with a step (or add them, if there is no such day). Running totals before d and from that day
    on stay as they were, those between grow by less than the base, so that nothing published changes. Now take any
    sum or difference of days, with whatever weights, and let d be the last day with a weight other than 0 in one of
    the series: the v alone give it `base` different values.

    A step that is no multiple of the base does not come from this method. It is read as the count itself, so that the
    day has one value; the carry passes over it.
    """
    found: list[Bounds | None] = []
    from_start = True
    for step in steps:
        if step is None:
            found.append(None)
        elif step % base:
            found.append(Bounds(step, step))
        else:
            found.append(true_sum(step, from_start=from_start, base=base))
            from_start = False
    return found


def closed_weeks(counts: Mapping[date, int | None]) -> dict[date, int | None]:
    """The ISO weeks of which all seven days are in `counts`: their Monday and their sum, in order.

    These sums are published like counts of days. A week with a day that was not collected is `None`, too: the sum of
    its other days would look like a quiet week.
    """
    weeks: dict[date, int | None] = {}
    for monday in sorted(day for day in counts if day.weekday() == 0):
        days = [monday + timedelta(days=n) for n in range(7)]
        if all(day in counts for day in days):
            collected = [count for day in days if (count := counts[day]) is not None]
            weeks[monday] = sum(collected) if len(collected) == len(days) else None
    return weeks
