"""The names of the files of a day in a dump folder, and the list of what a merged dump replaces.

Reading counts belongs to `sources`. This part is also on a web server that only ships its dumps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from datetime import date
from typing import Final

from analytics_assets.contract import DROP_FILE_PATTERN, DUMP_FILE_PATTERN

LIST: Final = ".merged"
"""The suffix of the list that names the dumps which `<hex>.ndjson` replaces."""
DUMP: Final = ".ndjson"
MERGING: Final = ".merging"
"""The suffix of a merged dump that is being written."""
SHIPPING: Final = ".shipping"
"""The suffix of a copy that is being written."""

is_dump: Final = re.compile(DUMP_FILE_PATTERN).fullmatch
is_drop_file: Final = re.compile(DROP_FILE_PATTERN).fullmatch
is_list: Final = re.compile(r"[0-9a-f]{32}\.merged").fullmatch
is_copy: Final = re.compile(r"[0-9a-f]{32}\.shipping").fullmatch
"""A copy that is being written, or was left half written."""
is_unfinished: Final = re.compile(r"[0-9a-f]{32}\.(merging|shipping)").fullmatch

is_of_file_system: Final = re.compile(r"lost\+found|\..*").fullmatch
"""`lost+found` is in the root of a file system, and `.snapshot` or `.zfs` where a storage keeps snapshots."""


def day_of(name: str) -> date | None:
    """Return the day of a day folder's name, None for any other name."""
    try:
        return date.fromisoformat(name) if re.fullmatch(r"\d{4}-\d\d-\d\d", name) else None
    except ValueError:
        return None


def parse_list(content: bytes) -> set[str]:
    """Return the names of the dumps on a list. Raises ValueError if it has something else than names of dumps."""
    names = content.decode("ascii").split("\n")
    if names.pop() or not names or not all(map(is_dump, names)):
        raise ValueError
    return set(names)


def find_replaced(names: Collection[str], read: Callable[[str], bytes]) -> set[str]:
    """Return which dumps of a day merged dumps replace. A list without its dump replaces nothing.

    `read` returns the content of a list. Raises what it raises, and ValueError as `parse_list`.
    """
    replaced: set[str] = set()
    for name in names:
        if is_list(name) and name.removesuffix(LIST) + DUMP in names:
            replaced |= parse_list(read(name))
    return replaced
