"""Reading the counter dumps of a day: `<dump dir>/<event_date>/<hex>.ndjson`, one JSON object per line.

The drop files beside them (`drops`) are not counted.

A day's total is the sum over its files. Every line is read strictly, even where a lenient JSON reader would accept it.
Each metric skips the lines of the others. A line that belongs to no known metric (broken, or with an unknown
event name) may belong to any of them, so none of the day is counted until somebody corrects or removes that line.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Final

import pandas as pd

from analytics_assets.contract import (
    DROP_FILE_PATTERN,
    DUMP_FILE_PATTERN,
    EVENT_DATE,
    EVENT_NAME,
    METRICS,
    SOURCE,
    CounterDumps,
    Metric,
)
from analytics_assets.guard import NOT_AN_OBJECT, UNKNOWN_FIELD, Violation, obeys, row_violations
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, OriginRefusedError, Problem, Reader

NOT_A_DUMP: Final = Violation("(file)", "is not a counter dump; remove it from the day's folder")
UNREADABLE: Final = Violation(
    "(file)", "cannot be read; add the pipeline's login to the web application's group, which may read dumps"
)
NOT_JSON: Final = Violation("(row)", "is not a line of JSON with distinct keys")
_NEWER: Final = (
    "; if the web application is newer than the pipeline, upgrade the pipeline first, then materialize the day again"
)
UNKNOWN_NAME: Final = Violation(EVENT_NAME.name, EVENT_NAME.rule + _NEWER)
WRONG_DAY: Final = Violation(EVENT_DATE.name, "must be the day of its folder")
FOREIGN_FOLDER: Final = Problem(
    "dump folder",
    Violation(
        "(folder)", "has a folder that is not a day: move that away, or name the right folder in ANALYTICS_DUMP_DIR"
    ),
)

_DAY_FOLDER: Final = re.compile(r"\d{4}-\d\d-\d\d")
_OF_FILE_SYSTEM: Final = re.compile(r"lost\+found|\..*")
"""`lost+found` is in the root of a file system, and `.snapshot` or `.zfs` where a storage keeps snapshots."""

_FOLDER_RECOVERY: Final = "`analytics-assets sources` says when it is right."

_UNREADABLE_LINES: Final = (ValueError, KeyError, TypeError, OverflowError)
"""What pandas raises for lines that it cannot read or add up."""

_BATCH: Final = 4 << 20
"""In bytes, of the files that pandas reads at once. It takes milliseconds per call, and a day may have thousands."""

_MAX_LINE: Final = 4096
"""In bytes. A line of a dump never crosses a page of this size, so a longer line is not parsed."""

_DUMPED_NAMES: Final = {name for m in METRICS if isinstance(m.origin, CounterDumps) for name in m.event_names}


@contextmanager
def open_dumps(metric: Metric, settings: Settings) -> Iterator[Reader]:
    """Open the dump folder for reading.

    Raises:
        OriginRefusedError: the dump folder does not exist or cannot be read. An empty result would look like a day
            without events.
    """
    folder = settings.dump_dir
    if problem := find_folder_problem(folder):
        raise OriginRefusedError([problem], _FOLDER_RECOVERY)
    yield Reader(
        count=lambda day: read_day(folder / day.isoformat(), metric, day),
        total=lambda day: _sum_with_pandas(folder / day.isoformat(), metric),
    )


def find_folder_problem(folder: Path) -> Problem | None:
    """Return what is wrong with the dump folder, or with the newest day in it."""
    try:
        entries = list_entries(folder)
        if any(map(is_foreign, entries)):
            return FOREIGN_FOLDER
        folders = [path for path in entries if path.is_dir()]
        _, _, problems = _list_dumps(folders[-1]) if folders else ([], 0, [])
    except FileNotFoundError:
        return Problem(
            "dump folder", Violation("(folder)", "does not exist: set ANALYTICS_DUMP_DIR to the telemetry's")
        )
    except OSError:
        return Problem("dump folder", UNREADABLE)
    return problems[0] if problems else None


def count_dumps(folder: Path, day: date) -> int:
    """Return how many dump files a day has so far: one per process of the web application."""
    return len(_list_dumps(folder / day.isoformat())[0])


def list_entries(folder: Path) -> list[Path]:
    """Return what is in the dump folder, sorted, without the folders of the file system and its snapshots.

    Raises:
        OSError: the folder does not exist or cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not (_OF_FILE_SYSTEM.fullmatch(path.name) and path.is_dir()))


def is_foreign(path: Path) -> bool:
    """Return whether a folder in the dump folder is not a day's."""
    return path.is_dir() and not path.is_symlink() and parse_day(path) is None


def parse_day(path: Path) -> date | None:
    """Return the day of a day's folder, None for anything else, such as a link."""
    if path.is_symlink() or not path.is_dir() or not _DAY_FOLDER.fullmatch(path.name):
        return None
    try:
        return date.fromisoformat(path.name)
    except ValueError:
        return None


def check_newest_days(settings: Settings) -> tuple[list[date], list[Problem]]:
    """Parse the newest finished day and today for every metric, as collecting does.

    Returns the days that were parsed, and what collecting refuses of them or of the folder.
    """
    folder, today = settings.dump_dir, str(settings.today())
    if problem := find_folder_problem(folder):
        return [], [problem]
    names = {path.name for path in folder.iterdir() if obeys(EVENT_DATE, path.name)}
    newest_finished = max((name for name in names if name < today), default=today)
    days = sorted(date.fromisoformat(name) for name in {newest_finished, today} & names)
    try:
        problems = [
            problem
            for day in days
            for metric in METRICS
            if isinstance(metric.origin, CounterDumps)
            for problem in read_day(folder / str(day), metric, day).problems
        ]
    except OSError:
        problems = [Problem("dump folder", UNREADABLE)]
    return days, list(dict.fromkeys(problems))


def read_day(folder: Path, metric: Metric, day: date) -> Counted:
    """Sum the lines of one metric over the files of a day's folder. A missing folder is a day without lines."""
    keys = [field.name for field in metric.fields if field.name != "count"]
    totals: Counter[tuple[object, ...]] = Counter()
    dumps, others, problems = _list_dumps(folder)
    if others:
        problems.append(Problem(f"{folder.name}/", NOT_A_DUMP, others))  # their names may hold anything
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


def _list_dumps(folder: Path) -> tuple[list[Path], int, list[Problem]]:
    """Return the dump files of a day's folder, the number of foreign entries, and what cannot be read.

    A missing folder has no files. `Path.glob` is not used: it takes an unreadable folder for an empty one.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return [], 0, []
    except OSError:
        return [], 0, [Problem(f"{folder.name}/", UNREADABLE)]
    files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    dumps = [Path(entry.path) for entry in files if re.fullmatch(DUMP_FILE_PATTERN, entry.name)]
    drops = sum(re.fullmatch(DROP_FILE_PATTERN, entry.name) is not None for entry in files)
    problems = [Problem(f"{folder.name}/{path.name}", UNREADABLE) for path in dumps if not os.access(path, os.R_OK)]
    return [] if problems else dumps, len(entries) - len(dumps) - drops, problems


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers from 1, and lines. Blank lines are skipped: they end a page early."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            while not line.endswith(b"\n") and (rest := file.readline(_MAX_LINE)):
                line = b"?" + rest[-1:]  # too long for a dump line: replaced by text that is never valid JSON
            if line.strip(b"\n"):
                yield number, line


def _parse(line: bytes, metric: Metric, day: date) -> tuple[dict[str, Any] | None, list[Violation]]:
    """Return the row if the line belongs to the metric, and what is wrong with the line."""
    try:
        text = line.decode("ascii")
        row = json.loads(text, object_pairs_hook=_require_distinct_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None, [NOT_JSON]
    if not isinstance(row, dict):
        return None, [NOT_AN_OBJECT]
    name = row.get("event_name")
    if not isinstance(name, str) or name not in _DUMPED_NAMES:
        return None, [UNKNOWN_NAME]
    if name not in metric.event_names:
        return None, []
    violations = [
        Violation(v.field, v.rule + _NEWER) if v == UNKNOWN_FIELD or v.field == SOURCE.name else v
        for v in row_violations(row, metric.dump_fields, metric.event_names)
    ]
    if not violations and row["event_date"] != day.isoformat():
        violations = [WRONG_DAY]
    return row, violations


def _require_distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # json silently keeps the last of two equal keys.
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError
    return row


def _refuse_constant(_: str) -> None:
    # json accepts NaN and Infinity, which JSON does not have.
    raise ValueError


def _sum_with_pandas(folder: Path, metric: Metric) -> int:
    """Sum the same lines with another reader, for the comparison with what is stored.

    Raises:
        OriginRefusedError: pandas cannot read a file.
    """
    dumps, _, problems = _list_dumps(folder)
    if problems:
        raise OriginRefusedError(problems, _FOLDER_RECOVERY)
    total = 0
    for batch in _batches(dumps):
        try:
            total += _sum_lines(b"\n".join(batch.values()), metric)
        except _UNREADABLE_LINES:
            # Only the broken file is named.
            total += sum(_sum_file(path, content, metric) for path, content in batch.items())
    return total


def _batches(paths: Sequence[Path]) -> Iterator[dict[Path, bytes]]:
    batch: dict[Path, bytes] = {}
    size = 0
    for path in paths:
        batch[path] = path.read_bytes()
        size += len(batch[path])
        if size >= _BATCH:
            yield batch
            batch, size = {}, 0
    yield batch


def _sum_file(path: Path, content: bytes, metric: Metric) -> int:
    try:
        return _sum_lines(content, metric)
    except _UNREADABLE_LINES:
        unreadable = Problem(f"{path.parent.name}/{path.name}", NOT_JSON)
        raise OriginRefusedError([unreadable], "Correct or remove the line or the file.") from None


def _sum_lines(text: bytes, metric: Metric) -> int:
    lines = [line for line in text.split(b"\n") if line]
    if not lines:
        return 0
    frame = pd.read_json(io.BytesIO(b"\n".join(lines)), lines=True, dtype=False)
    if len(frame) != len(lines):
        raise ValueError  # two broken lines that are one row together
    return int(frame.loc[frame["event_name"].isin(metric.event_names), "count"].sum())
