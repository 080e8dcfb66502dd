"""Counting in the host application's database, through the views of schema `analytics_source` and nothing else.

The rows never leave the host's database, which groups, counts and classifies them: one statement per day or, where no
index leads to the rows of a day, per chunk of days. A value that the contract refuses is counted by the rule it breaks,
and is not selected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from analytics_assets.contract import EVENT_ID, SOURCE, SOURCE_SCHEMA, SOURCE_VIEWS, Metric, SourceView
from analytics_assets.database import DatabaseError, redacted_errors, required
from analytics_assets.days import bounds, span
from analytics_assets.guard import Row, Violation, count_violations
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, OriginRefusedError, Problem, Reader
from analytics_assets.sources.hosts import HostDatabase, find_host, open_catalog
from analytics_assets.sources.hosts.statements import FIRST, TURNED_ON_RULE, Query, happened
from analytics_assets.sources.login import summarize

Part = TypeVar("Part")

_FIRST_PLAUSIBLE: Final = datetime(1971, 1, 1, tzinfo=UTC)
"""Earlier is the zero of a clock or of a type (1970-01-01, year 1, -infinity), not when something happened."""

_RULES: Final = {
    rule.field: rule for rule in (*(Violation(field.name, field.rule) for field in (EVENT_ID, SOURCE)), TURNED_ON_RULE)
}
RECOVERY: Final = (
    "The host application's operator corrects the view; `analytics-assets sources` confirms it. Then materialize these"
    " days again."
)


CHUNK_DAYS: Final = 30
"""So many days at most are counted by one statement."""

_ROWS_TOGETHER: Final = 300_000
"""So many rows are in memory together, if the days are alike: some 150 MB."""


@contextmanager
def open_view(metric: Metric, view: SourceView, settings: Settings, days: Sequence[date] = ()) -> Iterator[Reader]:
    """Open the view of a metric for reading. `days` will be counted, in this order; those of a chunk may be at once.

    Raises:
        OriginRefusedError: the view is missing, may not be read, or differs from the contract.
        DatabaseError: the database is out of reach.
    """
    url = required(settings.source_url, "ANALYTICS_SOURCE_URL")
    host = find_host(url)
    with host.connect(url) as database:
        with _redacted_reading(metric, host), database.connect() as connection:
            columns = host.read_columns(connection, view)
            if problems := _find_problems(host, connection, view, columns):
                raise OriginRefusedError(problems, RECOVERY)
            warnings = summarize(host.find_excess_rights(connection))
        types = tuple(columns[name] for name in view.columns)
        groups = _View(host, database, metric, settings.time_zone, partial(host.groups_query, view, types))
        rows = _View(host, database, metric, settings.time_zone, partial(_rows_query, host, view, types))
        yield Reader(
            count=_by_day(groups, partial(_count_groups, groups), days, size=lambda part: len(part.rows)),
            total=_by_day(rows, partial(_count_rows, rows), days, size=lambda _: 1),
            outside=lambda: _count_outside(host, database, metric, host.table(view, types), settings),
            warnings=warnings,
        )


@dataclass(frozen=True)
class _View:
    """A view, and what to read of each day."""

    host: HostDatabase
    database: sa.Engine
    metric: Metric
    time_zone: str
    query: Callable[[bool], Query]
    """Statement of one day, or with True of several. Their numbers, from 1, are its first column."""

    def read(self, days: Sequence[date]) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        """Read some days, and those between them.

        Each call is a transaction: one transaction over 180 days would hold back the host's vacuum.
        """
        with _redacted_reading(self.metric, self.host), self.database.connect() as connection:
            return connection.execute(*self._statement(days)).all()

    def is_cheaper(self, days: Sequence[date]) -> bool:
        """Whether to read these days at once."""
        with _redacted_reading(self.metric, self.host), self.database.connect() as connection:
            return self.host.is_cheaper(connection, days, self._statement)

    def _statement(self, days: Sequence[date]) -> tuple[Query, dict[str, Any]]:
        edges = [bounds(day, self.time_zone)[0] for day in span(days[0], days[-1] + timedelta(days=1))]
        return self.query(len(days) > 1), self.host.parameters(edges)


def _by_day(
    view: _View,
    read: Callable[[Sequence[date]], Mapping[date, Part]],
    days: Sequence[date],
    size: Callable[[Part], int],
) -> Callable[[date], Part]:
    """Return a function that reads a day, together with the `days` after it where that is cheaper.

    `size` returns the rows of a day. As many days are read together as have _ROWS_TOGETHER, if all are like the last.
    """
    together = list(days)
    ahead: dict[date, Part] = {}
    length = 1  # of the next chunk: the first day says how many rows a day has

    def read_day(day: date) -> Part:
        nonlocal length
        if day not in ahead and day in together:
            start = together.index(day)
            chunk, together[:] = together[start : start + length], together[start + length :]
            # If a day cannot be read, each is read by itself: it costs no other.
            with suppress(DatabaseError):
                if len(chunk) > 1 and view.is_cheaper(chunk):
                    found = read(chunk)
                    ahead.update((each, found[each]) for each in chunk)
        part = ahead.pop(day) if day in ahead else read([day])[day]
        length = min(CHUNK_DAYS, max(1, _ROWS_TOGETHER // max(1, size(part))))
        return part

    return read_day


def _redacted_reading(metric: Metric, host: HostDatabase) -> AbstractContextManager[None]:
    return redacted_errors(f"reading the source of {metric.asset} (ANALYTICS_SOURCE_URL)", host.explain)


def find_view_problems(host: HostDatabase, connection: sa.Connection, view: SourceView) -> list[Problem]:
    """List what is wrong with a view. Only the catalog is read, no row."""
    return _find_problems(host, connection, view, host.read_columns(connection, view))


def _find_problems(
    host: HostDatabase, connection: sa.Connection, view: SourceView, columns: Mapping[str, str]
) -> list[Problem]:
    violations = host.find_violations(connection, view, columns)
    if columns:
        violations += _column_violations(host, view, columns)
    return [Problem(f"view {SOURCE_SCHEMA}.{view.name}", violation) for violation in violations]


def _column_violations(host: HostDatabase, view: SourceView, columns: Mapping[str, str]) -> list[Violation]:
    unexpected = sorted(columns.keys() - set(view.columns))
    violations = [Violation(name, "is an unexpected column; remove it from the view") for name in unexpected]
    for name in view.columns:
        expected = host.COLUMN_TYPES[name]
        if name not in columns:
            violations.append(Violation(name, "is a missing column; add it to the view"))
        elif columns[name] not in expected:
            way_out = host.CASTS.get(name, "cast it in the view")
            rule = f"has type {columns[name]}; expected: {' or '.join(expected)} ({way_out})"
            violations.append(Violation(name, rule))
    return violations


def find_undocumented_views(settings: Settings) -> list[str]:
    """List what the login may read in schema `analytics_source` that is the origin of no metric.

    Raises:
        DatabaseError: the database is out of reach.
        SettingsError: no URL is known.
    """
    with open_catalog(settings.source_url) as (host, connection):
        readable = host.find_readable(connection)
    documented = {view.name for view in SOURCE_VIEWS}
    return [f"{SOURCE_SCHEMA}.{name}" for name in readable if name not in documented]


def _count_groups(view: _View, days: Sequence[date]) -> dict[date, Counted]:
    metric, between = view.metric, span(days[0], days[-1])
    rows: list[list[Row]] = [[] for _ in between]
    problems: list[list[Problem]] = [[] for _ in between]
    where = f"view {'.'.join(metric.origin.path)}"
    on, off = metric.event_names[0], metric.event_names[-1]
    for number, refused, turned_on, event_id, source, count in view.read(days):
        day, name = between[number - 1], on if turned_on else off
        if refused:
            problems[number - 1].append(Problem(f"{day}: {where}", _RULES[refused], count))
        else:
            rows[number - 1].append(
                {"event_date": day, "event_name": name, "event_id": event_id, "source": source, "count": count}
            )
    for day, counted, found in zip(between, rows, problems, strict=True):
        violations = count_violations(counted, metric.fields, metric.event_names)
        found += [Problem(f"{day}: {where}", violation, count) for violation, count in violations.items()]
    return dict(zip(between, map(Counted, rows, problems), strict=True))


def _count_rows(view: _View, days: Sequence[date]) -> dict[date, int]:
    counts = dict(view.read(days))
    return {day: counts.get(number, 0) for number, day in enumerate(span(days[0], days[-1]), start=1)}


def _rows_query(host: HostDatabase, view: SourceView, types: tuple[str, ...], several: bool) -> Query:
    """Return the statement that only counts rows, for the comparison with what is stored."""
    table = host.table(view, types)
    if several:
        number = host.number(table.c.occurred_at)
        return sa.select(number, sa.func.count()).where(happened(table)).group_by(number)
    return sa.select(FIRST, sa.func.count()).select_from(table).where(happened(table))


def _count_outside(
    host: HostDatabase, database: sa.Engine, metric: Metric, table: sa.FromClause, settings: Settings
) -> list[Problem]:
    """Count the rows that no day has, by the reason, and those that no day will have soon."""
    moment = table.c.occurred_at
    _, horizon = bounds(settings.today() + timedelta(days=1), settings.time_zone)
    conditions = {
        "is null": moment.is_(None),
        f"is before {_FIRST_PLAUSIBLE.year}": moment < _FIRST_PLAUSIBLE,
        "is later than tomorrow": moment >= horizon,
    }
    sums = [sa.func.count(sa.case((condition, 1))) for condition in conditions.values()]
    # The conditions are repeated behind `where`, so that the database can use the host's index.
    query = sa.select(*sums).select_from(table).where(sa.or_(*conditions.values()))
    with _redacted_reading(metric, host), database.connect() as connection:
        counted = connection.execute(query).one()
    where = f"view {'.'.join(metric.origin.path)}"
    return [
        Problem(where, Violation("occurred_at", rule), rows)
        for rule, rows in zip(conditions, counted, strict=True)
        if rows
    ]
