"""Restoring the first bytes of a counter dump, which other code of the web application has overwritten.

A web server may write into a file descriptor that it has closed, and whose number a dump has been given since.
Telemetry prevents that; this is for dumps of earlier versions. Nothing is guessed: the first bytes of a dump are its
day and an event name of the contract. They are restored where only one event name fits the rest of the line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

from analytics_assets.contract import DUMP_FILE_PATTERN, EVENT_DATE, EVENT_NAME, METRICS, CounterDumps, Metric
from analytics_assets.guard import Violation, row_violations
from analytics_assets.sources import Problem
from analytics_assets.sources.counter_dumps import MAX_LINE

NOT_RESTORABLE: Final = Violation("(row)", "is damaged past the event name; correct or remove it")
NOT_WRITABLE: Final = Violation("(file)", "cannot be read and written; run this command as the web application's user")


@dataclass(frozen=True)
class Repaired:
    """What `repair_dumps` has done. Places are `<day>/<file> line 1`."""

    restored: tuple[str, ...]
    problems: tuple[Problem, ...]


def repair_dumps(dump_dir: Path) -> Repaired:
    """Restore the first bytes of every dump in the day folders of a dump folder, in place.

    A process may be counting into the dump meanwhile: the bytes that are written never change otherwise. Running it
    again changes nothing.

    Raises:
        OSError: the dump folder cannot be read.
    """
    restored: list[str] = []
    problems: list[Problem] = []
    for day, path in _dumps(dump_dir):
        where = f"{path.parent.name}/{path.name} line 1"
        try:
            # No O_CREAT and O_NOFOLLOW: a dump that expires meanwhile, or a link, is never written.
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        except OSError:
            problems.append(Problem(where, NOT_WRITABLE))
            continue
        try:
            content = os.pread(descriptor, MAX_LINE, 0)
            if not content.strip(b"\n") or content.startswith(b"{"):
                continue
            head = _find_head(content, day)
            if head is None:
                problems.append(Problem(where, NOT_RESTORABLE))
            else:
                os.pwrite(descriptor, head, 0)
                restored.append(where)
        finally:
            os.close(descriptor)
    return Repaired(tuple(restored), tuple(problems))


def _dumps(dump_dir: Path) -> Iterator[tuple[date, Path]]:
    for folder in sorted(dump_dir.iterdir()):
        try:
            day = date.fromisoformat(folder.name)
        except ValueError:
            continue
        if folder.name == day.isoformat() and folder.is_dir() and not folder.is_symlink():
            for path in sorted(folder.iterdir()):
                if re.fullmatch(DUMP_FILE_PATTERN, path.name):
                    yield day, path


def _find_head(content: bytes, day: date) -> bytes | None:
    """Return the bytes that the first line began with, None when none or several fit what follows them."""
    heads = [
        head
        for metric in METRICS
        if isinstance(metric.origin, CounterDumps)
        for name in metric.event_names
        for head in [json.dumps({EVENT_DATE.name: str(day), EVENT_NAME.name: name}, separators=(",", ":"))[:-1] + ","]
        if _is_line(head.encode() + content[len(head) :].split(b"\n")[0], metric)
    ]
    return heads[0].encode() if len(heads) == 1 else None


def _is_line(line: bytes, metric: Metric) -> bool:
    try:
        row = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not row_violations(row, metric.dump_fields, metric.event_names)
