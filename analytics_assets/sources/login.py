"""What the login of ANALYTICS_SOURCE_URL can read in the host's database beyond the source views, in words.

The catalogs differ, so each kind of database in `sources.hosts` finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SOURCE_READER: Final = "analytics_source_reader"
"""The login that `analytics-assets grants host` creates."""


@dataclass(frozen=True)
class Excess:
    """One thing that the login can read without need, and the SQL that revokes it."""

    what: str
    recovery: str

    def __str__(self) -> str:
        return f"{self.what}: {self.recovery}"


def summarize(rights: Sequence[Excess]) -> list[str]:
    """Return the excess rights as one warning for a log, without the SQL; none when there are none."""
    if not rights:
        return []
    shown = ", ".join(excess.what for excess in rights[:5])
    more = f" and {len(rights) - 5} more" if len(rights) > 5 else ""
    return [f"the login of ANALYTICS_SOURCE_URL can read more than the source views: {shown}{more}; revoke that"]
