"""What every page has in common: numbers, dates and labels as text, and the templates.

A number carries the attribute `data-of`, which says what it is: `sum event_signup 2026-11-01/2026-11-28`. Several
numbers are listed in order, separated by `;`. `data-label-of` says the same of an `aria-label`. `audit` reads both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

import jinja2
from markupsafe import Markup

from analytics_assets.publication.pages.series import Change, Period, Series, Total, Weeks, percent

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'self'"
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
    "X-Robots-Tag": "noindex",
    "X-Content-Type-Options": "nosniff",
}
"""The headers that pages are served with."""

NOT_COLLECTED: Final = "\N{EN DASH}"

# Filled by `%`, which escapes as `format` does and takes half as long: there are thousands of these on a page.
_CELL: Final = Markup('<td class="n" data-of="sum %s">%s%s</td>')
_TIME: Final = Markup("<time datetime='%s'>%s</time>")
_MARK: Final = Markup('<span aria-hidden="true">*</span><span class="vh"> (not every day was collected)</span>')


@dataclass(frozen=True)
class Page:
    """A file to be written."""

    path: str
    """Below the folder of the pages, with `/`."""
    body: bytes


class Label(NamedTuple):
    """A sentence with numbers in it."""

    text: str
    of: str
    """What its numbers are, in order."""


def format_date(day: date, *, year: bool = True) -> str:
    """Return a date as people write it: 3 Aug 2026."""
    return f"{day.day} {day:%b %Y}" if year else f"{day.day} {day:%b}"


@lru_cache(maxsize=2048)
def format_time(first: date, last: date | None = None) -> Markup:
    """Return a day or a period as a `time` element."""
    if last is None or last == first:
        return _TIME % (first, format_date(first))
    start = _TIME % (first, format_date(first, year=first.year != last.year))
    return start + " to " + _TIME % (last, format_date(last))


@dataclass(frozen=True)
class Numbers:
    """How numbers are written: exact ones as they are, published ones in steps of `base`."""

    base: int | None = None
    summed: frozenset[str] = frozenset()
    """Event names whose numbers are sums over events: each of these can be below the base."""

    def text(self, total: Total) -> str:
        """Return a sum as text."""
        if not total.collected:
            return NOT_COLLECTED
        if self.base and not total.value:
            return f"<{self.base} each" if total.name in self.summed else f"<{self.base}"
        return f"{total.value:,}"

    def cell(self, total: Total) -> Markup:
        """Return a sum as a cell of a table."""
        return _CELL % (total.spec, self.text(total), self.mark(total))

    def big(self, total: Total) -> Markup:
        """Return a sum as the number of a card."""
        return Markup('<strong class="big" data-of="sum {}">{}{}</strong>').format(
            total.spec, self.text(total), self.mark(total)
        )

    def mark(self, total: Total) -> Markup:
        """Mark a sum that lacks days."""
        return Markup("") if total.complete or not total.collected else _MARK

    def share(self, part: Total, whole: Total) -> Markup:
        """Return a percentage as a cell of a table; none where the denominator is too small or a day is missing."""
        share = percent(part.value, whole.value, digits=0 if self.base else 1)
        if share is None or not (part.complete and whole.complete):
            return Markup('<td class="n dim">{}</td>').format(NOT_COLLECTED)
        return Markup('<td class="n" data-of="share {} {}">{}%</td>').format(part.spec, whole.spec, share)

    def change(self, change: Change) -> Markup:
        """Say how a sum compares with the period before."""
        before = Markup('<span data-of="sum {of}">{text}</span>').format(
            of=change.before.spec, text=self.text(change.before)
        )
        if not change.comparable:
            return Markup('<p class="change dim">before: not collected on every day</p>')
        if change.percent is None:
            return Markup('<p class="change dim">before: {}</p>').format(before)
        arrow = {"+": "▲ ", "-": "▼ "}.get(change.percent[0], "")
        return Markup(
            '<p class="change"><strong><span aria-hidden="true">{}</span><span data-of="change {} {}">{}</span>'
            '</strong> <span class="dim">from {}</span></p>'
        ).format(arrow, change.now.spec, change.before.spec, change.percent, before)

    def weekly_label(self, all_series: Sequence[Series | Weeks]) -> Label:
        """State what a chart of weeks shows."""
        parts, of = [], []
        for series in all_series:
            weeks = [week for week in series.weeks() if week.collected]
            if not weeks:
                parts.append(f"{series.label} by week: no full week yet")
                continue
            highest, latest = max(weeks, key=lambda week: week.value), weeks[-1]
            parts.append(
                f"{series.label} by week: {self.text(latest)} in the week from {format_date(latest.period.first)},"
                f" the highest {self.text(highest)} in the week from {format_date(highest.period.first)}"
            )
            of += [f"sum {latest.spec}", f"sum {highest.spec}"]
        return Label("; ".join(parts) + ".", ";".join(of))

    def running_label(self, series: Series) -> Label:
        """State what a chart of a running total shows."""
        total = series.total(series.period)
        first, last = map(format_date, series.period)
        return Label(f"{series.label}, running total from {first}: {self.text(total)} by {last}.", f"sum {total.spec}")


@cache
def _environment(base: int | None, summed: frozenset[str]) -> jinja2.Environment:
    # Imported where something is drawn: it takes a second, and needs the extra `pages`.
    from analytics_assets.publication.pages import charts  # noqa: PLC0415

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analytics_assets.publication.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    numbers = Numbers(base, summed)
    environment.globals |= {
        "numbers": numbers,
        "charts": charts,
        "time": format_time,
        "style": Markup(files("analytics_assets.publication.pages").joinpath("templates/style.css").read_text("utf-8")),  # noqa: S704
        "Change": Change,
        "columns": lambda all_series: [series.weeks() for series in all_series],
        "zip": zip,
        "Period": Period,
        "percent": percent,
    }
    return environment


def render(
    template: str, path: str, *, base: int | None = None, summed: frozenset[str] = frozenset(), **data: Any
) -> Page:
    """Render a template. For `base` and `summed` see `Numbers`."""
    text = _environment(base, summed).get_template(template).render(**data)
    return Page(path, text.encode())
