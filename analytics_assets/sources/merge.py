"""Merging the counter dumps of a closed day: one dump with the sums per key takes the place of many.

The order of the steps makes a kill at any moment lose nothing and count nothing twice:

1. `<hex>.merging` is written: the merged dump. No reader counts a file of this name.
2. It is read back, and compared with the dumps that it replaces, by both readers.
3. `<hex>.merged` is written: the names of these dumps. It has no effect without `<hex>.ndjson`.
4. `<hex>.merging` is renamed to `<hex>.ndjson`. From then on, readers count it, and none of the dumps on its list.
5. These dumps are deleted.

The next merge of the day removes what an interrupted one has left. The list stays until the day expires, so that a
dump that is copied into the folder once more is not counted once more. What arrives later under a new name is counted,
and merged the next time.

The folder of the day is locked, so that no reader of the pipeline sees a step and no two merges meet.

Behind a URL nothing can be locked or renamed. There a copy of the day is merged, and its changes are made in an order
that is as safe: the list, then its dump, then the deletions. Merges take turns from a last look at the day until the
list and its dump are there. `dump_folder` says how a reader notices one.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from analytics_assets.contract import COUNT, EVENT_DATE, EVENT_NAME, MAX_COUNT
from analytics_assets.dump_files import DUMP, LIST, day_of, is_dump, is_list
from analytics_assets.folders import lock
from analytics_assets.guard import Violation
from analytics_assets.remote import RemoteError, RemoteFolder
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, Problem
from analytics_assets.sources.counter_dumps import (
    DUMP_FED,
    UNREADABLE,
    list_dumps,
    list_entries,
    parse_day,
    read_files,
    read_replaced,
    remote_problem,
    sum_files,
)
from analytics_assets.sources.dump_folder import copy_day, temporary_folder

NOT_CHANGEABLE: Final = Violation("(folder)", "cannot be merged: the pipeline's login may not lock or change it")
NOT_MERGED: Final = Violation("(folder)", "cannot be merged: the merged dump is not equal to the dumps of the day")
NOT_COPIED: Final = Violation("(folder)", "cannot be merged: it has changed meanwhile, or TMPDIR has no room for it")

_QUIET_SECONDS: Final = 86_400
"""How long nothing may have changed in a dump that is merged: a process whose clock is wrong may still count in it."""

_REMOTE_QUIET: Final = timedelta(days=30)
"""The same behind a URL. A machine that has lost the network ships what it has counted when the network is back, and
what is merged by then is not counted again."""


@dataclass(frozen=True)
class Merged:
    """What `merge_closed_days` has done."""

    days: int = 0
    dumps: int = 0
    """How many dumps were replaced."""
    problems: tuple[Problem, ...] = ()
    """Days that were left as they are. The dumps of such a day are counted as before."""


Turn = Callable[[], AbstractContextManager[object]]
"""Waits until no other process is in its turn."""


def merge_dumps(settings: Settings, last: date, turn: Turn = nullcontext, leave: Collection[date] = ()) -> Merged:
    """Merge the dumps of every day up to and including `last`, as `merge_closed_days` does, also behind a URL.

    Days to `leave` are not merged.

    There, nothing may have changed in a dump for 30 days. Any other process that merges there must take turns, too.
    Raises what `turn` raises.
    """
    if settings.dump_url is None:
        return merge_closed_days(settings.dump_dir, last, leave)
    days = dumps = 0
    problems: list[Problem] = []
    try:
        remote = RemoteFolder(settings.dump_url)
        names = remote.list()
    except RemoteError as error:
        return Merged(problems=(remote_problem(error),))
    for day in sorted(day for day in map(day_of, names) if day is not None and day <= last and day not in leave):
        try:
            replaced, found = _merge_remote(remote, day, turn)
        except RemoteError as error:
            replaced, found = 0, [remote_problem(error)]
        except OSError:  # it has vanished meanwhile, or the copy does not fit here
            replaced, found = 0, [Problem(f"{day}/", NOT_COPIED)]
        days += replaced > 0
        dumps += replaced
        problems += found
    return Merged(days, dumps, tuple(problems))


def merge_closed_days(dump_dir: Path, last: date, leave: Collection[date] = ()) -> Merged:
    """Merge the dumps of every day up to and including `last`, each day by itself.

    A day is left as it is when a line or a file in it is refused, or when a dump has changed in the last 24 hours.
    Running it again changes nothing. Nothing on the disk raises: it is in `problems`.
    """
    days = dumps = 0
    problems: list[Problem] = []
    try:
        entries = list_entries(dump_dir)
    except OSError:
        return Merged(problems=(Problem("dump folder", UNREADABLE),))
    for folder in entries:
        day = parse_day(folder)
        if day is None or day > last or day in leave:
            continue
        try:
            with lock(folder, create=False):
                replaced, found = _merge(folder, day)
        except OSError:
            replaced, found = 0, [Problem(f"{folder.name}/", NOT_CHANGEABLE)]
        days += replaced > 0
        dumps += replaced
        problems += found
    return Merged(days, dumps, tuple(problems))


def _merge(folder: Path, day: date) -> tuple[int, list[Problem]]:
    """Merge the dumps of a day, whose folder is locked. Returns how many were replaced, and what prevents it."""
    names, others, problems = list_dumps(folder)
    if others or problems:
        return 0, problems  # the day's metrics report a foreign entry
    _remove_left(folder)
    quiet = time.time() - _QUIET_SECONDS
    if len(names) < 2 or any(os.stat(folder / name).st_mtime > quiet for name in names):
        return 0, []
    counted = read_files(folder, names, day)
    problems = list(dict.fromkeys(problem for metric in counted.values() for problem in metric.problems))
    if problems:
        return 0, problems
    merged = folder / secrets.token_hex(16)
    _write(merged.with_suffix(".merging"), _lines(counted))
    read_back = [merged.with_suffix(".merging").name]
    if read_files(folder, read_back, day) != counted or sum_files(folder, read_back) != sum_files(folder, names):
        merged.with_suffix(".merging").unlink()
        return 0, [Problem(f"{folder.name}/", NOT_MERGED)]
    earlier = read_replaced(folder, names, _lists(os.listdir(folder)))  # by merged dumps that are merged again
    _write(merged.with_suffix(".merged"), (f"{name}\n" for name in sorted({*names, *earlier})))
    _sync(folder)
    merged.with_suffix(".merging").rename(merged.with_suffix(".ndjson"))
    _sync(folder)
    _remove_left(folder)
    return len(names), []


def _merge_remote(remote: RemoteFolder, day: date, turn: Turn) -> tuple[int, list[Problem]]:
    """Merge a copy of a day, and make the same changes behind the URL. Returns as `_merge`."""
    entries = remote.list(str(day))
    dumps = {name: entry for name, entry in entries.items() if is_dump(name)}
    changes = [entry.changed for name, entry in dumps.items() if name.removesuffix(DUMP) + LIST not in entries]
    quiet = datetime.now(UTC) - _REMOTE_QUIET
    if len(dumps) < 2 or any(changed is None or changed > quiet for changed in changes):
        return 0, []
    with temporary_folder() as copy:
        folder = copy_day(remote, day, copy)
        copied = set(os.listdir(folder)) if folder.exists() else set()
        if set(filter(is_dump, copied)) != dumps.keys():
            return 0, []  # a machine has shipped meanwhile
        replaced, problems = _merge(folder, day)
        names = set(os.listdir(folder))
        made = names - copied
        with turn():
            now = remote.list(str(day))
            same = _dumps_and_lists(now) == _dumps_and_lists(copied)
            if problems or not same or any(now[name].version != entry.version for name, entry in dumps.items()):
                return 0, problems  # as above, or another process has merged
            for name in sorted(made, key=lambda name: bool(is_dump(name))):
                remote.write(f"{day}/{name}", (folder / name).read_bytes())
            for name in made:
                if remote.read(f"{day}/{name}") != (folder / name).read_bytes():
                    for each in sorted(made, key=lambda name: bool(is_list(name))):
                        remote.remove(f"{day}/{each}")
                    return 0, [Problem(f"{day}/", NOT_MERGED)]
    gone = _dumps_and_lists(copied) - names
    for of_kind in (is_dump, is_list):  # the lists last, as below
        with remote.in_parallel() as executor:
            list(executor.map(lambda name: remote.remove(f"{day}/{name}"), filter(of_kind, gone)))
    return replaced, []


def _dumps_and_lists(names: Iterable[str]) -> set[str]:
    return {name for name in names if is_dump(name) or is_list(name)}


def _remove_left(folder: Path) -> None:
    """Remove the dumps that merged dumps replace, lists without their dump, and dumps that are half written.

    A dump that arrives meanwhile is on no list.
    """
    names = {path.name for path in folder.iterdir()}
    replaced = read_replaced(folder, names, _lists(names)) & names
    for name in replaced:
        (folder / name).unlink()
    # Last: until then, a list may name the dumps that are to be removed.
    for name in _lists(names):
        if f"{Path(name).stem}.ndjson" not in names - replaced:
            (folder / name).unlink()
    for path in folder.glob("*.merging"):
        path.unlink()


def _lists(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".merged")]


def _lines(counted: Mapping[str, Counted]) -> Iterable[str]:
    """Yield the lines of a dump, as telemetry writes them."""
    for metric in DUMP_FED:
        for row in counted[metric.asset].rows:
            whole = {**row, EVENT_DATE.name: str(row[EVENT_DATE.name]), EVENT_NAME.name: metric.event_names[0]}
            key = {
                field.name: whole[field.name]
                for field in metric.dump_fields
                if field is not COUNT and whole[field.name] is not None
            }
            head = json.dumps(key, separators=(",", ":"))[:-1]
            yield f'{head},"{COUNT.name}":{row[COUNT.name]:{len(str(MAX_COUNT))}}}}\n'


def _write(path: Path, lines: Iterable[str]) -> None:
    with open(path, "x", encoding="ascii", opener=partial(os.open, mode=0o640)) as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
