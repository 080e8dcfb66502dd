"""A real PgBouncer before the session's PostgreSQL, which itself listens on a Unix socket only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from analytics_assets_tests.support.deployment import program
from analytics_assets_tests.support.processes import LOOPBACK, PATIENCE, free_port, wait_until

LOGINS = ("postgres", "analytics_source_reader", "analytics_writer")


@dataclass(frozen=True)
class Pooler:
    """Where a PgBouncer listens."""

    address: str
    port: int

    def url(self, url: sa.URL | str | None, **query: str) -> str:
        """The URL of a database, through the pooler."""
        assert url
        there = sa.make_url(url).set(host=self.address, port=self.port, query=query)
        return there.render_as_string(hide_password=False)


@contextmanager
def pooler(server: sa.URL, folder: Path, options: Mapping[str, object], address: str = LOOPBACK) -> Iterator[Pooler]:
    """Start a PgBouncer. `options` are those of its section of that name."""
    started = Pooler(address, free_port())
    where = {"listen_addr": address, "listen_port": started.port, "unix_socket_dir": ""}
    settings = where | {"auth_type": "trust", "auth_file": folder / "users", "logfile": folder / "log"}
    lines = "".join(f"{name} = {value}\n" for name, value in {**settings, **options}.items())
    (folder / "ini").write_text(f"[databases]\n* = host={server.query['host']}\n[pgbouncer]\n{lines}")
    (folder / "users").write_text("".join(f'"{login}" ""\n' for login in LOGINS))
    command = [program("pgbouncer"), "--quiet", str(folder / "ini")]
    if not os.geteuid():  # it refuses to run as root, and the server's user may reach the socket
        user = Path(str(server.query["host"])).owner()
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
        command[1:1] = ["--user", user]
    process = subprocess.Popen(command)
    try:
        _wait_until_it_answers(process, started.url(server))
        yield started
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str) -> None:
    def answers() -> bool:
        assert process.poll() is None, "PgBouncer has ended"
        try:
            sa.create_engine(url, poolclass=sa.NullPool).connect().close()
        except sa.exc.OperationalError:
            return False
        return True

    wait_until(answers)
