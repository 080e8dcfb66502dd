"""Days of one series, and what is read off them: sums, weeks, running totals. Pure; no input or output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final, NamedTuple

from analytics_assets.days import span

PERIOD: Final = 28
"""Days of the period that a page compares with the one before it."""
MIN_DENOMINATOR: Final = 100
"""A percentage is shown from this denominator on; below it, single occurrences would move it by more than one."""


class Period(NamedTuple):
    """Consecutive days, both ends included."""

    first: date
    last: date

    @property
    def days(self) -> int:
        """How many days."""
        return (self.last - self.first).days + 1

    def before(self) -> Period:
        """Return the period of the same length that ends the day before."""
        return Period(self.first - timedelta(days=self.days), self.first - timedelta(days=1))


def newest(shown: Period) -> Period:
    """Return the period that ends with the days shown, or all of these if they are fewer."""
    return Period(max(shown.first, period_to(shown.last).first), shown.last)


def period_to(last: date) -> Period:
    """Return the period that ends on a day."""
    return Period(last - timedelta(days=PERIOD - 1), last)


@dataclass(frozen=True)
class Total:
    """The sum of a series over a period."""

    name: str
    period: Period
    value: int
    """Sum of the days that were collected."""
    collected: int
    """Days of the period that were collected."""

    @property
    def complete(self) -> bool:
        """Whether every day of the period was collected."""
        return self.collected == self.period.days

    @property
    def spec(self) -> str:
        """What the number is the sum of, as the attribute `data-of` says it."""
        first, last = self.period
        return f"{self.name} {first}" if first == last else f"{self.name} {first}/{last}"


@dataclass(frozen=True)
class Series:
    """The days of one event name, of one event or of all."""

    name: str
    label: str
    days: Mapping[date, int | None]
    """Consecutive days, oldest first. None: the day was not collected."""
    filled: frozenset[date] = frozenset()
    """Days that were published later than in their turn, each by itself."""

    @property
    def period(self) -> Period:
        """From the first day to the last."""
        days = list(self.days)
        return Period(days[0], days[-1])

    def total(self, period: Period) -> Total:
        """Return the sum over a period. A day outside the series counts as not collected."""
        counts = [self.days.get(day) for day in span(*period)]
        known = [count for count in counts if count is not None]
        return Total(self.name, period, sum(known), len(known))

    def weeks(self) -> list[Total]:
        """Return the sums of the ISO weeks that lie within the series."""
        return [self.total(week) for week in weeks_within(self.period)]

    def running(self) -> Iterator[Total]:
        """Yield the sum from the first day to each day."""
        first, value, collected = self.period.first, 0, 0
        for day, count in self.days.items():
            value += count or 0
            collected += count is not None
            yield Total(self.name, Period(first, day), value, collected)

    def running_by_week(self) -> list[Total]:
        """Return the running total at the end of each week, and at the end of the series."""
        return [total for total in self.running() if _is_sunday(total) or total.period == self.period]


def _is_sunday(total: Total) -> bool:
    return total.period.last.weekday() == 6


@dataclass(frozen=True)
class Weeks:
    """A series that is known by week only."""

    name: str
    label: str
    totals: Sequence[Total]

    def weeks(self) -> Sequence[Total]:
        """Return the weeks, oldest first."""
        return self.totals


def weeks_within(period: Period) -> list[Period]:
    """Return the ISO weeks, Monday to Sunday, that lie within a period."""
    monday = period.first + timedelta(days=-period.first.weekday() % 7)
    mondays = (monday + timedelta(days=7 * n) for n in range(period.days // 7 + 1))
    return [Period(day, day + timedelta(days=6)) for day in mondays if day + timedelta(days=6) <= period.last]


@dataclass(frozen=True)
class Change:
    """A sum beside that of the period before."""

    now: Total
    before: Total

    @property
    def comparable(self) -> bool:
        """Whether both periods were collected on every day."""
        return self.now.complete and self.before.complete

    @property
    def percent(self) -> str | None:
        """The change in percent as text; None when the periods cannot be compared or the first has too little."""
        relative = percent(self.now.value - self.before.value, self.before.value) if self.comparable else None
        if relative is None:
            return None
        rounded = int(relative)
        return f"{rounded:+d}%" if rounded else "0%"


def percent(part: int, whole: int, digits: int = 0) -> str | None:
    """Return a share in percent as text, None when the denominator is too small."""
    return f"{100 * part / whole:.{digits}f}" if whole >= MIN_DENOMINATOR else None


@dataclass(frozen=True)
class Step:
    """A step of the funnel, and the step before it."""

    label: str
    total: Total
    of: str = ""
    """Label of the step before; empty for the first."""
    before: Total | None = None


def funnel(steps: list[Series], period: Period) -> list[Step]:
    """Return the steps in order, over one period."""
    found: list[Step] = []
    for series in steps:
        step = Step(series.label, series.total(period))
        found.append(replace(step, of=found[-1].label, before=found[-1].total) if found else step)
    return found
