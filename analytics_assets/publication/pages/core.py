"""The core team's pages: exact numbers. Pure: data in, pages out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Final

from analytics_assets import contract
from analytics_assets.publication.pages.html import Page, render
from analytics_assets.publication.pages.series import Period, Series, funnel, newest

FOLDER: Final = "core"
MAX_EVENTS: Final = 300
"""Events, and endpoints, that the core page lists: those with the most going on in the last 28 days."""
MAX_FINDINGS: Final = 30
"""Findings that the core page lists."""


@dataclass(frozen=True)
class Health:
    """Whether the numbers can be relied on."""

    missing: Sequence[tuple[str, int | None]] = ()
    """Metric -> days of the kept ones that were not collected; None: it never was. Only metrics that lack some."""
    checks: int = 0
    """Asset checks that have been executed."""
    failing: Sequence[str] = ()
    """Those that failed."""
    oldest: date | None = None
    """The oldest day that is kept."""
    stopped: Sequence[str] = ()
    """Services of Dagster that do not run."""

    @property
    def good(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.missing or self.failing or self.stopped)


@dataclass(frozen=True)
class Metric:
    """One metric with the series of its event names, summed over the events."""

    label: str
    question: str
    series: Sequence[Series]


@dataclass(frozen=True)
class Responses:
    """Responses of one endpoint, or of all."""

    endpoint: str
    requests: Series
    errors: Series
    """Those with status 400 or above."""


@dataclass(frozen=True)
class Target:
    """A target of the contract with its two counts."""

    declared: contract.Target
    numerator: Series
    denominator: Series

    @property
    def period(self) -> Period:
        """The days on which it is judged."""
        last = self.numerator.period.last
        return Period(last - timedelta(days=self.declared.window_days - 1), last)

    def ratio(self, period: Period) -> float | None:
        """Return the ratio over a period, None when a day of it was not collected or nothing is in its denominator."""
        part, whole = self.numerator.total(period), self.denominator.total(period)
        return part.value / whole.value if part.complete and whole.complete and whole.value else None

    @property
    def met(self) -> bool | None:
        """Whether it is met; None when it cannot be told."""
        ratio = self.ratio(self.period)
        return None if ratio is None else self.declared.is_met(ratio)

    def trend(self) -> list[float]:
        """Return the ratio of each week, without the weeks that have none."""
        ratios = (self.ratio(week.period) for week in self.numerator.weeks())
        return [ratio for ratio in ratios if ratio is not None]


@dataclass(frozen=True)
class Finding:
    """Something out of the ordinary that friction has found, most striking first."""

    text: str
    day: date
    event_id: str | None = None


@dataclass(frozen=True)
class Event:
    """One event of the directory."""

    event_id: str
    series: Sequence[Series]
    """By event name, in the order of the contract."""


@dataclass(frozen=True)
class Entry:
    """A metric in the data dictionary."""

    asset: str
    question: str
    owner: str
    event_names: Sequence[str]
    origin: str


@dataclass(frozen=True)
class Core:
    """Everything that the core team's pages show."""

    period: Period
    """The days shown. The last one is the newest that was collected."""
    time_zone: str
    health: Health
    metrics: Sequence[Metric]
    steps: Sequence[Series]
    """The funnel, all events."""
    responses: Responses
    endpoints: Sequence[Responses]
    events: Sequence[Event]
    dictionary: Sequence[Entry]
    targets: Sequence[Target] = ()
    findings: Sequence[Finding] = field(default=())


def render_core(core: Core) -> Iterator[Page]:
    """Render the index, and a page for each event."""
    now = newest(core.period)
    names = [series.name for series in core.steps]
    events = sorted(core.events, key=lambda event: (-_activity(event, now), len(event.event_id), event.event_id))
    endpoints = sorted(core.endpoints, key=lambda r: (-r.requests.total(now).value, r.endpoint))
    yield render(
        "core_index.html",
        f"{FOLDER}/index.html",
        core=core,
        now=now,
        funnel=funnel(list(core.steps), now),
        findings=core.findings[:MAX_FINDINGS],
        more_findings=max(0, len(core.findings) - MAX_FINDINGS),
        events=[
            (event, {s.name: s.total(now) for s in event.series if s.name in names}) for event in events[:MAX_EVENTS]
        ],
        more_events=max(0, len(events) - MAX_EVENTS),
        endpoints=[_endpoint(responses, now) for responses in endpoints[:MAX_EVENTS]],
        more_endpoints=max(0, len(endpoints) - MAX_EVENTS),
    )
    for event in core.events:
        steps = [series for series in event.series if series.name in names]
        yield render(
            "core_event.html",
            f"{FOLDER}/events/{event.event_id}.html",
            core=core,
            event=event,
            now=now,
            funnel=funnel(sorted(steps, key=lambda series: names.index(series.name)), now),
        )


def _activity(event: Event, now: Period) -> int:
    return sum(series.total(now).value for series in event.series)


def _endpoint(responses: Responses, now: Period) -> tuple[Responses, list[float]]:
    """Return an endpoint with its share of errors per week."""
    weeks = zip(responses.errors.weeks(), responses.requests.weeks(), strict=True)
    return responses, [part.value / whole.value if whole.value else 0.0 for part, whole in weeks]
