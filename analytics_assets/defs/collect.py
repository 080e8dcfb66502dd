"""Collecting: count each day at its source, guard, replace the day in the store.

How a day is counted belongs to `sources`, how it is stored to `store`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from typing import Final

import dagster as dg
from pydantic import Field

from analytics_assets.contract import Metric
from analytics_assets.database import DatabaseError, UnreachableError
from analytics_assets.days import format_range, ranges
from analytics_assets.defs.evaluation import AT_SOURCE, as_event, bullet_list, evaluate, make_result, open_reader
from analytics_assets.defs.retries import RETRIES
from analytics_assets.guard import Row
from analytics_assets.operations.runs import days_in_progress
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, OriginRefusedError, Problem, Reader
from analytics_assets.sources.app_views import CHUNK_DAYS
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import DayRefusedError, Stored, Window, read_window, replace_days
from analytics_assets.store.expiry import read_cutoff

_CHUNK_ROWS: Final = 40_000
"""Days are stored together while they have fewer rows. Two chunks are in memory at a time."""

Results = Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]

_RECOVERY: Final = (
    "Nothing was written for these days; the stored counts are unchanged. Correct the source (a dump: correct or remove"
    " the named line or file; a view: see `analytics-assets sources`), then materialize these days again."
)
_OUTSIDE_RECOVERY: Final = (
    "A row without a plausible time is in no collected day; every other row is counted. If it should count, the host"
    " application's operator corrects its time, in the table or in the view. If not, the view leaves it out."
)


class CollectConfig(dg.Config):
    """Run config of every metric."""

    allow_empty: bool = Field(
        default=False,
        description="Allow an empty day to replace one that has counts. A refused run asks for this.",
    )
    allow_decrease: bool = Field(
        default=False,
        description="Allow a day to replace one with a much larger total. A refused run asks for this.",
    )


@dataclass
class _Outcome:
    """What became of the days so far."""

    stored: dict[date, Stored] = field(default_factory=dict)
    failed: dict[date, str] = field(default_factory=dict)
    """Day -> why it was not stored."""
    problems: list[Problem] = field(default_factory=list)
    refused: list[date] = field(default_factory=list)
    """Days that the problems are about."""
    outside: list[str] = field(default_factory=list)
    """Rows that no day has."""
    out_of_reach: bool = False


def collect(
    context: dg.AssetExecutionContext,
    metric: Metric,
    settings: Settings,
    config: CollectConfig,
) -> Results:
    """Collect the days of the run, so that a bad day does not stop the others.

    Yields the gate's result and, when every day was stored, the materialization. When a day was not stored, the stored
    days are recorded and checked, and the run fails naming the others.

    Raises:
        Failure: a source or a day was refused, and retrying does not help.
        UnreachableError: a database was out of reach, and the step may be tried again.
        DatabaseError: the analytics database refused to say which days are kept.
    """
    days = [date.fromisoformat(key) for key in context.partition_keys]
    with open_store(settings) as store:
        window = read_window(store)
        expired = [day for day in days if day < window.first]
        if expired:
            # Not what a wrong clock calls expired.
            certain = read_cutoff(store).certain
            _forget_planned(context, metric, [day for day in expired if day < certain])
        try:
            kept = [day for day in days if window.has(day)]
            with open_reader(metric, settings, kept, context.run.run_id) as reader:
                for warning in reader.warnings:
                    context.log.warning(warning)
                outcome = _collect_days(store, reader, metric, days, window=window, config=config)
        except OriginRefusedError as refusal:
            context.log_event(_evaluation(metric, gate_result(refusal.problems, refusal.recovery)))
            raise dg.Failure(f"the source was refused before a row was read: {refusal}", allow_retries=False) from None

        if outcome.out_of_reach and context.retry_number < RETRIES:
            # Every day is counted again: which of them are stored, Dagster would not know.
            raise UnreachableError(format_failed_days(outcome.failed, len(days)))
        gate = gate_result(outcome.problems, _RECOVERY, outcome.outside, about=outcome.refused)
        if outcome.failed:
            for day, stored in outcome.stored.items():
                context.log_event(dg.AssetMaterialization(metric.asset, partition=str(day), metadata=_metadata(stored)))
            if outcome.problems or outcome.outside or outcome.stored:
                context.log_event(_evaluation(metric, gate))
            if not outcome.out_of_reach and len(expired) < len(days):
                # Dagster skips the check op after a failure, and the checks would show as failed. A database that goes
                # out of reach meanwhile must not hide which days failed.
                with suppress(DatabaseError, OSError):
                    in_progress = partial(days_in_progress, context.instance, context.run.run_id)
                    compared = list(outcome.stored)
                    for result in evaluate(
                        store, metric, days, run_id=context.run.run_id, compared=compared, in_progress=in_progress
                    ):
                        context.log_event(_evaluation(metric, result))
            raise dg.Failure(format_failed_days(outcome.failed, len(days)), allow_retries=False)
    for day, stored in outcome.stored.items():
        context.add_asset_metadata(_metadata(stored), partition_key=str(day))
    yield gate
    yield dg.MaterializeResult()


def _forget_planned(context: dg.AssetExecutionContext, metric: Metric, expired: Sequence[date]) -> None:
    """Delete what Dagster has planned for expired days. It would remain as a record of them."""
    if expired:
        # The stock event log cannot do it. Check `no_expired_days` says so until retention has removed the record.
        with suppress(NotImplementedError):
            storage = context.instance.event_log_storage
            storage.wipe_asset_partitions(dg.AssetKey(metric.asset), list(map(str, expired)))


def _collect_days(
    store: Store, reader: Reader, metric: Metric, days: Sequence[date], *, window: Window, config: CollectConfig
) -> _Outcome:
    """Count and store the days in chunks, in order. While a chunk is stored, the next one is counted."""
    outcome = _Outcome()
    for day in days:
        try:
            window.refuse_outside(day)
        except DayRefusedError as refusal:
            outcome.failed[day] = str(refusal)
    waiting = deque(day for day in days if day not in outcome.failed)
    with ThreadPoolExecutor(1) as thread:
        counting = thread.submit(_count_chunk, reader, waiting)
        while (chunk := counting.result()) and not outcome.out_of_reach:
            counting = thread.submit(_count_chunk, reader, waiting)
            _store_chunk(store, metric, chunk, outcome, begun=window.now, config=config)
    for day in [*chunk, *waiting]:
        outcome.failed.setdefault(day, "not tried, because a database was out of reach")
    if not outcome.out_of_reach:
        try:
            outcome.outside = list(map(str, reader.outside()))
        except DatabaseError as refusal:
            outcome.outside = [f"rows that no day has could not be counted: {refusal}"]
    return outcome


def _count_chunk(reader: Reader, waiting: deque[date]) -> dict[date, Counted | DatabaseError | OSError]:
    """Count the next days, until they are enough for a transaction. Returns what each has, or why it has no count."""
    chunk: dict[date, Counted | DatabaseError | OSError] = {}
    rows = 0
    while waiting and len(chunk) < CHUNK_DAYS and rows < _CHUNK_ROWS:
        day = waiting.popleft()
        try:
            counted = reader.count(day)
        except (DatabaseError, OSError) as error:
            chunk[day] = error
            if isinstance(error, UnreachableError):
                break
        else:
            chunk[day] = counted
            rows += len(counted.rows) + len(counted.problems)
    return chunk


def _store_chunk(
    store: Store,
    metric: Metric,
    chunk: Mapping[date, Counted | DatabaseError | OSError],
    outcome: _Outcome,
    *,
    begun: datetime,
    config: CollectConfig,
) -> None:
    rows: dict[date, Sequence[Row]] = {}
    for day, counted in chunk.items():
        if isinstance(counted, Counted) and not counted.problems:
            rows[day] = counted.rows
        elif isinstance(counted, Counted):
            outcome.problems += counted.problems
            outcome.refused.append(day)
            outcome.failed[day] = f"the source breaks the contract, see check {AT_SOURCE}"
        elif isinstance(counted, DatabaseError):
            outcome.failed[day] = str(counted)
            outcome.out_of_reach |= isinstance(counted, UnreachableError)
        else:
            outcome.failed[day] = f"the dumps cannot be read: {type(counted).__name__}"
    if not rows:
        return
    stored = replace_days(
        store, metric, rows, begun, allow_empty=config.allow_empty, allow_decrease=config.allow_decrease
    )
    for day, result in stored.items():
        if isinstance(result, Stored):
            outcome.stored[day] = result
        else:
            outcome.failed[day] = str(result)
            outcome.out_of_reach |= isinstance(result, UnreachableError)


def gate_result(
    problems: Sequence[Problem], recovery: str, outside: Sequence[str] = (), *, about: Collection[date] = ()
) -> dg.AssetCheckResult:
    """Return the gate's result: a failure where the contract refuses what the source has. `about`: its days.

    Rows that no day has (`outside`) are a warning: the days themselves are right.
    """
    violations = {"violations": sum(problem.rows for problem in problems)}
    recoveries = [recovery] * bool(problems) + [_OUTSIDE_RECOVERY] * bool(outside)
    result = make_result(AT_SOURCE, [*problems, *outside], "\n\n".join(recoveries), violations, about=about)
    return result._replace(severity=dg.AssetCheckSeverity.WARN) if outside and not problems else result


def _evaluation(metric: Metric, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """Return a result as an event that is not tied to a materialization.

    Dagster ties a yielded result to the day's earlier materialization. The UI then shows it as "not evaluated" as soon
    as another day has been materialized since.
    """
    return as_event(dg.AssetKey(metric.asset), result)


def format_failed_days(failed: Mapping[date, str], of: int) -> str:
    """Return the days that were not stored, with consecutive days of one reason as a range."""
    by_reason = {reason: [day for day in failed if failed[day] == reason] for reason in failed.values()}
    found = sorted((first, last, reason) for reason, days in by_reason.items() for first, last in ranges(days))
    lines = [f"{format_range(first, last)}: {reason}" for first, last, reason in found]
    return f"{len(failed)} of {of} days were not stored:\n{bullet_list(lines)}"


def _metadata(stored: Stored) -> dict[str, int]:
    return {"dagster/partition_row_count": stored.rows, "total": stored.total}
