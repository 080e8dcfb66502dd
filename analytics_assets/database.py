"""Connections to PostgreSQL whose errors name structure, never a value.

The pipeline's own database is opened here, and the host's if it is PostgreSQL; `sources.hosts` opens other kinds. The
SQL belongs to `sources` and `store`.
"""

from __future__ import annotations

import io
import re
import select
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any, Final

import psycopg2.errors
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from analytics_assets.settings import SettingsError

REFUSED: Final = "AN001"
"""The SQLSTATE of an error that one of our own database functions raises. Its text holds no value."""


_ROW_SECURITY: Final = "check_enable_rls"
"""The function of PostgreSQL that raises the error about row level security; the error's text may be translated."""


class DatabaseError(RuntimeError):
    """The database refused or was out of reach. The text names error class and structure, never data."""


class UnreachableError(DatabaseError):
    """The database, or the storage of the dumps, is out of reach, or has closed the connection."""


class NotStartedError(DatabaseError):
    """Dagster was never started on its database."""


_CAUSES: Final = (
    ("closed the connection|been closed|EOF detected|terminating connection", "it closed the connection"),
    ("unsupported startup parameter", "a connection pooler refuses a parameter of the URL; take `options` out of it"),
    (
        'invalid (dsn|connection option|port|[a-z_"]+ value)|invalid value for|unrecognized configuration parameter'
        "|denied to set parameter|invalid command-line argument",
        "a parameter of the URL, or the value of one, is unknown; look at sslmode and options, for example",
    ),
    ("database .* does not exist|no such database", "the server has no database of the name in the URL"),
    (
        "authentication failed|no password supplied|role .* does not exist|not permitted to log in|no such user"
        "|permission denied for database|pg_hba.conf|SASL|auth failed|login failed",
        "the server refuses the login; check user and password in the URL, and pg_hba.conf on the server",
    ),
    ("too many (connections|clients)|connection slots|no more connections", "the server has no free connection"),
    ("starting up|shutting down|recovery mode|not yet accepting", "the server is starting or stopping; try again soon"),
    (
        "certificate|SSL|TLS|private key",
        "TLS fails; check the root certificate, the host name in the server's certificate, and sslmode",
    ),
    ("could not translate host name", "the host name in the URL is unknown"),
    (
        "Connection refused|No such file or directory|time(d )?out|No route to host|unreachable",
        "nobody listens at host and port of the URL; is the server running?",
    ),
)
"""Pattern in what libpq, PostgreSQL or PgBouncer says of a failed log-in, which has no SQLSTATE -> cause.

The first one that fits counts. A server that answered says more than one that did not, and of a host name with two
addresses both are in the text.
"""


_kept: Final[ContextVar[dict[tuple[str, bool], sa.Engine] | None]] = ContextVar("kept engines", default=None)


@contextmanager
def kept_engines() -> Iterator[None]:
    """Keep what `engine` makes until the end: a run logs in to each database once, and compiles a statement once.

    A thread makes its own, unless it runs in a copy of this context. Such a thread must end before this does.
    """
    before, engines = _kept.get(), dict[tuple[str, bool], sa.Engine]()
    _kept.set(engines)
    try:
        yield
    finally:
        # Not by a token: Dagster may end a resource in another context than it has begun it in.
        _kept.set(before)
        for each in list(engines.values()):
            each.dispose()


@contextmanager
def keep_engine(url: str, make: Callable[[str], sa.Engine], *, read_only: bool) -> Iterator[sa.Engine]:
    """Yield an engine that is disposed of at the end, or at the end of `kept_engines`."""
    kept = _kept.get()
    if kept is None:
        made = make(url)
        try:
            yield made
        finally:
            made.dispose()
    else:
        if (url, read_only) not in kept:
            kept[url, read_only] = make(url)
        yield kept[url, read_only]


def required(url: str | None, variable: str) -> str:
    """Return the URL of a setting. Raises SettingsError when it is not set."""
    if url is None:
        raise SettingsError(
            f"{variable} is not set: start with `analytics-assets up`, which brings its own PostgreSQL, or set it"
        )
    return url


def engine(url: str | None, variable: str, *, read_only: bool = False) -> AbstractContextManager[sa.Engine]:
    """Yield an engine that keeps one connection until the end, or until the end of `kept_engines`.

    With `read_only`, each transaction begins as READ ONLY and with `row_security` off: a query from which row level
    security would hide rows is then an error. Neither is a startup parameter, which PgBouncer refuses, or a setting of
    the session, which PgBouncer shares among its clients.

    Raises:
        SettingsError: no URL is known.
    """
    return keep_engine(required(url, variable), partial(_make_engine, read_only=read_only), read_only=read_only)


def _make_engine(url: str, *, read_only: bool) -> sa.Engine:
    parameters = {"application_name": "analytics-assets", "connect_timeout": 10}
    in_url = sa.make_url(url).query
    made = sa.create_engine(
        url,
        hide_parameters=True,
        pool_size=1,
        max_overflow=-1,  # a second connection at a time is closed after use
        execution_options={"postgresql_readonly": True} if read_only else {},
        connect_args={name: value for name, value in parameters.items() if name not in in_url},
    )
    try_before_use(made, socket_of_postgresql)
    sa.event.listen(made, "do_execute", _execute_copy)
    if read_only:
        sa.event.listen(made, "begin", lambda connection: connection.exec_driver_sql("set local row_security = off"))
    return made


def socket_of_postgresql(connection: Any) -> int:
    """Return the file descriptor of a connection of psycopg2."""
    return -1 if connection.closed else int(connection.fileno())


_REST: Final = 1
"""Seconds after which the server is asked before a connection is used: the network may have lost it silently."""


def try_before_use(made: sa.Engine, socket_of: Callable[[Any], int]) -> None:
    """Let an engine replace a connection that its server has ended, before its next use.

    `pool_pre_ping` asks the server before every use, which takes as long as a short statement. Here the server is asked
    only after a rest. Before that, a socket that has something to read says that the server has ended the connection:
    nothing was asked.

    Args:
        made: the engine.
        socket_of: returns the file descriptor of a connection of the driver; negative if it is closed.
    """

    def note_use(_: object, record: sa.pool.ConnectionPoolEntry) -> None:
        record.info["used"] = monotonic()

    def look(connection: Any, record: sa.pool.ConnectionPoolEntry, _: object) -> None:
        if "used" not in record.info:
            return  # just made
        try:
            if monotonic() - record.info["used"] > _REST:
                made.dialect.do_ping(connection)
            elif _has_ended(socket_of(connection)):
                raise sa.exc.DisconnectionError
        except made.dialect.loaded_dbapi.Error as error:
            raise sa.exc.DisconnectionError from error

    sa.event.listen(made, "checkin", note_use)
    sa.event.listen(made, "checkout", look)


def _has_ended(descriptor: int) -> bool:
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


_COPIED: Final = "copied_text"
_COPY_TO: Final = "copy_to"
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_ESCAPED: Final = re.compile(r"[\\\t\n\r]")


def copy_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Hashable]]) -> None:
    """Add rows by `COPY`, many times faster than `insert`. `connection` is one of an engine that was made here.

    The rows have every column of the table: dates, whole numbers, text, None for null; no True, which is equal to 1.
    """
    names = table.columns.keys()
    lines = map("\t".join, zip(*(_copied([row[name] for row in rows]) for name in names), strict=True))
    into = f"copy {table.fullname} ({', '.join(names)}) from stdin"
    connection.exec_driver_sql(into, execution_options={_COPIED: "\n".join(lines)})


def read_rows(connection: sa.Connection, query: sa.Select[*tuple[Any, ...]]) -> io.StringIO:
    """Run a query by `COPY`, many times faster than by fetching rows. Returns CSV with the names of the columns.

    `connection` is one of an engine that was made here. The values in the query are constants of this package.
    """
    # Nothing fills parameters in, so no % may be doubled for that.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # has no annotations
    text = query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    found = io.StringIO()
    connection.exec_driver_sql(f"copy ({text}) to stdout csv header", execution_options={_COPY_TO: found})
    found.seek(0)
    return found


def _copied(column: Sequence[Hashable]) -> Iterator[str]:
    # Most values are in many rows.
    distinct = set(column) - {None}
    texts = list(map(str, distinct))
    if _ESCAPED.search("".join(texts)):  # looked for once, because it is rare
        texts = [text.translate(_ESCAPES) for text in texts]
    text_of: dict[Hashable, str] = {None: r"\N", **dict(zip(distinct, texts, strict=True))}
    return map(text_of.__getitem__, column)


def _execute_copy(cursor: Any, statement: str, _: object, context: Any) -> bool:
    # SQLAlchemy has no call for COPY. Around this one it translates errors and notices a lost connection as always.
    text, found = (context.execution_options.get(name) for name in (_COPIED, _COPY_TO))
    if text is None and found is None:
        return False
    cursor.copy_expert(statement, io.StringIO(text) if found is None else found)
    return True


def place(url: str | None) -> str:
    """Return name and host of a database, never login or password.

    If a password has an @ that is not encoded, what follows it seems to be the host. So a text with an @ is not shown.
    """
    if url is None:
        return "none"
    parsed = sa.make_url(url)
    name = parsed.database or "the login's default"
    host = parsed.host or str(parsed.query.get("host") or "this machine")
    return "(its name or host has an @)" if "@" in name + host else f"{name} on {host}"


@contextmanager
def redacted_errors(
    doing: str, explain: Callable[[sa.exc.DBAPIError], tuple[type[DatabaseError], str]] | None = None
) -> Iterator[None]:
    """Turn a driver error into a DatabaseError, without the texts that the database fills with data.

    `explain` reads the errors of another database than PostgreSQL.

    PostgreSQL quotes values freely ("Failing row contains (...)", "invalid input syntax ...: "...""), and a function of
    the host may raise any text. Only the text of an error that our own functions raise is passed on.
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        # `from None` keeps the original out of the context: printing the error would print the original's texts, too.
        # (Raising after the except block does not help, because the `with` statement still handles the original then.)
        kind, text = (explain or explain_postgresql)(error)
        raise kind(f"{doing}: {text}") from None


def explain_postgresql(error: sa.exc.DBAPIError) -> tuple[type[DatabaseError], str]:
    """Return the class and the text of the error that replaces one of PostgreSQL's driver."""
    unreachable = error.connection_invalidated or sqlstate(error) is None
    return UnreachableError if unreachable else DatabaseError, _structure(error)


def sqlstate(error: sa.exc.DBAPIError) -> str | None:
    """Return the SQLSTATE of a driver error, None when the server did not answer."""
    return getattr(error.orig, "pgcode", None)


def full_match(pattern: str) -> str:
    """Return a contract pattern as PostgreSQL needs it to match the whole value."""
    return f"^(?:{pattern})$"


def _structure(error: sa.exc.DBAPIError) -> str:
    diagnostics = getattr(error.orig, "diag", None)
    state = sqlstate(error)
    if diagnostics is None or state is None:
        return f"the database cannot be reached: {failure_cause(str(error.orig))}"
    if state == REFUSED:
        return str(diagnostics.message_primary)
    if diagnostics.source_function == _ROW_SECURITY:
        return (
            "row level security hides rows, so the count would be too low; give the view an owner who sees every row"
            " (the table's owner, or a role with bypassrls), and no security_invoker"
        )
    try:
        kind = psycopg2.errors.lookup(state).__name__
    except KeyError:
        kind = "error"
    named = {
        "table": diagnostics.table_name,
        "column": diagnostics.column_name,
        "constraint": diagnostics.constraint_name,
    }
    where = ", ".join(f"{what} {name}" for what, name in named.items() if name)
    return f"{kind} (SQLSTATE {state}{', ' + where if where else ''})"


def failure_cause(text: str) -> str:
    """Return the cause that a text of the driver is about. No part of the text is passed on."""
    unquoted = re.sub(r'"[^"]*"', '""', text)  # a quoted name could contain any of the patterns
    for pattern, cause in _CAUSES:
        if re.search(pattern, unquoted, re.IGNORECASE):
            return cause
    return "is it running, and are address, name, login and password in the URL right?"
