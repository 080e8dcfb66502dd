"""The registry of places that keep days, and going through it: what is overdue, what would go, remove and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import dagster as dg

from analytics_assets.database import DatabaseError
from analytics_assets.retention.dagster_records import CheckEvaluations, PartitionRecords, Records, runs, ticks
from analytics_assets.retention.targets import NOTHING, Amount, CollectedDays, DailyCounts, Files, Place, PlaceError
from analytics_assets.settings import Settings
from analytics_assets.store.counts import Store, open_store

WITHOUT_DAYS: Final[Mapping[str, str]] = {
    "analytics.alembic_version": "name of a migration",
    "analytics.retention_ledger": "evidence: how many days and rows were removed, never what was in them",
    "analytics.settings": "retention period and time zone",
    "dagster.alembic_version": "name of a migration",
    "dagster.concurrency_limits": "configuration",
    "dagster.concurrency_slots": "emptied when a run ends",
    "dagster.daemon_heartbeats": "one row a daemon, written over",
    "dagster.dynamic_partitions": "not used: partitions follow from the calendar",
    "dagster.instance_info": "an identifier",
    "dagster.instigators": "one row a schedule or sensor, written over",
    "dagster.jobs": "one row a schedule or sensor, written over",
    "dagster.kvs": "configuration",
    "dagster.pending_steps": "emptied when a run ends",
    "dagster.secondary_indexes": "names of migrations",
    "dagster.snapshots": "what jobs look like",
    "data/dagster.log": "made anew at each start; names runs and days, not what was counted",
    "data/dagster/.logs_queue": "emptied when Dagster reads it",
    "data/dagster/dagster.yaml": "configuration",
    "data/dagster/logs": "not used: run logs are in storage",
    "data/demo_app.log": "made anew at each start; nothing of a request is in it",
    "data/postgres": "the server's own files: what it keeps is listed here by table",
}
"""Where no day is kept, and why: relations of our schema and of Dagster's, parts of the data folder."""


BY_HAND: Final = "command line"
"""What the ledger has instead of the id of a run."""


def registry(settings: Settings, store: Store, instance: dg.DagsterInstance) -> list[Place]:
    """Every place that keeps days. What is neither here nor in WITHOUT_DAYS fails a test."""
    records = Records(instance)
    return [
        DailyCounts(store),
        CollectedDays(store),
        Files("counter dumps", ("data/dumps",), settings.dump_dir, settings.time_zone, only_days=True),
        PartitionRecords(records),
        CheckEvaluations(records),
        runs(records, settings.time_zone),
        Files("run logs", ("data/dagster/storage",), Path(instance.storage_directory()), settings.time_zone),
        ticks(records, settings.time_zone),
    ]


@dataclass(frozen=True)
class Report:
    """What was found in a place, or done there."""

    place: str
    expired: Amount = NOTHING
    """What has been removed, or would be."""
    oldest: date | None = None
    """The oldest day that is there, after the removal if there was one."""
    problem: str = ""


def apply_retention(
    settings: Settings, instance: dg.DagsterInstance, run_id: str, *, dry_run: bool = False
) -> tuple[date, list[Report]]:
    """Remove everywhere what has expired, or with `dry_run` only look. Returns the first day that is kept, and reports.

    Raises:
        DatabaseError: the analytics database is out of reach or not set up, so that it cannot say what has expired.
    """
    with open_store(settings) as store:
        before = store.window().first
        places = registry(settings, store, instance)
        return before, preview(places, before) if dry_run else sweep(places, before, store, run_id)


def overdue(places: Sequence[Place], before: date) -> list[str]:
    """Places that keep a day before `before`, or cannot tell; as text that names no day."""
    found = []
    for place in places:
        report = _attempt(place, lambda place: Report(place.name, oldest=place.oldest()))
        if report.problem:
            found.append(f"{place.name}: {report.problem}")
        elif report.oldest is not None and report.oldest < before:
            late = (before - report.oldest).days
            found.append(f"{place.name}: the oldest day is {late} days older than the first one that is kept")
    return found


def preview(places: Sequence[Place], before: date) -> list[Report]:
    """What `sweep` would remove."""
    return [
        _attempt(place, lambda place: Report(place.name, place.expired(before), place.oldest())) for place in places
    ]


def sweep(places: Sequence[Place], before: date, store: Store, run_id: str) -> list[Report]:
    """Remove the days before `before` everywhere, read back, and write an entry of the ledger for each step.

    A place with nothing to remove has an entry, too. Trouble in one place does not keep the others. `run_id` is
    Dagster's, or says who else removes.
    """

    def write(place: Place, removed: Amount) -> date | None:
        oldest = place.oldest()
        store.write_ledger(
            run_id=run_id,
            cutoff=before,
            store=place.name,
            days=removed.days,
            rows=removed.rows,
            oldest_remaining=oldest,
        )
        return oldest

    def remove(place: Place) -> Report:
        steps = []
        for removed in place.remove(before):
            oldest = write(place, removed)
            steps.append(removed)
        if not steps:
            oldest = write(place, NOTHING)
        left = "something that has expired is still there" if oldest is not None and oldest < before else ""
        total = Amount(sum(step.days for step in steps), sum(step.rows for step in steps))
        return Report(place.name, total, oldest, left)

    return [_attempt(place, remove) for place in places]


def _attempt(place: Place, action: Callable[[Place], Report]) -> Report:
    try:
        return action(place)
    except (DatabaseError, PlaceError) as error:
        return Report(place.name, problem=str(error))
    except OSError as error:
        # Its text has a path, and a stray file may be called anything.
        return Report(place.name, problem=f"a file or folder cannot be read or removed: {type(error).__name__}")
