"""Putting pages where they are served: only what has changed, each in one step, and nothing that is gone.

The folders are owned by the pages alone: whatever else is in them is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from analytics_assets.publication.pages.html import Page

FILE_MODES: Final = {"core": 0o640, "overview": 0o644, "events": 0o644}
"""Folder below the folder of the pages -> mode of its files. The exact numbers are for their group only."""
FOLDER_MODES: Final = {"core": 0o750, "overview": 0o755, "events": 0o755}


@dataclass(frozen=True)
class Written:
    """What became of the pages."""

    pages: int
    """Pages there are now."""
    changed: int
    removed: int


def write_pages(folder: Path, parts: Iterable[str], pages: Iterable[Page]) -> Written:
    """Make `folder` have exactly these pages in its folders `parts`.

    A page is written beside its place and moved there, so that nobody ever reads half of one. A page that has not
    changed is left alone.

    Raises:
        OSError: a folder or file cannot be written.
    """
    kept: set[Path] = set()
    changed = 0
    for page in pages:
        path = folder / page.path
        kept.add(path)
        changed += _write(path, page)
    gone = [path for part in parts for path in _files(folder / part) if path not in kept]
    for path in gone:
        path.unlink(missing_ok=True)
        remove_empty(path.parent, folder)
    return Written(len(kept), changed, len(gone))


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, up to `root`, as far as they are empty."""
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _write(path: Path, page: Page) -> bool:
    part = page.path.split("/")[0]
    try:
        if path.read_bytes() == page.body:
            return False
    except FileNotFoundError:
        for parent in reversed(path.relative_to(path.parents[page.path.count("/")]).parents[:-1]):
            _make_folder(path.parents[page.path.count("/")] / parent, FOLDER_MODES[part])
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODES[part])
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, FILE_MODES[part])  # whatever the umask is
            file.write(page.body)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return True


def _make_folder(folder: Path, mode: int) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # An operator may have given the folder a group, whose bit stays.
        folder.chmod(mode | (folder.stat().st_mode & 0o2000))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
