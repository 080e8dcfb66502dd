"""Publishing by hand or by the asset: which days and weeks are closed, and in which order they are published.

A day is closed once the daily job has collected it for the last time. It is then published as it was collected, or as
`not_collected`, and never changed: see `docs/publication.md`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from analytics_assets.contract import METRICS
from analytics_assets.days import span
from analytics_assets.store import Store
from analytics_assets.store.counts import Window, read_window
from analytics_assets.store.expiry import require_certain_cutoff
from analytics_assets.store.published import (
    GRAINS,
    Grain,
    Period,
    publish_periods,
    publishing,
    read_collected,
    read_last_published,
    read_state,
)

_NOTHING: Final[Mapping[str, Collection[date]]] = {}


class PublicationError(RuntimeError):
    """A day cannot be published. The text says why, and what to do."""


@dataclass(frozen=True)
class Publication:
    """What was published of one event name in one go."""

    event_name: str
    first: date
    last: date
    """The last day of the last period."""
    published: int
    """Days, or weeks."""
    not_collected: int
    unit: str


def publish_closed(store: Store, awaited: Mapping[str, Collection[date]] = _NOTHING) -> list[Publication]:
    """Publish every closed day and week that is not published yet, in one transaction. Returns an entry per event name.

    `awaited`: metric -> days that are about to be collected. A series stops before a day that is not collected yet but
    awaited. Running it again publishes nothing.

    Raises:
        UncertainError: a clock is wrong. It would publish days as not collected, for good.
        DatabaseError: the database is out of reach or refuses. Nothing was published then.
    """
    require_certain_cutoff(store)
    window = read_window(store)
    made = []
    with publishing(store) as connection:
        collected, last_published = read_collected(connection), read_last_published(connection)
        for grain in GRAINS:
            due = {
                name: list(
                    _list_due(
                        grain,
                        name,
                        collected[asset],
                        awaited.get(asset, ()),
                        last_published=last_published.get(name),
                        window=window,
                    )
                )
                for name, asset in _names(grain)
            }
            publish_periods(connection, grain, [period for periods in due.values() for period in periods])
            made += [_summarize(grain, periods) for periods in due.values() if periods]
    return made


def find_waits(store: Store, awaited: Mapping[str, Collection[date]]) -> dict[str, date]:
    """Return the first awaited day of each event name whose next period is closed and waits for it.

    `awaited`: see `publish_closed`. Raises DatabaseError.
    """
    window = read_window(store)
    with store.transaction("reading what is published") as connection:
        collected, last_published = read_collected(connection), read_last_published(connection)
    waits = {}
    for grain in GRAINS:
        for name, asset in _names(grain):
            start = _find_next(grain, collected[asset], awaited.get(asset, ()), last_published.get(name), window)
            if start and (last := _last_day(grain, start)) <= window.last_closed:
                late = set(awaited.get(asset, ())) - collected[asset]
                if found := late.intersection(span(start, last)):
                    waits[name] = min(found)
    return waits


def fill(store: Store, day: date) -> list[Publication]:
    """Publish a day by itself, and the week around it, wherever that has not been done and it is collected now.

    Each begins with carry 0, and its remainder is dropped.

    Raises:
        PublicationError: the day is not closed or has expired, or there is nothing of it to publish.
        DatabaseError: the database is out of reach or refuses. Nothing was published then.
    """
    window = read_window(store)
    if day > window.last_closed:
        raise PublicationError(f"{day} is not closed: the last closed day is {window.last_closed}")
    if day < window.first:
        raise PublicationError(f"{day} has expired: the first day that is kept is {window.first}")
    made = []
    with publishing(store) as connection:
        collected, last_published = read_collected(connection), read_last_published(connection)
        for grain in GRAINS:
            start = day - timedelta(days=day.weekday()) if grain.days == 7 else day
            periods = [
                Period(name, start, collected=True)
                for name, asset in _names(grain)
                # Otherwise its turn comes with `publish_closed`.
                if start <= last_published.get(name, date.min)
                and read_state(connection, grain, name, start) != "published"
                and start >= window.first
                and _is_collected(grain, start, collected[asset])
            ]
            publish_periods(connection, grain, periods, filled=True)
            made += [_summarize(grain, [period]) for period in periods]
    if not made:
        raise PublicationError(
            f"nothing of {day} can be filled: it is published already, or not collected (materialize it first), or its"
            " turn has not come (run `analytics-assets publish` without --fill first)"
        )
    return made


def _names(grain: Grain) -> list[tuple[str, str]]:
    """Return the event names of a grain, each with its metric."""
    return [(name, m.asset) for m in METRICS if m.published is grain.published for name in m.event_names]


def _list_due(
    grain: Grain,
    name: str,
    collected: set[date],
    awaited: Collection[date],
    *,
    last_published: date | None,
    window: Window,
) -> Iterator[Period]:
    """Yield the closed periods that come next, until a day of one is awaited."""
    start = _find_next(grain, collected, awaited, last_published, window)
    late = set(awaited) - collected
    while start and (last := _last_day(grain, start)) <= window.last_closed and late.isdisjoint(span(start, last)):
        yield Period(name, start, _is_collected(grain, start, collected))
        start = last + timedelta(days=1)


def _find_next(
    grain: Grain, collected: set[date], awaited: Collection[date], last_published: date | None, window: Window
) -> date | None:
    """Return the first day of a series' next period.

    A series begins with its first collected day, or with an earlier one that is awaited: the runs of a backfill may
    end in any order.
    """
    if last_published is not None:
        start = last_published + timedelta(days=grain.days)
    elif collected:
        start = min(collected.union(awaited))
    else:
        return None
    start = max(start, window.first)
    return start + timedelta(days=-start.weekday() % 7) if grain.days == 7 else start


def _last_day(grain: Grain, start: date) -> date:
    return start + timedelta(days=grain.days - 1)


def _is_collected(grain: Grain, start: date, collected: set[date]) -> bool:
    return all(start + timedelta(days=n) in collected for n in range(grain.days))


def _summarize(grain: Grain, periods: list[Period]) -> Publication:
    published = sum(period.collected for period in periods)
    return Publication(
        periods[0].event_name,
        periods[0].start,
        _last_day(grain, periods[-1].start),
        published,
        len(periods) - published,
        grain.unit,
    )
