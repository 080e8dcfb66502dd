"""Connections to PostgreSQL whose errors name structure, never a value.

Both databases, the host's and the pipeline's own, are opened here. Their SQL belongs to `sources` and `store`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg2.errors
import sqlalchemy as sa

from analytics_assets.settings import SettingsError

REFUSED: Final = "AN001"
"""The SQLSTATE of an error that one of our own database functions raises. Its text holds no value."""


class DatabaseError(RuntimeError):
    """The database refused or was out of reach. The text names error class and structure, never data."""


class UnreachableError(DatabaseError):
    """The database is out of reach, or has closed the connection."""


@contextmanager
def engine(url: str | None, variable: str, *, read_only: bool = False) -> Iterator[sa.Engine]:
    """Yield an engine that keeps one connection until the end.

    Raises:
        SettingsError: no URL is known.
    """
    if url is None:
        raise SettingsError(
            f"{variable} is not set: start with `analytics-assets up`, which brings its own PostgreSQL, or set it"
        )
    options = "-c default_transaction_read_only=on" if read_only else ""
    made = sa.create_engine(
        url,
        hide_parameters=True,
        pool_size=1,
        max_overflow=0,
        connect_args={"application_name": "analytics-assets", "connect_timeout": 10, "options": options},
    )
    try:
        yield made
    finally:
        made.dispose()


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
def redacted_errors(doing: str) -> Iterator[None]:
    """Turn a driver error into a DatabaseError, without the texts that PostgreSQL fills with data.

    PostgreSQL quotes values freely ("Failing row contains (...)", "invalid input syntax ...: "...""), and a function of
    the host may raise any text. Only the text of an error that our own functions raise is passed on.
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        # `from None` keeps the original out of the context: printing the error would print the original's texts, too.
        # (Raising after the except block does not help, because the `with` statement still handles the original then.)
        unreachable = error.connection_invalidated or sqlstate(error) is None
        kind = UnreachableError if unreachable else DatabaseError
        raise kind(f"{doing}: {_structure(error)}") from None


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
        return (
            "the database cannot be reached or closed the connection; is it running, and are address, name, login and"
            " password in the URL right?"
        )
    if state == REFUSED:
        return str(diagnostics.message_primary)
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
