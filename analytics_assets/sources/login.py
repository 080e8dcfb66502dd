"""What the login of ANALYTICS_SOURCE_URL can read in the host's database beyond the source views.

Only the catalog is read, no row. The server's other databases are not checked, because a login sees one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from analytics_assets.contract import PUBLISHED_SCHEMA, SCHEMA, SOURCE_SCHEMA, SOURCE_VIEWS


@dataclass(frozen=True)
class Excess:
    """One thing that the login can read without need, and the SQL that revokes it."""

    what: str
    recovery: str

    def __str__(self) -> str:
        return f"{self.what}: {self.recovery}"


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


def summarize_excess_rights(connection: sa.Connection) -> list[str]:
    """Return the excess rights as one warning for a log, without the SQL; none when there are none."""
    found = [excess.what for excess in find_excess_rights(connection)]
    if not found:
        return []
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    return [f"the login of ANALYTICS_SOURCE_URL can read more than the source views: {shown}; revoke that"]
