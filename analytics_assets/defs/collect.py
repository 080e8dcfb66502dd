"""What every metric's asset does: count the day at its source, guard, replace the day in the store.

The asset's definition is derived from the contract here too. Where and how is counted belongs to `sources`, what is
stored to `store`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final, TypedDict, cast

import dagster as dg
from pydantic import Field

from analytics_assets.contract import SCHEMA, SOURCE_SCHEMA, CounterDumps, Metric, SourceView
from analytics_assets.database import DatabaseError, UnreachableError
from analytics_assets.defs.checks import (
    AT_SOURCE,
    documented_result,
    listed,
    matches_result,
    not_compared,
    stored_result,
)
from analytics_assets.defs.partitions import DAILY
from analytics_assets.dictionary import column_text
from analytics_assets.retention.event_log import EventLogStorage
from analytics_assets.retention.job import nothing_older_result
from analytics_assets.settings import Settings
from analytics_assets.sources import Problem, Source, SourceRefusedError
from analytics_assets.store.counts import DayRefusedError, Store, Stored, Window, open_store

GROUP: Final = "daily_counts"
DUMPS_KEY: Final = dg.AssetKey("counter_dumps")

# Backfill policies have been marked beta for years; a warning a metric at every start would bury the others.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)

Results = Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]


class CollectConfig(dg.Config):
    """Run config of every metric."""

    allow_empty: bool = Field(
        default=False,
        description="Replace a day that has counts although its source is empty now (a refused run says when).",
    )


def source_key(metric: Metric) -> dg.AssetKey:
    """The external asset that the metric is counted from."""
    match metric.origin:
        case SourceView(name=name):
            return dg.AssetKey([SOURCE_SCHEMA, name])
        case CounterDumps():
            return DUMPS_KEY


class AssetArgs(TypedDict):
    """Those arguments of `@dg.asset` that every metric has."""

    name: str
    group_name: str
    deps: list[dg.AssetKey]
    partitions_def: dg.PartitionsDefinition
    backfill_policy: dg.BackfillPolicy
    kinds: set[str]
    owners: list[str]
    tags: dict[str, str]
    metadata: dict[str, Any]
    check_specs: list[dg.AssetCheckSpec]
    dagster_type: dg.DagsterType


def asset_args(metric: Metric) -> AssetArgs:
    """Arguments of `@dg.asset` that follow from the contract; the description is added by `definitions`.

    A home-made decorator would be shorter, but the UI's "open code" would then lead to the decorator.
    """
    return {
        "name": metric.asset,
        "group_name": GROUP,
        "deps": [source_key(metric)],
        "partitions_def": DAILY,
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "kinds": {"postgres", "sql" if isinstance(metric.origin, SourceView) else "json"},
        "owners": [metric.owner],
        "tags": {"grain": "day", "personal_data": "none"},
        "metadata": {
            "dagster/table_name": f"{SCHEMA}.{metric.table}",
            "dagster/column_schema": dg.TableSchema(
                columns=[
                    dg.TableColumn(
                        field.name,
                        field.type,
                        description=column_text(field),
                        constraints=dg.TableColumnConstraints(nullable=field.optional),
                    )
                    for field in metric.fields
                ]
            ),
        },
        "check_specs": [
            dg.AssetCheckSpec(
                AT_SOURCE,
                asset=metric.asset,
                description="The source has only what the contract allows; a day that has more is not written.",
            )
        ],
        # Without it the default IO manager would pickle the result of every run.
        "dagster_type": cast(dg.DagsterType, dg.Nothing),
    }


def collect(
    context: dg.AssetExecutionContext,
    metric: Metric,
    source: AbstractContextManager[Source],
    settings: Settings,
    config: CollectConfig,
) -> Results:
    """Collect the days of the run, each on its own: a bad day does not cost the good ones.

    Yields the gate's result and, when every day was stored, the materialization. When one was not, the days that were
    are recorded and checked, and the run fails naming the others.

    Raises:
        Failure: a source or a day was refused; retrying does not help.
        DatabaseError: the analytics database was out of reach before the first day.
    """
    days = [date.fromisoformat(key) for key in context.partition_keys]
    run = _Run()
    with open_store(settings) as store:
        window = store.window()
        if expired := [str(day) for day in days if day < window.first]:
            # Dagster has planned them, and would keep that as a record of a day that is not kept.
            storage = context.instance.event_log_storage
            if isinstance(storage, EventLogStorage):  # of another one, the check NOTHING_OLDER says so
                storage.wipe_asset_partitions(dg.AssetKey(metric.asset), expired)
        try:
            with source as opened:
                for warning in opened.warnings:
                    context.log.warning(warning)
                _collect_days(run, store, opened, metric, days=days, window=window, config=config)
                if run.failed and run.stored and not run.out_of_reach:
                    run.matches = _compared(store, opened, metric, list(run.stored))
        except SourceRefusedError as refusal:
            context.log_event(_evaluation(metric, _violated(refusal.problems, refusal.recovery)))
            raise dg.Failure(f"the source was refused before a row was read: {refusal}", allow_retries=False) from None

        gate = _violated(run.problems, _RECOVERY) if run.problems else _CLEAN
        if run.failed:
            for day, numbers in run.stored.items():
                context.log_event(dg.AssetMaterialization(metric.asset, partition=str(day), metadata=_numbers(numbers)))
            if run.problems or run.stored:
                context.log_event(_evaluation(metric, gate))
            if not run.out_of_reach and len(expired) < len(days):
                # Their steps are skipped after a failure, and would show as failed.
                context.log_event(_evaluation(metric, stored_result(store, metric, days)))
                context.log_event(_evaluation(metric, run.matches))
                context.log_event(_evaluation(metric, nothing_older_result(settings, store, context.instance)))
                context.log_event(_evaluation(metric, documented_result(store, metric, settings)))
            raise dg.Failure(_named(run.failed, of=len(days)), allow_retries=False)
    for day, numbers in run.stored.items():
        context.add_asset_metadata(_numbers(numbers), partition_key=str(day))
    yield gate._replace(asset_key=dg.AssetKey(metric.asset))
    yield dg.MaterializeResult()


@dataclass
class _Run:
    """What has come of the days so far."""

    stored: dict[date, Stored] = field(default_factory=dict)
    failed: dict[date, str] = field(default_factory=dict)
    """Day -> why it was not stored."""
    problems: list[Problem] = field(default_factory=list)
    matches: dg.AssetCheckResult = field(default_factory=lambda: not_compared("no day of the run was stored"))
    out_of_reach: bool = False


def _collect_days(
    run: _Run,
    store: Store,
    source: Source,
    metric: Metric,
    *,
    days: Sequence[date],
    window: Window,
    config: CollectConfig,
) -> None:
    for day in days:
        if run.out_of_reach:
            run.failed[day] = "not tried, since a database was out of reach"
            continue
        try:
            window.refuse_outside(day)
            counted = source.count(day)
            if counted.problems:
                run.problems += counted.problems
                run.failed[day] = f"the source breaks the contract, see check {AT_SOURCE}"
            else:
                run.stored[day] = store.replace_day(metric, day, counted.rows, allow_empty=config.allow_empty)
        except (DayRefusedError, DatabaseError) as refusal:
            run.failed[day] = str(refusal)
            run.out_of_reach = isinstance(refusal, UnreachableError)
        except OSError as error:
            run.failed[day] = f"the dumps cannot be read: {type(error).__name__}"


def _compared(store: Store, source: Source, metric: Metric, days: Sequence[date]) -> dg.AssetCheckResult:
    try:
        return matches_result(store, source, metric, days)
    except (SourceRefusedError, DatabaseError, OSError):
        return not_compared("the source cannot be counted any more")


_RECOVERY: Final = (
    "Nothing of these days was written; what stood there stands. Correct the source (a dump: mend or remove the line or"
    " file that is named; a view: see `analytics-assets sources`), then materialize these days again."
)
_CLEAN: Final = dg.AssetCheckResult(passed=True, check_name=AT_SOURCE, metadata={"violations": 0})


def _violated(problems: Sequence[Problem], recovery: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=False,
        check_name=AT_SOURCE,
        description=f"{listed(problems)}\n\n{recovery}",
        metadata={"violations": sum(problem.rows for problem in problems)},
    )


def _evaluation(metric: Metric, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """A result as an event that is not tied to a materialization.

    A yielded one is tied to what the same day had before, and the UI shows it as "not evaluated" as soon as another day
    has been materialized since.
    """
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(metric.asset),
        check_name=str(result.check_name),
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
    )


def _named(failed: Mapping[date, str], *, of: int) -> str:
    """The days that were not stored, those of one reason in a row as a range."""
    ranges: list[tuple[date, date, str]] = []
    for day, reason in sorted(failed.items()):
        if ranges and ranges[-1][1:] == (day - timedelta(days=1), reason):
            ranges[-1] = (ranges[-1][0], day, reason)
        else:
            ranges.append((day, day, reason))
    lines = [f"{first}{f' to {last}' if last > first else ''}: {reason}" for first, last, reason in ranges]
    return f"{len(failed)} of {of} days were not stored:\n{listed(lines)}"


def _numbers(stored: Stored) -> dict[str, int]:
    return {"dagster/partition_row_count": stored.rows, "total": stored.total}
