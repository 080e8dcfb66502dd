"""Counts for the pages, and reading pages as somebody does who knows nothing of how they were made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from random import Random

from analytics_assets.contract import METRICS
from analytics_assets.days import span
from analytics_assets.publication.publish import publish_closed
from analytics_assets.settings import Settings
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import read_window
from analytics_assets_tests.support.pipeline import replace_day

BUSY, QUIET, UUID = "7", "8", "0f8fad5b-d9cb-469f-a165-70867728950e"
EVENTS = {BUSY: 30, QUIET: 1, UUID: 4}
GAP = 40
"""So many days ago, searches were not collected."""


@contextmanager
def published(settings: Settings, days: int = 70) -> Iterator[Store]:
    """A store with some days of counts, published as far as they are closed."""
    with open_store(settings) as store:
        last = read_window(store).last
        fill(store, last - timedelta(days=days - 1), last)
        publish_closed(store)
        yield store


def fill(store: Store, first: date, last: date) -> None:
    """Store counts of every metric: a busy event, a quiet one, and one with a UUID."""
    for day in span(first, last):
        for metric in METRICS:
            if metric.asset == "directory_searches" and (last - day).days == GAP:
                continue
            if metric.table == "daily_response_counts":
                counts = {200: 90 + day.toordinal() % 50, 404: 1 + day.toordinal() % 3}
                rows = [
                    {"event_date": day, "endpoint": "GET /events", "status_code": code, "count": count}
                    for code, count in counts.items()
                ]
            else:
                rows = [
                    {"event_date": day, "event_name": name, "event_id": event_id, "source": source, "count": count}
                    for name in metric.event_names
                    for event_id, usual in EVENTS.items()
                    for source, part in (("web", 0.9), (None, 0.1))
                    if (count := _count(day, name, usual * part)) > 0
                ]
            replace_day(store, metric, day, rows)


_USUAL = {"directory_page_viewed": 5.0, "directory_searched": 1.5, "profile_visibility_toggled": 0.1}


def _count(day: date, name: str, usual: float) -> int:
    """A number that differs from day to day, is lower at weekends, and is always the same for one day."""
    chance = Random(f"{day} {name} {usual}")  # noqa: S311  # repeatable is the point
    expected = usual * _USUAL.get(name, 1) * (0.4 if day.weekday() >= 5 else 1)
    return max(0, round(chance.gauss(expected, expected**0.5)))


def files(folder: Path) -> dict[str, bytes]:
    """Path below the folder -> content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Tables(HTMLParser):
    """The cells of a page's tables: caption or heading before the table, row by row."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._cell = False
        self._skip = 0
        self.feed(body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self._cell = True
            self.tables[-1][-1].append("")
        elif tag == "time" and self._cell:
            self.tables[-1][-1][-1] += f"[{dict(attrs)['datetime']}]"
            self._skip += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self._cell = False
        elif tag == "time" and self._skip:
            self._skip -= 1

    def handle_data(self, data: str) -> None:
        if self._cell and not self._skip:
            self.tables[-1][-1][-1] += re.sub(r"\*| \(not every day was collected\)", "", data).strip()


def days_of(cell: str) -> tuple[date, date]:
    """The days of a row's heading: `[2026-11-02] to [2026-11-08]`, or one day."""
    found = [date.fromisoformat(text) for text in re.findall(r"\[([\d-]+)\]", cell)]
    return found[0], found[-1]
