r"""The writer's side of a counter dump: one memory-mapped NDJSON file of one process and one day.

Bytes and offsets only: which rows are allowed, which day it is, threads and forks are the caller's business.

The file is the buffer, so it must be sound whenever the process is killed, and while somebody reads it:

* A new line is one `write` at the end of the file, inside one page. A SIGKILL leaves all of it or nothing, and readers
  see it when the file's size says so, which is when it is complete. (Space made ahead, filled with line feeds, was
  tried: lines written into it were seen half-written by readers, on ext4 and on tmpfs.)
* An increment is one aligned store of eight bytes into the mapping. The page cache keeps it when the process dies.
* A line's space is taken by that `write`: a full disk, a quota or a size limit is an OSError there, never a SIGBUS at a
  later store. (Copy-on-write file systems such as btrfs and ZFS take new space for every rewrite, and promise neither.)

A machine that loses power may lose what the kernel had not yet written back; nothing is synced here.
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
"""The smallest page size in use; a line that stays within 4096 bytes stays within a larger page too."""

_WIDTH: Final = len(str(MAX_COUNT))
_STORE_BYTES: Final = 8
_STORE_LIMIT: Final = 10**_STORE_BYTES


@dataclass(slots=True)
class Line:
    """A line of an open dump: the offset just past its last digit, in bytes, and the count that stands there."""

    end: int
    count: int


class DumpFile:
    """A new file `<dump_dir>/<event_date>/<128 random bits in hex>.ndjson`, readable by its owner and group.

    The group may remove it, too: retention runs with the login of the pipeline, not of the web application.

    Not thread-safe. The file stays when the object is closed or the process dies.

    Raises:
        OSError: the folder or the file cannot be made.
    """

    def __init__(self, dump_dir: Path, event_date: str) -> None:
        folder = dump_dir / event_date
        for path in (dump_dir, folder):
            _make_folder(path)
        self._path = folder / f"{secrets.token_hex(16)}.ndjson"
        # A file object, not a bare descriptor: closing it twice is harmless, also in a child that was forked just
        # while a thread of its parent closed it. The descriptor's number may by then belong to somebody else.
        self._file = FileIO(self._path, "x+", opener=partial(os.open, mode=0o640))
        # An empty file cannot be mapped; this stands in for it until there is a line.
        self._map = mmap.mmap(-1, 1)

    def append(self, row: Mapping[str, object], count: int) -> Line:
        """Write the line of a new key: `row` (field name -> value, without the count), then its first count.

        Raises:
            OSError: the disk is full or failing; the file is as it was before, and a later call may succeed.
        """
        head = json.dumps(row, separators=(",", ":")).encode()[:-1] + b',"count":'
        size = os.fstat(self._file.fileno()).st_size
        longest = len(head) + _STORE_BYTES - 1 + _WIDTH + len(b"}\n")
        line_feeds = -size % PAGE_BYTES if size % PAGE_BYTES + longest > PAGE_BYTES else 0
        # Blanks before the number make it end on a multiple of eight, where `add` can replace eight digits at once.
        blanks = -(size + line_feeds + len(head) + _WIDTH) % _STORE_BYTES
        line = b"\n" * line_feeds + head + b" " * blanks + _digits(count) + b"}\n"
        try:
            self._write(line, size)
            grown = mmap.mmap(self._file.fileno(), 0)
        except OSError:
            # A size limit lets a part of a line through.
            self._file.truncate(size)
            raise
        outgrown, self._map = self._map, grown
        outgrown.close()
        return Line(end=size + len(line) - len(b"}\n"), count=count)

    def increment(self, line: Line) -> bool:
        """Raise the count of a line of this file by one, unless more than its last digit changes: then nothing is done.

        Storing one byte takes half the time of `add`, and nine of ten increments need no more.
        """
        digit = (line.count + 1) % 10
        if not digit:
            return False
        self._map[line.end - 1] = ord("0") + digit
        line.count += 1
        return True

    def add(self, line: Line, times: int) -> None:
        """Raise the count of a line of this file by `times`; the sum must not exceed MAX_COUNT.

        Raises:
            OSError: only when the count passes a multiple of 10**8, which alone takes a system call.
        """
        count = line.count + times
        if count < _STORE_LIMIT or count // _STORE_LIMIT == line.count // _STORE_LIMIT:
            # The C library copies eight bytes to an aligned address by one eight-byte move, which no signal can
            # split: a killed process leaves the old number or the new one, never digits of both.
            self._map[line.end - _STORE_BYTES : line.end] = (b"%12d" % count)[-_STORE_BYTES:]
        else:
            # Two stores could be torn apart here, and the file be off by 10**8; one write inside a page cannot.
            self._write(_digits(count), line.end - _WIDTH)
        line.count = count

    def is_removed(self) -> bool:
        """Whether the file no longer stands where it was made; False when that cannot be found out."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            # A folder that may not be looked into any more is no reason to give up a file that is open.
            return False

    def close(self) -> None:
        """Let go of the file, which stays as it is. In a forked child this does nothing to the parent's."""
        self._map.close()
        self._file.close()

    def _write(self, data: bytes, offset: int) -> None:
        # After a short write, which only a full disk or a size limit causes, the next one raises the reason.
        while data:
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written


def _digits(count: int) -> bytes:
    return str(count).rjust(_WIDTH).encode()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o770, parents=True)
    except FileExistsError:
        return
    # What the umask took away from the group. A set-group-ID bit, inherited from the folder above, stays.
    path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o070)
