"""The places that keep days: what each has, and removing the expired part of it.

A place outside the analytics database and the dump folder, in Dagster's records, is in `dagster_records`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from analytics_assets.days import zone
from analytics_assets.store.counts import Store


class Amount(NamedTuple):
    """Part of what a place keeps."""

    days: int
    rows: int
    """Rows; of folders, files."""


NOTHING: Final = Amount(0, 0)


class PlaceError(RuntimeError):
    """A place is not what it should be, and nothing was removed from it; the text says what to do."""


class Place(Protocol):
    """A place that keeps days. Every method raises DatabaseError, PlaceError or OSError when it cannot tell or do."""

    @property
    def name(self) -> str:
        """What the ledger calls it."""

    @property
    def covers(self) -> Sequence[str]:
        """What belongs to it: relations (`analytics.name`, `dagster.name`), parts of the data folder (`data/path`)."""

    def oldest(self) -> date | None:
        """The oldest day it keeps, None when it keeps none."""

    def expired(self, before: date) -> Amount:
        """What it keeps of the days before a day."""

    def remove(self, before: date) -> Iterator[Amount]:
        """Remove the days before a day, and yield what each step has removed. A later call goes on from there."""


@dataclass(frozen=True)
class DailyCounts:
    """The partitions of the tables that keep counts."""

    store: Store
    name = "daily counts"
    covers = ("analytics.daily_event_counts", "analytics.daily_response_counts", "analytics.daily_error_rates")

    def oldest(self) -> date | None:
        """The oldest day that has a partition, be it empty."""
        return next(iter(self.store.partitioned_days()), None)

    def expired(self, before: date) -> Amount:
        """Days that have a partition, and how many rows were collected of them."""
        days = self._days(before)
        return Amount(len(days), self.store.rows_collected(days))

    def remove(self, before: date) -> Iterator[Amount]:
        """Drop the partitions, each day in a transaction of its own."""
        for day in self._days(before):
            yield Amount(1, self.store.drop_day(day))

    def _days(self, before: date) -> list[date]:
        return [day for day in self.store.partitioned_days() if day < before]


@dataclass(frozen=True)
class CollectedDays:
    """The notes that tell a day with zero from a day not collected."""

    store: Store
    name = "collected days"
    covers = ("analytics.collected_days",)

    def oldest(self) -> date | None:
        """The oldest day that was collected."""
        return self.store.collected_before(date.min)[2]

    def expired(self, before: date) -> Amount:
        """Days, and notes of any metric."""
        days, rows, _ = self.store.collected_before(before)
        return Amount(days, rows)

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the notes; those of a day whose partition is still there stay with it."""
        yield Amount(*self.store.forget_days(before))


_DAY_FOLDER: Final = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Files:
    """A folder that keeps days.

    What lies in a folder named like a date, whatever it is, is of that day. Any other file is of the day of its last
    change: so a stray file goes, too, and so do logs. Links are removed and never followed.
    """

    name: str
    covers: Sequence[str]
    folder: Path
    time_zone: str
    """The zone of the day of a change."""
    only_days: bool = False
    """Whether a folder in it that is no day means that this is not the folder it is taken for."""

    def oldest(self) -> date | None:
        """The oldest day of anything in the folder."""
        return min((day for day, _ in self._entries()), default=None)

    def expired(self, before: date) -> Amount:
        """Days, and files of any kind."""
        return _amount([entry for entry in self._entries() if entry[0] < before])

    def remove(self, before: date) -> Iterator[Amount]:
        """Remove whole day folders, and single files elsewhere with the folders that they leave empty, day by day."""
        gone = sorted(entry for entry in self._entries() if entry[0] < before)
        for _, of_day in groupby(gone, key=itemgetter(0)):
            entries = list(of_day)
            amount = _amount(entries)
            for _, path in entries:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                    _remove_empty(path.parent, self.folder)
            yield amount

    def _entries(self) -> Iterator[tuple[date, Path]]:
        """The day and path of each day folder, and of each file elsewhere."""
        try:
            entries = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return
        if self.only_days and any(map(_is_foreign, entries)):
            raise PlaceError("there is a folder in it that is no day: move that away, or name the right folder")
        for path in entries:
            if (day := _day_of_name(path)) is not None:
                yield day, path
            else:
                for file in _files(path):
                    with suppress(FileNotFoundError):  # gone meanwhile
                        changed = datetime.fromtimestamp(file.lstat().st_mtime, zone(self.time_zone))
                        yield changed.date(), file


def _is_foreign(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and _day_of_name(path) is None


def _day_of_name(path: Path) -> date | None:
    if path.is_symlink() or not path.is_dir() or not _DAY_FOLDER.fullmatch(path.name):
        return None
    try:
        return date.fromisoformat(path.name)
    except ValueError:
        return None


def _files(path: Path) -> Iterator[Path]:
    """A file, or every file below a folder, and every empty folder below it."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path, onerror=_raise):
        if not folders and not names:
            yield Path(folder)
        yield from (Path(folder, name) for name in names)
        yield from (link for name in folders if (link := Path(folder, name)).is_symlink())


def _amount(entries: Sequence[tuple[date, Path]]) -> Amount:
    return Amount(len({day for day, _ in entries}), sum(1 for _, path in entries for _ in _files(path)))


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _raise(error: OSError) -> None:
    raise error
