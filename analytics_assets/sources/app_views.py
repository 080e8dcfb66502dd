"""Counting in the host application's database, through the views of schema `analytics_source` and nothing else.

The rows never leave the host's database, which groups, counts and classifies them: one statement per day. A value that
the contract refuses is counted by the rule it breaks, and is not selected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from analytics_assets.contract import EVENT_ID, SOURCE, SOURCE_SCHEMA, SOURCE_VIEWS, Metric, SourceView
from analytics_assets.database import engine, full_match, redacted_errors
from analytics_assets.days import bounds
from analytics_assets.guard import Violation, count_violations
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, OriginRefusedError, Problem, Reader
from analytics_assets.sources.login import summarize_excess_rights

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
_COLLATED: Final = ("text", "character varying")
RECOVERY: Final = (
    "The host application's operator corrects the view; `analytics-assets sources` confirms it. Then materialize these"
    " days again."
)


@contextmanager
def open_view(metric: Metric, view: SourceView, settings: Settings) -> Iterator[Reader]:
    """Open the view of a metric for reading.

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
        groups, rows = _count_query(view, columns, metric.event_names), _total_query(view)
        # Each statement is a transaction: one transaction over 180 days would hold back the host's vacuum.
        yield Reader(
            count=lambda day: _count_groups(database, metric, groups, day, settings.time_zone),
            total=lambda day: _count_rows(database, metric, rows, day, settings.time_zone),
            outside=lambda: _count_outside(database, metric, view, settings),
            warnings=warnings,
        )


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


def _happened(table: sa.TableClause) -> sa.ColumnElement[bool]:
    # A half-open range on the bare column lets PostgreSQL use the host's index.
    return (table.c.occurred_at >= sa.bindparam("start")) & (table.c.occurred_at < sa.bindparam("end"))


def _bounds(day: date, time_zone: str) -> dict[str, datetime]:
    return dict(zip(("start", "end"), bounds(day, time_zone), strict=True))


def _table_of(view: SourceView) -> sa.TableClause:
    return sa.table(view.name, *(sa.column(name) for name in view.columns), schema=SOURCE_SCHEMA)


def _count_groups(database: sa.Engine, metric: Metric, query: sa.Select[Any], day: date, time_zone: str) -> Counted:
    with _redacted_reading(metric), database.connect() as connection:
        groups = connection.execute(query, _bounds(day, time_zone)).all()

    where = f"{day}: view {'.'.join(metric.origin.path)}"
    problems = [Problem(where, _RULES[refused], rows) for refused, _, _, _, rows in groups if refused]
    rows = [
        {"event_date": day, "event_name": name, "event_id": event_id, "source": source, "count": rows}
        for refused, name, event_id, source, rows in groups
        if not refused
    ]
    violations = count_violations(rows, metric.fields, metric.event_names)
    problems += [Problem(where, violation, number) for violation, number in violations.items()]
    return Counted(rows, problems)


def _count_query(view: SourceView, columns: Mapping[str, str], event_names: Sequence[str]) -> sa.Select[Any]:
    """Return the statement that counts a day: what is refused by its rule, everything else by its values.

    The innermost groups are those of the bare columns, so that a rule is evaluated per group and not per row.
    """
    table = _table_of(view)
    # Otherwise a collation of the host may take a refused value and an allowed one for the same.
    keys = {
        name: table.c[name].collate("C") if columns[name] in _COLLATED else table.c[name]
        for name in view.columns
        if name != "occurred_at"
    }
    groups = (
        sa.select(*(key.label(name) for name, key in keys.items()), sa.func.count().label("rows"))
        .where(_happened(table))
        .group_by(*keys.values())
        .subquery()
    )
    switch = groups.c.turned_on if view.switch else sa.true()
    texts = [sa.cast(groups.c[name], sa.Text).label(name) for name in ("event_id", "source")]
    event_id, source = texts
    refused = sa.case(
        (event_id.is_(None) | event_id.op("!~")(full_match(EVENT_ID.pattern or "")), EVENT_ID.name),
        (source.not_in(SOURCE.choices or ()), SOURCE.name),
        (switch.is_(None), _TURNED_ON_RULE.field),
    )
    name = sa.case((switch, event_names[0]), else_=event_names[-1])
    # `offset 0` keeps PostgreSQL from evaluating the rules again wherever the outer query says `refused`.
    classified = sa.select(refused.label("refused"), name.label("event_name"), *texts, groups.c.rows).offset(0)
    found = classified.subquery()
    allowed = [sa.case((found.c.refused.is_(None), found.c[name])) for name in ("event_name", "event_id", "source")]
    return sa.select(found.c.refused, *allowed, sa.cast(sa.func.sum(found.c.rows), sa.BigInteger)).group_by(
        found.c.refused, *allowed
    )


def _total_query(view: SourceView) -> sa.Select[Any]:
    table = _table_of(view)
    return sa.select(sa.func.count()).select_from(table).where(_happened(table))


def _count_rows(database: sa.Engine, metric: Metric, query: sa.Select[Any], day: date, time_zone: str) -> int:
    with _redacted_reading(metric), database.connect() as connection:
        return connection.scalar(query, _bounds(day, time_zone)) or 0


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
