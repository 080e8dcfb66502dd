"""Reading the counter dumps of a day: `<dump dir>/<event_date>/<hex>.ndjson`, one JSON object a line.

A day's total is the sum over its files. A line is read strictly, whatever else it may mean to a lenient JSON reader. A
line that belongs to another metric is that metric's business; one that cannot be attributed (broken, unknown event
name) may be anybody's, so no metric of the day is counted until it is dealt with.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Final

import pandas as pd

from analytics_assets.contract import DUMP_FILE_PATTERN, EVENT_DATE, EVENT_NAME, METRICS, CounterDumps, Metric
from analytics_assets.guard import NOT_AN_OBJECT, Violation, row_violations
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, Problem, Source, SourceRefusedError

NOT_A_DUMP: Final = Violation("(file)", "is not a counter dump; remove it from the folder of the day")
UNREADABLE: Final = Violation(
    "(file)", "cannot be read; put the pipeline's login into the group of the web application's, which may read dumps"
)
NOT_JSON: Final = Violation("(row)", "is not a line of JSON with distinct keys")
WRONG_DAY: Final = Violation(EVENT_DATE.name, "must be the day of its folder")

_FOLDER_RECOVERY: Final = "`analytics-assets sources` says when it is right."

_MAX_LINE: Final = 4096
"""In bytes. A dump's line never crosses a page of this size, and nothing longer is worth parsing."""

_NAMES: Final = {name for m in METRICS if isinstance(m.origin, CounterDumps) for name in m.event_names}


@contextmanager
def open_dumps(metric: Metric, settings: Settings) -> Iterator[Source]:
    """Open the dump folder for reading.

    Raises:
        SourceRefusedError: the dump folder does not exist or cannot be read; without it, nothing says that nothing was
            counted.
    """
    folder = settings.dump_dir
    if problem := folder_problem(folder):
        raise SourceRefusedError([problem], _FOLDER_RECOVERY)
    yield Source(
        count=lambda day: read_day(folder / day.isoformat(), metric, day),
        total=lambda day: _total(folder / day.isoformat(), metric),
    )


def folder_problem(folder: Path) -> Problem | None:
    """What is wrong with the dump folder, or with the newest day in it."""
    try:
        days = sorted(path for path in folder.iterdir() if path.is_dir())
        _, _, problems = _listed(days[-1]) if days else ([], 0, [])
    except FileNotFoundError:
        return Problem(
            "dump folder", Violation("(folder)", "does not exist: set ANALYTICS_DUMP_DIR to the telemetry's")
        )
    except OSError:
        return Problem("dump folder", UNREADABLE)
    return problems[0] if problems else None


def read_day(folder: Path, metric: Metric, day: date) -> Counted:
    """Sum the lines of one metric over the files of one day's folder; a missing folder is a day without any."""
    keys = [field.name for field in metric.fields if field.name != "count"]
    totals: Counter[tuple[object, ...]] = Counter()
    dumps, others, problems = _listed(folder)
    if others:
        problems.append(Problem(f"{folder.name}/", NOT_A_DUMP, others))  # their names may be anything
    for path in dumps:
        for number, line in _lines(path):
            row, violations = _parse(line, metric, day)
            where = f"{folder.name}/{path.name} line {number}"
            problems += [Problem(where, violation) for violation in violations]
            if row is not None and not violations:
                totals[tuple(day if key == "event_date" else row.get(key) for key in keys)] += row["count"]
    rows = [dict(zip(keys, key, strict=True)) | {"count": count} for key, count in totals.items()]
    problems += [
        Problem(f"{folder.name}/", violation)
        for row in rows
        for violation in row_violations(row, metric.fields, metric.event_names)
    ]
    return Counted(rows, problems)


def _listed(folder: Path) -> tuple[list[Path], int, list[Problem]]:
    """The dump files of a day's folder, which need not exist; how much else there is; what cannot be read.

    `Path.glob` would take a folder that may not be read for an empty one.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return [], 0, []
    except OSError:
        return [], 0, [Problem(f"{folder.name}/", UNREADABLE)]
    dumps = [
        Path(entry.path)
        for entry in entries
        if re.fullmatch(DUMP_FILE_PATTERN, entry.name) and entry.is_file(follow_symlinks=False)
    ]
    problems = [Problem(f"{folder.name}/{path.name}", UNREADABLE) for path in dumps if not os.access(path, os.R_OK)]
    return [] if problems else dumps, len(entries) - len(dumps), problems


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers (from 1) and lines; blank ones fill up a page before a line that would cross its end."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            while not line.endswith(b"\n") and (rest := file.readline(_MAX_LINE)):
                line = b"?" + rest[-1:]  # too long to be one of ours; what is left of it is no JSON, whatever it was
            if line.strip(b"\n"):
                yield number, line


def _parse(line: bytes, metric: Metric, day: date) -> tuple[dict[str, Any] | None, list[Violation]]:
    """The line's row if it is the metric's own, and what is wrong with it."""
    try:
        row = json.loads(line.decode("ascii"), object_pairs_hook=_distinct, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None, [NOT_JSON]
    if not isinstance(row, dict):
        return None, [NOT_AN_OBJECT]
    name = row.get("event_name")
    if not isinstance(name, str) or name not in _NAMES:
        return None, [Violation(EVENT_NAME.name, EVENT_NAME.rule)]
    if name not in metric.event_names:
        return None, []
    violations = row_violations(row, metric.dump_fields, metric.event_names)
    if not violations and row["event_date"] != day.isoformat():
        violations = [WRONG_DAY]
    return row, violations


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # json keeps the last of two equal keys without a word.
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError
    return row


def _refuse(_: str) -> None:
    # NaN and Infinity are no JSON, though json reads them.
    raise ValueError


def _total(folder: Path, metric: Metric) -> int:
    """The same sum by another reader (pandas), to compare with what is stored.

    Raises:
        SourceRefusedError: a file is not one that it can read.
    """
    total = 0
    dumps, _, problems = _listed(folder)
    if problems:
        raise SourceRefusedError(problems, _FOLDER_RECOVERY)
    for path in dumps:
        text = path.read_bytes().strip(b"\n")
        if not text:
            continue
        try:
            frame = pd.read_json(io.BytesIO(text), lines=True, dtype=False)
            total += int(frame.loc[frame["event_name"].isin(metric.event_names), "count"].sum())
        except (ValueError, KeyError, TypeError, OverflowError):
            unreadable = Problem(f"{folder.name}/{path.name}", NOT_JSON)
            raise SourceRefusedError([unreadable], "Mend or remove the line or the file.") from None
    return total
