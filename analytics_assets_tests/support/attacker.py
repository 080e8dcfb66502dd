"""A reader who works out hidden counts from everything that is published, with a linear program.

It knows the method and nothing else, and it shares no code with the closed form that it is compared with: what it gets
are statements about sums of hidden counts, and it asks HiGHS for the smallest and the largest value of each count.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf

import highspy
import numpy as np

from analytics_assets.publication.fives import BASE, Bounds

Cell = Hashable
"""One hidden number, at least 0: by convention (series, day)."""

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Statement:
    """Something that the reader knows: a weighted sum of hidden numbers is between `low` and `high`."""

    weights: Mapping[Cell, int]
    low: float = -inf
    high: float = inf


def between(cells: Iterable[Cell], low: float, high: float) -> Statement:
    """The sum of the cells is between `low` and `high`."""
    return Statement(dict.fromkeys(cells, 1), low, high)


def exactly(cells: Iterable[Cell], value: int) -> Statement:
    """The sum of the cells is `value`."""
    return between(cells, value, value)


def rounded_down(cells: Iterable[Cell], value: int, base: int = BASE) -> Statement:
    """The sum of the cells, rounded down to a multiple of `base`, is `value`."""
    return between(cells, value, value + base - 1)


def running_totals(cells: Sequence[Cell], steps: Sequence[int | None], base: int = BASE) -> list[Statement]:
    """What the steps of a stretch say, from its first day on: each running total of the counts, rounded down.

    Days that were not collected (`None`) are in no total. Each total is a cell of its own, tied to the total of the day
    before: with all its days written out, a year would take a thousand times as long.
    """
    statements: list[Statement] = []
    before: dict[Cell, int] = {}
    published = 0
    for cell, step in zip(cells, steps, strict=True):
        if step is not None:
            published += step
            total = ("total", cell)
            statements.append(Statement(before | {cell: 1, total: -1}, 0, 0))
            statements.append(rounded_down([total], published, base))
            before = {total: 1}
    return statements


def figure(cells: Iterable[Cell], shown: int, published: int) -> list[Statement]:
    """What a figure on a page says about the sum of the cells, given the sum of their published days.

    A figure that is this sum says nothing new. Any other figure cannot come from what is published, so that it is
    taken for the true number.
    """
    return [] if shown == published else [exactly(cells, shown)]


class Attacker:
    """Works out what each hidden number can still be.

    Args:
        statements: all that is known.
        whole: search whole numbers only (a mixed-integer program). Running totals and windows of one series do not
            need this: each is an interval of days, so that the corners of the linear program are whole anyway. Sums
            across several series together with sums across days may.
    """

    def __init__(self, statements: Iterable[Statement], *, whole: bool = False) -> None:
        statements = list(statements)
        self._column = {cell: n for n, cell in enumerate(dict.fromkeys(c for s in statements for c in s.weights))}
        self._whole = whole
        self._model = highspy.Highs()  # type: ignore[no-untyped-call]
        self._model.silent()
        # Presolve would forget the last solution, which is a warm start here.
        self._model.setOptionValue("presolve", "off" if not whole else "choose")
        columns = np.arange(len(self._column), dtype=np.int32)
        self._model.addVars(len(columns), np.zeros(len(columns)), np.full(len(columns), highspy.kHighsInf))
        if whole:
            integer = np.full(len(columns), highspy.HighsVarType.kInteger)
            self._model.changeColsIntegrality(len(columns), columns, integer)
        for statement in statements:
            indices = np.array([self._column[cell] for cell in statement.weights], dtype=np.int32)
            weights = np.array(list(statement.weights.values()), dtype=np.double)
            self._model.addRow(statement.low, statement.high, len(indices), indices, weights)

    @property
    def cells(self) -> list[Cell]:
        """Every number that a statement is about."""
        return list(self._column)

    def possible(self, cell: Cell) -> Bounds:
        """The smallest and the largest value that agree with all statements.

        Raises:
            ValueError: the statements contradict each other, or do not limit the cell.
        """
        column = self._column[cell]
        self._model.changeColCost(column, 1)
        least = ceil(self._optimum(highspy.ObjSense.kMinimize) - _TOLERANCE)
        most = floor(self._optimum(highspy.ObjSense.kMaximize) + _TOLERANCE)
        self._model.changeColCost(column, 0)
        return Bounds(least, most)

    def narrowed(self, cells: Iterable[Cell] | None = None, *, values: int = BASE) -> dict[Cell, Bounds]:
        """Those of the cells (all, if none are given) that have fewer than so many possible values left."""
        possible = {cell: self.possible(cell) for cell in (self.cells if cells is None else cells)}
        return {cell: bounds for cell, bounds in possible.items() if bounds.size < values}

    def _optimum(self, sense: highspy.ObjSense) -> float:
        self._model.changeObjectiveSense(sense)
        self._model.run()
        status = self._model.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise ValueError(f"no answer: {self._model.modelStatusToString(status)}")
        return self._model.getInfo().objective_function_value
