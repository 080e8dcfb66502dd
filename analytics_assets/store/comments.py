"""The dictionary's words as comments of the database: reading what is live, and writing its comments."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from analytics_assets.contract import SCHEMA
from analytics_assets.dictionary import database_comments
from analytics_assets.settings import Settings

# A partition has the columns of its parent, so only the parent is listed.
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


class Name(NamedTuple):
    """A relation of schema `analytics`, or a column of it."""

    relation: str
    column: str | None

    def __str__(self) -> str:
        return ".".join(filter(None, (SCHEMA, *self)))


def read_comments(connection: sa.Connection) -> dict[Name, str | None]:
    """Return the comment of every relation and column that is live."""
    return {Name(row.relation, row.column): row.comment for row in connection.execute(sa.text(_LIVE))}


def write_comments(connection: sa.Connection, settings: Settings) -> None:
    """Comment every table, view and column with its entry. Unchanged comments are skipped, so no lock is taken."""
    entries = database_comments(settings)
    for row in connection.execute(sa.text(_LIVE)).all():
        entry = entries.get((row.relation, row.column))
        if entry is not None and entry != row.comment:
            what = f"{'column' if row.column else row.kind} {Name(row.relation, row.column)}"
            connection.execute(sa.text(f"comment on {what} is :entry"), {"entry": entry})
