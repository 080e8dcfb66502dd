"""Asset checks, derived from the contract for every metric.

The gate at the source is evaluated in `collect`, because it comes before the write. The checks here read what is
stored, for the days of their run or, executed by themselves, for the latest day. They are not partitioned: in a run
over a range Dagster would leave partitioned checks planned for ever. A run in which a day fails skips their steps;
`collect` then records the same results itself.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date
from typing import Final

import dagster as dg

from analytics_assets.contract import METRICS, CounterDumps, Metric
from analytics_assets.database import DatabaseError
from analytics_assets.defs.partitions import KEPT_DAYS, days_of_run
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.sources import Source, SourceRefusedError
from analytics_assets.sources.app_views import open_view, undocumented_views
from analytics_assets.sources.counter_dumps import open_dumps
from analytics_assets.store.counts import Store, open_store

AT_SOURCE: Final = "only_allowlisted_fields_at_source"
STORED: Final = "only_allowlisted_fields_stored"
MATCHES: Final = "counts_match_source"
DOCUMENTED: Final = "documented"
NOTHING_OLDER: Final = f"nothing_older_than_{KEPT_DAYS}_days"
CHECK_NAMES: Final = (AT_SOURCE, STORED, MATCHES, DOCUMENTED, NOTHING_OLDER)
"""The checks of every metric. The first is evaluated in `collect`, the last one in `retention`."""

_SHOWN: Final = 20
"""Problems listed in a check's text; the rest is a number."""

_STORED_RECOVERY: Final = (
    "Something other than this pipeline has changed the table: find out what may write to it. A row of this metric goes"
    " when its day is materialized again; a row of no metric, and a column, are deleted in SQL by a login that may."
    " Then `analytics-assets init-db` puts the constraints back."
)
_MATCHES_RECOVERY: Final = (
    "Late rows do this. The daily job collects the last three days again; an older day is to be materialized."
)
_DOCUMENTED_RECOVERY: Final = (
    "What is not in the dictionary was not agreed on: declare it in contract.py, where it is reviewed, or remove it"
    " in SQL by a login that may (a source view: revoke it or drop it, by the host application's operator). Then"
    " `analytics-assets init-db` puts comments and constraints back."
)


def listed(items: Iterable[object]) -> str:
    """The first lines of a list for people, equal ones counted once."""
    lines = [
        f"- {text}" + (f" ({times} times)" if times > 1 else "") for text, times in Counter(map(str, items)).items()
    ]
    more = [f"- and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join(lines[:_SHOWN] + more)


def stored_result(store: Store, metric: Metric, days: Sequence[date]) -> dg.AssetCheckResult:
    """Live columns of the table and every stored value of the days against the contract."""
    findings: dict[date | None, Sequence[str]] = {None: list(map(str, store.column_violations(metric)))}
    for day in days if not findings[None] else []:
        found = store.row_violations(metric, day)
        findings[day] = [f"{violation} ({rows} rows)" for violation, rows in sorted(found.items())]
    return _result(STORED, findings, days, _STORED_RECOVERY)


def matches_result(store: Store, source: Source, metric: Metric, days: Sequence[date]) -> dg.AssetCheckResult:
    """Stored totals against an independent count of the same days at the source; a warning at worst."""
    differing = [day for day in days if source.total(day) != store.read_day(metric, day).total]
    return _matches({day: ["the stored total differs from the source"] for day in differing}, days)


def documented_result(store: Store, metric: Metric, settings: Settings) -> dg.AssetCheckResult:
    """Structure, vocabulary and comments of schema `analytics`, and the names of the source views, in the dictionary.

    A finding about the metric's table is reported by the metrics of that table, any other by all. The assets are not
    looked at here: definitions with an asset that the dictionary does not know are not even built.
    """
    found = store.undocumented(metric)
    try:
        found += [f"{name} is the origin of no metric" for name in undocumented_views(settings)]
        seen = True
    except (DatabaseError, SettingsError):
        seen = False  # the gate and the comparison of the metrics that are counted there say why
    result = _result(DOCUMENTED, {None: found}, [], _DOCUMENTED_RECOVERY)
    return result._replace(metadata={"source views seen": dg.MetadataValue.bool(seen)})


def not_compared(reason: str) -> dg.AssetCheckResult:
    """The same check where there is nothing to compare."""
    return _matches({None: [reason]}, [])


def _matches(findings: Mapping[date | None, Sequence[str]], days: Sequence[date]) -> dg.AssetCheckResult:
    result = _result(MATCHES, findings, days, _MATCHES_RECOVERY)
    return result._replace(severity=dg.AssetCheckSeverity.WARN)


def _result(
    name: str, findings: Mapping[date | None, Sequence[str]], days: Sequence[date], recovery: str
) -> dg.AssetCheckResult:
    texts = [f"{day}: {text}" if day else text for day, found in findings.items() for text in found]
    return dg.AssetCheckResult(
        passed=not texts,
        check_name=name,
        description=f"{listed(texts)}\n\n{recovery}" if texts else None,
        metadata={"days checked": len(days)},
    )


def _days(context: dg.AssetCheckExecutionContext, store: Store, metric: Metric) -> list[date]:
    latest = store.latest_collected(metric)
    return days_of_run(context.run.tags) or ([latest] if latest else [])


def stored_check(metric: Metric) -> dg.AssetChecksDefinition:
    """The check of `stored_result`."""

    @dg.asset_check(
        asset=metric.asset,
        name=STORED,
        description="The table has only the contract's columns, and every stored value of the day obeys its rule.",
    )
    def check(context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
        with open_store(settings) as store:
            return stored_result(store, metric, _days(context, store, metric))

    return check


def matches_check(metric: Metric) -> dg.AssetChecksDefinition:
    """The check of `matches_result`."""

    @dg.asset_check(
        asset=metric.asset,
        name=MATCHES,
        description="The stored total equals an independent count at the source.",
    )
    def check(context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
        with open_store(settings) as store:
            days = _days(context, store, metric)
            try:
                with open_source(metric, settings) as source:
                    return matches_result(store, source, metric, days)
            except SourceRefusedError as refusal:
                return not_compared(f"the source cannot be counted: {refusal}")

    return check


def documented_check(metric: Metric) -> dg.AssetChecksDefinition:
    """The check of `documented_result`."""

    @dg.asset_check(
        asset=metric.asset,
        name=DOCUMENTED,
        description="Every column, comment, vocabulary value and source view has an entry in the data dictionary.",
    )
    def check(settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
        with open_store(settings) as store:
            return documented_result(store, metric, settings)

    return check


def open_source(metric: Metric, settings: Settings) -> AbstractContextManager[Source]:
    """Open whatever the metric is counted from."""
    return open_dumps(metric, settings) if isinstance(metric.origin, CounterDumps) else open_view(metric, settings)


CHECKS: Final = [check(metric) for metric in METRICS for check in (stored_check, matches_check, documented_check)]
