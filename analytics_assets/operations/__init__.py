"""The state of an installation: what is looked at, and who is told when it changes.

`status` looks and changes nothing. The command, the start of `up` and the sensor all call it, so that they cannot
disagree. `alerts` turns changes into messages, `receiver` sends them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

UNREADABLE: Final = "cannot be read"
"""Name of the only line of a group that could not be read, and the words of a line that could not."""


class Level(StrEnum):
    """How bad it is. Only these two severities exist beside `ok`."""

    OK = "ok"
    WARNING = "warning"
    RED = "red"

    @property
    def exit_code(self) -> int:
        """0, 1 or 2, as monitoring programs read it."""
        return list(Level).index(self)


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. It names no value and no number of what people did."""

    group: str
    """A heading of docs/operations.md."""
    name: str
    """Unique in its group, and the same at every look."""
    level: Level
    words: str
    since: datetime | None = None
    """Since when it is so, where that is known. With a time zone."""
    facts: tuple[str, ...] = ()
    """What it is red or warns about, where a further fact is news of its own: missing days, days of failed runs."""
    because_of: str | None = None
    """Key of the red line that says why this one cannot be read. Only that line is told."""
    not_yet: bool = False
    """Whether it says only that something was never started. That is expected before the first start."""

    @property
    def key(self) -> str:
        """Unique among all lines."""
        return f"{self.group}: {self.name}"

    def as_json(self) -> dict[str, Any]:
        """Return what `status --json` prints."""
        return asdict(self) | {"since": self.since.isoformat() if self.since else None}
