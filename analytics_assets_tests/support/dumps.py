"""A day of counter dumps: written as several processes do, and read as the pipeline does."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path

from analytics_assets.contract import METRICS, CounterDumps
from analytics_assets.settings import Settings
from analytics_assets.sources.counter_dumps import open_dumps, read_day
from analytics_assets.telemetry.dumps import DumpFile

DAY = date(2026, 11, 22)
DUMP_FED = [metric for metric in METRICS if isinstance(metric.origin, CounterDumps)]
FILES = 6


def write_day(folder: Path, day: date = DAY, files: int = FILES) -> None:
    """Write the dumps of some processes, some keys of which are the same, and let a day pass."""
    for number in range(files):
        rows: list[dict[str, object]] = [
            {"event_name": "directory_page_viewed", "event_id": "7", "source": "web"},
            {"event_name": "directory_searched", "event_id": str(number)},
            {"event_name": "http_response", "endpoint": "GET /events/{event_id}", "status_code": 200 + number % 2},
        ]
        dump = DumpFile(folder, str(day))
        for row in rows[number % 2 :]:
            dump.append({"event_date": str(day)} | row, 10**number)
        dump.close()
    age(folder)


def age(folder: Path) -> None:
    """Let a day pass for every dump."""
    for path in folder.glob("*/*.ndjson"):
        os.utime(path, (time.time() - 90_000,) * 2)


def counts(folder: Path, day: date = DAY) -> dict[tuple[object, ...], int]:
    """The counts that are read of a day, which are also what it is compared with."""
    found: Counter[tuple[object, ...]] = Counter()
    for metric in DUMP_FED:
        read = read_day(folder / str(day), day)[metric.asset]
        assert read.problems == []
        with open_dumps(metric, replace(Settings.from_env({}), dump_dir=folder)) as reader:
            assert reader.total(day) == sum(row["count"] for row in read.rows)
        for row in read.rows:
            found[(metric.asset, *(value for name, value in row.items() if name != "count"))] += row["count"]
    return found
