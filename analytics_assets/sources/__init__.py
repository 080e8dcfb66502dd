"""The two readers: views of the host application's database, and counter dumps.

Each is a context manager that first refuses what it must not read (SourceRefusedError) and then hands out two functions
of a day: the counts, grouped, and an independent total. What a reader returns about bad input is where, which field,
which rule and how many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

from analytics_assets.guard import Row, Violation


@dataclass(frozen=True, order=True)
class Problem:
    """Rows, or a whole source, that the contract refuses."""

    where: str
    """View, or dump file and line."""
    violation: Violation
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.where}: {self.violation}" + (f" ({self.rows} rows)" if self.rows > 1 else "")


@dataclass(frozen=True)
class Counted:
    """One day of one metric as its source has it."""

    rows: Sequence[Row]
    problems: Sequence[Problem]


@dataclass(frozen=True)
class Source:
    """An open source of one metric."""

    count: Callable[[date], Counted]
    total: Callable[[date], int]
    """An independent count of the same day, to compare with what is stored."""
    warnings: Sequence[str] = ()


class SourceRefusedError(RuntimeError):
    """A source that is not as the contract wants it; nothing was read from it."""

    def __init__(self, problems: Sequence[Problem], recovery: str) -> None:
        self.problems = problems
        self.recovery = recovery
        super().__init__("; ".join(map(str, problems)) + f". {recovery}")
