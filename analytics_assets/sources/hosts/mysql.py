"""MariaDB or MySQL as the host application's database. A schema is called a database there.

`occurred_at` is a TIMESTAMP, which is an instant. A DATETIME has no time zone, and no view can make a TIMESTAMP of it:
there the name of the column, `occurred_at_utc`, says that it is in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from analytics_assets.contract import EVENT_ID, SOURCE, SOURCE_SCHEMA, SOURCE_VIEWS, SourceView
from analytics_assets.database import DatabaseError, UnreachableError, keep_engine, try_before_use
from analytics_assets.days import span
from analytics_assets.guard import Violation
from analytics_assets.sources.hosts.drafting import CatalogColumn, Drafting
from analytics_assets.sources.hosts.statements import FIRST, TURNED_ON_RULE, Query, happened
from analytics_assets.sources.login import SOURCE_READER, Excess

KIND: Final = "mysql"

_TEXT: Final = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext")
_INTEGERS: Final = ("tinyint", "smallint", "mediumint", "int", "bigint")
_UTC: Final = "datetime in UTC"
_UTC_NAME: Final = "occurred_at_utc"

COLUMN_TYPES: Final = {
    "event_id": (*_TEXT, "uuid", *_INTEGERS),
    "occurred_at": ("timestamp", _UTC),
    "source": _TEXT,
    "turned_on": (*_INTEGERS, "bit"),
}
CASTS: Final = {
    "occurred_at": f"a datetime in UTC is named {_UTC_NAME}; convert one of another time zone in the view:"
    f" convert_tz(..., '...', '+00:00') as {_UTC_NAME}",
    "source": "cast it in the view: cast(... as char)",
}

_SESSION: Final = "set time_zone = '+00:00', sql_mode = '', sql_select_limit = 18446744073709551615"
"""The time zone that a TIMESTAMP is compared in; the SQL that is understood; no limit to what a statement returns."""

_MAX_EDGES: Final = 32
"""One more than the days that one statement can tell apart. A chunk has fewer."""


def connect(url: str) -> AbstractContextManager[sa.Engine]:
    """Yield an engine. Each transaction sets the session and begins as READ ONLY.

    A pooler may share the session among its clients, so it is set each time.
    """
    return keep_engine(url, _make_engine, read_only=True)


def _make_engine(url: str) -> sa.Engine:
    parameters = {"program_name": "analytics-assets", "connect_timeout": 10}
    in_url = sa.make_url(url).query
    made = sa.create_engine(
        url,
        hide_parameters=True,
        pool_size=1,
        max_overflow=-1,  # a second connection at a time is closed after use
        connect_args={name: value for name, value in parameters.items() if name not in in_url},
    )
    try_before_use(made, _socket_of)
    sa.event.listen(made, "do_connect", _connect)
    sa.event.listen(made, "begin", _begin)
    return made


def _socket_of(connection: Any) -> int:
    sock = connection._sock  # PyMySQL has no public name for it
    return -1 if sock is None else int(sock.fileno())


def _connect(dialect: sa.Dialect, _: object, arguments: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    try:
        return dialect.connect(*arguments, **parameters)
    except OSError:  # only of the files of TLS: what happens on the network is an error of the driver
        raise dialect.loaded_dbapi.OperationalError(CR_SSL, "") from None


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql(_SESSION)
    connection.exec_driver_sql("start transaction read only")


# --- errors


CR_SSL: Final = 2026
_CLOSED: Final = "it closed the connection"
_REFUSED: Final = "the server refuses the login; check user and password in the URL, and from which hosts it may log in"
_BUSY: Final = "the server has no free connection"
_STOPPING: Final = "the server is starting or stopping; try again soon"
_TLS: Final = (
    "TLS fails; check ssl_ca and the other ssl parameters of the URL, and the name in the server's certificate"
)
_CAUSES: Final = {
    **dict.fromkeys((0, 1927, 2006, 2013, 2014, 2055), _CLOSED),
    **dict.fromkeys((1040, 1041, 1203, 1226), _BUSY),
    1044: f"the login may not use the database of the URL; that is {SOURCE_SCHEMA}",
    **dict.fromkeys((1045, 1129, 1130, 1251, 1698, 2059, 2061), _REFUSED),
    **dict.fromkeys((3118, 4151), "the login is locked; give it a password and unlock it: alter user"),
    **dict.fromkeys((1820, 1862), "the password of the login has expired"),
    1049: "the server has no database of the name in the URL",
    **dict.fromkeys((1053, 1077, 1078, 1079), _STOPPING),
    CR_SSL: _TLS,
    3159: "the server wants TLS; add ssl_ca to the URL",
}
"""Number of an error that ends a connection, or refuses it -> cause."""

_NO_CONNECTION: Final = (
    ("SSL|TLS|certificate", _TLS),
    ("name resolution|not known|nodename|getaddrinfo", "the host name in the URL is unknown"),
    ("", "nobody listens at host and port of the URL; is the server running?"),
)
"""Pattern in what the driver says when there is no connection -> cause; the first that fits."""

_MEANINGS: Final = {
    **dict.fromkeys((1142, 1143, 1370), "the login lacks a right; `analytics-assets grants host` prints what it needs"),
    1356: "the view refers to something that is missing, or its definer lacks a right",
    1449: "the definer of the view does not exist",
    **dict.fromkeys((1969, 3024), "the server allows no statement that takes so long"),
}
"""Number of an error -> what it means for a view."""


def explain(error: sa.exc.DBAPIError) -> tuple[type[DatabaseError], str]:
    """Return the class and the text of the error that replaces the driver's, which quotes values."""
    from pymysql.constants import ER

    arguments = getattr(error.orig, "args", ())
    code = arguments[0] if arguments and isinstance(arguments[0], int) else None
    if code in {None, 2002, 2003, 2005}:
        reason = str(error.orig).partition("' (")[2]  # behind the name of the host, which could fit any of the patterns
        causes = (cause for pattern, cause in _NO_CONNECTION if re.search(pattern, reason, re.IGNORECASE))
        return UnreachableError, f"the database cannot be reached: {next(causes)}"
    if code in _CAUSES or error.connection_invalidated:
        return UnreachableError, f"the database cannot be reached: {_CAUSES.get(code or 0, _CLOSED)}"
    names = [name for name, number in vars(ER).items() if number == code]
    meaning = f": {_MEANINGS[code]}" if code in _MEANINGS else ""
    return DatabaseError, f"error {code}{f' ({names[0]})' if names else ''}{meaning}"


# --- the catalog


def read_columns(connection: sa.Connection, view: SourceView) -> dict[str, str]:
    """Return the types of the view's columns by the contract's names, as far as the login has a right on them."""
    query = sa.text(
        "select lower(c.column_name) as name, lower(c.data_type) as type"
        " from information_schema.columns c join information_schema.views v"
        " on v.table_schema = c.table_schema and v.table_name = c.table_name"
        " where c.table_schema = :schema and c.table_name = :view"
    )
    found = connection.execute(query, {"schema": SOURCE_SCHEMA, "view": view.name})
    columns = {row.name: row.type for row in found}
    if columns.get(_UTC_NAME) == "datetime" and "occurred_at" not in columns:
        del columns[_UTC_NAME]
        columns["occurred_at"] = _UTC
    return columns


def find_violations(connection: sa.Connection, view: SourceView, columns: Mapping[str, str]) -> list[Violation]:
    """List why the view cannot be read. The catalog shows only what the login has a right on."""
    place = {"schema": SOURCE_SCHEMA, "view": view.name}
    security = connection.scalar(
        sa.text(
            "select security_type from information_schema.views where table_schema = :schema and table_name = :view"
        ),
        place,
    )
    if security is None:
        expected = ", ".join(view.columns)
        missing = f"is missing or is not a view; create it with the columns {expected}, and grant select on it"
        return [Violation("(view)", missing)]
    if not columns:
        # The catalog evaluates a view with the rights of the login. Reading it uses those of the definer.
        unreadable = f"cannot be read: {_MEANINGS[1356]}, or it uses a stored function, which hides its columns"
        return [Violation("(view)", f"{unreadable}; create it again")]
    if view.name not in find_readable(connection):
        return [Violation("(view)", "cannot be read; grant select on it")]
    if security == "INVOKER":
        return [
            Violation(
                "(view)",
                "runs with the rights of the pipeline's login, which would have to read the tables; create it with"
                " sql security definer",
            )
        ]
    return []


def find_readable(connection: sa.Connection) -> Sequence[str]:
    """List what the login may read in database `analytics_source`."""
    return [name for schema, name in _readable(connection) if schema == SOURCE_SCHEMA]


def _readable(connection: sa.Connection) -> list[tuple[str, str]]:
    """List database and name of every table and view of which the login may read a column."""
    query = sa.text(
        "select distinct table_schema as place, table_name as name from information_schema.columns"
        " where find_in_set('select', privileges)"
        " and lower(table_schema) not in ('information_schema', 'performance_schema', 'sys') order by 1, 2"
    )
    return [(row.place, row.name) for row in connection.execute(query)]


# --- a draft of the views


DRAFTING: Final = Drafting(
    naive="datetime",
    from_naive="convert_tz({}, '...', '+00:00')",
    naive_name=_UTC_NAME,
    naive_hint="; if it is UTC, take the bare column",
    booleans=("tinyint", "bit"),
    payloads=("json",),
    no_source="cast(null as char)",
)

_TABLES: Final = """
select c.table_schema as place, c.table_name as name, c.column_name as col, lower(c.data_type) as type,
    c.is_nullable = 'YES' as nullable, k.referenced_table_schema as to_place, k.referenced_table_name as to_name,
    k.referenced_column_name as to_col
from information_schema.columns c
join information_schema.tables t on t.table_schema = c.table_schema and t.table_name = c.table_name
left join information_schema.key_column_usage k on k.table_schema = c.table_schema and k.table_name = c.table_name
    and k.column_name = c.column_name and k.referenced_table_name is not null
    and not exists (
        select 1 from information_schema.key_column_usage o
        where o.table_schema = k.table_schema and o.table_name = k.table_name
        and o.constraint_name = k.constraint_name and o.ordinal_position > 1)
where t.table_type = 'BASE TABLE'
and lower(c.table_schema) not in ('mysql', 'information_schema', 'performance_schema', 'sys', :schema)
order by c.table_schema, c.table_name, c.ordinal_position
"""


def read_tables(connection: sa.Connection) -> Iterator[CatalogColumn]:
    """List the columns of every table that the login may read in any database but the system's."""
    quote = mysql.dialect().identifier_preparer.quote  # with backticks, which every `sql_mode` understands
    for row in connection.execute(sa.text(_TABLES), {"schema": SOURCE_SCHEMA}):
        yield CatalogColumn(
            table=(row.place, row.name),
            table_sql=f"{quote(row.place)}.{quote(row.name)}",
            table_name=row.name,
            protected=False,
            name=row.col,
            sql=quote(row.col),
            type=row.type,
            nullable=bool(row.nullable),
            leads_to=(row.to_place, row.to_name) if row.to_name else None,
            key_sql=quote(row.to_col) if row.to_col else None,
        )


# --- the rights of the login


_VIEWS: Final = {view.name: view.columns for view in SOURCE_VIEWS}

# `RIGHTS ON [KIND] DATABASE.NAME TO WHOM`; a hash of the password may follow, so no line is ever shown.
_GRANT: Final = re.compile(
    r"GRANT (?P<rights>.+?) ON (?P<kind>[A-Z ]+ )?(?P<place>(?:`(?:[^`]|``)*`|\*)(?:\.(?:`(?:[^`]|``)*`|\*))?)"
    r" TO (?P<whom>[`'](?:[^`']|``)*[`'](?:@[`'][^`']*[`'])?|PUBLIC)"
)
_ROLE: Final = re.compile(r"GRANT (?P<right>)(?P<account>[`'][^ ]+[`']) TO (?P<whom>[^ ]+)")
_PROXY: Final = re.compile(r"GRANT (?P<right>PROXY ON )(?P<account>[^ ]+) TO (?P<whom>[^ ]+)")
_RIGHT: Final = re.compile(r"([A-Z][A-Z_ ]*[A-Z])(?: (\((?:`(?:[^`]|``)*`(?:, ?)?)+\)))?")

_EVERYTHING: Final = "*.*"
_NO_READING: Final = {
    *("USAGE", "INSERT", "UPDATE", "DELETE", "LOCK TABLES", "CREATE TEMPORARY TABLES", "SHOW DATABASES", "SHOW VIEW"),
    *("GRANT OPTION", "CREATE", "DROP", "INDEX"),
}
"""Rights by which nothing can be read. Any other is taken for one by which something can."""


def find_excess_rights(connection: sa.Connection) -> list[Excess]:
    """List what the login can read beyond the source views, on the whole server."""
    found: dict[str, Excess] = {}
    covered: set[str] = set()
    for line in _roles_first(map(str, connection.scalars(sa.text("show grants")))):
        for excess, place in _excess_of(line):
            found.setdefault(excess.what, excess)
            covered.add(place)
    if _EVERYTHING not in covered:  # otherwise the whole server would be listed, too
        for schema, name in _readable(connection):
            ours = schema == SOURCE_SCHEMA and name in _VIEWS
            if not ours and not covered & {f"{_quote(schema)}.{_quote(name)}", f"{_quote(schema)}.*"}:
                # `show grants` does not tell of the rights of the user without a name, which everybody has.
                what, recovery = f"{schema}.{name}", "revoke what mysql.db gives everybody (its user is empty)."
                found[what] = Excess(what, recovery)
    return [*found.values(), *_unexpected_columns(connection)]


def _roles_first(lines: Iterable[str]) -> list[str]:
    """Sort the lines of `show grants`.

    MySQL lists what an active role may do as a right of the login. Revoking that is an error; it ends with the role.
    """
    return sorted(lines, key=lambda line: not _ROLE.match(line))


def _excess_of(line: str) -> Iterator[tuple[Excess, str]]:
    """Yield what a line of `show grants` lets the login read without need, and the place that it can read by that."""
    if other := _ROLE.match(line) or _PROXY.match(line):
        right, account, whom = other["right"] or "", other["account"], other["whom"]
        recovery = f"revoke {right}{account} from {whom};"
        if not _is_role(whom):
            yield Excess(f"everything that {account} may do", recovery), _EVERYTHING
        return
    if line.startswith("SET DEFAULT ROLE"):
        return
    grant = _GRANT.match(line)
    if grant is None:
        yield Excess("something by a right that is not known", "see `show grants`, and revoke it."), _EVERYTHING
        return
    kind, place, whom = (grant["kind"] or "").lower(), grant["place"], grant["whom"]
    rights = [
        f"{right.lower()} {columns}".strip()
        for right, columns in _RIGHT.findall(grant["rights"])
        if right not in _NO_READING and not (right == "SELECT" and _is_ours(place))
    ]
    if rights and not _is_role(whom):
        listed = ", ".join(rights)
        what = "everything on the server" if place == _EVERYTHING else kind + place.replace("`", "")
        reads = any(right.startswith(("select", "all ")) for right in rights)
        yield Excess(f"{what} ({listed})", f"revoke {listed} on {kind}{place} from {whom};"), place if reads else ""


def _is_role(whom: str) -> bool:
    """Whether a line is about a role that is in use, which has a line of its own as what the login may do."""
    return "@" not in whom and whom != "PUBLIC"


def _is_ours(place: str) -> bool:
    return place in {f"{_quote(SOURCE_SCHEMA)}.{_quote(name)}" for name in _VIEWS}


def _quote(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _unexpected_columns(connection: sa.Connection) -> list[Excess]:
    query = sa.text(
        "select table_name as view, column_name as name from information_schema.columns"
        " where table_schema = :schema and find_in_set('select', privileges) order by table_name, ordinal_position"
    )
    return [
        Excess(f"{SOURCE_SCHEMA}.{row.view}.{row.name}", f"create the view again with only {', '.join(expected)}.")
        for row in connection.execute(query, {"schema": SOURCE_SCHEMA})
        if (expected := _VIEWS.get(row.view)) and row.name.lower() not in (*expected, _UTC_NAME)
    ]


def _select(view: SourceView) -> str:
    return f"grant select on {SOURCE_SCHEMA}.{view.name} to {SOURCE_READER};  -- {', '.join(view.columns)}\n"


GRANTS: Final = f"""\
-- The host application's database, MariaDB or MySQL. Run this when the views exist, as a user who may create users.
-- The login is locked until it has a password.
create user if not exists {SOURCE_READER} account lock;
revoke all privileges, grant option from {SOURCE_READER};
{"".join(map(_select, SOURCE_VIEWS))}\
-- Password. Where the pipeline runs on another machine, write `require ssl` before `account`:
-- alter user {SOURCE_READER} identified by '...' account unlock;
"""


# --- the statements


@cache
def table(view: SourceView, types: tuple[str, ...]) -> sa.FromClause:
    """Return the view as a table that has the contract's columns."""
    names = {name: name for name in view.columns}
    if types[view.columns.index("occurred_at")] == _UTC:
        names["occurred_at"] = _UTC_NAME
    columns: list[sa.Column[Any]] = [sa.Column(name, key=key) for key, name in names.items()]
    return sa.Table(view.name, sa.MetaData(), *columns, schema=SOURCE_SCHEMA)


def number(moment: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """Return the number of the day that a moment is in: `interval` returns how many edges are not later.

    Moments and edges are numbers like 20260328230000, in the order of the moments, even of those that no calendar has.
    """
    edges = [sa.bindparam(f"edge_{position}", type_=sa.BigInteger) for position in range(_MAX_EDGES)]
    return sa.func.interval(moment + sa.literal_column("0"), *edges, type_=sa.Integer).label("number")


def parameters(edges: Sequence[datetime]) -> dict[str, Any]:
    """Return what the statements need to know of some days. The session is in UTC, so the moments need no zone."""
    start, end = (edge.replace(tzinfo=None) for edge in (edges[0], edges[-1]))
    numbers = [int(f"{edge:%Y%m%d%H%M%S}") for edge in edges]
    numbers += numbers[-1:] * (_MAX_EDGES - len(numbers))  # no moment before the end is in the days after it
    return {"start": start, "end": end} | {f"edge_{position}": edge for position, edge in enumerate(numbers)}


@cache
def groups_query(view: SourceView, types: tuple[str, ...], several: bool) -> Query:
    """Return the statement that counts: what is refused by its rule, everything else by its values.

    A text is grouped, and compared, as bytes: most collations ignore case, accents and trailing blanks. It becomes
    characters when nothing is grouped any more.
    """
    source_view, type_of = table(view, types), dict(zip(view.columns, types, strict=True))
    keys = {name: _key(name, type_of[name]) for name in view.columns if name != "occurred_at"}
    numbered = number(source_view.c.occurred_at) if several else FIRST
    groups = (
        sa.select(numbered, *(key.label(name) for name, key in keys.items()), sa.func.count().label("occurrences"))
        .select_from(source_view)
        .where(happened(source_view))
        .group_by(*keys.values(), *([numbered] if several else []))
        .subquery("grouped")
    )
    event_id, source = groups.c.event_id, groups.c.source
    switch = groups.c.turned_on if view.switch else sa.true()
    refused = sa.case(
        (event_id.is_(None) | _breaks_rule(event_id, type_of["event_id"]), EVENT_ID.name),
        (source.not_in([choice.encode() for choice in SOURCE.choices or ()]), SOURCE.name),
        (switch.is_(None) | switch.not_in([0, 1]) if view.switch else sa.false(), TURNED_ON_RULE.field),
    )
    classified = sa.select(
        groups.c.number,
        refused.label("refused"),
        switch.label("turned_on"),
        event_id,
        source,
        groups.c.occurrences,
    ).subquery("classified")
    allowed = [
        sa.case((classified.c.refused.is_(None), classified.c[name])).label(name)
        for name in ("turned_on", "event_id", "source")
    ]
    key = (classified.c.number, classified.c.refused, *allowed)
    occurrences = sa.cast(sa.func.sum(classified.c.occurrences), sa.BigInteger).label("occurrences")
    summed = sa.select(*key, occurrences).group_by(*key).subquery("summed")
    return sa.select(
        summed.c.number,
        summed.c.refused,
        summed.c.turned_on,
        _text(summed.c.event_id, type_of["event_id"]).label("event_id"),
        _text(summed.c.source, type_of["source"]).label("source"),
        summed.c.occurrences,
    )


def _key(name: str, type_: str) -> sa.ColumnElement[Any]:
    if type_ in _TEXT:
        return sa.literal_column(f"cast(convert({name} using utf8mb4) as binary)", sa.LargeBinary)
    return sa.literal_column(f"{name} + 0", sa.Integer) if type_ == "bit" else sa.literal_column(name)


def _characters(key: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    return sa.literal_column(f"convert({key.table.name}.{key.name} using utf8mb4)", sa.String)


def _text(key: sa.ColumnElement[Any], type_: str) -> sa.ColumnElement[str]:
    if type_ in _TEXT:
        return _characters(key)
    # By way of a decimal number, because ZEROFILL prints zeros.
    return sa.cast(sa.cast(key, sa.Numeric(20)) if type_ in _INTEGERS else key, sa.String)


def _breaks_rule(event_id: sa.ColumnElement[Any], type_: str) -> sa.ColumnElement[bool]:
    if type_ in _TEXT:
        # `$` would match before a line feed at the end. MariaDB reads PCRE and MySQL ICU, which agree here.
        return _characters(event_id).collate("utf8mb4_bin").op("not regexp")(rf"\A(?:{EVENT_ID.pattern})\z")
    if type_ == "uuid":
        return sa.false()  # what it prints fits the pattern
    return (event_id < 0) | (event_id > sa.literal_column("9999999999999999999"))  # 20 digits, of an unsigned bigint


def is_cheaper(
    connection: sa.Connection,
    days: Sequence[date],
    statement: Callable[[Sequence[date]], tuple[Query, dict[str, Any]]],
) -> bool:
    """Whether the days are consecutive, and so many that `number` tells them apart.

    `explain` is refused to a login that may not read the tables below a view, so nobody knows about an index. With one,
    days at once cost little more. Without one, each day by itself would read the whole table.
    """
    return len(days) < _MAX_EDGES and list(days) == span(days[0], days[-1])
