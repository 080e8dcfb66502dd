"""Folders that several processes change: a lock, and removing what has become empty."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the lock of this folder, then hold it. The folder is created if missing.

    The system releases the lock of a process that ends, however it ends.

    Raises:
        OSError: the folder cannot be created or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it as far as they are empty and below `root`. The root itself stays."""
    while root in folder.parents and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
