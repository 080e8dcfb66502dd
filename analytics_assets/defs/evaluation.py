"""The results of a metric's checks: what is stored against the contract, the source and the dictionary.

The check op of a metric and a failing run both call `evaluate`. In a failing run Dagster skips the op, and the checks
would show as failed. No check is defined here: see `checks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from datetime import date
from functools import partial
from itertools import takewhile
from threading import Event
from typing import Final

import dagster as dg

from analytics_assets.contract import ABOUT, NO_DAY, Metric, SourceView
from analytics_assets.days import format_range, ranges
from analytics_assets.publication.findings import find_friction
from analytics_assets.publication.friction import strongest
from analytics_assets.settings import Settings
from analytics_assets.sources import OriginRefusedError, Reader
from analytics_assets.sources.app_views import open_view
from analytics_assets.sources.counter_dumps import open_dumps
from analytics_assets.store import Store
from analytics_assets.store.counts import Stored, read_days
from analytics_assets.store.gaps import missing_days
from analytics_assets.store.inspection import count_row_violations, find_column_violations, find_undocumented

AT_SOURCE: Final = "only_allowlisted_fields_at_source"
STORED: Final = "only_allowlisted_fields_stored"
MATCHES: Final = "counts_match_source"
DOCUMENTED: Final = "documented"
NO_FRICTION: Final = "no_friction"
NO_MISSING_DAYS: Final = "no_missing_days"
CHECK_NAMES: Final = (AT_SOURCE, STORED, MATCHES, DOCUMENTED, NO_FRICTION, NO_MISSING_DAYS)
"""The checks of every metric. The first is the gate, evaluated in `collect`."""

_MAX_LINES: Final = 20
"""Findings listed in a check's text. The rest is a number."""

_STORED_RECOVERY: Final = (
    "Something other than this pipeline has changed the table: find out which logins can write to it. To remove a wrong"
    " row of this metric, materialize its day again. Delete a row of no metric, or a column, in SQL with a login that"
    " may. Then `analytics-assets init-db` restores the constraints."
)
_MATCHES_RECOVERY: Final = (
    "Rows that arrived late cause this. The daily job collects the last three days again. Materialize an older day by"
    " hand."
)
_FRICTION_RECOVERY: Final = (
    "A finding is a reason to look, not a fault. The core team's page ranks the findings of the last four weeks, and"
    " docs/friction.md says what they mean and what is never found."
)
_MISSING_RECOVERY: Final = (
    "`daily_metrics_schedule` requests missing days again every night, so a day that stays is refused: the last failed"
    " run that collected it says why. Remove the cause, then wait for the night or materialize these days."
)
DOCUMENTED_RECOVERY: Final = (
    "Everything stored must be in the dictionary: declare it in contract.py, where it is reviewed, or remove it in SQL"
    " with a login that may (the host application's operator revokes or drops a source view). Then `analytics-assets"
    " init-db` restores comments and constraints."
)


def bullet_list(items: Iterable[object]) -> str:
    """Return the first lines of a Markdown list. Equal items are counted in one line."""
    lines = [
        f"- {text}" + (f" ({times} times)" if times > 1 else "") for text, times in Counter(map(str, items)).items()
    ]
    more = [f"- and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return "\n".join(lines[:_MAX_LINES] + more)


def open_reader(
    metric: Metric, settings: Settings, days: Sequence[date] = (), run_id: str = ""
) -> AbstractContextManager[Reader]:
    """Open the view or the dumps that the metric is counted from. `days` will be counted, in this order.

    Metrics of one run share what was read of dumps.
    """
    if isinstance(metric.origin, SourceView):
        return open_view(metric, metric.origin, settings, days)
    return open_dumps(metric, settings, run_id)


def evaluate(
    store: Store,
    metric: Metric,
    days: Sequence[date],
    *,
    run_id: str,
    compared: Sequence[date] | None = None,
    names: Collection[str] = CHECK_NAMES,
    in_progress: Callable[[], Mapping[str, Collection[date]]] = dict,
) -> list[dg.AssetCheckResult]:
    """Evaluate the named checks of a metric except the gate, and return a result for each.

    The rules are evaluated on every stored value of `days`. The totals of the days `compared` (all of them, unless
    given) are counted again at the source. `in_progress` returns the days that other runs are about to collect, by
    asset: they are not missing. It is called only when there would be missing days.

    The source is counted in a thread, while the other checks are evaluated.

    Raises:
        DatabaseError, OSError: a database is out of reach, or a dump cannot be read. If the source and another check
            fail, it is the error of the other check.
    """
    compared = days if compared is None else compared
    checks: dict[str, Callable[[], dg.AssetCheckResult]] = {
        STORED: partial(_check_stored, store, metric, days),
        DOCUMENTED: lambda: make_result(DOCUMENTED, find_undocumented(store, metric), DOCUMENTED_RECOVERY),
        NO_FRICTION: partial(_check_friction, store, metric, days),
        NO_MISSING_DAYS: partial(_check_missing, store, metric, days, in_progress),
    }
    stopped = Event()
    with ThreadPoolExecutor(1) as thread:
        try:
            if MATCHES in names:
                stored = read_days(store, metric, compared)
                # The copied context has the run's engines, so the thread does not log in again.
                again = partial(_count_again, metric, store.settings, list(stored), run_id, stopped)
                counting = thread.submit(copy_context().run, again)
            results = {name: check() for name, check in checks.items() if name in names}
            if MATCHES in names:
                results[MATCHES] = _compare_totals(days, stored, counting)
        finally:
            stopped.set()
    return [results[name] for name in CHECK_NAMES if name in results]


def _check_stored(store: Store, metric: Metric, days: Sequence[date]) -> dg.AssetCheckResult:
    findings = list(map(str, find_column_violations(store, metric)))
    about: list[date] = []
    for day, counted in sorted(count_row_violations(store, metric, days).items()) if not findings else []:
        findings += [f"{day}: {violation} ({rows} rows)" for violation, rows in sorted(counted.items())]
        about.append(day)
    return make_result(STORED, findings, _STORED_RECOVERY, {"days checked": len(days)}, about=about)


def _count_again(
    metric: Metric, settings: Settings, days: Sequence[date], run_id: str, stopped: Event
) -> dict[date, int]:
    """Return the totals of days at the source. A day that is not counted when `stopped` is set is left out."""
    with open_reader(metric, settings, days, run_id) as reader:
        return {day: reader.total(day) for day in takewhile(lambda _: not stopped.is_set(), days)}


def _compare_totals(
    days: Sequence[date], stored: Mapping[date, Stored], counting: Future[dict[date, int]]
) -> dg.AssetCheckResult:
    """Compare the totals that are stored with those at the source. `stored` is empty when a run has stored no day."""
    compared, about = list(stored), list[date]()
    try:
        at_source = counting.result() if compared or not days else {}
        about = [day for day, total in at_source.items() if total != stored[day].total]
        findings = [f"{day}: the stored total differs from the source" for day in about]
        if days and not compared:
            findings = ["no day of the run was stored"]
    except OriginRefusedError as refusal:
        compared, about, findings = [], compared, [f"the source cannot be counted: {refusal}"]
    result = make_result(MATCHES, findings, _MATCHES_RECOVERY, {"days checked": len(compared)}, about=about)
    # Rows that arrive late are no fault.
    return result._replace(severity=dg.AssetCheckSeverity.WARN)


def _check_missing(
    store: Store,
    metric: Metric,
    days: Sequence[date],
    in_progress: Callable[[], Mapping[str, Collection[date]]],
) -> dg.AssetCheckResult:
    missing = set(missing_days(store, days)[metric.asset])
    if missing:
        expected = set(in_progress().get(metric.asset, ()))
        # Read again: a run that is in progress no more may have stored its days since.
        missing = set(missing_days(store, days)[metric.asset]) - expected
    found = [format_range(first, last) for first, last in ranges(missing)]
    return make_result(NO_MISSING_DAYS, found, _MISSING_RECOVERY, {"missing days": len(missing)}, about=missing)


def _check_friction(store: Store, metric: Metric, days: Sequence[date]) -> dg.AssetCheckResult:
    found = strongest(find_friction(store, metric, days)) if days else []
    about = [finding.day for finding in found]
    result = make_result(NO_FRICTION, [finding.text for finding in found], _FRICTION_RECOVERY, about=about)
    return result._replace(severity=dg.AssetCheckSeverity.WARN)


def make_result(
    name: str,
    findings: Sequence[object],
    recovery: str,
    metadata: Mapping[str, int] | None = None,
    *,
    about: Collection[date] = (),
) -> dg.AssetCheckResult:
    """Return the result of a check that fails when there are findings, with what the operator should do.

    `about` are the days that the findings are about: the result expires with the oldest of them. A result about no day
    expires with the days of its run.
    """
    return dg.AssetCheckResult(
        passed=not findings,
        check_name=name,
        description=f"{bullet_list(findings)}\n\n{recovery}" if findings else None,
        metadata={
            "findings": len(findings),
            **(metadata or {}),
            ABOUT: dg.MetadataValue.text(str(min(about)) if about else NO_DAY),
        },
    )


def as_event(asset_key: dg.AssetKey, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """Return a result as an event that is not tied to a materialization."""
    return dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name=str(result.check_name),
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
    )
