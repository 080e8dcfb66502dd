"""Late dumps: what came or grew after the daily job had collected its day for the last time, so that it is not counted.

A dump is late when its last change, by the clock of its storage, is not before the moment at which reading its day
began, by the clock of the database. A clock that is behind hides what comes so much after that moment. A merged dump
says nothing about it, because merging changes no count; days with a late dump are not merged, which would hide it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from time import monotonic
from typing import Final

from analytics_assets.sources.dump_folder import read_last_changes
from analytics_assets.store import Store
from analytics_assets.store.counts import read_dumps_read_at, read_window

FindLateDays = Callable[[Store, date], list[date]]

_SECOND: Final = timedelta(seconds=1)
_HOUR: Final = 3600


def find_late_days(store: Store, last: date) -> list[date]:
    """Return the collected days up to and including `last` that have a late dump. No dump is read.

    Raises:
        DatabaseError: the analytics database is out of reach, or not set up.
        RemoteError: the storage behind the URL cannot be listed.
        OSError: the dump folder cannot be listed.
    """
    read_at = {day: at for day, at in read_dumps_read_at(store, read_window(store)).items() if day <= last}
    changes = read_last_changes(store.settings, read_at)
    return sorted(day for day, changed in changes.items() if _latest(changed) >= read_at[day])


class HourlyLook:
    """`find_late_days` for somebody who asks each minute.

    Behind a URL, a look may list hundreds of thousands of names. So it looks again an hour after it has found nothing.
    """

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def __call__(self, store: Store, last: date) -> list[date]:
        """Return and raise as `find_late_days`."""
        url = store.settings.dump_url
        if url is None:
            return find_late_days(store, last)
        if url in self._next and monotonic() < self._next[url]:
            return []
        days = find_late_days(store, last)
        if not days:
            self._next[url] = monotonic() + _HOUR
        return days


def _latest(told: datetime) -> datetime:
    """Return when it was at the latest: SFTP and S3 cut the time of a change to whole seconds."""
    return told if told.microsecond else told + _SECOND
