"""Where the dumps are: the dump folder itself, or a temporary copy of what ANALYTICS_DUMP_DIR names by a URL.

The copy has the same layout, so that whoever reads dumps reads either. It goes when it has been read: each reading asks
the storage again, also the one that a comparison makes. The copy of a process that was killed goes with the next
reading on its machine, or when a worker starts there.

Nothing can be locked there, and many names are listed in pages, not at one moment. So a day is listed before and after
it was copied, and copied once more when a name has vanished, or a list of merged dumps or its dump has appeared. A dump
that a machine ships meanwhile is left to the next reading.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from analytics_assets.dump_files import DUMP, LIST, day_of, is_drop_file, is_dump, is_list, is_unfinished
from analytics_assets.folders import lock_shared
from analytics_assets.remote import Entry, RemoteError, RemoteFolder
from analytics_assets.settings import Settings

_ATTEMPTS: Final = 5
"""How often a day is copied that changes meanwhile."""
_PREFIX: Final = "analytics-dumps-"
"""Of the names of copies, among the temporary files."""


class NothingThereError(RemoteError):
    """Nothing is behind the URL: nothing was shipped yet, or it is another URL."""


Contents = Callable[[str], object]
"""Whether the content of a file is needed, by its name. The copy of any other file is empty."""


def everything(_name: str) -> bool:
    """Need every content."""
    return True


def nothing(_name: str) -> bool:
    """Need no content."""
    return False


class DayFolders:
    """The folders of days, for one run: it connects to the storage once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._remote: RemoteFolder | None = None

    @contextmanager
    def open(self, day: date) -> Iterator[Path]:
        """Yield the folder of a day, which may be missing.

        Raises:
            RemoteError: the storage behind the URL cannot be read.
        """
        if self._settings.dump_url is None:
            yield self._settings.dump_dir / day.isoformat()
            return
        with temporary_folder() as copy:
            try:
                self._remote = self._remote or RemoteFolder(self._settings.dump_url)
                folder = copy_day(self._remote, day, copy)
            except RemoteError:
                self._remote = None  # a connection that was lost is not made again otherwise
                raise
            yield folder


@contextmanager
def open_folder(settings: Settings, days: Iterable[date] = (), contents: Contents = nothing) -> Iterator[Path]:
    """Yield the dump folder.

    A copy has the names of `days` and of the newest day, the contents that are needed, every list of merged dumps of
    these days, and any other day as an empty folder.

    Raises:
        RemoteError: nothing is behind the URL, or it cannot be read.
    """
    if settings.dump_url is None:
        yield settings.dump_dir
        return
    remote = RemoteFolder(settings.dump_url)
    with temporary_folder() as copy:
        entries = remote.list()
        if not entries:
            raise NothingThereError("nothing is there: name the TARGET of `analytics-assets ship`, and ship once")
        for name in (name for name, entry in entries.items() if not entry.is_file):
            # A folder that is no day is refused, or left alone, by its name.
            (copy / (name if re.fullmatch(r"[\w.+-]{1,200}", name) and set(name) != {"."} else "other")).mkdir(
                exist_ok=True
            )
        there = {day for name in entries if (day := day_of(name)) is not None}
        for day in {*days, max(there, default=date.max)} & there:
            copy_day(remote, day, copy, contents)
        yield copy


def copy_day(remote: RemoteFolder, day: date, into: Path, contents: Contents = everything) -> Path:
    """Copy a day, with the times of its files' last changes. Returns its folder, which is missing where it is there.

    Raises:
        RemoteError: the storage cannot be read, or the day has changed again and again.
    """
    folder = into / day.isoformat()
    for _ in range(_ATTEMPTS):
        before = remote.list(str(day))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            if before:
                _copy(remote, before, folder, contents)
        except FileNotFoundError:
            continue
        after = remote.list(str(day))
        finished = {name for name in before if not is_unfinished(name)}
        if finished <= after.keys() and _merged(before) == _merged(after) and bool(before) == bool(after):
            return folder
    raise RemoteError("a day was changed each time that it was read: try again")


def read_last_changes(settings: Settings, days: Collection[date]) -> dict[date, datetime]:
    """Return when a dump of each day last changed, by the storage's clock. Only names are listed.

    A merged dump is left out, and so is one that counts nothing yet. A day without any other dump is absent, as is one
    where the storage tells no times.

    Raises:
        RemoteError: the storage behind the URL cannot be listed.
        OSError: the dump folder cannot be listed.
    """
    if settings.dump_url is None:
        folders = {str(day): _list_local(settings.dump_dir / str(day)) for day in days}
    else:
        folders = RemoteFolder(settings.dump_url).list_folders(map(str, days))
    found = {}
    for day in days:
        entries = folders.get(str(day), {})
        merged = _merged(entries)
        dumps = [entry for name, entry in entries.items() if is_dump(name) and name not in merged and entry.size]
        changes = [entry.changed for entry in dumps if entry.changed]
        if changes:
            found[day] = max(changes)
    return found


def _list_local(folder: Path) -> dict[str, Entry]:
    entries = {}
    with suppress(FileNotFoundError), lock_shared(folder), os.scandir(folder) as found:
        for each in found:
            told = each.stat(follow_symlinks=False)
            changed = datetime.fromtimestamp(told.st_mtime, UTC)
            entries[each.name] = Entry(each.is_file(follow_symlinks=False), told.st_size, "", None, changed)
    return entries


def _merged(names: Collection[str]) -> set[str]:
    """Return the lists of merged dumps, and the dumps that belong to them."""
    lists = set(filter(is_list, names))
    return lists | {dump for name in lists if (dump := name.removesuffix(LIST) + DUMP) in names}


def _copy(remote: RemoteFolder, entries: dict[str, Entry], folder: Path, contents: Contents) -> None:
    folder.mkdir()
    ours = {name: entry for name, entry in entries.items() if entry.is_file and _is_ours(name)}
    wanted = [name for name, entry in ours.items() if entry.size and (is_list(name) or contents(name))]
    for name in ours.keys() - wanted:
        (folder / name).touch()

    def copy(name: str) -> None:
        (folder / name).write_bytes(remote.read(f"{folder.name}/{name}"))

    with remote.in_parallel() as executor:
        list(executor.map(copy, wanted))
    for name, entry in ours.items():
        if entry.changed is not None:
            os.utime(folder / name, (entry.changed.timestamp(),) * 2)
    for number in range(sum(not is_unfinished(name) for name in entries.keys() - ours.keys())):
        (folder / f"other {number}").touch()  # the names may hold anything


def _is_ours(name: str) -> bool:
    return bool(is_dump(name) or is_drop_file(name) or is_list(name))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder for a copy. It goes afterwards, and so does any that a killed process has left."""
    remove_left_copies()
    with ExitStack() as stack:
        while (folder := _lock_new_folder(stack)) is None:
            pass
        yield folder


def remove_left_copies() -> None:
    """Remove the copies of this user's processes that were killed while they read.

    A copy in use is locked. The system releases the lock when the process is killed.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), ExitStack() as stack:  # in use, gone meanwhile, or somebody else's
            if _lock(path, stack).st_uid == os.geteuid():
                shutil.rmtree(path)


def _lock_new_folder(stack: ExitStack) -> Path | None:
    """Return a folder of this process's own, None if another process took it for a left one before it was locked."""
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    try:
        _lock(path, stack)
    except BlockingIOError:
        return None
    except OSError:
        pass  # its file system has no locks, so nobody can take it
    return path if path.exists() else None


def _lock(path: Path, stack: ExitStack) -> os.stat_result:
    """Lock a folder until the stack is closed. Raises BlockingIOError if another process uses it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    stack.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return os.fstat(descriptor)
