"""A minimal host application: a table behind each source view, so that any row can be put where a view shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa

from analytics_assets.days import bounds
from analytics_assets.sources.hosts.postgresql import GRANTS

_SCHEMA = """
create table signups (event_id text, occurred_at timestamptz, source text, email text default 'canary@example.org');
create table visibility (event_id text, occurred_at timestamptz, source text, email text default 'canary@example.org');
create table consent (event_id text, occurred_at timestamptz, source text, turned_on boolean,
    email text default 'canary@example.org');
create schema analytics_source;
create view analytics_source.signups as select event_id, occurred_at, source from signups;
create view analytics_source.profile_visibility_changes as select event_id, occurred_at, source from visibility;
create view analytics_source.consent_changes as select event_id, occurred_at, source, turned_on from consent;
"""


@dataclass
class Host:
    """The host application's database, as its operator sees it."""

    url: sa.URL
    connection: sa.Connection

    @classmethod
    @contextmanager
    def create(cls, url: sa.URL) -> Iterator[Host]:
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(_SCHEMA + GRANTS)
            yield cls(url, connection)
        engine.dispose()

    @property
    def reader_url(self) -> str:
        """URL of the login that may read the views and nothing else."""
        return self.url.set(username="analytics_source_reader").render_as_string(hide_password=False)

    def sql(self, text: str) -> None:
        """Run SQL as the operator."""
        self.connection.exec_driver_sql(text)

    def occur(
        self,
        table: str,
        moments: Sequence[datetime],
        *,
        event_id: str | None = "1",
        source: str | None = "web",
        turned_on: bool | None = None,
    ) -> None:
        """Add one row at each of the moments; the email that the table also has is a canary."""
        row: dict[str, object] = {"event_id": event_id, "source": source}
        if table == "consent":
            row["turned_on"] = turned_on
        rows = [row | {"occurred_at": moment} for moment in moments]
        self.connection.execute(sa.insert(sa.table(table, *map(sa.column, rows[0]))), rows)


def moments(day: date, time_zone: str, number: int) -> list[datetime]:
    """`number` moments spread over the local day, the first at its first instant."""
    start, end = bounds(day, time_zone)
    return [start + n * (end - start) / number for n in range(number)]


def last_moment(day: date, time_zone: str) -> datetime:
    """The last microsecond of the local day."""
    return bounds(day, time_zone)[1] - timedelta(microseconds=1)
