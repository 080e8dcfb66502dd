"""Telemetry under a clock that stands, and what its dumps hold."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from analytics_assets.contract import METRICS
from analytics_assets.guard import row_violations
from analytics_assets.sources.drops import read_drops
from analytics_assets.telemetry import Telemetry
from analytics_assets.telemetry.asgi import CountResponses

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()


@dataclass
class Clock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of every dump, each allowed by the contract and in the folder of its day."""
    found = []
    for path in sorted(folder.glob("*/*.ndjson")):
        for line in path.read_bytes().split(b"\n"):
            if line:
                row = json.loads(line)
                assert row["event_date"] == path.parent.name
                (metric,) = (m for m in METRICS if row["event_name"] in m.event_names)
                assert not row_violations(row, metric.dump_fields, metric.event_names)
                found.append(row)
    return found


def totals(folder: Path) -> Counter[frozenset[tuple[str, Any]]]:
    """Sum of the counts of each key, over all days and files."""
    sums: Counter[frozenset[tuple[str, Any]]] = Counter()
    for row in rows(folder):
        count = row.pop("count")
        sums[frozenset(row.items())] += count
    return sums


def by_day(folder: Path) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for row in rows(folder):
        sums[row["event_date"]] += row["count"]
    return dict(sums)


def drops(folder: Path) -> dict[str, int]:
    """Reason -> how many drops the drop files of all days hold."""
    found = read_drops(folder, [date.fromisoformat(path.name) for path in folder.glob("*-*-*")])
    assert not found.problems
    sums: Counter[str] = Counter()
    for of_day in found.counts.values():
        sums.update(of_day)
    return dict(sums)


Seen = dict[tuple[str, int], int]


def responses(folder: Path) -> Seen:
    """Endpoint and status code -> how many responses the dumps hold."""
    sums: Counter[tuple[str, int]] = Counter()
    for row in rows(folder):
        if row["event_name"] == "http_response":
            sums[row["endpoint"], row["status_code"]] += row["count"]
    return dict(sums)


@dataclass
class Counting:
    """Telemetry of a test, and what it has counted; nothing may have been dropped unless the test takes it away."""

    folder: Path
    telemetry: Telemetry

    def seen(self, dropped: Mapping[str, int] | None = None) -> Seen:
        assert self.telemetry.dropped == drops(self.folder) == (dropped or {})
        return responses(self.folder)

    def around(self, app: Any, **arguments: Any) -> Any:
        return CountResponses(app, self.telemetry, **arguments)
