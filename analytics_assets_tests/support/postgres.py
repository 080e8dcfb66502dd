"""PostgreSQL for tests: a server that is fast rather than safe and is watched, copies of databases, client programs."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final

import pytest
import sqlalchemy as sa

from analytics_assets.local.postgres import PROGRAMS

# Nothing outlives the session, and there is too little in a database for a vacuum.
_SPEED: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "file_copy_method": "clone",
}


def tool(name: str) -> str:
    """Path of psql, pg_dump, pg_restore and the like. A distribution's may be older, and refuse the server."""
    path = PROGRAMS / name
    if not path.exists():
        pytest.fail(f"the wheel of the embedded PostgreSQL has no {name}")
    return str(path)


def trade_safety_for_speed(server: sa.URL) -> None:
    """Let a server write to disk when it likes: making a database then takes a tenth of the time."""
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name, value in _SPEED.items():
            connection.exec_driver_sql(f"alter system set {name} = {value}")
        connection.exec_driver_sql("select pg_reload_conf()")
    engine.dispose()


def copy_database(template: sa.URL, name: str) -> sa.URL:
    """Make a database like another one of its server, that nobody is connected to."""
    engine = sa.create_engine(template.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name} template {template.database} strategy file_copy")
    engine.dispose()
    return template.set(database=name)


@contextmanager
def dropped_afterwards(url: sa.URL | str) -> Iterator[None]:
    """Drop a database at the end: thousands of them would be written to disk, and take a minute to remove."""
    try:
        yield
    finally:
        made = sa.make_url(url)
        engine = sa.create_engine(made.set(username="postgres", database="postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"drop database if exists {made.database} with (force)")
        engine.dispose()


class ServerWatch:
    """A plugin of pytest that ends the session when the session's server has ended.

    Every test that follows would be an error: hundreds of them, none of which says what has happened.
    """

    def __init__(self, server: sa.URL) -> None:
        """Watch the server of this URL."""
        self._engine = sa.create_engine(server, poolclass=sa.NullPool)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Look whether the server answers when a test has failed."""
        report = yield
        if report.failed and not self._answers():
            report.longrepr = item.session.shouldstop = "the PostgreSQL server of this session has ended"
        return report

    def _answers(self, seconds: float = 10) -> bool:
        """Whether it lets anybody in, now or after the recovery from a crash that it has survived."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self._engine.connect().close()
            except sa.exc.OperationalError:
                time.sleep(0.1)
            else:
                return True
        return False
