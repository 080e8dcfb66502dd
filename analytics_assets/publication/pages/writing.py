"""Putting pages where they are served: only what has changed, each in one step, and nothing that is gone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from analytics_assets.contract import ID_PATTERN
from analytics_assets.folders import remove_empty
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
    changed is left alone. What a killed writer has left beside a page is removed. The folders of the parts stay: their
    group is the operator's.

    Two writers at once would take each other's files: the caller holds the lock of `folder`.

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
    removed = 0
    for part in parts:
        for path, name in _list_pages(folder, part):
            if path not in kept:
                path.unlink(missing_ok=True)
                remove_empty(path.parent, folder / part)
                removed += path.name == name
    return Written(len(kept), changed, removed)


def _write(path: Path, page: Page, root: Path) -> bool:
    part = page.path.split("/")[0]
    with suppress(FileNotFoundError):
        if path.read_bytes() == page.body:
            return False
    for folder in reversed([path.parent, *path.parent.parents]):
        if root in folder.parents and not folder.exists():
            _make_folder(folder, FOLDER_MODES[part])
    beside = path.with_name(_BESIDE.format(path.name))
    try:
        with beside.open("wb") as file:
            os.fchmod(file.fileno(), FILE_MODES[part])
            file.write(page.body)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return True


def _make_folder(folder: Path, mode: int) -> None:
    """Make a folder with this mode, whatever the umask. It inherits a group that the operator has set above.

    Not by chmod: Linux then drops setgid where the caller is no member of the folder's group.
    """
    umask = os.umask(0)
    try:
        folder.mkdir(mode)
    finally:
        os.umask(umask)


_BESIDE: Final = ".{}.new"
"""Name of a page -> name of the file beside it that becomes the page."""

_PAGE: Final = re.compile(
    rf"(?:core|overview)/index\.html|core/events/(?:{ID_PATTERN})\.html"
    rf"|events/(?:{ID_PATTERN})/(?:index\.html|data\.csv|data\.json)"
)


def _list_pages(folder: Path, part: str) -> Iterator[tuple[Path, str]]:
    """Yield the pages of a part, and the files that a killed writer has left beside one, each with the page's name.

    Somebody may have named a folder that holds more than pages, so nothing else is listed.
    """
    for path in sorted((folder / part).rglob("*")):
        name = path.name
        if name.startswith(".") and name.endswith(".new"):
            name = name.removeprefix(".").removesuffix(".new")
        if not path.is_dir() and _PAGE.fullmatch(path.relative_to(folder).with_name(name).as_posix()):
            yield path, name
