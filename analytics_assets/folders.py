"""Folders that several processes change: a lock, and removing what has become empty."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def lock(folder: Path, *, create: bool = True, wait: bool = True) -> Iterator[None]:
    """Wait until no other process holds the lock of this folder, then hold it. `create` the folder if it is missing.

    The system releases the lock of a process that ends, however it ends.

    Raises:
        BlockingIOError: another process holds the lock, and this one should not `wait`.
        OSError: the folder cannot be created or opened.
    """
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lock_shared(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the lock of this folder, then keep it from being locked.

    Nothing is locked if the folder is missing or cannot be read, or if its file system has no locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it as far as they are empty and below `root`. The root itself stays."""
    while root in folder.parents and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
