"""A real MariaDB in a folder of its own, and in it a minimal host application like the one of `support.host`.

The server is set up as unhelpfully as its operator may have it: another time zone, another reading of SQL, and few rows
for each statement.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from analytics_assets.sources.hosts.mysql import GRANTS
from analytics_assets_tests.support.deployment import program
from analytics_assets_tests.support.processes import PATIENCE, free_port, wait_until

READER = "analytics_source_reader"
PASSWORD = "correct"  # noqa: S105  # of a server that lives in a temporary folder

_UNHELPFUL = (
    "--default-time-zone=+05:00",
    "--sql-mode=ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,ONLY_FULL_GROUP_BY,PAD_CHAR_TO_FULL_LENGTH",
    "--init-connect=set sql_select_limit = 1",
    "--character-set-server=utf8mb4",
    "--collation-server=utf8mb4_general_ci",
)

_SCHEMA = f"""
drop database if exists events;
drop database if exists analytics_source;
drop user if exists {READER};
create database events;
create database analytics_source;
create table events.signups (event_id varchar(64), occurred_at timestamp(6) null, source varchar(64),
    email varchar(64) default 'canary@example.org');
create table events.visibility like events.signups;
create table events.consent (event_id varchar(64), occurred_at timestamp(6) null, source varchar(64),
    turned_on tinyint(1), email varchar(64) default 'canary@example.org');
create view analytics_source.signups as select event_id, occurred_at, source from events.signups;
create view analytics_source.profile_visibility_changes as
    select event_id, occurred_at, source from events.visibility;
create view analytics_source.consent_changes as
    select event_id, occurred_at, source, turned_on from events.consent;
"""  # noqa: S608  # built from constants


@dataclass(frozen=True)
class Server:
    """A MariaDB that listens on a socket, and with TLS on a port of 127.0.0.1."""

    socket: Path
    port: int
    certificate: Path
    """Its own, which signs itself."""


@contextmanager
def mariadb(folder: Path) -> Iterator[Server]:
    """Start a server, which ends with the context."""
    server = Server(folder / "socket", free_port(), folder / "certificate.pem")
    data, key, log = folder / "data", folder / "key.pem", folder / "log"
    user = ["--user=root"] if os.getuid() == 0 else []  # root has to say that it means it
    with log.open("wb") as output:
        subprocess.run(
            [program("mariadb-install-db"), "--no-defaults", *user, f"--datadir={data}",
             "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"],
            stdout=output, stderr=output, check=True, timeout=PATIENCE,
        )  # fmt: skip
        subprocess.run(
            [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=db",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", server.certificate],
            stdout=output, stderr=output, check=True, timeout=PATIENCE,
        )  # fmt: skip
        process = subprocess.Popen(
            [program("mariadbd"), "--no-defaults", *user, f"--datadir={data}", f"--socket={server.socket}",
             "--bind-address=127.0.0.1", f"--port={server.port}",
             f"--ssl-cert={server.certificate}", f"--ssl-key={key}",
             "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0", *_UNHELPFUL],
            stdout=output, stderr=output,
        )  # fmt: skip
        try:
            wait_until(lambda: answers(server) or process.poll() is not None)
            assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
            yield server
        finally:
            process.kill()  # nothing in it is worth an orderly end
            process.wait(PATIENCE)


def answers(server: Server) -> bool:
    return client(server, "select 1", check=False).returncode == 0


def client(
    server: Server, text: str, user: str = "root", password: str = "", *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run SQL as people do: in the client program."""
    return subprocess.run(
        [program("mariadb"), "--no-defaults", f"--socket={server.socket}", f"--user={user}",
         "--default-character-set=utf8mb4", "--batch", "--skip-column-names"],
        input=text, env=os.environ | {"MYSQL_PWD": password}, capture_output=True, text=True, check=check,
        timeout=PATIENCE,
    )  # fmt: skip


@dataclass
class MariaHost:
    """The host application's database, as its operator sees it."""

    server: Server
    connection: sa.Connection

    @classmethod
    @contextmanager
    def create(cls, server: Server) -> Iterator[MariaHost]:
        client(server, f"{_SCHEMA}{GRANTS}alter user {READER} identified by '{PASSWORD}' account unlock;")
        engine = sa.create_engine(_url(server, "root"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("set time_zone = '+00:00', sql_mode = ''")
            yield cls(server, connection)
        engine.dispose()

    @property
    def reader_url(self) -> str:
        """URL of the login that may read the views and nothing else."""
        return self.url()

    def url(self, user: str = READER, password: str = PASSWORD, database: str = "analytics_source") -> str:
        """URL of a login, as an operator would write it."""
        url = _url(self.server, user).set(drivername="mysql", password=password, database=database)
        return url.render_as_string(hide_password=False)

    def tls_url(self, authority: str | Path, user: str = READER, host: str = "127.0.0.1") -> str:
        """URL of the port; who signs the server's certificate is in a file."""
        return f"mysql://{user}:{PASSWORD}@{host}:{self.server.port}/analytics_source?ssl_ca={authority}"

    def sql(self, text: str, user: str = "root", password: str = "") -> str:
        """Run SQL, as the operator unless another is named, and return what the client prints."""
        return client(self.server, text, user, password).stdout

    def occur(
        self,
        table: str,
        moments: Sequence[datetime],
        *,
        event_id: str | int | None = "1",
        source: str | None = "web",
        turned_on: bool | int | None = None,
    ) -> None:
        """Add one row at each of the moments; the email that the table also has is a canary."""
        row: dict[str, object] = {"event_id": event_id, "source": source}
        if table == "consent":
            row["turned_on"] = turned_on
        rows = [row | {"occurred_at": moment.astimezone(UTC).replace(tzinfo=None)} for moment in moments]
        into = sa.table(table, *map(sa.column, rows[0]), schema="events")
        self.connection.execute(sa.insert(into), rows)


def _url(server: Server, user: str) -> sa.URL:
    return sa.URL.create("mysql+pymysql", user, host="localhost", query={"unix_socket": str(server.socket)})
