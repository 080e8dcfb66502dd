"""The pages for everybody else: published numbers, in steps of five. Pure: data in, pages and files out.

Every number is a sum of published days. Nothing else comes in here, so nothing else can go out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from analytics_assets.days import span
from analytics_assets.publication.fives import BASE, NOTHING, Bounds, state, true_sum
from analytics_assets.publication.pages.html import Page, render
from analytics_assets.publication.pages.series import Period, Series, Weeks, funnel, period_to

FOLDERS: Final = ("overview", "events")

HOW_TO_READ: Final = (
    "Numbers of an event move in steps of five and are at most four away from the count; <5 means 0 to 4."
)
"""The one sentence that every published page has."""
FILLED: Final = (
    "Some of these days were published after their turn, each by itself:"
    " for each of them, a number may be up to four further below the count."
)
"""What a page says, too, when days in it were filled later."""


@dataclass(frozen=True)
class PublishedEvent:
    """One event, by event name in the order of the funnel."""

    event_id: str
    series: Sequence[Series]


@dataclass(frozen=True)
class Published:
    """Everything that the published pages show."""

    period: Period
    """The days shown. The last one is the newest that was published."""
    time_zone: str
    everything: Sequence[Series]
    """The sums over all events, in the order of the funnel."""
    events: Sequence[PublishedEvent]
    weekly: Sequence[Weeks]
    """What is published by week, over all events only."""
    filled: bool = False
    """Whether any of these days or weeks was filled later."""


def render_published(published: Published) -> Iterator[Page]:
    """Render the overview; for each event a page and its data as CSV and JSON."""
    now = period_to(published.period.last)
    everything = list(published.everything)
    yield render(
        "overview.html",
        "overview/index.html",
        base=BASE,
        how_to_read=HOW_TO_READ,
        filled=FILLED if published.filled else "",
        published=published,
        now=now,
        series=everything,
        ranges={series.name: find_bounds(published, series.name, now) for series in everything},
        funnel=funnel(everything, now),
    )
    for event in published.events:
        folder = f"events/{event.event_id}"
        yield render(
            "event.html",
            f"{folder}/index.html",
            base=BASE,
            how_to_read=HOW_TO_READ,
            filled=FILLED if any(series.filled for series in event.series) else "",
            published=published,
            event=event,
            now=now,
            funnel=funnel(list(event.series), now),
        )
        yield Page(f"{folder}/data.csv", to_csv(event))
        yield Page(f"{folder}/data.json", to_json(event, published))


def find_bounds(published: Published, name: str, period: Period) -> Bounds:
    """Return what the true sum can be, over the events that have a step in the days shown: their bounds add up.

    A day that was filled later is a stretch of its own.
    """
    of_events = [series for event in published.events for series in event.series if series.name == name]
    bounds = NOTHING
    for series in of_events:
        if not any(series.days.values()):
            continue
        in_turn = 0
        for day in span(*period):
            step = series.days.get(day) or 0
            if day in series.filled:
                bounds += true_sum(step, from_start=True)
            else:
                in_turn += step
        bounds += true_sum(in_turn, from_start=False)
    return bounds


def to_csv(event: PublishedEvent) -> bytes:
    """Return the days of an event as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["event_date", "event_name", "event_id", "count", "state"])
    for series in event.series:
        writer.writerows([day, series.name, event.event_id, count, state(count)] for day, count in series.days.items())
    return text.getvalue().encode()


def to_json(event: PublishedEvent, published: Published) -> bytes:
    """Return the days of an event as JSON."""
    data = {
        "event_id": event.event_id,
        "how_to_read": HOW_TO_READ,
        "time_zone": published.time_zone,
        "days": [
            {"event_date": str(day), "event_name": series.name, "count": count, "state": state(count)}
            for series in event.series
            for day, count in series.days.items()
        ],
    }
    return (json.dumps(data, indent=1) + "\n").encode()
