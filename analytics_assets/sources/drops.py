"""Reading what telemetry has dropped: `<dump dir>/<event_date>/<hex>.drops`, one JSON object per line.

A drop file holds the day, the reason and the number of counts that one process dropped, and no value of them. No metric
is counted from it. A file that cannot be read is a problem to be told, and never holds up a day.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

from analytics_assets.contract import COUNT, DROP_FIELDS, DROP_FILE_PATTERN, DROP_REASON, EVENT_DATE
from analytics_assets.guard import NOT_AN_OBJECT, Violation, row_violations
from analytics_assets.sources import Problem
from analytics_assets.sources.counter_dumps import NOT_JSON, UNREADABLE, WRONG_DAY

_MAX_BYTES: Final = 16_384
"""A drop file has one line per reason, so a larger file is none."""

NOT_A_DROP_FILE: Final = Violation("(file)", "is larger than a drop file; remove it from the day's folder")


@dataclass(frozen=True)
class Drops:
    """What telemetry has dropped, and which drop files or lines could not be read."""

    counts: Mapping[date, Mapping[str, int]]
    """Day -> reason of DROP_REASONS -> occurrences that were not counted. A day without drops is absent."""
    problems: tuple[Problem, ...]
    """They name folder, file, line, field and rule, never a value."""


def read_drops(dump_dir: Path, days: Iterable[date]) -> Drops:
    """Sum the drop files of some days per day and reason, over all processes.

    A live file is complete at any time. A missing folder is a day without drops. Nothing on the disk raises: what
    cannot be read is in `problems`.
    """
    counts: dict[date, dict[str, int]] = {}
    problems: list[Problem] = []
    for day in days:
        for path in _list_drop_files(dump_dir / day.isoformat(), problems):
            for reason, number in _read_file(path, day, problems):
                of_day = counts.setdefault(day, {})
                of_day[reason] = of_day.get(reason, 0) + number
    return Drops(counts, tuple(problems))


def _list_drop_files(folder: Path, problems: list[Problem]) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if re.fullmatch(DROP_FILE_PATTERN, entry.name) and entry.is_file(follow_symlinks=False)
            )
    except FileNotFoundError:
        return []
    except OSError:
        problems.append(Problem(f"{folder.name}/", UNREADABLE))
        return []
    return [folder / name for name in names]


def _read_file(path: Path, day: date, problems: list[Problem]) -> list[tuple[str, int]]:
    """Return reason and number of each good line, and add what is wrong to `problems`."""
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:  # expired meanwhile
        return []
    except OSError:
        problems.append(Problem(where, UNREADABLE))
        return []
    if len(content) > _MAX_BYTES:
        problems.append(Problem(where, NOT_A_DROP_FILE))
        return []
    found = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line:
            row, violation = _parse(line, day)
            if violation is None:
                found.append((str(row[DROP_REASON.name]), int(row[COUNT.name])))
            else:
                problems.append(Problem(f"{where} line {number}", violation))
    return found


def _parse(line: bytes, day: date) -> tuple[dict[str, str | int], Violation | None]:
    """Return the row, and the first rule that it breaks."""
    try:
        row = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        return {}, NOT_JSON
    if not isinstance(row, dict):
        return {}, NOT_AN_OBJECT
    violations = row_violations(row, DROP_FIELDS, ())
    if not violations and row[EVENT_DATE.name] != day.isoformat():
        violations = [WRONG_DAY]
    return row, violations[0] if violations else None
