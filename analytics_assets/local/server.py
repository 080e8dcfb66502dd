"""Run everything on one machine: an embedded PostgreSQL for each URL that is not set, and `dagster dev`.

Every process that is started here is also stopped here, unless SIGKILL ends this process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import IO, Final

import dagster as dg
import requests
import sqlalchemy as sa
from dagster._core.instance.ref import InstanceRef
from dagster_postgres.utils import DagsterPostgresException

from analytics_assets.database import NotStartedError, UnreachableError, engine, failure_cause, redacted_errors
from analytics_assets.folders import lock
from analytics_assets.local.processes import LONGEST_SOCKET, DataFolderError, ServerError, stop, uninterrupted
from analytics_assets.retention.dagster_records import DagsterStorage, open_dagster_storage
from analytics_assets.retention.shortening import describe_shortening
from analytics_assets.run_launcher import run_address
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.store import open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.setup import check_time_zone, init_db

ROOT: Final = Path(__file__).parents[2]
"""The project's folder: workspace.yaml and dagster.yaml are there."""

HOST: Final = "127.0.0.1"
"""The UI has no login, so it listens on this address only."""

NO_PROXY: Final = {"no_proxy": HOST}
"""The `proxies` of a request to this machine, whatever `http_proxy` says."""


Say = Callable[[str], None]

_NO_DATABASE: Final = (
    "no database there: {variable} is not set, and the data folder has no embedded PostgreSQL with that database. Set"
    " the variable, or name the right folder in ANALYTICS_DATA_DIR; `analytics-assets init-db` or `up` make a new one"
)


@contextmanager
def databases(settings: Settings, *, shorten: Say | None = None) -> Iterator[Settings]:
    """Yield the settings with every URL set; the embedded PostgreSQL provides those that were not.

    The embedded analytics database is set up or upgraded. `shorten`: see `set_up`. One that a URL names is only
    compared with the settings, if it can be reached.

    Raises:
        SettingsError: days would expire, and nobody has said that they may; or the server does not know the time zone.
        DatabaseError: the database of the URL enforces other settings.
    """
    if settings.database_url is not None:
        with suppress(UnreachableError), open_store(settings) as store:
            read_window(store)
            with store.transaction("comparing the time zone") as connection:
                check_time_zone(connection, settings)
    if settings.database_url and settings.dagster_url:
        yield settings
        return
    # Imported here: with both URLs set, the extra that installs it is not needed.
    from analytics_assets.local.postgres import embedded_postgres, ensure_database

    with embedded_postgres(settings.data_dir) as server:
        if settings.dagster_url is None:
            dagster_url = ensure_database(server, "dagster").render_as_string(hide_password=False)
            settings = replace(settings, dagster_url=dagster_url)
        if settings.database_url is None:
            url = ensure_database(server, "analytics")
            set_up(url.render_as_string(hide_password=False), settings, shorten=shorten)
            settings = _with_embedded(settings, url)
        yield settings


def running_databases(settings: Settings) -> Settings:
    """Return the settings with the URLs of the embedded PostgreSQL for those not set, if it runs. Starts nothing."""
    if settings.database_url and settings.dagster_url:
        return settings
    from analytics_assets.local.postgres import running_postgres

    server = running_postgres(settings.data_dir)
    if server is None:
        return settings

    def login(user: str, database: str) -> str:
        return server.set(username=user, database=database).render_as_string(hide_password=False)

    writer = settings.database_url or login("analytics_writer", "analytics")
    return replace(
        settings,
        database_url=writer,
        source_url=settings.source_url or writer,
        dagster_url=settings.dagster_url or login("postgres", "dagster"),
    )


@contextmanager
def existing_databases(settings: Settings, *, needs_dagster: bool = True) -> Iterator[Settings]:
    """Yield the settings as `databases` does, but make and change nothing.

    An embedded PostgreSQL that is not running is started for as long as it takes. Unless the caller needs Dagster's
    database, its URL stays None where there is none.

    Raises:
        ServerError: a URL is not set, and the data folder has no such database.
    """
    urls = {"ANALYTICS_DATABASE_URL": settings.database_url, "DAGSTER_POSTGRES_URL": settings.dagster_url}
    unset = [variable for variable, url in urls.items() if url is None]
    needed = [variable for variable in unset if needs_dagster or variable != "DAGSTER_POSTGRES_URL"]
    embedded = (settings.data_dir / "postgres" / "PG_VERSION").exists()
    if needed and not embedded:
        raise ServerError(_NO_DATABASE.format(variable=needed[0]))
    if not unset or not embedded:
        yield settings
        return
    from analytics_assets.local.postgres import embedded_postgres, has_database

    with embedded_postgres(settings.data_dir) as server:
        names = {"ANALYTICS_DATABASE_URL": "analytics", "DAGSTER_POSTGRES_URL": "dagster"}
        found = [variable for variable in unset if has_database(server, names[variable])]
        for variable in needed:
            if variable not in found:
                raise ServerError(_NO_DATABASE.format(variable=variable))
        if "DAGSTER_POSTGRES_URL" in found:
            dagster_url = server.set(database="dagster").render_as_string(hide_password=False)
            settings = replace(settings, dagster_url=dagster_url)
        if "ANALYTICS_DATABASE_URL" in found:
            settings = _with_embedded(settings, server.set(database="analytics"))
        yield settings


def _with_embedded(settings: Settings, url: sa.URL) -> Settings:
    writer = url.set(username="analytics_writer").render_as_string(hide_password=False)
    return replace(settings, database_url=writer, source_url=settings.source_url or writer)


def set_up(admin_url: str, settings: Settings, *, shorten: Say | None = None, home: Path | None = None) -> None:
    """Create or upgrade the analytics database, unless days that are kept would expire.

    `shorten` lets them expire, and is told beforehand what goes. `home` is Dagster's folder; by default it is in the
    data folder.

    Raises:
        SettingsError: days would expire. The text says which, and the way out. Nothing was changed.
        DatabaseError: see `init_db`.
    """
    if going := describe_shortening(admin_url, settings, home or settings.data_dir / "dagster"):
        if shorten is None:
            raise SettingsError(
                f"{going}\nNothing was changed. If that is meant, run `analytics-assets init-db --shorten-retention`."
                " If not, set the variables as they were."
            )
        shorten(going)
    init_db(admin_url, settings)


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Keep every other `up` and `demo` off this data folder: two daemons on one database disturb each other.

    Raises:
        ServerError: there is one, or the folder cannot be used.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(settings.data_dir / "dagster", wait=False))
        except BlockingIOError:
            raise ServerError(
                "another `up` or `demo` is running on this data folder: stop it, or name another folder in"
                " ANALYTICS_DATA_DIR and choose other ports"
            ) from None
        except OSError as error:
            raise DataFolderError(error) from None
        yield


@contextmanager
def dagster_dev(settings: Settings, port: int, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dagster dev` (webserver, daemon, code server). Its output overwrites `log`, or goes to this terminal.

    Raises:
        ServerError: the port is in use, or the project's folder cannot be found.
    """
    if not (ROOT / "workspace.yaml").exists():
        raise ServerError("workspace.yaml is not next to the package: install it from its checkout (`make install`)")
    require_free_port(port, "--port")
    with ExitStack() as stack:
        output: IO[bytes] | None = stack.enter_context(log.open("wb")) if log else None
        home = dagster_home(settings)
        sockets = stack.enter_context(_socket_folder())
        workspace = str(ROOT / "workspace.yaml")
        process = subprocess.Popen(  # noqa: S603  # runs this interpreter with constant arguments
            [sys.executable, "-m", "dagster", "dev", "--workspace", workspace, "--host", HOST, "--port", str(port)],
            cwd=home,
            env=os.environ
            | settings.environment()
            | {"DAGSTER_HOME": str(home), "TMPDIR": sockets}
            | _DAGSTER_ENVIRONMENT,
            stdout=output,
            stderr=output,
            # In a session of its own, so that Ctrl-C does not reach it: `stop` ends it.
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with uninterrupted():
                stop(process)
                _cancel_stopped_runs(settings, sockets)


def _socket_folder() -> TemporaryDirectory[str]:
    """Make a folder for Dagster's sockets, which a killed process leaves behind.

    It is among the temporary files, unless the paths of its sockets were too long for the system.
    """
    prefix, socket_name = "analytics-assets-", "12345678/tmp12345678"  # as `tempfile` makes them
    too_long = len(os.fsencode(f"{gettempdir()}/{prefix}{socket_name}")) > LONGEST_SOCKET
    folder = "/tmp" if too_long else None  # noqa: S108  # the folder made in it has a random name and is this user's alone
    return TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True)


def _cancel_stopped_runs(settings: Settings, sockets: str) -> None:
    """Record as canceled what was running: the runs whose code server had its socket in this folder."""
    running = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    # If Dagster's database is away as well, run monitoring finds these runs after the next start.
    with suppress(UnreachableError, sa.exc.SQLAlchemyError), dagster_instance(settings) as instance:
        for run in instance.get_runs(dg.RunsFilter(statuses=running)):
            if run_address(run).get("socket", "").startswith(sockets):
                instance.report_run_canceled(run, "Dagster was stopped while this run was in progress.")


def require_free_port(port: int, option: str) -> None:
    """Raise ServerError when the port is in use. The text names the option that chooses another port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ServerError(f"port {port} is in use: stop its process, or choose another with {option}") from None


_DAGSTER_ENVIRONMENT: Final = {
    # By default, Dagster writes the events of a range run one by one.
    "DAGSTER_EVENT_BATCH_SIZE": "1000",
    # Dagster recommends a newer command, which needs another project layout.
    "PYTHONWARNINGS": "ignore:Function `dev_command` is superseded",
}


def dagster_home(settings: Settings) -> Path:
    """Folder of Dagster's logs below the data folder, with a link to the project's dagster.yaml. Created if missing."""
    home = settings.data_dir / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    link = home / "dagster.yaml"
    if link.exists() and not link.is_symlink():
        raise ServerError("dagster.yaml in the folder dagster of the data folder is not the project's: move it away")
    if not (link.is_symlink() and link.readlink() == ROOT / "dagster.yaml"):
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / "dagster.yaml")
    return home


@contextmanager
def existing_instance(settings: Settings, home: Path | None = None) -> Iterator[dg.DagsterInstance]:
    """Yield Dagster's instance as `dagster_instance` does, and create neither folder nor table.

    Raises:
        SettingsError: no URL is set.
        NotStartedError: Dagster's database has no tables yet.
        DatabaseError: Dagster's database cannot be reached.
    """
    with (
        redacted_errors("connecting to Dagster's database (DAGSTER_POSTGRES_URL)"),
        engine(settings.dagster_url, "DAGSTER_POSTGRES_URL", read_only=True) as database,
        database.connect() as connection,
    ):
        tables = ("runs", "event_logs", "jobs", "instance_info")
        found = sa.text("select count(to_regclass(name)) from unnest(cast(:tables as text[])) name")
        if connection.scalar(found, {"tables": list(tables)}) != len(tables):
            raise NotStartedError("Dagster has never been started on this database")
    folder = home or settings.data_dir / "dagster"
    config = folder if (folder / "dagster.yaml").exists() else ROOT
    with _environment(settings):
        reference = InstanceRef.from_dir(str(folder), config_dir=str(config))
        instance = dg.DagsterInstance.from_ref(reference)
    with instance:
        yield instance


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """Set the environment for a block: dagster.yaml reads the URL from it."""
    before = os.environ.copy()
    os.environ.update(settings.environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def dagster_instance(settings: Settings, home: Path | None = None) -> Iterator[dg.DagsterInstance]:
    """Yield Dagster's instance (its records and configuration), for a process that does not run inside Dagster.

    `home` is Dagster's folder; by default it is in the data folder.

    Raises:
        SettingsError: no URL is set.
        UnreachableError: Dagster's database cannot be reached.
    """
    if settings.dagster_url is None:
        raise SettingsError("DAGSTER_POSTGRES_URL is not set: Dagster's records cannot be found")
    try:
        with _environment(settings):
            instance = dg.DagsterInstance.from_config(str(home or dagster_home(settings)))
    except (DagsterPostgresException, sa.exc.DBAPIError) as error:
        cause = failure_cause(str(error.__cause__ or error))
        raise UnreachableError(f"the database of DAGSTER_POSTGRES_URL cannot be reached: {cause}") from None
    with instance:
        yield instance


@contextmanager
def dagster_storage(settings: Settings, home: Path | None = None) -> Iterator[DagsterStorage]:
    """Yield Dagster's records and run logs, to look at. Nothing is created. `home`: see `dagster_instance`."""
    if settings.dagster_url is None:
        raise SettingsError("DAGSTER_POSTGRES_URL is not set: Dagster's records cannot be found")
    with open_dagster_storage(settings.dagster_url, home or settings.data_dir / "dagster") as storage:
        yield storage


def wait_until_ready(
    process: subprocess.Popen[bytes],
    port: int,
    seconds: float = 180,
    *,
    name: str = "Dagster",
    path: str = "/server_info",
) -> None:
    """Wait until a web server answers. Raises ServerError when it ends or does not answer within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"{name} ended while starting; its output says why")
        try:
            # Sec-GPC opts out of counting: this is not a visit of the demonstration application.
            if requests.get(f"http://{HOST}:{port}{path}", headers={"Sec-GPC": "1"}, timeout=5, proxies=NO_PROXY).ok:
                return
        except requests.RequestException:
            time.sleep(0.3)
    raise ServerError(f"{name} did not answer within {seconds:.0f} seconds; its output says why")


def exit_on_sigterm() -> None:
    """Let SIGTERM and a closed terminal (SIGHUP) end this process like Ctrl-C: every `finally` runs."""

    def exit_process(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    def raise_again(unraisable: sys.UnraisableHookArgs) -> None:
        # Python ignores an exception inside a finalizer or a weak reference's callback. If a signal raised it there,
        # the process would run on for ever, as a demonstration once did. So raise it again when the finalizer is over.
        error = unraisable.exc_value
        if not isinstance(error, SystemExit | KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return

        def raise_error(_number: int, _frame: object) -> None:
            raise error

        signal.signal(signal.SIGALRM, raise_error)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    signal.signal(signal.SIGTERM, exit_process)
    signal.signal(signal.SIGHUP, exit_process)
    sys.unraisablehook = raise_again
