"""Published pages, read back: every number in them is compared with the published tables.

Two things are found. A number in a text, label or title that is not the sum of published days it claims to be, or that
claims nothing. And any difference at all between a file and what `published.*` gives: that covers what is drawn.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from analytics_assets.publication.fives import BASE
from analytics_assets.publication.pages.html import Page
from analytics_assets.publication.pages.published import FILLED, FOLDERS, HOW_TO_READ, HOW_TO_READ_ALL
from analytics_assets.publication.pages.series import MIN_DENOMINATOR, Period


@dataclass(frozen=True)
class Facts:
    """Everything that schema `published` says of the days that pages show."""

    steps: Mapping[tuple[str, str | None], Mapping[date, int]]
    """(event name, event id) -> day -> number. Without event id: over all events, a week's number on its Sunday."""
    published: Mapping[str, frozenset[date]]
    """Event name -> days that were published; of what is published by week, the Sundays."""
    filled: Mapping[str, frozenset[date]]
    """Event name -> those that were filled later."""


_DATE: Final = re.compile(r"\b\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)(?: \d{4})?\b")
_DIGIT: Final = re.compile(r"\d")
_NUMBER: Final = re.compile(r"<?[+-]?\d+(?:,\d{3})*(?:\.\d+)?%?")
_FORM: Final = {
    *("charset", "class", "colspan", "content", "d", "data-label-of", "data-of", "datetime", "fill", "fill-opacity"),
    *("font-size", "height", "href", "id", "name", "opacity", "points", "scope", "stroke", "stroke-miterlimit"),
    *("stroke-opacity", "stroke-width", "style", "tabindex", "transform", "viewbox", "width", "x2", "y2"),
}
"""Attributes that nobody reads as text. That they are as they should be, the comparison of the files says."""
_EMPTY: Final = {"area", "base", "br", "hr", "img", "input", "link", "meta", "source", "wbr"}


def read_facts(connection: sa.Connection, first: date) -> Facts:
    """Return the published numbers from a day on. Reads schema `published` only."""
    query = sa.text(
        "select event_name, event_id, event_date, count from published.daily_counts where event_date >= :first"
        " union all select event_name, null, week_start + 6, count from published.weekly_counts"
        " where week_start >= :first"
    )
    steps: dict[tuple[str, str | None], dict[date, int]] = defaultdict(lambda: defaultdict(int))
    for name, event_id, day, count in connection.execute(query, {"first": first}):
        for key in {(name, event_id), (name, None)}:
            steps[key][day] += count
    query = sa.text(
        "select event_name, event_date, filled from published.days where state = 'published' and event_date >= :first"
        " union all select event_name, week_start + 6, filled from published.weeks"
        " where state = 'published' and week_start >= :first"
    )
    published: dict[str, set[date]] = defaultdict(set)
    filled: dict[str, set[date]] = defaultdict(set)
    for name, day, is_filled in connection.execute(query, {"first": first}):
        published[name].add(day)
        if is_filled:
            filled[name].add(day)
    return Facts(steps, *({name: frozenset(days) for name, days in found.items()} for found in (published, filled)))


def find_differences(folder: Path, pages: Iterator[Page], facts: Facts) -> Iterator[str]:
    """Yield what is wrong with the published files. The texts name files, never a value."""
    expected = set()
    for page in pages:
        expected.add(page.path)
        try:
            body = (folder / page.path).read_bytes()
        except OSError:
            yield f"{page.path}: is missing or cannot be read"
            continue
        if body != page.body:
            yield f"{page.path}: is not what the published tables give"
        yield from find_untrue_numbers(page.path, body, facts)
    for part in FOLDERS:
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_dir() and name not in expected:
                yield f"{name}: is not a page"
                if path.suffix in {".html", ".csv", ".json"}:
                    yield from find_untrue_numbers(name, path.read_bytes(), facts)


def find_untrue_numbers(path: str, body: bytes, facts: Facts) -> Iterator[str]:
    """Yield each number of a file that is not what it claims to be, by where it stands."""
    parts = path.split("/")
    scope = parts[1] if parts[0] == "events" else None
    try:
        text = body.decode()
        if path.endswith(".html"):
            reader = _Reader(scope, facts)
            reader.feed(text)
            reader.close()
            yield from (f"{path}: {found}" for found in reader.finish())
        else:
            rows = list(csv.DictReader(io.StringIO(text))) if path.endswith(".csv") else _json_rows(text, scope)
            for number, row in enumerate(rows, 1):
                if not _row_is_true(row, scope, facts):
                    yield f"{path}: row {number} is not in the published tables"
    except (ValueError, KeyError, TypeError, AttributeError):
        yield f"{path}: cannot be read as what it should be"


def _json_rows(text: str, scope: str | None) -> list[dict[str, object]]:
    data = json.loads(text)
    fixed = {key: data.pop(key) for key in ("event_id", "how_to_read", "time_zone")}
    days: list[dict[str, object]] = data.pop("days")
    said = _without_sentences(str(fixed["how_to_read"])).strip()
    if data or said or fixed["event_id"] != scope or re.search(r"\d", _zone(fixed)):
        raise ValueError
    return days


def _without_sentences(text: str) -> str:
    for sentence in (HOW_TO_READ, HOW_TO_READ_ALL, FILLED):
        text = text.replace(sentence, "")
    return text


def _zone(fixed: Mapping[str, object]) -> str:
    # Etc/GMT+2 has a digit, which counts nothing.
    return re.sub(r"^Etc/GMT[+-]\d{1,2}$", "", str(fixed["time_zone"]))


def _row_is_true(row: Mapping[str, object], scope: str | None, facts: Facts) -> bool:
    day, name, count, state = (row[key] for key in ("event_date", "event_name", "count", "state"))
    known = {"event_date", "event_name", "event_id", "count", "state", "filled"}
    if row.keys() - known or row.get("event_id", scope) != scope:
        return False
    on = date.fromisoformat(str(day))
    if str(row["filled"]).lower() != str(on in facts.filled.get(str(name), ())).lower():
        return False
    if on not in facts.published.get(str(name), ()):
        return state == "not_collected" and count in {None, ""}
    step = facts.steps.get((str(name), scope), {}).get(on)
    return str(count) == str(step or 0) and state == ("value" if step else "below")


@dataclass
class _Element:
    of: str | None
    """What its numbers claim to be."""
    numbers: list[str] = field(default_factory=list)
    tag: str = ""


class _Reader(HTMLParser):
    """Collects the numbers of a page, each with the element that says what it is."""

    def __init__(self, scope: str | None, facts: Facts) -> None:
        super().__init__()
        self.scope, self.facts = scope, facts
        self.found: list[str] = []
        self.open: list[_Element] = [_Element(None, tag="page")]
        self.texts = [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        for name, value in given.items():
            if name == "aria-label":
                self._compare(self._numbers(value), given.get("data-label-of", ""), f"aria-label of a {tag}")
            elif name not in _FORM and self._numbers(value):
                self.found.append(f"{name} of a {tag} has a number")
        if tag == "meta" and given.get("name") not in {None, "viewport"} and self._numbers(given.get("content", "")):
            self.found.append("a meta has a number")
        if tag not in _EMPTY:
            self.open.append(_Element(given.get("data-of"), tag=tag))
            self.texts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _EMPTY:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data

    def handle_comment(self, data: str) -> None:
        if self._numbers(data):
            self.found.append("a comment has a number")

    def handle_endtag(self, tag: str) -> None:
        if len(self.open) < 2 or self.open[-1].tag != tag:
            raise ValueError
        element, text = self.open.pop(), self.texts.pop()
        numbers = [*self._numbers(text), *element.numbers]
        # What is drawn has ticks; the comparison of the files is for it.
        if numbers and {tag, *(other.tag for other in self.open)} & {"style", "svg"}:
            numbers = []
        if element.of is None:
            self.open[-1].numbers += numbers
        else:
            self._compare(numbers, element.of, f"a {tag}")

    def finish(self) -> list[str]:
        """Return what was found."""
        if len(self.open) != 1:
            raise ValueError
        if self._numbers(self.texts[0]) or self.open[0].numbers:
            self.found.append("a text has a number that says not what it is the sum of")
        return self.found

    def _numbers(self, text: str) -> list[str]:
        if not _DIGIT.search(text):
            return []
        text = _without_sentences(text)
        if self.scope is not None:
            text = text.replace(f"Event {self.scope}", "")
        return _NUMBER.findall(re.sub(r"Etc/GMT[+-]\d{1,2}\b", "", _DATE.sub("", text)))

    def _compare(self, numbers: list[str], of: str, where: str) -> None:
        claims = [text for claim in of.split(";") if claim for text in self._true_text(claim)]
        if numbers != claims:
            self.found.append(f"{where} has a number that is not the sum of published days")

    def _true_text(self, claim: str) -> Iterator[str]:
        """Yield the number that a claim stands for as it should be written, or nothing where none was collected."""
        kind, *terms = claim.split()
        sums = [self._sum(name, *period.split("/")) for name, period in zip(terms[::2], terms[1::2], strict=True)]
        match kind, sums:
            case "sum", [int(value)]:
                yield f"{value:,}" if value else f"<{BASE}"
            case "sum", [None]:
                return
            case "share", [int(part), int(whole)] if whole >= MIN_DENOMINATOR:
                yield f"{100 * part / whole:.0f}%"
            case "change", [int(now), int(before)] if before >= MIN_DENOMINATOR:
                percent = round(100 * (now - before) / before)
                yield f"{percent:+d}%" if percent else "0%"
            case "least" | "most", _ if self.scope is None:
                yield f"{self._bound(kind, terms[0], *terms[1].split('/')):,}"
            case _:
                raise ValueError

    def _sum(self, name: str, first: str, last: str | None = None) -> int | None:
        """Return the sum of a period, of the event of the page or of all; None when nothing of it was published."""
        days = Period(date.fromisoformat(first), date.fromisoformat(last or first))
        published = self.facts.published.get(name, frozenset())
        within = days.first in published if last is None else any(days.first <= day <= days.last for day in published)
        if not within:
            return None
        return _sum_within(self.facts.steps.get((name, self.scope), {}), days)

    def _bound(self, kind: str, name: str, first: str, last: str | None = None) -> int:
        """Return the least or most that the true sum over the events with a number can be."""
        days = Period(date.fromisoformat(first), date.fromisoformat(last or first))
        filled = [day for day in self.facts.filled.get(name, ()) if days.first <= day <= days.last]
        bound = 0
        for (of, event_id), steps in self.facts.steps.items():
            if of != name or event_id is None:
                continue
            value = _sum_within(steps, days)
            if kind == "most":
                bound += value + (BASE - 1) * (1 + len(filled))
            else:
                by_themselves = sum(steps.get(day, 0) for day in filled)
                bound += by_themselves + max(0, value - by_themselves - BASE + 1)
        return bound


def _sum_within(steps: Mapping[date, int], days: Period) -> int:
    if days.first == days.last:  # as in most cells
        return steps.get(days.first, 0)
    return sum(step for day, step in steps.items() if days.first <= day <= days.last)
