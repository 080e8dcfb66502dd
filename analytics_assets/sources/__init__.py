"""Reading what the metrics are counted from: views of the host application's database, and counter dumps.

A reader refuses a source that the contract does not allow, before it reads a row. It then counts days. About bad input
it returns the place, the field, the rule and the number of rows, never the value.
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
class Reader:
    """An open source of one metric."""

    count: Callable[[date], Counted]
    """Counts a day, grouped by the fields of the metric."""
    total: Callable[[date], int]
    """Counts the same day independently, for the comparison with what is stored."""
    outside: Callable[[], Sequence[Problem]] = tuple
    """Counts the rows that no day has, such as those without a moment."""
    warnings: Sequence[str] = ()


class OriginRefusedError(RuntimeError):
    """The source is not as the contract has it. No row was read."""

    def __init__(self, problems: Sequence[Problem], recovery: str) -> None:
        self.problems = problems
        self.recovery = recovery
        super().__init__("; ".join(map(str, problems)) + f". {recovery}")
