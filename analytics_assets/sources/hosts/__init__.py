"""The host application's database, of whatever kind it is.

Each module here is one kind: how to connect, what the catalog says, how it groups and numbers, what its errors mean. It
has what `HostDatabase` lists, and `HOSTS` names it by the backend of its URLs. What all kinds share is in
`sources.app_views`. docs/host-databases.md shows what another kind takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import date, datetime
from typing import Any, Final, Protocol

import sqlalchemy as sa

from analytics_assets.contract import SourceView
from analytics_assets.database import DatabaseError, redacted_errors, required
from analytics_assets.guard import Violation
from analytics_assets.sources.hosts import mysql, postgresql
from analytics_assets.sources.hosts.drafting import CatalogColumn, Drafting
from analytics_assets.sources.hosts.statements import Query
from analytics_assets.sources.login import Excess


class HostDatabase(Protocol):
    """One kind of database. The methods are functions of a module, and the properties are its constants."""

    @property
    def KIND(self) -> str:
        """Its kind in the Dagster UI."""

    @property
    def COLUMN_TYPES(self) -> Mapping[str, Sequence[str]]:
        """Column of a source view -> types it may have, as `read_columns` names them."""

    @property
    def CASTS(self) -> Mapping[str, str]:
        """Column of a source view -> what to do in the view about another type, unless it is a plain cast."""

    @property
    def GRANTS(self) -> str:
        """SQL that creates the login and grants it the views. It may be run again, and holds no password."""

    def connect(self, url: str) -> AbstractContextManager[sa.Engine]:
        """Yield an engine with one connection, whose transactions only read."""

    def explain(self, error: sa.exc.DBAPIError) -> tuple[type[DatabaseError], str]:
        """Return the class and the text of the error that replaces a driver's. The text holds no value.

        UnreachableError, if trying again can help.
        """

    def read_columns(self, connection: sa.Connection, view: SourceView) -> dict[str, str]:
        """Return the types of the view's columns by their names; nothing when there is no such view.

        This and the next three read only the catalog, no row.
        """

    def find_violations(
        self, connection: sa.Connection, view: SourceView, columns: Mapping[str, str]
    ) -> list[Violation]:
        """List what is wrong with the view: it is missing, closed to the login, hides rows, has other columns."""

    def find_readable(self, connection: sa.Connection) -> Sequence[str]:
        """List what the login may read in `analytics_source`, by name."""

    def read_tables(self, connection: sa.Connection) -> Iterable[CatalogColumn]:
        """List the columns of the application's tables, for a draft of the views. Sorted by table."""

    @property
    def DRAFTING(self) -> Drafting:
        """Types and expressions for a draft of the views."""

    def find_excess_rights(self, connection: sa.Connection) -> list[Excess]:
        """List what the login can read beyond the source views, with what ends that."""

    def table(self, view: SourceView, types: tuple[str, ...]) -> sa.FromClause:
        """Return the view as a table that has the contract's columns. `types` are theirs, as `read_columns` has them.

        A comparison of `occurred_at` with an instant must be exact, and able to use an index of the host.
        """

    def number(self, moment: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Return the number of the day that a moment is in, from 1. `parameters` has the edges of the days."""

    def parameters(self, edges: Sequence[datetime]) -> dict[str, Any]:
        """Return what the statements of some days need: `start`, `end`, and whatever `number` does.

        `edges` are the first instants of the days and the end of the last one, in UTC.
        """

    def groups_query(self, view: SourceView, types: tuple[str, ...], several: bool) -> Query:
        """Return the statement that counts the rows from `start` to before `end`.

        Its rows are: number of the day (1, unless there are several), the field whose rule is broken or null, then
        turned_on, event_id, source (each null, if a rule is broken), and how many rows of the view. Values are grouped
        by their bytes, whatever the collation. A refused value is not selected.
        """

    def is_cheaper(
        self,
        connection: sa.Connection,
        days: Sequence[date],
        statement: Callable[[Sequence[date]], tuple[Query, dict[str, Any]]],
    ) -> bool:
        """Whether one statement over these days, and those between them, is better than one per day. No row is read.

        `statement` returns that of some days with its parameters.
        """


HOSTS: Final[Mapping[str, HostDatabase]] = {"postgresql": postgresql, "mysql": mysql}
"""Backend of a URL -> kind of database."""


def find_host(url: str | None) -> HostDatabase:
    """Return the kind of database that a URL of `settings` leads to. Without a URL it will be the embedded one."""
    return HOSTS["postgresql" if url is None else sa.make_url(url).get_backend_name()]


@contextmanager
def open_catalog(
    url: str | None, variable: str = "ANALYTICS_SOURCE_URL"
) -> Iterator[tuple[HostDatabase, sa.Connection]]:
    """Connect to the host's database for reading its catalog.

    Raises:
        DatabaseError: the database is out of reach, or refuses.
        SettingsError: no URL is known.
    """
    url = required(url, variable)
    host = find_host(url)
    with (
        redacted_errors(f"reading the catalog of the host application's database ({variable})", host.explain),
        host.connect(url) as database,
        database.connect() as connection,
    ):
        yield host, connection
