"""What schema `analytics` holds and says about itself, against the data dictionary.

Structure and comments only; the words are the dictionary's. What is found is said by name for relations and columns,
and by number for stored names, because a name outside the vocabulary may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from analytics_assets.contract import METRICS, SCHEMA, TABLES, Metric, vocabulary
from analytics_assets.dictionary import database_comments
from analytics_assets.settings import Settings

# A partition stands for its parent, whose columns it has.
_LIVE = """
select c.relname as relation, a.attname as column, d.description as comment,
       case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table' else 'table'
       end as kind
from pg_class c
cross join lateral (
    select 0 as attnum, null as attname
    union all
    select attnum, attname from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped
) a
left join pg_description d on d.classoid = 'pg_class'::regclass and d.objoid = c.oid and d.objsubid = a.attnum
where c.relnamespace = to_regnamespace('analytics') and c.relkind in ('r', 'p', 'v', 'm', 'f')
  and not c.relispartition
"""


class _Name(NamedTuple):
    """A relation of schema `analytics`, or a column of it."""

    relation: str
    column: str | None

    def __str__(self) -> str:
        return ".".join(filter(None, (SCHEMA, *self)))


def write_comments(connection: sa.Connection, settings: Settings) -> None:
    """Comment every table, view and column with its entry; what has the right comment is not locked."""
    entries = database_comments(settings)
    for row in connection.execute(sa.text(_LIVE)).all():
        entry = entries.get((row.relation, row.column))
        if entry is not None and entry != row.comment:
            what = f"{'column' if row.column else row.kind} {_Name(row.relation, row.column)}"
            connection.execute(sa.text(f"comment on {what} is :entry"), {"entry": entry})


def undocumented(connection: sa.Connection, metric: Metric, settings: Settings) -> list[str]:
    """Where database and dictionary differ, except in tables that keep other metrics only."""
    entries = {_Name(*name): entry for name, entry in database_comments(settings).items()}
    live = {_Name(row.relation, row.column): row.comment for row in connection.execute(sa.text(_LIVE))}
    found = []
    for name in sorted(entries.keys() | live.keys(), key=str):
        if name.relation in TABLES.keys() - {metric.table}:
            continue
        if name not in entries:
            found.append(f"{name} is not in the dictionary")
        elif name not in live:
            found.append(f"{name} is in the dictionary, but not in the database")
        elif live[name] != entries[name]:
            found.append(f"{name} has a comment that is not the dictionary's, or none")
    if "event_name" in {field.name for field in metric.fields}:
        found += _undocumented_values(connection, _Name(metric.table, "event_name"), vocabulary(metric.table))
    return found + _undocumented_values(connection, _Name("collected_days", "asset"), [m.asset for m in METRICS])


def _undocumented_values(connection: sa.Connection, name: _Name, values: Sequence[str]) -> list[str]:
    """How many stored rows have, and how many values the constraint allows, that are not among `values`."""
    column: sa.ColumnClause[str] = sa.column(name.column or "")
    stored = sa.table(name.relation, column, schema=SCHEMA)
    # Where the constraint holds, PostgreSQL concludes from it that there is no such row, and reads none.
    rows = connection.scalar(sa.select(sa.func.count()).select_from(stored).where(column.not_in(values)))
    rule = connection.scalar(
        sa.text(
            "select pg_get_expr(conbin, conrelid) from pg_constraint"
            " where conrelid = cast(:table as regclass) and conname = :name"
        ),
        {"table": f"{SCHEMA}.{name.relation}", "name": f"{name.relation}_{name.column}"},
    )
    allowed = set(re.findall(r"'((?:[^']|'')*)'", rule or ""))
    found = [f"{name} has a value that is not in the dictionary ({rows} rows)"] if rows else []
    if not allowed:
        found.append(f"{name} may hold any value: its constraint is missing")
    elif unknown := len(allowed - set(values)):
        found.append(f"{name} may hold values that are not in the dictionary ({unknown})")
    return found
