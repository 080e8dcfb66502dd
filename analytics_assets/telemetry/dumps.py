"""The writer of counter dumps and drop files: memory-mapped NDJSON, one file of each per process and day.

This module handles bytes and offsets only. The caller decides which rows are allowed and which day it is, and handles
threads and forks.

The file is the buffer, so it must be valid whenever the process is killed, and while it is read:

* A new line is one `write` at the end of the file, inside one page. A SIGKILL leaves the whole line or nothing. The
  file's size grows after the line is complete, so a reader never sees half of it. (Preallocating space filled with line
  feeds was tried: readers saw half-written lines in it, on ext4 and on tmpfs.)
* An increment is one aligned store of eight bytes into the mapping. The page cache keeps it when the process dies.
* That `write` allocates the line's space: a full disk, a quota or a size limit is an OSError there, never a SIGBUS at a
  later store. (Copy-on-write file systems such as btrfs and ZFS allocate space for every rewrite, so they guarantee
  neither.)

Other code of the application may write into a descriptor number that it has closed and that the dump was given since
(gunicorn's threaded worker does). The file position is past the end of what the file system takes, so that such a write
fails and cannot reach a line. This module writes to explicit offsets.

A power failure may lose what the kernel has not yet written back, because this module never calls fsync.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final

from analytics_assets.contract import MAX_COUNT

PAGE_BYTES: Final = 4096
"""The smallest page size in use. A line inside 4096 aligned bytes is inside any larger page, too."""

_WIDTH: Final = len(str(MAX_COUNT))
_STORE_BYTES: Final = 8
_STORE_LIMIT: Final = 10**_STORE_BYTES


@dataclass(slots=True)
class Line:
    """A line of an open dump: the offset in bytes just past the last digit of its count, and the count."""

    end: int
    count: int


class DumpFile:
    """A new file `<dump_dir>/<event_date>/<128 random bits in hex><suffix>`, readable by its owner and group.

    The group may also delete it, because retention runs as the pipeline's user, not as the web application's.

    Not thread-safe. The file stays on disk when the object is closed or the process dies.

    Raises:
        OSError: the folder or the file cannot be created.
    """

    def __init__(self, dump_dir: Path, event_date: str, suffix: str = ".ndjson") -> None:
        folder = dump_dir / event_date
        for path in (dump_dir, folder):
            _make_folder(path)
        self._path = folder / f"{secrets.token_hex(16)}{suffix}"
        # A file object may be closed twice: a child may be forked while a thread of its parent closes the file. A bare
        # descriptor's number may already belong to another file then.
        self._file = FileIO(self._path, "x+", opener=partial(os.open, mode=0o640))
        _seek_past_the_end(self._file.fileno())
        # An empty file cannot be mapped, so use an anonymous mapping until the first line is written.
        self.map = mmap.mmap(-1, 1)

    def append(self, row: Mapping[str, object], count: int) -> Line:
        """Append a line for a new key: `row` (field name -> value, without the count), then its first count.

        Raises:
            OSError: the disk is full or failing. The file is unchanged, and a later call may succeed.
        """
        head = json.dumps(row, separators=(",", ":")).encode()[:-1] + b',"count":'
        size = os.fstat(self._file.fileno()).st_size
        longest = len(head) + _STORE_BYTES - 1 + _WIDTH + len(b"}\n")
        line_feeds = -size % PAGE_BYTES if size % PAGE_BYTES + longest > PAGE_BYTES else 0
        # Blanks before the number align its end to eight bytes, so that `add` can replace eight digits in one store.
        blanks = -(size + line_feeds + len(head) + _WIDTH) % _STORE_BYTES
        line = b"\n" * line_feeds + head + b" " * blanks + _digits(count) + b"}\n"
        try:
            self._write(line, size)
            new_map = mmap.mmap(self._file.fileno(), 0)
        except OSError:
            # A file size limit may let part of the line through.
            self._file.truncate(size)
            raise
        old_map, self.map = self.map, new_map
        old_map.close()
        return Line(end=size + len(line) - len(b"}\n"), count=count)

    def add(self, line: Line, times: int) -> None:
        """Add `times` to the count of a line of this file; the sum must not exceed MAX_COUNT.

        Where the last digit alone changes, the caller may store that byte in `map` and set `count`, in half the time.

        Raises:
            OSError: only when the count passes a multiple of 10**8; only that needs a system call.
        """
        count = line.count + times
        if count < _STORE_LIMIT or count // _STORE_LIMIT == line.count // _STORE_LIMIT:
            # The C library copies eight bytes to an aligned address by one eight-byte move, which no signal can
            # split: a killed process leaves the old number or the new one, never digits of both.
            self.map[line.end - _STORE_BYTES : line.end] = (b"%12d" % count)[-_STORE_BYTES:]
        else:
            # A kill between two stores would leave the file off by 10**8. One write inside a page is all or nothing.
            self._write(_digits(count), line.end - _WIDTH)
        line.count = count

    def is_removed(self) -> bool:
        """Whether the file was deleted or replaced; False when that is unknown."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            # Without permission to read the folder, the open file can still be written.
            return False

    def close(self) -> None:
        """Close the file, which stays on disk. In a forked child, the parent's file stays open."""
        self.map.close()
        self._file.close()

    def _write(self, data: bytes, offset: int) -> None:
        # Only a full disk or a size limit causes a short write; the next write then raises the reason.
        while data:
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written


def _digits(count: int) -> bytes:
    return str(count).rjust(_WIDTH).encode()


def _seek_past_the_end(descriptor: int) -> None:
    """Set the file position to the largest one that there is: any write there fails (EFBIG, or EINVAL).

    It differs between file systems, from 2**44 on ext4 to 2**63 on tmpfs. A larger one is refused, so it is searched.
    """
    reached, beyond = 0, 2**63
    while beyond - reached > 1:
        # Try the largest one of all first.
        position = beyond - 1 if beyond == 2**63 else (reached + beyond) // 2
        try:
            reached = os.lseek(descriptor, position, os.SEEK_SET)
        except OSError:
            beyond = position


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o770, parents=True)
    except FileExistsError:
        return
    # Restore the group permissions that the umask removed. Keep the set-group-ID bit inherited from the parent folder.
    path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o070)
