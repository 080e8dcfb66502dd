"""The demonstration: a made-up application, its activity, a backfill of every retained day, pages, a summary, the UI.

It uses Dagster as people do from the UI: it requests a backfill, and the daemon runs it. The daemon looks for backfills
when it starts and then every 30 seconds, so the days that were filled now are requested before it starts, without the
webserver.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple, NoReturn

import dagster as dg
import requests
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.utils import make_new_backfill_id
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from analytics_assets.contract import FRICTION_PATH, METRICS, PAGES, PUBLISHED_PATH, SOURCE_VIEWS
from analytics_assets.database import engine
from analytics_assets.days import span
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.checks import (
    CUTOFF_IS_CERTAIN,
    LEDGER_KEY,
    NO_EXPIRED_DAYS,
    NOT_RECOVERABLE,
    ONLY_FIVES,
    ONLY_VIEWS,
    SAY_ONLY_WHAT_IS_PUBLISHED,
)
from analytics_assets.defs.evaluation import DOCUMENTED, NO_FRICTION
from analytics_assets.defs.pages import PUBLISHED
from analytics_assets.demo.activity import click_through, create_demo_app, missing_days, record_activity
from analytics_assets.demo.webserver import Webserver
from analytics_assets.local.postgres import embedded_postgres, ensure_database
from analytics_assets.local.processes import ServerError, stop
from analytics_assets.local.server import (
    HOST,
    alone,
    dagster_dev,
    dagster_instance,
    databases,
    require_free_port,
    wait_until_ready,
)
from analytics_assets.publication.pages.publish import INSTALLED
from analytics_assets.retention.sweep import MANUAL, apply_retention
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.counts import count_collected_since, read_days, read_window

EXPIRED_DAYS: Final = 20
"""Days of activity that are older than the retention period, so that there is something to remove."""
ASSETS: Final = [metric.asset for metric in METRICS]
PUBLICATION: Final = [PUBLISHED_PATH[0], FRICTION_PATH[0], *(PAGES if INSTALLED else ())]
SHARED_CHECKS: Final = [
    *(("/".join(view.path), ONLY_VIEWS) for view in SOURCE_VIEWS),
    *((LEDGER_KEY.to_user_string(), name) for name in (NO_EXPIRED_DAYS, CUTOFF_IS_CERTAIN, DOCUMENTED)),
    *((PUBLISHED_PATH[0], name) for name in (ONLY_FIVES, NOT_RECOVERABLE)),
    *([(PUBLISHED, SAY_ONLY_WHAT_IS_PUBLISHED)] if INSTALLED else []),
]
"""(asset, check) of what concerns every metric. The daily job executes these checks once per run."""
PAGES_TO_SEE: Final = {
    "the core team": "core/index.html",
    "everybody": "overview/index.html",
    "the organizer of event 1": "events/1/index.html",
}
"""Who a page is for -> its path below the folder of the pages."""
_FINAL_RUN_STATUSES: Final = {"SUCCESS", "FAILURE", "CANCELED"}
_FINAL_BACKFILL_STATUSES: Final = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "CANCELED", "FAILED"}


def run(settings: Settings, port: int, app_port: int, *, once: bool) -> bool:
    """Run the demonstration until Ctrl-C, or with `once` until the summary. Returns whether everything is green.

    Raises:
        ServerError: Dagster or the application did not start, or ended unexpectedly.
    """
    require_free_port(port, "--port")
    require_free_port(app_port, "--app-port")
    console = Console()
    data_dir = settings.data_dir / "demo"
    settings = replace(
        settings,
        database_url=None,
        source_url=None,
        dagster_url=None,
        data_dir=data_dir,
        dump_dir=data_dir / "dumps",
        dump_url=None,
        publish_dir=data_dir / "pages",
        owns_dagster=True,
        alert_url=None,
    )
    try:
        with (
            alone(settings),
            _progress(console) as progress,
            _host_application(settings, progress) as (with_source, app_database_url, filled_days),
            databases(with_source) as ready,
            _prepare_dagster(ready, filled_days, progress) as requested,
            dagster_dev(ready, port, ready.data_dir / "dagster.log") as dagster,
            _run_application(ready, app_database_url, app_port) as app,
        ):
            with _step(progress, "Demo application"):
                wait_until_ready(app, app_port, name="The application", path="/events")
            with _step(progress, "Dagster webserver and daemon"):
                _write_to_disk(ready)
                wait_until_ready(dagster, port)
            webserver = Webserver(f"http://{HOST}:{port}")
            backfilled = _backfill(webserver, ready, requested, progress)
            with _step(progress, "Publication, friction, pages, checks"):
                published = _publish(webserver, anew=backfilled)
            progress.stop()
            green = _print_summary(webserver, ready, console) and published
            _print_pages(ready, console)
            app_url = f"http://{HOST}:{app_port}"
            if not once:
                console.print(f"Demo application: {app_url} (today's clicks appear tomorrow)")
                console.print(f"Dagster UI: {webserver.url} (Ctrl-C stops both)")
                _watch({"Dagster": dagster, "The application": app}, ready)
            _send_sample_requests(app_url)
            console.print("Sent some requests to the application; today's clicks appear tomorrow.")
            return green
    except KeyboardInterrupt:
        console.print("Stopped; the next start continues from here.")
        return not once


def _write_to_disk(settings: Settings) -> None:
    """Let PostgreSQL write its new databases to disk, which takes seconds, while Dagster starts and not at the end."""
    with engine(settings.dagster_url, "dagster") as database, database.connect() as connection:
        connection.exec_driver_sql("checkpoint")


def _send_sample_requests(url: str) -> None:
    try:
        click_through(url)
    except requests.RequestException:
        raise ServerError("the demo application did not answer as expected; its log says why") from None


def _watch(processes: Mapping[str, subprocess.Popen[bytes]], settings: Settings) -> NoReturn:
    """Raise ServerError when one of the processes ends, which none should."""
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise ServerError(f"{name} has ended; the logs in {settings.data_dir} say why")
        time.sleep(0.5)


@contextmanager
def _run_application(settings: Settings, database_url: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the application behind uvicorn, with its output in `demo_app.log`."""
    require_free_port(port, "--app-port")
    app_settings = {
        "DEMO_APP_DATABASE_URL": database_url,
        "DEMO_APP_DUMP_DIR": str(settings.dump_dir),
        "DEMO_APP_TIME_ZONE": settings.time_zone,
    }
    # An access log would contain paths and queries.
    options = ["--host", HOST, "--port", str(port), "--no-access-log", "--timeout-graceful-shutdown", "1"]
    with (settings.data_dir / "demo_app.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and constants
            [sys.executable, "-m", "uvicorn", "--factory", "analytics_assets.demo.app:create_app", *options],
            env=os.environ | app_settings,
            stdout=log,
            stderr=log,
            start_new_session=True,  # see dagster_dev
        )
        try:
            yield process
        finally:
            stop(process)


class _Lines:
    """Progress as lines, for a log or a pipe: where nobody sees a bar move, Rich prints it only at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._tasks: list[tuple[str, int, int]] = []
        """Text, how much there is to do, and how much is done."""

    def add_task(self, text: str, total: int) -> TaskID:
        """Say what begins."""
        self._tasks.append((text, total, 0))
        self._print(f"{text} ...")
        return TaskID(len(self._tasks) - 1)

    def update(self, task: TaskID, completed: int) -> None:
        """Say how much is done, whenever it is a quarter more."""
        text, total, before = self._tasks[task]
        self._tasks[task] = (text, total, completed)
        if completed * 4 // total > before * 4 // total:
            self._print(f"{text}: {completed:,} of {total:,}" if total > 1 else f"{text}: done")

    def advance(self, task: TaskID) -> None:
        """One more is done."""
        self.update(task, self._tasks[task][2] + 1)

    def stop(self) -> None:
        """Nothing is left to print."""

    def _print(self, line: str) -> None:
        seconds = f"{time.monotonic() - self._started:5.0f} s  "
        self._console.print(seconds + line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator[Progress | _Lines]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        yield progress


@contextmanager
def _step(progress: Progress | _Lines, text: str) -> Iterator[None]:
    task = progress.add_task(text, total=1)
    yield
    progress.update(task, completed=1)


class _Requested(NamedTuple):
    """A backfill of every asset."""

    id: str
    days: Sequence[date]
    at: datetime


@contextmanager
def _prepare_dagster(
    settings: Settings, filled: Sequence[date], progress: Progress | _Lines
) -> Iterator[list[_Requested]]:
    """Do what must be done before Dagster starts. Yield the backfill of the days that were filled now, if any.

    Its daemon would remove expired days at an unpredictable time, and look for a new backfill half a minute later.
    """
    with dagster_instance(settings) as instance:
        with _step(progress, "Retention: remove expired days"):
            _, reports = apply_retention(settings, instance, MANUAL)
        if any(report.problem for report in reports):
            raise ServerError("expired days could not be removed; `analytics-assets retention` says why")
        with open_store(settings) as store:
            window = read_window(store)
        days = [day for day in filled if window.has(day)]
        backfills = [_request_backfill(settings, instance, days)] if days else []
    yield backfills


def _request_backfill(settings: Settings, instance: dg.DagsterInstance, days: Sequence[date]) -> _Requested:
    """Request a backfill as the webserver does."""
    now = datetime.now(UTC)
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id=make_new_backfill_id(),
        asset_graph=build_definitions(settings).resolve_asset_graph(),
        partition_names=list(map(str, days)),
        asset_selection=list(map(dg.AssetKey, ASSETS)),
        backfill_timestamp=now.timestamp(),
        tags={},
        dynamic_partitions_store=instance,
        all_partitions=False,
        title=None,
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill)
    return _Requested(backfill.backfill_id, days, now)


@contextmanager
def _host_application(settings: Settings, progress: Progress | _Lines) -> Iterator[tuple[Settings, str, list[date]]]:
    """Yield settings with the source URL, the URL of the application's owner, and the days that were filled now."""
    starting = progress.add_task("PostgreSQL", total=1)
    with embedded_postgres(settings.data_dir) as server:
        progress.update(starting, completed=1)
        url = ensure_database(server, "demo_app")
        today = settings.today()
        days = span(today - timedelta(days=settings.retention_days + EXPIRED_DAYS), today - timedelta(days=1))
        owner = url.render_as_string(hide_password=False)
        with engine(owner, "demo_app") as database, database.connect() as connection:
            create_demo_app(connection)
            missing = missing_days(connection, days)
            task = progress.add_task("Demo application: days of activity", total=len(days))
            progress.update(task, completed=len(days) - len(missing))
            record_activity(
                connection, settings.dump_dir, missing, settings.time_zone, lambda _: progress.advance(task)
            )
        reader = url.set(username="analytics_source_reader").render_as_string(hide_password=False)
        yield replace(settings, source_url=reader), owner, missing


def _backfill(
    webserver: Webserver, settings: Settings, backfills: list[_Requested], progress: Progress | _Lines
) -> bool:
    """Materialize the retained days that are not materialized or were filled now. Returns whether there were any.

    `backfills` have been requested. The webserver launches one of the other days.
    """
    with open_store(settings) as store:
        window = read_window(store)
        kept = span(window.first, window.last)
        done = webserver.materialized_days(ASSETS)
        awaited = {day for backfill in backfills for day in backfill.days}
        if days := [day for day in kept if day not in awaited and any(day not in done[asset] for asset in ASSETS)]:
            now = datetime.now(UTC)
            backfills.append(_Requested(webserver.launch_backfill(ASSETS, days), days, now))
            awaited.update(days)
        already = (len(kept) - len(awaited)) * len(ASSETS)
        task = progress.add_task("Backfill: days x assets", total=len(kept) * len(ASSETS))
        progress.update(task, completed=already)
        if not backfills:
            return False
        launched, expected = min(backfill.at for backfill in backfills), len(awaited) * len(ASSETS)
        while not all(webserver.backfill_status(backfill.id) in _FINAL_BACKFILL_STATUSES for backfill in backfills):
            collected = count_collected_since(store, launched)
            progress.update(task, completed=already + collected)
            # The daemon notices up to 30 seconds later that the last run has ended.
            if collected >= expected and not any(
                map(webserver.unfinished_runs, (backfill.id for backfill in backfills))
            ):
                break
            time.sleep(0.5)
        return True


def _publish(webserver: Webserver, *, anew: bool) -> bool:
    """Do what the daily job does after the metrics, unless nothing has changed. Returns whether it succeeded."""
    if not anew and not _failing_shared_checks(webserver):
        return True
    run_id = webserver.launch_run(PUBLICATION, SHARED_CHECKS)
    while (status := webserver.run_status(run_id)) not in _FINAL_RUN_STATUSES:
        time.sleep(0.5)
    return status == "SUCCESS"


def _failing_shared_checks(webserver: Webserver) -> list[str]:
    statuses = webserver.check_statuses([asset for asset, _ in SHARED_CHECKS])
    return [f"{name} of {asset}" for asset, name in SHARED_CHECKS if statuses[asset][name] != "SUCCEEDED"]


def _print_summary(webserver: Webserver, settings: Settings, console: Console) -> bool:
    """Print the stored counts and the checks of each metric. Returns whether everything is green."""
    table = Table("metric", "days", "rows", "total", "checks", title="Stored counts")
    for column in table.columns[1:4]:
        column.justify = "right"
    materialized = webserver.materialized_days(ASSETS)
    checks = webserver.check_statuses(ASSETS)
    green = True
    with open_store(settings) as store:
        window = read_window(store)
        kept = span(window.first, window.last)
        for metric in METRICS:
            stored = read_days(store, metric, kept).values()
            days = len(materialized[metric.asset] & set(kept))
            statuses = dict(checks[metric.asset])
            friction = statuses.get(NO_FRICTION) == "WARNED"  # expected: some is planted
            if friction:
                del statuses[NO_FRICTION]
            failing = [f"{name}: {status}" for name, status in statuses.items() if status != "SUCCEEDED"]
            green = green and days == len(kept) and bool(checks[metric.asset]) and not failing
            table.add_row(
                metric.asset,
                f"{days} of {len(kept)}",
                f"{sum(day.rows for day in stored):,}",
                f"{sum(day.total for day in stored):,}",
                "[red]" + ", ".join(failing)
                if failing
                else f"[green]{len(statuses)} passed" + (", [yellow]planted friction found" if friction else ""),
            )
    console.print(table)
    failing = _failing_shared_checks(webserver)
    console.print(
        f"[red]Not passed: {', '.join(failing)}."
        if failing
        else "The pipeline's login can read only the source views. No expired day is left. Everything is documented.\n"
        "From what is published, no day can be worked out."
    )
    return green and not failing


def _print_pages(settings: Settings, console: Console) -> None:
    for reader, path in PAGES_TO_SEE.items():
        page = settings.publish_dir.resolve() / path
        if page.exists():
            # In one line, so that it can be clicked and copied.
            console.print(f"Page for {reader}: {page.as_uri()}", soft_wrap=True)
