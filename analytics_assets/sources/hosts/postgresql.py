"""PostgreSQL as the host application's database.

What the login can read is in the catalog: directly, or as a role that it can become. The server's other databases are
not looked at, because a login sees one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from analytics_assets.contract import (
    EVENT_ID,
    PUBLISHED_SCHEMA,
    SCHEMA,
    SOURCE,
    SOURCE_SCHEMA,
    SOURCE_VIEWS,
    SourceView,
)
from analytics_assets.database import DatabaseError, engine, explain_postgresql, full_match
from analytics_assets.guard import Violation
from analytics_assets.sources.hosts.drafting import CatalogColumn, Drafting
from analytics_assets.sources.hosts.statements import FIRST, TURNED_ON_RULE, Query, happened
from analytics_assets.sources.login import SOURCE_READER, Excess

KIND: Final = "postgres"
COLUMN_TYPES: Final = {
    "event_id": ("text", "character varying", "uuid", "smallint", "integer", "bigint"),
    "occurred_at": ("timestamp with time zone",),
    "source": ("text", "character varying"),
    "turned_on": ("boolean",),
}
CASTS: Final = {"occurred_at": "convert a naive timestamp in the view: at time zone '...'"}
_TEXT: Final = ("text", "character varying")


def connect(url: str) -> AbstractContextManager[sa.Engine]:
    """Yield an engine whose transactions only read, and are refused where row level security would hide rows."""
    return engine(url, "ANALYTICS_SOURCE_URL", read_only=True)


def explain(error: sa.exc.DBAPIError) -> tuple[type[DatabaseError], str]:
    """Return the class and the text of the error that replaces the driver's."""
    return explain_postgresql(error)


# --- the catalog

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


def read_columns(connection: sa.Connection, view: SourceView) -> dict[str, str]:
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


def find_violations(connection: sa.Connection, view: SourceView, columns: Mapping[str, str]) -> list[Violation]:
    """List why the view cannot be read, or hides rows."""
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
    return [
        Violation(
            "(view)",
            f"reads {table}, where row level security hides rows from {reader}; give the view an owner who sees every"
            " row (the table's owner, or a role with bypassrls), and no security_invoker",
        )
        for table, reader in connection.execute(sa.text(_HIDING), parameters)
    ]


def find_readable(connection: sa.Connection) -> Sequence[str]:
    """List what the login may read in schema `analytics_source`."""
    query = sa.text(
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = :schema"
        " where c.relkind in ('r', 'p', 'v', 'm', 'f') and has_schema_privilege(n.oid, 'usage')"
        " and has_any_column_privilege(c.oid, 'select') order by 1"
    )
    return connection.scalars(query, {"schema": SOURCE_SCHEMA}).all()


# --- a draft of the views


DRAFTING: Final = Drafting(
    naive="timestamp without time zone",
    from_naive="{} at time zone '...'",
    naive_name="occurred_at",
    naive_hint="",
    booleans=("boolean",),
    payloads=("json", "jsonb", "hstore"),
    no_source="null::text",
)

_TABLES: Final = """
select c.oid as table, format('%I.%I', n.nspname, c.relname) as table_sql, c.relname as table_name,
    c.relrowsecurity as protected,
    a.attname as name, quote_ident(a.attname) as sql, format_type(a.atttypid, null) as type,
    not a.attnotnull as nullable, f.confrelid as leads_to, quote_ident(k.attname) as key_sql
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_constraint f on f.contype = 'f' and f.conrelid = c.oid and f.conkey = array[a.attnum]
left join pg_attribute k on k.attrelid = f.confrelid and k.attnum = f.confkey[1]
where c.relkind in ('r', 'p') and not c.relispartition and n.nspname !~ '^pg_' and n.nspname <> all(:others)
order by n.nspname, c.relname, a.attnum
"""


def read_tables(connection: sa.Connection) -> Iterator[CatalogColumn]:
    """List the columns of every table that is neither the system's nor ours."""
    others = [SCHEMA, PUBLISHED_SCHEMA, SOURCE_SCHEMA, "information_schema"]
    for row in connection.execute(sa.text(_TABLES), {"others": others}):
        yield CatalogColumn(**row._mapping)


# --- the rights of the login


_VIEWS: Final = {view.name: view.columns for view in SOURCE_VIEWS}

# The login, and the roles that it can become by `set role`. A superuser can become every role, so it is listed alone.
_ROLES = """
select oid, rolname, quote_ident(rolname) as name,
       rolsuper as superuser, rolreplication as replication, rolbypassrls as bypassrls, rolcreaterole as createrole
from pg_roles
where rolname = current_user
   or pg_has_role(current_user, oid, 'member') and not (select rolsuper from pg_roles where rolname = current_user)
order by rolname
"""
_ATTRIBUTES: Final = {
    "superuser": "is a superuser",
    "replication": "can copy the whole server",
    "bypassrls": "bypasses row security",
    "createrole": "can create roles and join them",
}
# Of the system catalog only what PostgreSQL withholds from PUBLIC by default: passwords, column samples, large objects.
_RELATIONS = f"""
with roles as ({_ROLES})
select format('%I.%I', n.nspname, c.relname) as name, c.relkind = 'S' as sequence
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and case n.nspname
    when 'pg_catalog' then exists (
        select from pg_init_privs i
        where i.classoid = 'pg_class'::regclass and i.objoid = c.oid and i.objsubid = 0
        and not exists (select from aclexplode(i.initprivs) a where a.grantee = 0 and a.privilege_type = 'SELECT')
        and not exists (select from pg_init_privs o where o.classoid = i.classoid and o.objoid = i.objoid
                        and o.objsubid <> 0))
    when 'information_schema' then false
    when :source_schema then not (c.relname = any(:views) and c.relkind in ('v', 'm'))
    when :our_schema then pg_get_userbyid(n.nspowner) <> 'analytics_owner'
    when :published_schema then pg_get_userbyid(n.nspowner) <> 'analytics_owner'
    else n.nspname !~ '^pg_' end
and exists (
    select from roles r where has_schema_privilege(r.oid, n.oid, 'usage') and case c.relkind
        when 'S' then has_sequence_privilege(r.oid, c.oid, 'select, usage')
        else has_any_column_privilege(r.oid, c.oid, 'select') end)
order by 1
"""  # noqa: S608  # built from constants
_COLUMNS = f"""
with roles as ({_ROLES})
select c.relname as view, a.attname as column
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = to_regnamespace(:source_schema) and c.relname = any(:views) and c.relkind in ('v', 'm')
and exists (select from roles r where has_column_privilege(r.oid, c.oid, a.attnum, 'select'))
order by 1, a.attnum
"""  # noqa: S608  # built from constants
# A function that runs as its owner can return what its caller may not read, whatever its return type.
_FUNCTIONS = f"""
with roles as ({_ROLES})
select format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where case
    when n.nspname = :our_schema and pg_get_userbyid(n.nspowner) = 'analytics_owner' then false
    when p.prosecdef then p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
    else n.nspname = 'pg_catalog' and exists (
        select from pg_init_privs i where i.classoid = 'pg_proc'::regclass and i.objoid = p.oid
        and not exists (select from aclexplode(i.initprivs) a where a.grantee = 0)) end
and exists (select from roles r where has_schema_privilege(r.oid, n.oid, 'usage')
            and has_function_privilege(r.oid, p.oid, 'execute'))
order by 1
"""  # noqa: S608  # built from constants
_LARGE_OBJECTS = f"""
with roles as ({_ROLES})
select m.oid from pg_largeobject_metadata m
where exists (
    select from aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) a
    where a.privilege_type = 'SELECT' and (a.grantee = 0 or a.grantee in (select oid from roles)))
order by 1
"""  # noqa: S608  # built from constants
_SERVERS = f"""
with roles as ({_ROLES})
select quote_ident(s.srvname) from pg_foreign_server s
where exists (select from roles r where has_server_privilege(r.oid, s.oid, 'usage'))
order by 1
"""  # noqa: S608  # built from constants


_GRANTED: Final = (
    ("function", "routine", _FUNCTIONS),
    ("large object", "large object", _LARGE_OBJECTS),
    ("foreign server", "foreign server", _SERVERS),
)
_COMPAT: Final = "select quote_ident(current_database()) where current_setting('lo_compat_privileges') = 'on'"
_COMPAT_OFF: Final = "set lo_compat_privileges = off;"


def find_excess_rights(connection: sa.Connection) -> list[Excess]:
    """List what the login, or a role it can become, can read without need. Schema `analytics` is ours and left out."""
    roles = connection.execute(sa.text(_ROLES)).all()
    own = ", ".join(role.name for role in roles if not role.rolname.startswith("pg_"))
    whom = f"{own}, public"
    powers = [
        *(
            Excess(f"role {role.name} {meaning}", f"alter role {role.name} no{attribute};")
            for role in roles
            for attribute, meaning in _ATTRIBUTES.items()
            if getattr(role, attribute)
        ),
        *(
            Excess(f"everything that {role.name} may do", f"revoke {role.name} from {own};")
            for role in roles
            # The owner of a database is a member of pg_database_owner, and can read nothing by that.
            if role.rolname.startswith("pg_") and role.rolname != "pg_database_owner"
        ),
    ]
    if any(role.superuser or role.rolname == "pg_read_all_data" for role in roles):
        return powers  # otherwise the whole database would be listed, too
    parameters = {
        "source_schema": SOURCE_SCHEMA,
        "our_schema": SCHEMA,
        "published_schema": PUBLISHED_SCHEMA,
        "views": list(_VIEWS),
    }

    def found(query: str) -> list[str]:
        return list(connection.scalars(sa.text(query), parameters))

    relations = connection.execute(sa.text(_RELATIONS), parameters).all()
    columns = connection.execute(sa.text(_COLUMNS), parameters).all()
    return [
        *powers,
        *(
            Excess(name, f"revoke all on {'sequence ' if sequence else ''}{name} from {whom};")
            for name, sequence in relations
        ),
        *(
            Excess(f"{SOURCE_SCHEMA}.{view}.{column}", f"create the view again with only {', '.join(_VIEWS[view])}.")
            for view, column in columns
            if column not in _VIEWS[view]
        ),
        *(
            Excess(f"{kind} {name}", f"revoke all on {privilege} {name} from {whom};")
            for kind, privilege, query in _GRANTED
            for name in found(query)
        ),
        *(
            Excess("every large object (lo_compat_privileges is on)", f"alter database {name} {_COMPAT_OFF}")
            for name in found(_COMPAT)
        ),
    ]


def _select(view: SourceView) -> str:
    return f"grant select on {SOURCE_SCHEMA}.{view.name} to {SOURCE_READER};  -- {', '.join(view.columns)}\n"


GRANTS: Final = f"""\
-- The host application's database. Run this when the views exist.
do $$ begin
    if not exists (select from pg_roles where rolname = '{SOURCE_READER}') then
        create role {SOURCE_READER} login;
    end if;
end $$;
do $$ begin
    execute 'grant connect on database ' || quote_ident(current_database()) || ' to {SOURCE_READER}';
end $$;
revoke all on schema {SOURCE_SCHEMA} from public, {SOURCE_READER};
revoke all on all tables in schema {SOURCE_SCHEMA} from public, {SOURCE_READER};
grant usage on schema {SOURCE_SCHEMA} to {SOURCE_READER};
{"".join(map(_select, SOURCE_VIEWS))}\
-- Password, in psql: \\password {SOURCE_READER}
-- By default every login may create temporary tables, may connect to the server's other databases, and before
-- PostgreSQL 15 may create tables in schema public. Revoke that where nothing relies on it:
-- do $$ begin execute 'revoke temporary on database ' || quote_ident(current_database()) || ' from public'; end $$;
-- revoke create on schema public from public;
-- revoke connect on database ... from public;
"""  # noqa: S608  # built from constants


# --- the statements


@cache
def table(view: SourceView, types: tuple[str, ...]) -> sa.FromClause:
    """Return the view as a table. Its columns are the contract's, whatever their types."""
    return sa.table(view.name, *(sa.column(name) for name in view.columns), schema=SOURCE_SCHEMA)


def number(moment: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """Return the number of the day that a moment is in."""
    edges = sa.bindparam("edges", type_=postgresql.ARRAY(sa.DateTime(timezone=True)))
    return sa.func.width_bucket(moment, edges, type_=sa.Integer).label("number")


def parameters(edges: Sequence[datetime]) -> dict[str, Any]:
    """Return what the statements need to know of some days."""
    return {"start": edges[0], "end": edges[-1], "edges": edges}


def _breaks_rule(event_id: sa.ColumnElement[Any], type_: str) -> sa.ColumnElement[bool]:
    if type_ in _TEXT:
        return event_id.op("!~")(full_match(EVENT_ID.pattern or ""))
    # What PostgreSQL prints of these types fits the pattern, except for a sign. A regular expression takes longer.
    return sa.false() if type_ == "uuid" else event_id < 0


@cache
def groups_query(view: SourceView, types: tuple[str, ...], several: bool) -> Query:
    """Return the statement that counts: what is refused by its rule, everything else by its values.

    `types` are those of the view's columns. The innermost groups are those of the bare columns, so that a rule is
    evaluated per group and not per row.
    """
    source_view = table(view, types)
    # Otherwise a collation of the host may take a refused value and an allowed one for the same.
    keys = {
        name: source_view.c[name].collate("C") if type_ in _TEXT else source_view.c[name]
        for name, type_ in zip(view.columns, types, strict=True)
        if name != "occurred_at"
    }
    numbered = number(source_view.c.occurred_at) if several else FIRST
    groups = (
        sa.select(numbered, *(key.label(name) for name, key in keys.items()), sa.func.count().label("rows"))
        .where(happened(source_view))
        .group_by(*keys.values(), *([numbered] if several else []))
        .subquery()
    )
    switch = groups.c.turned_on if view.switch else sa.true()
    texts = [sa.cast(groups.c[name], sa.Text).label(name) for name in ("event_id", "source")]
    event_id, source = texts
    refused = sa.case(
        (event_id.is_(None) | _breaks_rule(groups.c.event_id, types[view.columns.index("event_id")]), EVENT_ID.name),
        (source.not_in(SOURCE.choices or ()), SOURCE.name),
        (switch.is_(None), TURNED_ON_RULE.field),
    )
    values = (switch.label("turned_on"), *texts)
    found = sa.select(groups.c.number, refused.label("refused"), *values, groups.c.rows).cte("found")
    allowed = sa.select(found).where(found.c.refused.is_(None))
    # What is refused may have a value per row. Only a number per rule leaves the database.
    rows = sa.cast(sa.func.sum(found.c.rows), sa.BigInteger)
    key = (found.c.number, found.c.refused)
    broken = sa.select(*key, *(sa.null() for _ in values), rows).where(found.c.refused.is_not(None)).group_by(*key)
    return sa.union_all(allowed, broken)


def is_cheaper(
    connection: sa.Connection,
    days: Sequence[date],
    statement: Callable[[Sequence[date]], tuple[Query, dict[str, Any]]],
) -> bool:
    """Whether PostgreSQL expects to read these days at once for half the cost of one by one.

    With an index on the time both cost the same, but a day by itself needs no number for each of its rows.
    """
    at_once, one = (_estimate(connection, *statement(days[:count])) for count in (len(days), 1))
    return at_once < len(days) * one / 2


def _estimate(connection: sa.Connection, statement: Query, parameters: Mapping[str, Any]) -> float:
    query = statement.compile(connection).construct_expanded_state(parameters)
    plan = connection.exec_driver_sql(f"explain (format json) {query.statement}", query.parameters).scalar_one()
    return float(plan[0]["Plan"]["Total Cost"])
