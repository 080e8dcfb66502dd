"""Calendar days as instants. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo


def zone(name: str) -> tzinfo:
    """The time zone of an IANA name. UTC works without a time zone database, too.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: the time zone does not exist.
    """
    return UTC if name == "UTC" else ZoneInfo(name)


def span(first: date, last: date) -> list[date]:
    """All days from `first` to `last`, both included."""
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def ranges(days: Iterable[date]) -> list[tuple[date, date]]:
    """The contiguous ranges of some days, oldest first, both ends included."""
    found: list[tuple[date, date]] = []
    for day in sorted(set(days)):
        if found and found[-1][1] == day - timedelta(days=1):
            found[-1] = found[-1][0], day
        else:
            found.append((day, day))
    return found


def format_range(first: date, last: date) -> str:
    """A range as people read it: `2026-11-03 to 2026-11-07`, or one day."""
    return f"{first} to {last}" if last > first else str(first)


def bounds(day: date, time_zone: str) -> tuple[datetime, datetime]:
    """First instants of `day` and of the next day, in UTC: 23, 24 or 25 hours apart.

    Each midnight is converted separately, so the length of the day includes a daylight saving change.
    """
    local = zone(time_zone)
    start, end = (datetime.combine(d, time.min, local).astimezone(UTC) for d in (day, day + timedelta(days=1)))
    return start, end
