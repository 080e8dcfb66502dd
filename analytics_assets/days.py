"""Calendar days as instants. Standard library only."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo


def zone(name: str) -> tzinfo:
    """The zone of an IANA name. UTC is known also where the system has no time zones.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: there is no such time zone.
    """
    return UTC if name == "UTC" else ZoneInfo(name)


def span(first: date, last: date) -> list[date]:
    """Every day from `first` to `last`, both included."""
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def bounds(day: date, time_zone: str) -> tuple[datetime, datetime]:
    """First instant of `day` and first instant of the next, in UTC: 23, 24 or 25 hours apart.

    Midnight is looked up in the zone for each end, so a daylight saving change falls into the day it belongs to.
    """
    local = zone(time_zone)
    start, end = (datetime.combine(d, time.min, local).astimezone(UTC) for d in (day, day + timedelta(days=1)))
    return start, end
