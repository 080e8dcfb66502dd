"""A reader who works out hidden counts from everything that is published, with linear programs.

It knows the method and shares no code with the closed form that it is compared with. It is given statements about sums
of hidden numbers, and asks HiGHS for the smallest and the largest value that each number can have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from math import ceil, floor, inf

import highspy
import numpy as np

from analytics_assets.publication.fives import BASE, Bounds

Cell = Hashable
"""Names one hidden number, which is at least 0. A day of a series is named (series, day)."""

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Statement:
    """What the reader knows: a weighted sum of hidden numbers is between `low` and `high`."""

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
    """What the steps of a stretch say, first day first: the running totals of its counts, rounded down.

    A day that was not collected (`None`) is in no total. Each total is a cell of its own, linked to the total before:
    spelling out all its days makes the programs ten to a hundred times as slow.
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
    """What a figure on a page says about the sum of the cells, whose published days sum to `published`.

    The sum of published days says nothing new. Any other figure cannot come from them: it is read as the true number.
    """
    return [] if shown == published else [exactly(cells, shown)]


def said(page: str) -> list[str]:
    """Every text, attribute value and comment of an HTML page, because a reader may look at its source."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value for _, value in attrs if value)

        def handle_data(self, data: str) -> None:
            found.append(data)

        def handle_comment(self, data: str) -> None:
            found.append(data)

    reader = Reader()
    reader.feed(page)
    reader.close()
    return found


class Attacker:
    """Works out what each hidden number can be.

    Args:
        statements: everything that the reader knows.
        whole: search whole numbers only (a mixed-integer program). Statements about successive days of single series
            do not need it: their matrix is totally unimodular, so that the linear program ends at whole numbers anyway.
            Statements that cross each other, such as sums over days and sums over series, may need it.
    """

    def __init__(self, statements: Iterable[Statement], *, whole: bool = False) -> None:
        statements = list(statements)
        cells = dict.fromkeys(cell for statement in statements for cell in statement.weights)
        self._column = {cell: column for column, cell in enumerate(cells)}
        self._model = highspy.Highs()  # type: ignore[no-untyped-call]
        self._model.setOptionValue("output_flag", False)
        size = len(self._column)
        self._model.addVars(size, np.zeros(size), np.full(size, highspy.kHighsInf))
        if whole:
            integer = np.full(size, highspy.HighsVarType.kInteger)
            self._model.changeColsIntegrality(size, np.arange(size, dtype=np.int32), integer)
        else:
            # Each program starts from the solution of the one before, which presolve would discard.
            self._model.setOptionValue("presolve", "off")
        for statement in statements:
            columns = np.array([self._column[cell] for cell in statement.weights], dtype=np.int32)
            weights = np.array([*statement.weights.values()], dtype=np.double)
            self._model.addRow(statement.low, statement.high, len(columns), columns, weights)

    def possible(self, cell: Cell) -> Bounds:
        """The smallest and the largest value of a number that agree with all statements.

        Raises:
            KeyError: no statement is about it.
            ValueError: the statements contradict each other, or leave it without a limit.
        """
        column = self._column[cell]
        self._model.changeColCost(column, 1)
        low = ceil(self._optimum(highspy.ObjSense.kMinimize) - _TOLERANCE)
        high = floor(self._optimum(highspy.ObjSense.kMaximize) + _TOLERANCE)
        self._model.changeColCost(column, 0)
        return Bounds(low, high)

    def narrowed(self, cells: Iterable[Cell], *, values: int = BASE) -> dict[Cell, Bounds]:
        """Those of the cells that have fewer than `values` possible values left."""
        possible = {cell: self.possible(cell) for cell in cells}
        return {cell: bounds for cell, bounds in possible.items() if bounds.size < values}

    def _optimum(self, sense: highspy.ObjSense) -> float:
        self._model.changeObjectiveSense(sense)
        self._model.run()
        status = self._model.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise ValueError(f"no optimum: {self._model.modelStatusToString(status)}")
        return self._model.getInfo().objective_function_value
