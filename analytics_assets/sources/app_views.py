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
from functools import cache, partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from analytics_assets.contract import EVENT_ID, SOURCE, SOURCE_SCHEMA, SOURCE_VIEWS, Metric, SourceView
from analytics_assets.database import DatabaseError, engine, full_match, redacted_errors
from analytics_assets.days import bounds, span
from analytics_assets.guard import Row, Violation, count_violations
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, OriginRefusedError, Problem, Reader
from analytics_assets.sources.login import summarize_excess_rights

Part = TypeVar("Part")

COLUMN_TYPES: Final = {
    "event_id": ("text", "character varying", "uuid", "smallint", "integer", "bigint"),
    "occurred_at": ("timestamp with time zone",),
    "source": ("text", "character varying"),
    "turned_on": ("boolean",),
}
"""Column of a source view -> PostgreSQL types it may have."""

_HIDING: Final = """
with recursive used (oid, reader) as (
    select c.oid, (select oid from pg_roles where rolname = current_user)
    from pg_class c
    where c.relnamespace = to_regnamespace(:schema) and c.relname = :view
  union
    select d.refobjid, case
        when v.relkind = 'v' and v.reloptions::text ~* 'security_invoker=(t|y|on|1)' then used.reader
        else v.relowner end
    from used
    join pg_class v on v.oid = used.oid and v.relkind in ('v', 'm')
    join pg_rewrite w on w.ev_class = v.oid
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjid <> v.oid
)
select distinct format('%I.%I', n.nspname, t.relname),
    case when r.rolname = current_user then 'the pipeline''s login' else 'the owner of the view' end
from used
join pg_class t on t.oid = used.oid and t.relrowsecurity
join pg_namespace n on n.oid = t.relnamespace
join pg_roles r on r.oid = used.reader and not r.rolsuper and not r.rolbypassrls
where t.relforcerowsecurity or not pg_has_role(used.reader, t.relowner, 'usage')
order by 1, 2
"""
"""Tables below a view where row level security applies, and to whom.

A query with `row_security` off is an error, but a materialized view has lost the rows when it was refreshed.
"""

_FIRST_PLAUSIBLE: Final = datetime(1971, 1, 1, tzinfo=UTC)
"""Earlier is the zero of a clock or of a type (1970-01-01, year 1, -infinity), not when something happened."""

_TURNED_ON_RULE: Final = Violation("turned_on", "must be true or false")
_RULES: Final = {
    rule.field: rule for rule in (*(Violation(field.name, field.rule) for field in (EVENT_ID, SOURCE)), _TURNED_ON_RULE)
}
_TEXT: Final = ("text", "character varying")
_FIRST: Final = sa.literal_column("1", sa.Integer).label("number")
RECOVERY: Final = (
    "The host application's operator corrects the view; `analytics-assets sources` confirms it. Then materialize these"
    " days again."
)


CHUNK_DAYS: Final = 30
"""So many days at most are counted by one statement, and are in memory together."""


@contextmanager
def open_view(metric: Metric, view: SourceView, settings: Settings, days: Sequence[date] = ()) -> Iterator[Reader]:
    """Open the view of a metric for reading. `days` will be counted, in this order; those of a chunk may be at once.

    Raises:
        OriginRefusedError: the view is missing, may not be read, or differs from the contract.
        DatabaseError: the database is out of reach.
    """
    with engine(settings.source_url, "ANALYTICS_SOURCE_URL", read_only=True) as database:
        with _redacted_reading(metric), database.connect() as connection:
            columns = _read_columns(connection, view)
            if problems := _find_problems(connection, view, columns):
                raise OriginRefusedError(problems, RECOVERY)
            warnings = summarize_excess_rights(connection)
        types = tuple(columns[name] for name in view.columns)
        groups = _View(database, metric, settings.time_zone, partial(_groups_query, view, types))
        rows = _View(database, metric, settings.time_zone, partial(_rows_query, view))
        yield Reader(
            count=_by_day(groups, partial(_count_groups, groups), days),
            total=_by_day(rows, partial(_count_rows, rows), days),
            outside=lambda: _count_outside(database, metric, view, settings),
            warnings=warnings,
        )


@dataclass(frozen=True)
class _View:
    """A view, and what to read of each day."""

    database: sa.Engine
    metric: Metric
    time_zone: str
    query: Callable[[bool], sa.Select[*tuple[Any, ...]]]
    """Statement of one day, or with True of several. Their numbers, from 1, are its first column."""

    def read(self, days: Sequence[date]) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        """Read some days, and those between them.

        Each call is a transaction: one transaction over 180 days would hold back the host's vacuum.
        """
        with _redacted_reading(self.metric), self.database.connect() as connection:
            return connection.execute(self.query(len(days) > 1), self._bounds(days)).all()

    def is_cheaper(self, days: Sequence[date]) -> bool:
        """Whether PostgreSQL expects to read these days at once for half the cost of one by one. No row is read.

        With an index on the time both cost the same, but a day by itself needs no number for each of its rows.
        """
        with _redacted_reading(self.metric), self.database.connect() as connection:
            at_once, one = (self._estimate(connection, days[:number]) for number in (len(days), 1))
        return at_once < len(days) * one / 2

    def _estimate(self, connection: sa.Connection, days: Sequence[date]) -> float:
        query = self.query(len(days) > 1).compile(connection).construct_expanded_state(self._bounds(days))
        plan = connection.exec_driver_sql(f"explain (format json) {query.statement}", query.parameters).scalar_one()
        return float(plan[0]["Plan"]["Total Cost"])

    def _bounds(self, days: Sequence[date]) -> dict[str, Any]:
        edges = [bounds(day, self.time_zone)[0] for day in span(days[0], days[-1] + timedelta(days=1))]
        return {"start": edges[0], "end": edges[-1], "edges": edges}


def _by_day(
    view: _View, read: Callable[[Sequence[date]], Mapping[date, Part]], days: Sequence[date]
) -> Callable[[date], Part]:
    """Return a function that reads a day, together with the `days` after it where that is cheaper."""
    together = list(days)
    ahead: dict[date, Part] = {}

    def read_day(day: date) -> Part:
        if day not in ahead and day in together:
            start = together.index(day)
            chunk, together[:] = together[start : start + CHUNK_DAYS], together[start + CHUNK_DAYS :]
            # If a day cannot be read, each is read by itself: it costs no other.
            with suppress(DatabaseError):
                if len(chunk) > 1 and view.is_cheaper(chunk):
                    found = read(chunk)
                    ahead.update((each, found[each]) for each in chunk)
        return ahead.pop(day) if day in ahead else read([day])[day]

    return read_day


def _redacted_reading(metric: Metric) -> AbstractContextManager[None]:
    return redacted_errors(f"reading the source of {metric.asset} (ANALYTICS_SOURCE_URL)")


def find_view_problems(connection: sa.Connection, view: SourceView) -> list[Problem]:
    """List what is wrong with a view. Only the catalog is read, no row."""
    return _find_problems(connection, view, _read_columns(connection, view))


def _read_columns(connection: sa.Connection, view: SourceView) -> dict[str, str]:
    """Return the types of the view's columns by their names; nothing when there is no such view."""
    found = connection.execute(
        sa.text(
            "select a.attname as name, format_type(a.atttypid, null) as type from pg_class c"
            " join pg_namespace n on n.oid = c.relnamespace and n.nspname = :schema"
            " join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
            " where c.relname = :view and c.relkind in ('v', 'm')"
        ),
        {"schema": SOURCE_SCHEMA, "view": view.name},
    )
    return {row.name: row.type for row in found}


def _find_problems(connection: sa.Connection, view: SourceView, columns: Mapping[str, str]) -> list[Problem]:
    violations = _view_violations(connection, view, columns)
    return [Problem(f"view {SOURCE_SCHEMA}.{view.name}", violation) for violation in violations]


def _view_violations(connection: sa.Connection, view: SourceView, columns: Mapping[str, str]) -> list[Violation]:
    parameters = {"schema": SOURCE_SCHEMA, "view": view.name}
    if not columns:
        expected = ", ".join(view.columns)
        return [Violation("(view)", f"is missing or is not a view; create it with the columns {expected}")]
    readable = sa.text(
        "select has_schema_privilege(:schema, 'usage')"
        " and has_table_privilege(format('%I.%I', cast(:schema as text), cast(:view as text)), 'select')"
    )
    if not connection.scalar(readable, parameters):
        return [Violation("(view)", "cannot be read; grant usage on its schema and select on it")]
    unexpected = sorted(columns.keys() - set(view.columns))
    violations = [Violation(name, "is an unexpected column; remove it from the view") for name in unexpected]
    violations += [
        Violation(
            "(view)",
            f"reads {table}, where row level security hides rows from {reader}; give the view an owner who sees every"
            " row (the table's owner, or a role with bypassrls), and no security_invoker",
        )
        for table, reader in connection.execute(sa.text(_HIDING), parameters)
    ]
    for name in view.columns:
        if name not in columns:
            violations.append(Violation(name, "is a missing column; add it to the view"))
        elif columns[name] not in COLUMN_TYPES[name]:
            violations.append(Violation(name, f"has type {columns[name]}; {_describe_cast(name)}"))
    return violations


def _describe_cast(column: str) -> str:
    expected = COLUMN_TYPES[column]
    if column == "occurred_at":
        return f"expected: {expected[0]} (convert a naive timestamp in the view: at time zone '...')"
    return f"expected: {' or '.join(expected)} (cast it in the view)"


def find_undocumented_views(settings: Settings) -> list[str]:
    """List what the login may read in schema `analytics_source` that is the origin of no metric.

    Raises:
        DatabaseError: the database is out of reach.
        SettingsError: no URL is known.
    """
    with (
        redacted_errors("listing the source views (ANALYTICS_SOURCE_URL)"),
        engine(settings.source_url, "ANALYTICS_SOURCE_URL", read_only=True) as database,
        database.connect() as connection,
    ):
        readable = connection.scalars(
            sa.text(
                "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = :schema"
                " where c.relkind in ('r', 'p', 'v', 'm', 'f') and has_schema_privilege(n.oid, 'usage')"
                " and has_any_column_privilege(c.oid, 'select') order by 1"
            ),
            {"schema": SOURCE_SCHEMA},
        ).all()
    documented = {view.name for view in SOURCE_VIEWS}
    return [f"{SOURCE_SCHEMA}.{name}" for name in readable if name not in documented]


def _table_of(view: SourceView) -> sa.TableClause:
    return sa.table(view.name, *(sa.column(name) for name in view.columns), schema=SOURCE_SCHEMA)


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


def _happened(table: sa.TableClause) -> sa.ColumnElement[bool]:
    # A half-open range on the bare column lets PostgreSQL use the host's index.
    return (table.c.occurred_at >= sa.bindparam("start")) & (table.c.occurred_at < sa.bindparam("end"))


def _number(table: sa.TableClause) -> sa.ColumnElement[int]:
    edges = sa.bindparam("edges", type_=postgresql.ARRAY(sa.DateTime(timezone=True)))
    return sa.func.width_bucket(table.c.occurred_at, edges, type_=sa.Integer).label("number")


def _breaks_rule(event_id: sa.ColumnElement[Any], type_: str) -> sa.ColumnElement[bool]:
    if type_ in _TEXT:
        return event_id.op("!~")(full_match(EVENT_ID.pattern or ""))
    # What PostgreSQL prints of these types fits the pattern, except for a sign. A regular expression takes longer.
    return sa.false() if type_ == "uuid" else event_id < 0


@cache
def _groups_query(view: SourceView, types: tuple[str, ...], several: bool) -> sa.Select[*tuple[Any, ...]]:
    """Return the statement that counts: what is refused by its rule, everything else by its values.

    `types` are those of the view's columns. The innermost groups are those of the bare columns, so that a rule is
    evaluated per group and not per row.
    """
    table = _table_of(view)
    # Otherwise a collation of the host may take a refused value and an allowed one for the same.
    keys = {
        name: table.c[name].collate("C") if type_ in _TEXT else table.c[name]
        for name, type_ in zip(view.columns, types, strict=True)
        if name != "occurred_at"
    }
    number = _number(table) if several else _FIRST
    groups = (
        sa.select(number, *(key.label(name) for name, key in keys.items()), sa.func.count().label("rows"))
        .where(_happened(table))
        .group_by(*keys.values(), *([number] if several else []))
        .subquery()
    )
    switch = groups.c.turned_on if view.switch else sa.true()
    texts = [sa.cast(groups.c[name], sa.Text).label(name) for name in ("event_id", "source")]
    event_id, source = texts
    refused = sa.case(
        (event_id.is_(None) | _breaks_rule(groups.c.event_id, types[view.columns.index("event_id")]), EVENT_ID.name),
        (source.not_in(SOURCE.choices or ()), SOURCE.name),
        (switch.is_(None), _TURNED_ON_RULE.field),
    )
    # `offset 0` keeps PostgreSQL from evaluating the rules again wherever the outer query says `refused`.
    classified = sa.select(
        groups.c.number, refused.label("refused"), switch.label("turned_on"), *texts, groups.c.rows
    ).offset(0)
    found = classified.subquery()
    allowed = [sa.case((found.c.refused.is_(None), found.c[name])) for name in ("turned_on", "event_id", "source")]
    key = (found.c.number, found.c.refused, *allowed)
    return sa.select(*key, sa.cast(sa.func.sum(found.c.rows), sa.BigInteger)).group_by(*key)


@cache
def _rows_query(view: SourceView, several: bool) -> sa.Select[*tuple[Any, ...]]:
    """Return the statement that only counts rows, for the comparison with what is stored."""
    table = _table_of(view)
    if several:
        number = _number(table)
        return sa.select(number, sa.func.count()).where(_happened(table)).group_by(number)
    return sa.select(_FIRST, sa.func.count()).select_from(table).where(_happened(table))


def _count_outside(database: sa.Engine, metric: Metric, view: SourceView, settings: Settings) -> list[Problem]:
    """Count the rows that no day has, by the reason, and those that no day will have soon."""
    table = _table_of(view)
    moment = table.c.occurred_at
    _, horizon = bounds(settings.today() + timedelta(days=1), settings.time_zone)
    conditions = {
        "is null": moment.is_(None),
        f"is before {_FIRST_PLAUSIBLE.year}": moment < _FIRST_PLAUSIBLE,
        "is later than tomorrow": moment >= horizon,
    }
    sums = [sa.func.count().filter(condition) for condition in conditions.values()]
    # The conditions are repeated behind `where`, so that PostgreSQL can use the host's index.
    query = sa.select(*sums).select_from(table).where(sa.or_(*conditions.values()))
    with _redacted_reading(metric), database.connect() as connection:
        counted = connection.execute(query).one()
    where = f"view {SOURCE_SCHEMA}.{view.name}"
    return [
        Problem(where, Violation("occurred_at", rule), rows)
        for rule, rows in zip(conditions, counted, strict=True)
        if rows
    ]
