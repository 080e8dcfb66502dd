"""Looking at an installation: databases, services, runs, days, checks, retention, dumps, publication, alerts.

Nothing is written or created here. A part that cannot be read is a red line, never an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorTick,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickStatus,
)
from dagster_postgres.utils import DagsterPostgresException

from analytics_assets.contract import METRICS, CounterDumps
from analytics_assets.database import DatabaseError, NotStartedError, UnreachableError, place, redacted_errors
from analytics_assets.days import format_range, ranges, span, zone
from analytics_assets.dump_files import is_drop_file
from analytics_assets.operations import UNREADABLE, Level, Line
from analytics_assets.operations.alerts import Outbox
from analytics_assets.operations.late_dumps import FindLateDays, find_late_days
from analytics_assets.operations.receiver import ReceiverError, open_receiver
from analytics_assets.operations.runs import (
    RECENT_DAYS,
    days_in_progress,
    days_of_run,
    find_failed_runs,
    own_jobs,
    selected_assets,
)
from analytics_assets.operations.services import read_check, read_daemons
from analytics_assets.remote import RemoteError
from analytics_assets.retention.sweep import read_oldest, registry
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.sources import Problem
from analytics_assets.sources.counter_dumps import UNREADABLE as DUMPS_UNREADABLE
from analytics_assets.sources.counter_dumps import count_dumps, find_folder_problem, remote_problem
from analytics_assets.sources.drops import read_drops
from analytics_assets.sources.dump_folder import NothingThereError, open_folder
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import Window, read_collected_days, read_window
from analytics_assets.store.expiry import read_cutoff
from analytics_assets.store.gaps import DUE, missing_days
from analytics_assets.store.inspection import read_revision, read_server_version
from analytics_assets.store.published import read_last_published_days

ALERT_SENSOR: Final = "alert_sensor"
DAILY_SCHEDULE: Final = "daily_metrics_schedule"

DAILY_RUN_HOURS: Final = 26
"""The longest time without a daily run: a day, and two hours for the run itself."""
EVALUATED_MINUTES: Final = 15
"""The longest time without the evaluation of a sensor. The slowest one is due every five minutes."""
WAITING_MINUTES: Final = 15
"""A message that waits for longer means that the receiver does not take it."""

_Error = SettingsError | DatabaseError

_SHOWN_LIVE: Final = {"no_missing_days", "no_expired_days"}
"""Checks whose fact has lines of its own, which are as new as the look itself."""


def read_status(
    settings: Settings,
    instance: dg.DagsterInstance | SettingsError | DatabaseError,
    repository: dg.RepositoryDefinition,
    late_days: FindLateDays = find_late_days,
) -> list[Line]:
    """Look at everything.

    Where Dagster's records cannot be read, `instance` is the error. `repository` says which schedules, sensors and
    checks there should be. `late_days` finds the days with late dumps.
    """
    now = datetime.now(UTC)
    try:
        with open_store(settings) as store:
            lines, kept = _read_database(store)
            return [*lines, *_read_rest(store, kept, instance, repository, now, late_days=late_days)]
    except SettingsError as error:
        absent = Line("databases", "analytics database", Level.RED, str(error))
        lines = [absent, _unread("databases", "schema", absent)]
        return [*lines, *_read_rest(settings, absent, instance, repository, now, late_days=late_days)]


def exit_code(lines: Iterable[Line]) -> int:
    """Return 0 if everything is ok, 1 with a warning, 2 with a red line."""
    return max((line.level.exit_code for line in lines), default=0)


def _read_rest(
    store: Store | Settings,
    kept: _Kept | Line,
    instance: dg.DagsterInstance | _Error,
    repository: dg.RepositoryDefinition,
    now: datetime,
    *,
    late_days: FindLateDays,
) -> list[Line]:
    """Return every line but those of the analytics database. `store` is the settings if it has no URL.

    Where the days that are kept cannot be read, `kept` is the line that says why.
    """
    settings = store.settings if isinstance(store, Store) else store
    lines: list[Line] = []
    states: dict[str, _Instigator] = {}
    if not isinstance(instance, _Error):
        try:
            states = _read_instigators(instance, repository)
        except DatabaseError as error:
            instance = error
    if isinstance(instance, _Error):
        never = isinstance(instance, NotStartedError)
        records = Line("databases", "Dagster's database", Level.RED, str(instance), not_yet=never)
        lines += [records, *(_unread(group, UNREADABLE, records) for group in ("services", "runs", "checks"))]
    else:
        opened = instance
        records = Line("databases", "Dagster's database", Level.OK, place(settings.dagster_url))
        lines.append(records)
        lines += _guard("services", lambda: _list_services(opened, repository, states, now))
        lines += _guard("runs", lambda: _list_runs(opened, repository, states, kept, now))
        lines += _guard("checks", lambda: _list_checks(opened, repository))
    if isinstance(store, Store) and isinstance(kept, _Kept):
        settled = _settle(kept.window, now.astimezone(zone(settings.time_zone)))
        lines += _guard("days", lambda: _list_days(store, kept, instance))
        if isinstance(instance, _Error):
            lines.append(_unread("retention", UNREADABLE, records))
        else:
            lines += _guard("retention", lambda: _list_targets(store, instance, settled))
        lines += _guard("publication", lambda: [_check_publication(store, settled)])
    elif isinstance(kept, Line):
        lines += [_unread(group, UNREADABLE, kept) for group in ("days", "retention", "publication")]
    dumps = _guard("dumps", lambda: _list_dumps(settings, kept))
    lines += dumps
    refused = next((line for line in dumps if line.level is Level.RED and line.because_of is None), None)
    if refused is not None:
        lines.append(_unread("dumps", "late dumps", refused))
    elif isinstance(store, Store) and isinstance(kept, _Kept):
        lines += _guard("dumps", lambda: [_check_late_dumps(store, settled.last_closed, late_days)])
    elif isinstance(kept, Line):
        lines.append(_unread("dumps", "late dumps", kept))
    return [*lines, _check_receiver(settings, states.get(ALERT_SENSOR), records, now)]


def _unread(group: str, name: str, cause: Line) -> Line:
    """Return the line of what cannot be read because of another line. Without it, nobody could tell it from green."""
    return Line(group, name, Level.RED, f"{UNREADABLE}: see {cause.key}", because_of=cause.key)


def _guard(group: str, read: Callable[[], list[Line]]) -> list[Line]:
    """Return the lines of a group, or a red one that says why it cannot be read."""
    try:
        with _dagster_errors():
            return read()
    except (DatabaseError, SettingsError) as error:
        return [Line(group, UNREADABLE, Level.RED, str(error))]
    except OSError as error:
        # The text has a path.
        return [Line(group, UNREADABLE, Level.RED, f"a file or folder cannot be read: {type(error).__name__}")]


@contextmanager
def _dagster_errors() -> Iterator[None]:
    """Turn an error of Dagster's storages into a DatabaseError."""
    try:
        with redacted_errors("reading Dagster's records"):
            yield
    except DagsterPostgresException:
        raise UnreachableError("the database of DAGSTER_POSTGRES_URL cannot be reached") from None


def _settle(window: Window, now: datetime) -> Window:
    """Return the days by which publication and retention are judged: until `DUE`, those of the day before.

    A day ends at midnight, and what follows from it is done by `DUE`.
    """
    late = timedelta(days=0 if now.time() >= DUE else 1)
    return replace(window, first=window.first - late, last=window.last - late, last_closed=window.last_closed - late)


# --- databases


@dataclass(frozen=True)
class _Kept:
    """The days that are kept, and which of them are collected."""

    window: Window
    collected: Mapping[str, Set[date]]
    """Asset of a metric -> days."""

    def is_settled(self, asset: str, day: date) -> bool:
        """Whether nothing is to be done for a day: it has expired, or the daily job does not collect it again."""
        collected = asset not in self.collected or day in self.collected[asset]  # other assets have no days
        return day < self.window.first or (day < self.window.last_closed and collected)


def _read_database(store: Store) -> tuple[list[Line], _Kept | Line]:
    """Return the lines, and the days that are kept; where these cannot be read, the line that says why."""
    where = place(store.settings.database_url)
    try:
        version = read_server_version(store)
    except DatabaseError as error:
        away = Line("databases", "analytics database", Level.RED, f"{where}: {error}")
        return [away, _unread("databases", "schema", away)], away
    found = [Line("databases", "analytics database", Level.OK, f"{where}, PostgreSQL {version}")]
    try:
        window = read_window(store)
        kept = _Kept(window, read_collected_days(store, window))
        revision, problem = read_revision(store)
    except DatabaseError as error:
        refused = Line("databases", "schema", Level.RED, str(error))
        return [*found, refused], refused
    words = problem or f"revision {revision}; days since {window.first} are kept"
    return [*found, Line("databases", "schema", Level.RED if problem else Level.OK, words)], kept


# --- services


@dataclass(frozen=True)
class _Instigator:
    """A schedule or sensor as Dagster has noted it."""

    state: InstigatorState
    tick: InstigatorTick | None
    """The newest evaluation."""


def _read_instigators(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> dict[str, _Instigator]:
    names = _instigator_names(repository)
    found: list[_Instigator] = []
    with _dagster_errors():
        for state in instance.all_instigator_state():
            if state.instigator_name in names:
                ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
                found.append(_Instigator(state, ticks[0] if ticks else None))
    # The state under an earlier name of the code location stays for ever: the last one evaluated counts.
    found.sort(key=lambda each: each.tick.timestamp if each.tick else 0)
    return {each.state.instigator_name: each for each in found}


def _instigator_names(repository: dg.RepositoryDefinition) -> list[str]:
    return [*(each.name for each in repository.schedule_defs), *(each.name for each in repository.sensor_defs)]


def _list_services(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    states: Mapping[str, _Instigator],
    now: datetime,
) -> list[Line]:
    lines = [_check_daemons(instance), _check_code_location(states, now)]
    for name in _instigator_names(repository):
        found = states.get(name)
        since = _moment(found.tick.timestamp) if found and found.tick else None
        if found is None:
            line = Line("services", name, Level.WARNING, "not started yet", not_yet=True)
        elif not found.state.is_running:
            line = Line("services", name, Level.RED, "stopped: start it in the UI under Automation")
        elif found.tick and found.tick.status is TickStatus.FAILURE:
            line = Line("services", name, Level.RED, "its last evaluation failed: the UI says why", since)
        else:
            line = Line("services", name, Level.OK, "running")
        lines.append(line)
    return lines


def _check_daemons(instance: dg.DagsterInstance) -> Line:
    daemons = read_daemons(instance)
    beats = {name: status.last_heartbeat for name, status in daemons.items()}
    silent = [name for name, status in daemons.items() if not status.healthy]
    if not any(beats.values()):
        return Line("services", "daemon", Level.RED, "has never run", not_yet=True)
    if silent:
        last = min((beat.timestamp for name in silent if (beat := beats[name])), default=None)
        words = f"not heard of, or reports errors: {', '.join(silent)}"
        return Line("services", "daemon", Level.RED, words, _moment(last) if last else None)
    return Line("services", "daemon", Level.OK, "running")


def _check_code_location(states: Mapping[str, _Instigator], now: datetime) -> Line:
    ticks = [
        _moment(found.tick.timestamp)
        for found in states.values()
        if found.tick and found.state.instigator_type is InstigatorType.SENSOR
    ]
    if not ticks:
        return Line("services", "code location", Level.WARNING, "no sensor has been evaluated yet", not_yet=True)
    newest = max(ticks)
    if now - newest > timedelta(minutes=EVALUATED_MINUTES):
        return Line("services", "code location", Level.RED, "no sensor is evaluated any more", newest)
    return Line("services", "code location", Level.OK, "answers")


def _moment(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


# --- runs


def _list_runs(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    states: Mapping[str, _Instigator],
    kept: _Kept | Line,
    now: datetime,
) -> list[Line]:
    schedule = repository.get_schedule_def(DAILY_SCHEDULE)
    lines = [_check_daily_run(instance, schedule, states.get(schedule.name), now)]

    def is_settled(asset: dg.AssetKey, day: date) -> bool:
        return isinstance(kept, _Kept) and kept.is_settled(asset.to_user_string(), day)

    jobs = own_jobs(repository)
    failed: dict[str, list[dg.RunRecord]] = defaultdict(list)
    for record in find_failed_runs(instance, repository, now - timedelta(days=RECENT_DAYS), is_settled):
        name = record.dagster_run.job_name
        failed[name if name in jobs else _BY_HAND].append(record)
    for name in (*jobs, _BY_HAND):
        if isinstance(kept, Line) and any(days_of_run(record.dagster_run.tags) for record in failed[name]):
            lines.append(_unread("runs", name, kept))  # whether their days are settled is not known
        else:
            lines.append(_judge_runs(name, failed[name]))
    return lines


def _judge_runs(name: str, failed: Sequence[dg.RunRecord]) -> Line:
    """Return the line of a job. Its failed runs, newest first, are those that no later run has made good."""
    if not failed:
        return Line("runs", name, Level.OK, f"no failed run is left from the last {RECENT_DAYS} days")
    newest: dict[str, str] = {}
    for record in failed:
        newest.setdefault(_describe(record.dagster_run), record.dagster_run.run_id[:8])
    texts = [f"run {run_id} failed{f' ({what})' if what else ''}" for what, run_id in newest.items()]
    if len(texts) > _MAX_RUNS:
        texts[_MAX_RUNS:] = [f"and {len(texts) - _MAX_RUNS} more"]
    ended = failed[-1].end_time
    return Line("runs", name, Level.RED, "; ".join(texts), _moment(ended) if ended else None, tuple(newest))


def _describe(run: dg.DagsterRun) -> str:
    """Return the days of a run, and the assets if it names some: runs that fail on the same are told once."""
    days = _list_ranges(days_of_run(run.tags))
    assets = ", ".join(sorted(key.to_user_string() for key in selected_assets(run)))
    return "; ".join(text for text in (days, assets) if text)


_MAX_RUNS: Final = 5
"""Failed runs that a line shows, the newest first. The rest is a number."""

_BY_HAND: Final = "launched by hand"
"""Runs of assets or checks outside the jobs: those of the UI."""


def _check_daily_run(
    instance: dg.DagsterInstance, schedule: dg.ScheduleDefinition, found: _Instigator | None, now: datetime
) -> Line:
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    records = instance.get_run_records(dg.RunsFilter(job_name=schedule.job_name, statuses=ended), limit=20)
    last = max((_moment(record.end_time) for record in records if record.end_time), default=None)
    data = found.state.instigator_data if found else None
    started = data.start_timestamp if isinstance(data, ScheduleInstigatorData) else None
    if last is None and started is None:
        return Line("runs", "daily run", Level.WARNING, "none yet", not_yet=True)
    known = max(moment for moment in (last, _moment(started) if started else None) if moment)
    if now - known > timedelta(hours=DAILY_RUN_HOURS):
        return Line("runs", "daily run", Level.RED, f"none for {DAILY_RUN_HOURS} hours", known)
    return Line("runs", "daily run", Level.OK, "ended" if last else "none yet; the schedule runs", last)


# --- days


def _list_days(store: Store, kept: _Kept, instance: dg.DagsterInstance | _Error) -> list[Line]:
    missing = missing_days(store)
    in_progress = {} if isinstance(instance, _Error) else days_in_progress(instance)
    lines = []
    for metric in METRICS:
        days = sorted(set(missing[metric.asset]) - in_progress.get(metric.asset, set()))
        number = len(kept.collected[metric.asset])
        if days:
            words = f"{number} days; missing: {_list_ranges(days)}"
            line = Line("days", metric.asset, Level.RED, words, facts=tuple(map(str, days)))
        elif not number and any(kept.collected.values()):
            line = Line("days", metric.asset, Level.WARNING, "none yet, although other metrics have some")
        else:
            line = Line("days", metric.asset, Level.OK, f"{number} days")
        lines.append(line)
    return lines


def _list_ranges(days: Sequence[date]) -> str:
    return ", ".join(format_range(first, last) for first, last in ranges(days))


# --- checks


def _list_checks(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> list[Line]:
    keys = sorted(key for key in repository.asset_graph.asset_check_keys if key.name not in _SHOWN_LIVE)
    lines = []
    for key in keys:
        state = read_check(instance, key)
        name = f"{key.name} of {key.asset_key.to_user_string()}"
        if state is None:
            lines.append(Line("checks", name, Level.OK, "not executed yet"))
        else:
            words = "passed" if state.level is Level.OK else "failed"
            lines.append(Line("checks", name, state.level, words, None if state.level is Level.OK else state.since))
    return lines


# --- retention


def _list_targets(store: Store, instance: dg.DagsterInstance, settled: Window) -> list[Line]:
    # While the cut-off is in doubt, nothing is removed, and check `cutoff_is_certain` is red.
    first_kept = min(settled.first, read_cutoff(store).certain)
    lines = []
    for report in read_oldest(registry(store, instance)):
        if report.problem:
            line = Line("retention", report.target, Level.RED, report.problem)
        elif report.oldest is not None and report.oldest < first_kept:
            line = Line("retention", report.target, Level.RED, f"{report.oldest} has expired and is still there")
        else:
            line = Line("retention", report.target, Level.OK, str(report.oldest or "empty"))
        lines.append(line)
    return lines


# --- publication


def _check_publication(store: Store, settled: Window) -> Line:
    published = read_last_published_days(store)
    if not published:
        return Line("publication", "published through", Level.OK, "nothing yet")
    last = min(published.values())
    if last < settled.last_closed:
        words = f"{last}; {settled.last_closed} is closed and not published"
        return Line("publication", "published through", Level.WARNING, words)
    return Line("publication", "published through", Level.OK, str(last))


# --- dumps


def _list_dumps(settings: Settings, kept: _Kept | Line) -> list[Line]:
    today = settings.today()
    recent = span(today - timedelta(days=RECENT_DAYS - 1), today)
    dump_fed = [metric.asset for metric in METRICS if isinstance(metric.origin, CounterDumps)]
    # Where nothing was ever collected from dumps, it is no fault that there are none.
    new = isinstance(kept, _Kept) and not any(kept.collected[asset] for asset in dump_fed)
    files = before = 0
    telemetry = Line("dumps", "telemetry", Level.OK, f"dropped nothing in {RECENT_DAYS} days")
    try:
        with open_folder(settings, recent, is_drop_file) as folder:
            nothing = not folder.exists()
            problem = find_folder_problem(folder)
            if problem is None:
                files, before = (count_dumps(folder, day) for day in (today, today - timedelta(days=1)))
                telemetry = _check_drops(folder, recent)
    except RemoteError as error:
        nothing, problem = isinstance(error, NothingThereError), remote_problem(error)
    if nothing and new:
        return [Line("dumps", "dumps of today", Level.OK, "none yet, and no folder"), telemetry]
    if nothing and isinstance(kept, Line):
        return [_unread("dumps", name, kept) for name in ("dumps of today", "telemetry")]
    if problem is not None:
        refused = Line("dumps", "dumps of today", Level.RED, str(problem))
        return [refused, _unread("dumps", "telemetry", refused)]
    if files or before:
        line = Line("dumps", "dumps of today", Level.OK, f"{files:,} file{'' if files == 1 else 's'}")
    elif new:
        line = Line("dumps", "dumps of today", Level.OK, "none yet")
    elif isinstance(kept, Line):
        line = _unread("dumps", "dumps of today", kept)
    else:
        line = Line("dumps", "dumps of today", Level.WARNING, "0 files, and none of yesterday")
    return [line, telemetry]


def _check_drops(folder: Path, days: Sequence[date]) -> Line:
    """Judge what telemetry has dropped on some days. How much that was, is in the drop files."""
    drops = read_drops(folder, days)
    facts = [f"{day}: {reason}" for day, reasons in sorted(drops.counts.items()) for reason in sorted(reasons)]
    facts += map(str, drops.problems)
    if facts:
        words = f"counts were dropped, or a drop file cannot be read: {'; '.join(facts)}"
        return Line("dumps", "telemetry", Level.WARNING, words, facts=tuple(facts))
    return Line("dumps", "telemetry", Level.OK, f"dropped nothing in {RECENT_DAYS} days")


def _check_late_dumps(store: Store, last: date, late_days: FindLateDays) -> Line:
    """Judge the days that the daily job does not collect again."""
    name = "late dumps"
    try:
        days = late_days(store, last)
    except RemoteError as error:
        return Line("dumps", name, Level.RED, str(remote_problem(error)))
    except OSError:
        return Line("dumps", name, Level.RED, str(Problem("dump folder", DUMPS_UNREADABLE)))
    if days:
        words = f"dumps have come or changed after their day was collected; materialize again: {_list_ranges(days)}"
        return Line("dumps", name, Level.WARNING, words, facts=tuple(map(str, days)))
    return Line("dumps", name, Level.OK, "none")


# --- alerts


def _check_receiver(settings: Settings, sensor: _Instigator | None, records: Line, now: datetime) -> Line:
    """Judge where alerts go. `records` is the line of Dagster's database, which holds the messages that wait."""
    if settings.alert_url is None:
        return Line("alerts", "receiver", Level.OK, "the log, because ANALYTICS_ALERT_URL is not set")
    try:
        open_receiver(settings.alert_url)
    except ReceiverError as error:
        return Line("alerts", "receiver", Level.RED, str(error))
    if records.level is Level.RED:
        return _unread("alerts", "receiver", records)
    data = sensor.state.instigator_data if sensor else None
    outbox = Outbox.load(data.cursor if isinstance(data, SensorInstigatorData) else None)
    if outbox.refused_since and now - outbox.refused_since > timedelta(minutes=WAITING_MINUTES):
        words = f"takes no message; {len(outbox.waiting)} wait"
        return Line("alerts", "receiver", Level.RED, words, outbox.refused_since)
    return Line("alerts", "receiver", Level.OK, "ANALYTICS_ALERT_URL")
