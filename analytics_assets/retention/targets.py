"""Retention targets in the analytics database and in folders: what each keeps, and removing what has expired.

The targets in Dagster's own database are in `dagster_records`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from analytics_assets.days import zone
from analytics_assets.dump_files import day_of, is_of_file_system
from analytics_assets.folders import lock, remove_empty
from analytics_assets.remote import RemoteFolder
from analytics_assets.sources.counter_dumps import FOREIGN_FOLDER, is_foreign, list_entries, parse_day
from analytics_assets.store import Store, expiry


class Amount(NamedTuple):
    """Part of what a target keeps."""

    days: int
    rows: int
    """Rows, or files where the target is a folder."""


NOTHING: Final = Amount(0, 0)


class TargetError(RuntimeError):
    """A target is not what it should be. Nothing was removed from it, and the text says what to do."""


class RetentionTarget(Protocol):
    """Something that keeps days. Every method may raise DatabaseError, TargetError or OSError."""

    @property
    def name(self) -> str:
        """Its name in the ledger."""

    @property
    def covers(self) -> Sequence[str]:
        """Its relations (`analytics.name`, `dagster.name`) and parts of the data folder (`data/path`)."""

    def oldest(self) -> date | None:
        """Return the oldest day that it keeps, None when it keeps none."""

    def expired(self, before: date) -> Amount:
        """Return how much it keeps of the days before a day."""

    def remove(self, before: date) -> Iterator[Amount]:
        """Remove the days before a day, and yield what each step removed. A later call continues."""


@dataclass(frozen=True)
class DailyCounts:
    """The partitions of the tables that keep counts."""

    store: Store
    name = "daily counts"
    covers = ("analytics.daily_event_counts", "analytics.daily_response_counts", "analytics.daily_error_rates")

    def oldest(self) -> date | None:
        """Return the oldest day that has a partition, even an empty one."""
        return next(iter(expiry.list_partitioned_days(self.store)), None)

    def expired(self, before: date) -> Amount:
        """Return the days that have a partition, and how many rows were collected of them."""
        days = self._days(before)
        return Amount(len(days), expiry.sum_collected_rows(self.store, days))

    def remove(self, before: date) -> Iterator[Amount]:
        """Drop the partitions, each day in a transaction of its own."""
        for day in self._days(before):
            yield Amount(1, expiry.drop_day(self.store, day))

    def _days(self, before: date) -> list[date]:
        return [day for day in expiry.list_partitioned_days(self.store) if day < before]


@dataclass(frozen=True)
class CollectedDays:
    """The rows that tell a day with zero from a day that was not collected."""

    store: Store
    name = "collected days"
    covers = ("analytics.collected_days",)

    def oldest(self) -> date | None:
        """Return the oldest collected day."""
        return expiry.summarize_collected(self.store, date.min)[2]

    def expired(self, before: date) -> Amount:
        """Return days, and rows of all metrics."""
        days, rows, _ = expiry.summarize_collected(self.store, before)
        return Amount(days, rows)

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the rows, except those of a day whose partition is still there."""
        yield Amount(*expiry.forget_days(self.store, before))


@dataclass(frozen=True)
class PublishedDays:
    """What people outside the core team see, and the notes on it. A week counts as its Monday."""

    store: Store
    name = "published days"
    covers = (
        "published.daily_counts",
        "published.days",
        "published.daily",
        "published.weekly_counts",
        "published.weeks",
        "analytics.publications",
    )

    def oldest(self) -> date | None:
        """Return the oldest published day, or Monday of a week."""
        return expiry.summarize_published(self.store, date.min)[2]

    def expired(self, before: date) -> Amount:
        """Return days, and rows of all tables."""
        days, rows, _ = expiry.summarize_published(self.store, before)
        return Amount(days, rows)

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the rows."""
        yield Amount(*expiry.forget_published(self.store, before))


@dataclass(frozen=True)
class PublishedCarries:
    """What was counted of a series and is not published yet. It goes when every day that added to it has expired."""

    store: Store
    name = "published carries"
    covers = ("analytics.published_carries",)

    def oldest(self) -> date | None:
        """Return the oldest day that was the last one to add to a carry."""
        return expiry.summarize_carries(self.store, date.min)[2]

    def expired(self, before: date) -> Amount:
        """Return those days, and carries."""
        days, rows, _ = expiry.summarize_carries(self.store, before)
        return Amount(days, rows)

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the carries."""
        yield Amount(*expiry.forget_carries(self.store, before))


@dataclass(frozen=True)
class Friction:
    """What friction has found. It is dated by the day that departs from its history."""

    store: Store
    name = "friction"
    covers = ("analytics.friction",)

    def oldest(self) -> date | None:
        """Return the oldest day of a finding."""
        return expiry.summarize_friction(self.store, date.min)[2]

    def expired(self, before: date) -> Amount:
        """Return days, and findings."""
        days, rows, _ = expiry.summarize_friction(self.store, before)
        return Amount(days, rows)

    def remove(self, before: date) -> Iterator[Amount]:
        """Delete the findings."""
        yield Amount(*expiry.forget_friction(self.store, before))


@dataclass(frozen=True)
class Files:
    """A folder that keeps days.

    Everything in a folder named like a date belongs to that day. Any other file, like a log or a stray file, belongs to
    the day of its last change. Links are removed and never followed.
    """

    name: str
    covers: Sequence[str]
    folder: Path
    time_zone: str
    """The time zone of the day of a change."""
    only_days: bool = False
    """True for the dump folder: a subfolder without a date name means a wrong path, and nothing is removed."""
    runs: Callable[[], set[str]] | None = None
    """Returns the ids of the runs whose logs may be removed. None: everything in the folder may."""

    def oldest(self) -> date | None:
        """Return the oldest day of anything in the folder."""
        return min((day for day, _ in self._entries()), default=None)

    def expired(self, before: date) -> Amount:
        """Return days, and files of any kind."""
        return _count_files([entry for entry in self._entries() if entry[0] < before])

    def remove(self, before: date) -> Iterator[Amount]:
        """Remove day by day: whole day folders, and single files with the folders that they leave empty."""
        expired = sorted(entry for entry in self._entries() if entry[0] < before)
        for _, of_day in groupby(expired, key=itemgetter(0)):
            entries = list(of_day)
            amount = _count_files(entries)
            for _, path in entries:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                    remove_empty(path.parent, self.folder)
            yield amount

    def _entries(self) -> Iterator[tuple[date, Path]]:
        """Yield the day and path of each day folder, and of each file elsewhere."""
        try:
            entries = list_entries(self.folder) if self.only_days else sorted(self.folder.iterdir())
        except FileNotFoundError:
            return
        if self.only_days and any(map(is_foreign, entries)):
            raise TargetError(str(FOREIGN_FOLDER))
        if self.runs is not None and entries:
            ours = self.runs()
            # A run's folder may also hold what an IO manager has stored.
            entries = [path / "compute_logs" for path in entries if path.name in ours]
            entries = [path for path in entries if path.is_dir()]
        for path in entries:
            if (day := parse_day(path)) is not None:
                yield day, path
            else:
                for file in _files(path):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        changed = datetime.fromtimestamp(file.lstat().st_mtime, zone(self.time_zone))
                        yield changed.date(), file


@dataclass(frozen=True)
class RemoteDumps:
    """The dumps of many machines, behind a URL.

    A file outside of the days belongs to the day of its last change; if the storage does not tell it, the file stays.
    """

    url: str = field(repr=False)
    time_zone: str
    name = "counter dumps"
    covers = ("data/dumps",)

    def oldest(self) -> date | None:
        """Return the oldest day that has a folder, or a file elsewhere."""
        return min(self._entries(RemoteFolder(self.url)).values(), default=None)

    def expired(self, before: date) -> Amount:
        """Return days, and files."""
        remote = RemoteFolder(self.url)
        expired = {name: day for name, day in self._entries(remote).items() if day < before}
        return Amount(len(set(expired.values())), sum(self._count(remote, name) for name in expired))

    def remove(self, before: date) -> Iterator[Amount]:
        """Remove day by day, with whatever a day's folder holds."""
        remote = RemoteFolder(self.url)
        for name, day in sorted(self._entries(remote).items(), key=itemgetter(1)):
            if day < before:
                amount = Amount(1, self._count(remote, name))
                if day_of(name):
                    remote.remove_folder(name)
                else:
                    remote.remove(name)
                yield amount

    def _entries(self, remote: RemoteFolder) -> dict[str, date]:
        entries = {name: entry for name, entry in remote.list().items() if entry.is_file or not is_of_file_system(name)}
        if any(not entry.is_file and day_of(name) is None for name, entry in entries.items()):
            raise TargetError(str(FOREIGN_FOLDER))
        days = {name: day_of(name) for name, entry in entries.items() if not entry.is_file}
        days |= {
            name: entry.changed.astimezone(zone(self.time_zone)).date()
            for name, entry in entries.items()
            if entry.is_file and entry.changed
        }
        return {name: day for name, day in days.items() if day is not None}

    def _count(self, remote: RemoteFolder, name: str) -> int:
        return len(remote.list(name)) if day_of(name) else 1


_DAY_IN_HTML: Final = re.compile(rb"<time datetime='(\d{4}-\d\d-\d\d)'>")
_DAY_IN_DATA: Final = re.compile(rb"\b\d{4}-\d\d-\d\d\b")


@dataclass(frozen=True)
class Pages:
    """The pages that are served. A page keeps every day that it shows, but not a date in the name of an endpoint.

    A page is written anew every day without the days that expire soon. What is removed here was not. The folders
    `core`, `overview` and `events` stay: their group is the operator's.
    """

    folder: Path
    name = "pages"
    covers = ("data/pages",)

    def oldest(self) -> date | None:
        """Return the oldest day that any page names."""
        return min((day for day, _ in self._entries()), default=None)

    def expired(self, before: date) -> Amount:
        """Return the oldest days of pages, and pages."""
        found = [day for day, _ in self._entries() if day < before]
        return Amount(len(set(found)), len(found))

    def remove(self, before: date) -> Iterator[Amount]:
        """Remove the pages that name an expired day, in one step."""
        if not self.folder.exists():
            return
        with lock(self.folder):  # a page that is written meanwhile is a new one
            expired = [(day, path) for day, path in self._entries() if day < before]
            for _, path in expired:
                path.unlink(missing_ok=True)
                remove_empty(path.parent, self.folder / path.relative_to(self.folder).parts[0])
        if expired:
            yield Amount(len({day for day, _ in expired}), len(expired))

    def _entries(self) -> Iterator[tuple[date, Path]]:
        """Yield each page with the oldest day that it names. A file that names none keeps none."""
        for path in _files(self.folder) if self.folder.exists() else ():
            if path.is_file() and not path.is_symlink():
                shown = _DAY_IN_HTML if path.suffix == ".html" else _DAY_IN_DATA
                days = {_parse_date(found.decode()) for found in shown.findall(path.read_bytes())} - {None}
                if days:
                    yield min(day for day in days if day), path


def _parse_date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _files(path: Path) -> Iterator[Path]:
    """Yield a file itself, or every file and every empty folder below a folder."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path, onerror=_raise):
        if not folders and not names:
            yield Path(folder)
        yield from (Path(folder, name) for name in names)
        yield from (link for name in folders if (link := Path(folder, name)).is_symlink())


def _count_files(entries: Sequence[tuple[date, Path]]) -> Amount:
    return Amount(len({day for day, _ in entries}), sum(1 for _, path in entries for _ in _files(path)))


def _raise(error: OSError) -> None:
    raise error
