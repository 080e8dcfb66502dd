"""Putting pages where they are served: only what has changed, each in one step, and nothing that is gone."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from analytics_assets.contract import ID_PATTERN
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
    preview: str = ""
    """The numbers of the index, in Markdown."""


def write_pages(folder: Path, parts: Iterable[str], pages: Iterable[Page]) -> Written:
    """Make `folder` have exactly these pages in its folders `parts`.

    A page is written beside its place and moved there, so that nobody ever reads half of one. A page that has not
    changed is left alone.

    Raises:
        OSError: a folder or file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept: set[Path] = set()
    changed = 0
    for page in pages:
        path = folder / page.path
        kept.add(path)
        changed += _write(path, page, folder)
    gone = [path for path in _list_pages(folder, parts) if path not in kept]
    for path in gone:
        path.unlink(missing_ok=True)
        remove_empty(path.parent, folder)
    return Written(len(kept), changed, len(gone))


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, up to `root`, as far as they are empty."""
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _write(path: Path, page: Page, root: Path) -> bool:
    part = page.path.split("/")[0]
    with suppress(FileNotFoundError):
        if path.read_bytes() == page.body:
            return False
    for folder in reversed([path.parent, *path.parent.parents]):
        if folder != root and folder.is_relative_to(root) and not folder.exists():
            folder.mkdir()
            # The umask does not count, and a group that the operator has set stays.
            folder.chmod(FOLDER_MODES[part] | (folder.stat().st_mode & stat.S_ISGID))
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as file:
            os.fchmod(file.fileno(), FILE_MODES[part])
            file.write(page.body)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return True


_PAGE: Final = re.compile(
    rf"(?:core|overview)/index\.html|core/events/(?:{ID_PATTERN})\.html"
    rf"|events/(?:{ID_PATTERN})/(?:index\.html|data\.csv|data\.json)"
)


def _list_pages(folder: Path, parts: Iterable[str]) -> list[Path]:
    """Return the files that have the name of a page. Somebody may have named a folder that holds more than pages."""
    files = [path for part in parts for path in (folder / part).rglob("*") if not path.is_dir()]
    return [path for path in sorted(files) if _PAGE.fullmatch(path.relative_to(folder).as_posix())]
