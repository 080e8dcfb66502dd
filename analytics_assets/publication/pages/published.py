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
from analytics_assets.publication.pages.series import Period, Series, Weeks, funnel, newest

FOLDERS: Final = ("overview", "events")

HOW_TO_READ: Final = (
    "Numbers of an event move in steps of five and are at most four away from the count; <5 means 0 to 4."
)
"""The one sentence that the pages of an event have."""
HOW_TO_READ_ALL: Final = (
    "Numbers over all events are sums of those of the events, each of which moves in steps of five and is at most four"
    " away from its count. So a sum can be four away for each event, and <5 each means that none of them has a number."
)
"""The sentence of the overview."""
FILLED: Final = (
    "Some of these days were published after their turn, each by itself:"
    " for each of them, a number, or a <5, may be up to four further below the count."
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
    now = newest(published.period)
    everything = list(published.everything)
    yield render(
        "overview.html",
        "overview/index.html",
        base=BASE,
        summed=frozenset(series.name for series in everything),
        how_to_read=how_to_read(HOW_TO_READ_ALL, filled=published.filled),
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
            how_to_read=_how_to_read_event(event),
            published=published,
            event=event,
            now=now,
            funnel=funnel(list(event.series), now),
        )
        yield Page(f"{folder}/data.csv", to_csv(event))
        yield Page(f"{folder}/data.json", to_json(event, published))


def how_to_read(sentence: str, *, filled: bool) -> str:
    """Return what a page says on how to read it."""
    return f"{sentence} {FILLED}" if filled else sentence


def _how_to_read_event(event: PublishedEvent) -> str:
    return how_to_read(HOW_TO_READ, filled=any(series.filled for series in event.series))


def find_bounds(published: Published, name: str, period: Period) -> Bounds | None:
    """Return what the true sum can be, over the events that have a step in the days shown: their bounds add up.

    A day that was filled later is a stretch of its own. None when no event has a step, or a day was not published.
    """
    of_events = [series for event in published.events for series in event.series if series.name == name]
    with_steps = [series for series in of_events if any(series.days.values())]
    if not with_steps or not with_steps[0].total(period).complete:
        return None
    bounds = NOTHING
    for series in with_steps:
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
    writer.writerow(["event_date", "event_name", "event_id", "count", "state", "filled"])
    for series in event.series:
        writer.writerows(
            [day, series.name, event.event_id, count, state(count), "true" if day in series.filled else "false"]
            for day, count in series.days.items()
        )
    return text.getvalue().encode()


def to_json(event: PublishedEvent, published: Published) -> bytes:
    """Return the days of an event as JSON."""
    data = {
        "event_id": event.event_id,
        "how_to_read": _how_to_read_event(event),
        "time_zone": published.time_zone,
        "days": [
            {
                "event_date": str(day),
                "event_name": series.name,
                "count": count,
                "state": state(count),
                "filled": day in series.filled,
            }
            for series in event.series
            for day, count in series.days.items()
        ],
    }
    return (json.dumps(data, indent=1) + "\n").encode()
