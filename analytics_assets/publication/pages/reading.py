"""The numbers of the pages, out of the analytics database.

The core team's come from schema `analytics`. Those of the published pages come from schema `published` and from nothing
else: `read_published` works for a login that can read nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Final

import sqlalchemy as sa

from analytics_assets.contract import CORE_FIELDS, FUNNEL, METRICS, TARGETS, Metric, Published, published_names
from analytics_assets.days import span
from analytics_assets.dictionary import origin_name
from analytics_assets.publication import friction
from analytics_assets.publication.findings import read_findings
from analytics_assets.publication.fives import BASE
from analytics_assets.publication.pages import core, published
from analytics_assets.publication.pages.html import format_date
from analytics_assets.publication.pages.series import Period, Series, Total, Weeks, period_to
from analytics_assets.settings import Settings
from analytics_assets.store.counts import Window

MARGIN: Final = 10
"""Days before they expire, a page shows a day no longer. So only a page that was not written for a week has to go."""

REQUESTS: Final = "http_response"
ERRORS: Final = "http_response_errors"
"""What stands for the responses with status 400 or above where numbers have a name."""

_EVENT_METRICS: Final = tuple(metric for metric in METRICS if metric.fields == CORE_FIELDS)
_NAMES: Final = tuple(name for metric in _EVENT_METRICS for name in metric.event_names)

Days = Mapping[date, int | None]


def label(name: str) -> str:
    """Return an event name as people read it: that of its metric, unless the metric has several."""
    metric = next(metric for metric in METRICS if name in metric.event_names)
    return _words(metric.asset if len(metric.event_names) == 1 else name)


def shown(last: date, retention_days: int, oldest: date) -> Period:
    """Return the days that a page shows when `last` is its newest day and `oldest` the oldest there is."""
    return Period(max(oldest, last - timedelta(days=max(0, retention_days - MARGIN - 1))), last)


def read_core(connection: sa.Connection, window: Window, settings: Settings, health: core.Health) -> core.Core | None:
    """Return what the core team's pages show, None before the first collected day.

    `health` has what Dagster knows. What the database knows is added to it.
    """
    collected = {
        asset: days & frozenset(span(window.first, window.last)) for asset, days in _read_collected(connection).items()
    }
    days = [day for of_metric in collected.values() for day in of_metric]
    if not days:
        return None
    period = shown(max(days), settings.retention_days, min(days))
    counts: dict[str, dict[str, dict[date, int]]] = defaultdict(lambda: defaultdict(dict))
    query = sa.text(
        "select event_id, event_name, event_date, sum(count)::bigint from analytics.daily_event_counts"
        " where event_date between :first and :last group by 1, 2, 3"
    )
    for event_id, name, day, count in connection.execute(query, period._asdict()):
        counts[event_id][name][day] = count
    events = [
        core.Event(event_id, [_event_series(name, of_event[name], period, collected) for name in _NAMES])
        for event_id, of_event in sorted(counts.items())
    ]
    every = {
        name: _event_series(name, _add(event[name] for event in counts.values()), period, collected) for name in _NAMES
    }
    responses, endpoints = _read_responses(connection, period, collected)
    findings = friction.strongest(read_findings(connection, *period_to(period.last)))
    return core.Core(
        period=period,
        time_zone=settings.time_zone,
        health=replace(health, missing=_missing_days(collected, max(days)), oldest=min(days)),
        metrics=[
            core.Metric(_words(metric.asset), metric.question, [every[name] for name in metric.event_names])
            for metric in _EVENT_METRICS
        ],
        steps=[every[name] for name in FUNNEL],
        responses=responses,
        endpoints=endpoints,
        events=events,
        findings=[_page_finding(finding, is_event=finding.series in counts) for finding in findings],
        targets=[core.Target(target, every[target.numerator], every[target.denominator]) for target in TARGETS],
        dictionary=[
            core.Entry(
                metric.asset,
                metric.question,
                metric.owner.removeprefix("team:"),
                metric.event_names,
                origin_name(metric.origin).replace("`", ""),
            )
            for metric in METRICS
        ],
    )


def read_published(connection: sa.Connection, settings: Settings) -> published.Published | None:
    """Return what the published pages show, None before the first published day. Reads schema `published` only.

    After a change of the base, the pages begin anew: what they say of steps and bounds holds for one base.
    """
    query = sa.text("select event_name, event_date, state, filled, base from published.days")
    published_days = connection.execute(query).all()
    of_another_base = max((row.event_date for row in published_days if row.base != BASE), default=date.min)
    rows = [row for row in published_days if row.event_date > of_another_base]
    if not rows:
        return None
    days = [row.event_date for row in rows]
    period = shown(max(days), settings.retention_days, min(days))
    counts: dict[str, dict[str, dict[date, int]]] = defaultdict(lambda: defaultdict(dict))
    query = sa.text(
        "select event_id, event_name, event_date, count from published.daily"
        " where state = 'value' and event_date between :first and :last"
    )
    for event_id, name, day, count in connection.execute(query, period._asdict()):
        counts[event_id][name][day] = count
    names = _in_funnel_order(published_names(Published.BY_DAY_AND_EVENT))
    known: dict[str, set[date]] = defaultdict(set)
    filled: dict[str, set[date]] = defaultdict(set)
    for row in rows:
        if row.state == "published":
            known[row.event_name].add(row.event_date)
        if row.filled and period.first <= row.event_date <= period.last:
            filled[row.event_name].add(row.event_date)

    def series(name: str, steps: Mapping[date, int]) -> Series:
        return Series(name, label(name), _fill(steps, period, known[name]), frozenset(filled[name]))

    weekly, filled_weeks = _read_weekly(connection, period)
    return published.Published(
        period=period,
        time_zone=settings.time_zone,
        everything=[series(name, _add(event[name] for event in counts.values())) for name in names],
        events=[
            published.PublishedEvent(event_id, [series(name, of_event[name]) for name in names])
            for event_id, of_event in sorted(counts.items())
        ],
        weekly=weekly,
        filled=filled_weeks or any(filled.values()),
    )


def _read_weekly(connection: sa.Connection, period: Period) -> tuple[list[Weeks], bool]:
    """Return what is published by week, and whether a week of it was filled later."""
    query = sa.text(
        "select event_name, week_start, state, filled, coalesce(count, 0) from published.weeks"
        " left join published.weekly_counts using (event_name, week_start)"
        " where week_start >= :first and week_start + 6 <= :last order by week_start"
    )
    totals: dict[str, list[Total]] = defaultdict(list)
    any_filled = False
    for name, monday, state, filled, count in connection.execute(query, period._asdict()):
        week = Period(monday, monday + timedelta(days=6))
        totals[name].append(Total(name, week, count, week.days if state == "published" else 0))
        any_filled |= filled
    names = published_names(Published.BY_WEEK)
    return [Weeks(name, label(name), totals[name]) for name in names if totals[name]], any_filled


def _read_responses(
    connection: sa.Connection, period: Period, collected: Mapping[str, frozenset[date]]
) -> tuple[core.Responses, list[core.Responses]]:
    query = sa.text(
        "select endpoint, event_date, sum(count)::bigint,"
        " coalesce(sum(count) filter (where status_code >= 400), 0)::bigint"
        " from analytics.daily_response_counts where event_date between :first and :last group by 1, 2"
    )
    requests: dict[str, dict[date, int]] = defaultdict(dict)
    errors: dict[str, dict[date, int]] = defaultdict(dict)
    for endpoint, day, all_responses, failed in connection.execute(query, period._asdict()):
        requests[endpoint][day], errors[endpoint][day] = all_responses, failed
    metric = next(metric for metric in METRICS if REQUESTS in metric.event_names)
    known = collected.get(metric.asset, frozenset())

    def responses(endpoint: str, all_responses: Mapping[date, int], failed: Mapping[date, int]) -> core.Responses:
        return core.Responses(
            endpoint,
            Series(REQUESTS, "Responses", _fill(all_responses, period, known)),
            Series(ERRORS, "Errors", _fill(failed, period, known)),
        )

    return responses(_words(metric.asset), _add(requests.values()), _add(errors.values())), [
        responses(endpoint, requests[endpoint], errors[endpoint]) for endpoint in sorted(requests)
    ]


def _read_collected(connection: sa.Connection) -> dict[str, frozenset[date]]:
    found: dict[str, set[date]] = defaultdict(set)
    for asset, day in connection.execute(sa.text("select asset, event_date from analytics.collected_days")):
        found[asset].add(day)
    return {asset: frozenset(days) for asset, days in found.items()}


def _missing_days(collected: Mapping[str, frozenset[date]], last: date) -> list[tuple[str, int | None]]:
    """Return the metrics that lack days since their first collected one, each with how many; None: never collected."""
    missing = [
        (
            _words(metric.asset),
            len(set(span(min(days), last)) - days) if (days := collected.get(metric.asset)) else None,
        )
        for metric in METRICS
    ]
    return [(asset, days) for asset, days in missing if days != 0]


def _event_series(
    name: str, counts: Mapping[date, int], period: Period, collected: Mapping[str, frozenset[date]]
) -> Series:
    return Series(name, label(name), _fill(counts, period, collected.get(_metric_of(name).asset, frozenset())))


def _metric_of(name: str) -> Metric:
    return next(metric for metric in METRICS if name in metric.event_names)


def _fill(counts: Mapping[date, int], period: Period, known: Iterable[date]) -> Days:
    known = frozenset(known)
    return {day: counts.get(day, 0) if day in known else None for day in span(*period)}


def _add(all_counts: Iterable[Mapping[date, int]]) -> dict[date, int]:
    sums: dict[date, int] = defaultdict(int)
    for counts in all_counts:
        for day, count in counts.items():
            sums[day] += count
    return sums


def _in_funnel_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: FUNNEL.index(name) if name in FUNNEL else len(FUNNEL))


def _page_finding(finding: friction.Finding, *, is_event: bool) -> core.Finding:
    per = label(finding.per).lower() if finding.per else None
    what = finding.describe(format_date(finding.day), per)
    if is_event:
        return core.Finding(f"{label(finding.event_name)}: {what}", finding.day, finding.series)
    return core.Finding(f"{finding.series}: {what}", finding.day)


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
