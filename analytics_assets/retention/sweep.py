"""The registry of retention targets: finding what is overdue, previewing, removing and reading back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import dagster as dg

from analytics_assets.database import DatabaseError
from analytics_assets.remote import RemoteError
from analytics_assets.retention.dagster_records import (
    CheckEvaluations,
    DagsterStorage,
    PartitionRecords,
    Records,
    runs,
    ticks,
)
from analytics_assets.retention.targets import (
    NOTHING,
    Amount,
    CollectedDays,
    DailyCounts,
    Files,
    Friction,
    Pages,
    PublishedCarries,
    PublishedDays,
    RemoteDumps,
    RetentionTarget,
    TargetError,
)
from analytics_assets.settings import Settings
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.expiry import require_certain_cutoff, write_ledger

EXEMPT: Final[Mapping[str, str]] = {
    "analytics.alembic_version": "name of a migration",
    "analytics.collected_since": "the day on which collecting a metric began, never what was counted",
    "analytics.retention_ledger": "evidence: how many days and rows were removed, never what was in them",
    "analytics.settings": "retention period and time zone",
    "dagster.alembic_version": "name of a migration",
    "dagster.concurrency_limits": "configuration",
    "dagster.concurrency_slots": "emptied when a run ends",
    "dagster.daemon_heartbeats": "one row per daemon, overwritten",
    "dagster.dynamic_partitions": "not used: partitions follow from the calendar",
    "dagster.instance_info": "an identifier",
    "dagster.instigators": "one row per schedule or sensor, overwritten: the alert sensor names missing days in it",
    "dagster.jobs": "one row per schedule or sensor, overwritten",
    "dagster.kvs": "configuration",
    "dagster.pending_steps": "emptied when a run ends",
    "dagster.secondary_indexes": "names of migrations",
    "dagster.snapshots": "what jobs look like",
    "data/dagster.log": "overwritten at each start; names runs and days, not what was counted",
    "data/dagster/.logs_queue": "emptied when Dagster reads it",
    "data/dagster/dagster.yaml": "configuration",
    "data/dagster/logs": "not used: run logs are in storage",
    "data/demo_app.log": "overwritten at each start; contains no request data",
    "data/postgres": "the server's own files: its tables are listed by name",
}
"""Relation or part of the data folder that keeps no days -> the reason."""

MANUAL: Final = "command line"
"""The ledger's run id of a removal that no Dagster run made."""


def registry(store: Store, instance: dg.DagsterInstance | DagsterStorage) -> list[RetentionTarget]:
    """Return every retention target. A test fails for anything that is neither here nor in EXEMPT."""
    settings = store.settings
    records = Records(instance, settings)
    logs = Path(instance.storage_directory())
    of_runs = None if settings.owns_dagster else records.our_runs
    return [
        *list_own_targets(store),
        PartitionRecords(records),
        CheckEvaluations(records),
        Files("run logs", ("data/dagster/storage",), logs, settings.time_zone, runs=of_runs),
        runs(records, settings.time_zone, logs),
        ticks(records, settings.time_zone),
    ]


def list_own_targets(store: Store) -> list[RetentionTarget]:
    """Return the retention targets that are not Dagster's."""
    settings = store.settings
    dumps: RetentionTarget
    if settings.dump_url is None:
        dumps = Files("counter dumps", ("data/dumps",), settings.dump_dir, settings.time_zone, only_days=True)
    else:
        dumps = RemoteDumps(settings.dump_url, settings.time_zone)
    return [
        DailyCounts(store),
        CollectedDays(store),
        PublishedDays(store),
        PublishedCarries(store),
        Friction(store),
        dumps,
        Pages(settings.publish_dir),
    ]


@dataclass(frozen=True)
class Report:
    """What a target keeps, or what was removed from it."""

    target: str
    expired: Amount = NOTHING
    """What was removed, or would be."""
    oldest: date | None = None
    """The oldest day that is left."""
    problem: str = ""


def apply_retention(
    settings: Settings, instance: dg.DagsterInstance | DagsterStorage, run_id: str, *, dry_run: bool = False
) -> tuple[date, list[Report]]:
    """Remove what has expired from every target. With `dry_run`, only report it.

    Returns the first day that is kept, and a report per target.

    Raises:
        UncertainError: the cut-off has moved further than time can have passed. Nothing was removed.
        DatabaseError: the analytics database, which says what has expired, is out of reach or not set up.
    """
    with open_store(settings) as store:
        before = read_window(store).first
        if not dry_run:
            require_certain_cutoff(store)
        targets = registry(store, instance)
        return before, preview(targets, before) if dry_run else sweep(targets, before, store, run_id)


def find_overdue(targets: Sequence[RetentionTarget], before: date) -> list[str]:
    """Return one line per target that keeps an older day or cannot be read. The lines name no day."""
    found = []
    for report in read_oldest(targets):
        if report.problem:
            found.append(f"{report.target}: {report.problem}")
        elif report.oldest is not None and report.oldest < before:
            late = (before - report.oldest).days
            found.append(f"{report.target}: the oldest day is {late} days older than the first one that is kept")
    return found


def read_oldest(targets: Sequence[RetentionTarget]) -> list[Report]:
    """Return a report per target with the oldest day that it keeps, or the problem."""
    return [_attempt(target, lambda target: Report(target.name, oldest=target.oldest())) for target in targets]


def preview(targets: Sequence[RetentionTarget], before: date) -> list[Report]:
    """Report what `sweep` would remove."""
    return [
        _attempt(target, lambda target: Report(target.name, target.expired(before), target.oldest()))
        for target in targets
    ]


def sweep(targets: Sequence[RetentionTarget], before: date, store: Store, run_id: str) -> list[Report]:
    """Remove the days before `before` from every target, read back, and write a ledger entry per step.

    A target with nothing to remove gets an entry, too. A failure at one target does not stop the others.
    """

    def write(target: RetentionTarget, removed: Amount) -> date | None:
        oldest = target.oldest()
        entry = {"run_id": run_id, "cutoff": before, "target": target.name, "oldest_remaining": oldest}
        write_ledger(store, **entry, days=removed.days, rows=removed.rows)
        return oldest

    def remove(target: RetentionTarget) -> Report:
        steps = []
        for removed in target.remove(before):
            oldest = write(target, removed)
            steps.append(removed)
        if not steps:
            oldest = write(target, NOTHING)
        left = "an expired day is still there" if oldest is not None and oldest < before else ""
        total = Amount(sum(step.days for step in steps), sum(step.rows for step in steps))
        return Report(target.name, total, oldest, left)

    return [_attempt(target, remove) for target in targets]


def _attempt(target: RetentionTarget, action: Callable[[RetentionTarget], Report]) -> Report:
    try:
        return action(target)
    except (DatabaseError, RemoteError, TargetError) as error:
        return Report(target.name, problem=str(error))
    except OSError as error:
        # The text has a path, and a stray file may have any name.
        return Report(target.name, problem=f"a file or folder cannot be read or removed: {type(error).__name__}")
