"""The command `analytics-assets ship`: copy the dumps of this machine to where the pipeline reads those of all.

It runs on a web server, with the extra "ship" and without the pipeline, and keeps no state. A file at the target is
replaced only by one whose counts are at least as high, so any number of these processes may run, stop and be killed: a
later round makes good what an earlier one left undone.

Dumps, drop files and lists of merged dumps travel, a list before the dump that it belongs to. What a list at the target
replaces stays away from there, and so does a day that expires soon.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final
from zoneinfo import ZoneInfoNotFoundError

import click
from rich.console import Console
from rich.progress import Progress

from analytics_assets.contract import RETENTION_DAYS
from analytics_assets.days import zone
from analytics_assets.dump_files import DUMP, LIST, day_of, find_replaced, is_copy, is_drop_file, is_dump, is_list
from analytics_assets.folders import lock, lock_shared
from analytics_assets.remote import Entry, RemoteError, RemoteFolder, find_url_problem, is_url, show

_RECENT_DAYS: Final = 3
"""Days before today whose files are read in every round. The size of a dump does not tell that a count has grown, and
nor does the time of its last change at once, because counts are written into mapped memory."""

_LEFT: Final = timedelta(hours=1)
"""How much older than the newest file of its day a half-written copy is, by the target's clock, that was left there."""

_MAX_LINES: Final = 20
"""Problems that are printed per round. The rest is a number."""


class Fate(Enum):
    """What became of a file in a round."""

    SHIPPED = "shipped"
    UNCHANGED = "unchanged"
    AHEAD = "with higher counts at the target"
    MERGED = "merged at the target"
    GONE = "gone meanwhile"
    """Merged or expired, here or there. The next round sees."""


@dataclass
class Round:
    """What a round has done."""

    fates: Counter[Fate] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """Each names a day, and a file where it is about one."""
    expired: int = 0
    """Days that have expired, or are about to, so that they are not shipped."""

    def __str__(self) -> str:
        always = {Fate.SHIPPED, Fate.UNCHANGED}
        parts = [f"{self.fates[fate]:,} {fate.value}" for fate in Fate if fate in always or self.fates[fate]]
        if self.expired:
            parts.append(f"{self.expired} day(s) too old to ship")
        if self.problems:
            parts.append(f"{len(self.problems)} problem(s)")
        return ", ".join(parts)


@dataclass(frozen=True)
class _Known:
    """What a file at the target holds."""

    md5: str
    total: int
    version: str | None = None
    """As the target calls it, None until it was listed: a round later, so that another second tells a later write."""


@dataclass
class _Memory:
    """What has been seen of a day. It only saves questions to the target."""

    known: dict[str, _Known] = field(default_factory=dict)
    lists: dict[str, bytes] = field(default_factory=dict)
    settled: dict[str, int] | None = None
    """Name -> size of the files of this machine that the target had in an earlier round, all of them."""


_Progress = Callable[[int, int], None]
"""Is told how many of how many files have been looked at."""


class Shipper:
    """Ships rounds from a dump folder of this machine to a target."""

    def __init__(self, source: Path, target: RemoteFolder, retention_days: int) -> None:
        self._source = source
        self._target = target
        self._retention_days = retention_days
        self._memory: dict[date, _Memory] = {}

    def ship(self, today: date, progress: _Progress = lambda done, of: None) -> Round:
        """Ship what the target lacks.

        Raises:
            RemoteError: the target cannot be listed. Nothing was shipped.
            OSError: the folder cannot be read or locked.
        """
        done = Round()
        with lock(self._source, create=False):  # two of these processes on one machine take turns
            there = self._target.list()
            # A day is final long before it expires. One that retention removes today, by a clock that is ahead of this
            # one, must not come back.
            first = today - timedelta(days=self._retention_days - 1)
            folders = dict(sorted(_find_days(self._source)))
            self._memory = {day: self._memory.get(day, _Memory()) for day in folders if day >= first}
            files = {}
            for day in self._memory:
                try:
                    files[day] = _list_files(folders[day])
                except OSError as error:
                    done.problems.append(f"{day}/: cannot be read here: {type(error).__name__}")
            of = sum(map(len, files.values()))
            for day, sizes in files.items():
                for fate in self._ship_day(day, folders[day], sizes, today):
                    if isinstance(fate, Fate):
                        done.fates[fate] += 1
                    else:
                        done.problems.append(fate)
                    progress(done.fates.total(), of)
            for day in folders.keys() - self._memory.keys():
                done.expired += 1
                done.problems += self._remove_expired(day, folders[day], today, there)
        return done

    def _ship_day(self, day: date, folder: Path, sizes: dict[str, int], today: date) -> Iterator[Fate | str]:
        """Yield the fate of each file, or a problem."""
        memory = self._memory[day]
        if day < today - timedelta(days=_RECENT_DAYS) and memory.settled == sizes:
            yield from [Fate.UNCHANGED] * len(sizes)
            return
        memory.settled = None
        fates: list[Fate | str] = []
        try:
            there = self._target.list(str(day))
            for name in _find_left(there):
                self._target.remove(f"{day}/{name}")
            replaced = find_replaced(there, partial(self._read_list, day)) & sizes.keys()
            fates += [Fate.MERGED] * len(replaced)
            others = sizes.keys() - replaced
            ship_file = partial(self._ship_file, folder, there)
            for name in filter(is_list, sizes):
                others.discard(name)
                if name.removesuffix(LIST) + DUMP in replaced:
                    fates.append(Fate.MERGED)  # a later list at the target has all that is on it
                    continue
                fates.append(ship_file(name))
                if not isinstance(fates[-1], Fate):
                    # Without its list, what the dump replaces would be counted twice.
                    others.discard(name.removesuffix(LIST) + DUMP)
            yield from fates
            with self._target.in_parallel() as executor:
                for fate in executor.map(ship_file, sorted(others)):
                    fates.append(fate)
                    yield fate
        except ValueError:
            yield f"{day}/: a list of merged dumps at the target is damaged"
        except RemoteError as error:
            yield f"{day}/: {error}"
        else:
            if all(isinstance(fate, Fate) and fate is not Fate.GONE for fate in fates):
                memory.settled = sizes

    def _ship_file(self, folder: Path, there: Mapping[str, Entry], name: str) -> Fate | str:
        try:
            return self._compare_and_write(folder / name, there.get(name))
        except RemoteError as error:
            return f"{folder.name}/{name}: {error}"
        except FileNotFoundError:
            return Fate.GONE
        except OSError as error:
            return f"{folder.name}/{name}: cannot be read here: {type(error).__name__}"

    def _compare_and_write(self, file: Path, there: Entry | None) -> Fate:
        path = f"{file.parent.name}/{file.name}"
        content = file.read_bytes()
        mine = _Known(hashlib.md5(content, usedforsecurity=False).hexdigest(), sum_counts(content))
        memory = self._memory[date.fromisoformat(file.parent.name)].known
        if there is not None:
            known = memory.get(file.name)
            if there.md5 == mine.md5 or known == replace(mine, version=there.version):
                return Fate.UNCHANGED
            if known is not None and there.md5 == known.md5:
                total = known.total
            else:
                theirs = self._target.read(path) if there.size else b""
                if theirs == content:
                    memory[file.name] = replace(mine, version=there.version)
                    return Fate.UNCHANGED
                total = sum_counts(theirs)
            if mine.total < total:
                return Fate.AHEAD
        memory.pop(file.name, None)
        self._target.write(path, content)
        memory[file.name] = mine
        return Fate.SHIPPED

    def _read_list(self, day: date, name: str) -> bytes:
        lists = self._memory[day].lists
        if name not in lists:  # it is never written again
            lists[name] = self._target.read(f"{day}/{name}")
        return lists[name]

    def _remove_expired(self, day: date, folder: Path, today: date, there: Mapping[str, Entry]) -> list[str]:
        """Remove a day from this machine that has expired by this clock and by the pipeline's. Return problems.

        The pipeline's retention removes it at the target first, and everything before it. Without an older day there, a
        day that is missing at the target may be one that was never shipped.
        """
        expired = day < today - timedelta(days=self._retention_days)
        kept = [each for each in map(day_of, there) if each is not None]
        if expired and kept and day < min(kept):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                return [f"{day}/: has expired and cannot be removed here: {type(error).__name__}"]
        return []


def sum_counts(content: bytes) -> int:
    """Return the sum of all counts in a dump or drop file, whatever its lines are about.

    It only grows as the file is written, while the size may stay the same.
    """
    return sum(map(int, re.findall(rb'"count": *([0-9]+)\}', content)))


def _find_days(source: Path) -> Iterator[tuple[date, Path]]:
    with os.scandir(source) as entries:
        for entry in entries:
            day = day_of(entry.name)
            if day is not None and entry.is_dir(follow_symlinks=False):
                yield day, Path(entry.path)


def _list_files(folder: Path) -> dict[str, int]:
    """Return the files of a day that travel, with their sizes. No merge of the pipeline is half done in them."""
    found = {}
    with lock_shared(folder), os.scandir(folder) as entries:
        for entry in entries:
            travels = is_dump(entry.name) or is_drop_file(entry.name) or is_list(entry.name)
            if travels and entry.is_file(follow_symlinks=False) and (size := entry.stat().st_size):
                found[entry.name] = size
    return found


def _find_left(there: Mapping[str, Entry]) -> list[str]:
    """Return the half-written copies of a day that a process has left which was killed or lost the network."""
    changes = {name: entry.changed for name, entry in there.items() if entry.changed}
    newest = max(changes.values(), default=None)
    if newest is None:
        return []
    return [name for name, changed in changes.items() if is_copy(name) and newest - changed > _LEFT]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("target")
@click.option(
    "--from",
    "source",
    envvar="ANALYTICS_DUMP_DIR",
    required=True,
    help="The dump folder of this machine. Default: ANALYTICS_DUMP_DIR.",
)
@click.option(
    "--every",
    type=click.IntRange(1, 86_400),
    metavar="SECONDS",
    help="Stay, and ship this often. On SIGTERM, ship once more and leave.",
)
@click.option(
    "--retention-days",
    envvar="ANALYTICS_RETENTION_DAYS",
    type=click.IntRange(1, 3650),
    default=RETENTION_DAYS,
    show_default=True,
    help="How many days the pipeline keeps. Default: ANALYTICS_RETENTION_DAYS.",
)
@click.option(
    "--time-zone",
    envvar="ANALYTICS_TIMEZONE",
    default="UTC",
    show_default=True,
    help="The time zone of the days. Default: ANALYTICS_TIMEZONE.",
)
def ship(target: str, source: str, every: int | None, retention_days: int, time_zone: str) -> None:
    """Copy the counter dumps of this machine to TARGET, a folder for the dumps of all machines.

    TARGET is a URL, such as s3://bucket/dumps, gs://bucket/dumps, sftp://host/dumps or file:///mnt/share/dumps. It is
    what ANALYTICS_DUMP_DIR names where the pipeline runs. Credentials come from the environment, as the library of
    the protocol reads them.

    Live dumps are copied as they are, and again when their counts have grown. Running it again changes nothing, and it
    may be killed at any moment. When the machine is lost, the counts since the last round are lost. The exit status is
    non-zero if a file was not shipped in the (last) round.
    """
    if problem := find_url_problem(target):
        raise click.BadParameter(problem, param_hint="TARGET")
    if is_url(source):
        raise click.BadParameter("is a URL: name the folder that the telemetry writes to", param_hint="--from")
    try:
        clock = partial(datetime.now, zone(time_zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise click.BadParameter("is not an IANA time zone (like Europe/Berlin)", param_hint="--time-zone") from None
    leave = threading.Event()
    if every:
        # The handler only notes the signal, so that the round that is under way ends as usual.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, partial(_note, leave))
    shipper: Shipper | None = None
    while True:
        last = leave.is_set() or not every
        try:
            shipper = shipper or Shipper(Path(source), RemoteFolder(target), retention_days)
            with _progress() as progress:
                done = shipper.ship(clock().date(), progress)
        except RemoteError as error:
            done = Round(problems=[f"target: {error}"])
        except OSError as error:
            done = Round(problems=[f"--from: cannot be read or locked: {type(error).__name__}"])
        if done.problems:
            shipper = None  # a connection that was lost, or a damaged list that was restored, is not noticed otherwise
        _tell(target, done)
        if last:
            break
        leave.wait(every)
    if done.problems:
        raise click.ClickException("not everything is at the target; running it again continues")


def _tell(target: str, done: Round) -> None:
    click.echo(f"{show(target)}: {done}")
    for problem in done.problems[:_MAX_LINES]:
        click.echo(f"  {problem}", err=True)
    if len(done.problems) > _MAX_LINES:
        click.echo(f"  and {len(done.problems) - _MAX_LINES} more", err=True)


def _note(leave: threading.Event, _signum: int, _frame: FrameType | None) -> None:
    leave.set()


@contextmanager
def _progress() -> Iterator[_Progress]:
    """Yield what shows a bar on a terminal and nothing elsewhere."""
    console = Console()
    if not console.is_terminal:
        yield lambda done, of: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("shipping")
        yield lambda done, of: bar.update(task, completed=done, total=of)
