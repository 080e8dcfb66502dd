"""Counting in the host application's database, through the views of schema `analytics_source` and nothing else.

The rows never leave the host's database: they are classified, grouped and counted there, one statement a day. A value
that the contract refuses is counted by the rule it breaks and is not selected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from typing import Any, Final

import sqlalchemy as sa

from analytics_assets.contract import EVENT_ID, METRICS, SOURCE, Metric, SourceView
from analytics_assets.contract import SOURCE_SCHEMA as SCHEMA
from analytics_assets.database import anchored, engine, without_values
from analytics_assets.days import bounds
from analytics_assets.guard import Violation, row_violations
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, Problem, Source, SourceRefusedError
from analytics_assets.sources.login import login_warnings

COLUMN_TYPES: Final = {
    "event_id": ("text", "character varying", "uuid", "smallint", "integer", "bigint"),
    "occurred_at": ("timestamp with time zone",),
    "source": ("text", "character varying"),
    "turned_on": ("boolean",),
}
"""Column of a source view -> PostgreSQL types it may have."""

TURNED_ON: Final = Violation("turned_on", "must be true or false")
RECOVERY: Final = (
    "The operator of the host application corrects the view (`analytics-assets sources` says when it is right); then"
    " materialize these days again."
)


@contextmanager
def open_view(metric: Metric, settings: Settings) -> Iterator[Source]:
    """Open the view of a metric for reading.

    Raises:
        SourceRefusedError: the view is missing, may not be read, or is not exactly as the contract has it.
        DatabaseError: the database is out of reach.
    """
    with (
        _reading(metric),
        engine(settings.source_url, "ANALYTICS_SOURCE_URL", read_only=True) as database,
        # Each statement stands alone: a transaction over 180 days would hold back the host's vacuum.
        database.execution_options(isolation_level="AUTOCOMMIT").connect() as connection,
    ):
        if problems := view_problems(connection, metric):
            raise SourceRefusedError(problems, RECOVERY)
        yield Source(
            count=lambda day: _count(connection, metric, day, settings.time_zone),
            total=lambda day: _total(connection, metric, day, settings.time_zone),
            warnings=login_warnings(connection),
        )


def _reading(metric: Metric) -> AbstractContextManager[None]:
    return without_values(f"reading the source of {metric.asset} (ANALYTICS_SOURCE_URL)")


def view_problems(connection: sa.Connection, metric: Metric) -> list[Problem]:
    """What is wrong with the view of a metric, from the catalog alone; no row is read."""
    view = _origin(metric)
    where = f"view {SCHEMA}.{view.name}"
    found = connection.execute(
        sa.text(
            "select a.attname as name, format_type(a.atttypid, null) as type from pg_class c"
            " join pg_namespace n on n.oid = c.relnamespace and n.nspname = :schema"
            " join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
            " where c.relname = :view and c.relkind in ('v', 'm')"
        ),
        {"schema": SCHEMA, "view": view.name},
    )
    columns: dict[str, str] = {row.name: row.type for row in found}
    if not columns:
        return [
            Problem(
                where,
                Violation(
                    "(view)", f"is missing, or is no view; create one with the columns {', '.join(view.columns)}"
                ),
            )
        ]
    readable = connection.scalar(
        sa.text(
            "select has_schema_privilege(:schema, 'usage')"
            " and has_table_privilege(format('%I.%I', cast(:schema as text), cast(:view as text)), 'select')"
        ),
        {"schema": SCHEMA, "view": view.name},
    )
    if not readable:
        return [Problem(where, Violation("(view)", "may not be read: grant usage on its schema and select on it"))]
    too_many = sorted(columns.keys() - set(view.columns))
    return [
        *(Problem(where, Violation(name, "is a column too many; leave it out of the view")) for name in too_many),
        *(
            Problem(where, Violation(name, "is a missing column; add it to the view"))
            for name in view.columns
            if name not in columns
        ),
        *(
            Problem(where, Violation(name, f"has type {columns[name]}; {_cast(name)}"))
            for name in view.columns
            if name in columns and columns[name] not in COLUMN_TYPES[name]
        ),
    ]


def _cast(column: str) -> str:
    expected = COLUMN_TYPES[column]
    if column == "occurred_at":
        return f"expected is {expected[0]} (of a naive one the view says: at time zone '...')"
    return f"expected is {' or '.join(expected)}: cast it in the view"


def undocumented_views(settings: Settings) -> list[str]:
    """What the login may read in schema `analytics_source` that is the origin of no metric.

    Raises:
        DatabaseError: the database is out of reach.
        SettingsError: no URL is known.
    """
    with (
        without_values("listing the source views (ANALYTICS_SOURCE_URL)"),
        engine(settings.source_url, "ANALYTICS_SOURCE_URL", read_only=True) as database,
        database.connect() as connection,
    ):
        readable = connection.scalars(
            sa.text(
                "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = :schema"
                " where c.relkind in ('r', 'p', 'v', 'm', 'f') and has_schema_privilege(n.oid, 'usage')"
                " and has_any_column_privilege(c.oid, 'select') order by 1"
            ),
            {"schema": SCHEMA},
        ).all()
    documented = {_origin(metric).name for metric in view_metrics()}
    return [f"{SCHEMA}.{name}" for name in readable if name not in documented]


def view_metrics() -> list[Metric]:
    """The metrics that are counted from a view."""
    return [metric for metric in METRICS if isinstance(metric.origin, SourceView)]


def _origin(metric: Metric) -> SourceView:
    if not isinstance(metric.origin, SourceView):
        raise TypeError(f"{metric.asset} is not counted from a view")
    return metric.origin


def _of_day(view: sa.TableClause, day: date, time_zone: str) -> sa.ColumnElement[bool]:
    # Half-open and on the bare column, so that the host's index on it is used.
    start, end = bounds(day, time_zone)
    return (view.c.occurred_at >= start) & (view.c.occurred_at < end)


def _view(metric: Metric) -> sa.TableClause:
    origin = _origin(metric)
    return sa.table(origin.name, *(sa.column(name) for name in origin.columns), schema=SCHEMA)


def _count(connection: sa.Connection, metric: Metric, day: date, time_zone: str) -> Counted:
    view = _view(metric)
    event_id = sa.cast(view.c.event_id, sa.Text)
    source = sa.cast(view.c.source, sa.Text)
    switch = view.c.turned_on if _origin(metric).switch else sa.true()
    refused = sa.case(
        (event_id.is_(None) | event_id.op("!~")(anchored(EVENT_ID.pattern or "")), EVENT_ID.name),
        (source.not_in(SOURCE.choices or ()), SOURCE.name),
        (switch.is_(None), TURNED_ON.field),
    )
    each = (
        sa.select(
            refused.label("refused"),
            sa.case((refused.is_(None), event_id)).label("event_id"),
            sa.case((refused.is_(None), source)).label("source"),
            sa.case((refused.is_(None), switch)).label("turned_on"),
        )
        .where(_of_day(view, day, time_zone))
        .subquery()
    )
    with _reading(metric):
        groups = connection.execute(sa.select(*each.c, sa.func.count().label("rows")).group_by(*each.c)).all()

    where = f"{day}: view {SCHEMA}.{view.name}"
    rules = {field.name: Violation(field.name, field.rule) for field in (EVENT_ID, SOURCE)} | {
        TURNED_ON.field: TURNED_ON
    }
    problems = [Problem(where, rules[g.refused], g.rows) for g in groups if g.refused]
    rows: list[dict[str, Any]] = [
        {
            "event_date": day,
            "event_name": metric.event_names[0 if g.turned_on else 1],
            "event_id": g.event_id,
            "source": g.source,
            "count": g.rows,
        }
        for g in groups
        if not g.refused
    ]
    problems += [
        Problem(where, violation)
        for row in rows
        for violation in row_violations(row, metric.fields, metric.event_names)
    ]
    return Counted(rows, problems)


def _total(connection: sa.Connection, metric: Metric, day: date, time_zone: str) -> int:
    view = _view(metric)
    with _reading(metric):
        return connection.scalar(sa.select(sa.func.count()).select_from(view).where(_of_day(view, day, time_zone))) or 0
