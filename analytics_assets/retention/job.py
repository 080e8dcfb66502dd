"""Retention in Dagster: the job that removes, the sensor that requests it, the check that nothing was missed."""

import warnings
from collections.abc import Sequence
from typing import Final

import dagster as dg
from pydantic import Field

from analytics_assets.contract import METRICS, Metric
from analytics_assets.defs.checks import NOTHING_OLDER, listed
from analytics_assets.retention.sweep import Report, apply_retention, overdue, registry
from analytics_assets.settings import Settings
from analytics_assets.store.counts import Store, open_store

# Dagster copies the sensor when it binds resources, and warns about an argument that it passes itself.
warnings.filterwarnings("ignore", message="Parameter `owners` of initializer `Sensor", category=dg.BetaWarning)

_RECOVERY: Final = (
    "`retention_sensor` removes what has expired, soon after midnight: see that it is running, and what its last run"
    " says. Or launch `retention_job` with dry_run: false, or run `analytics-assets retention`."
)


_RETRIES: Final = 3


class RetentionConfig(dg.Config):
    """Run config of the job."""

    dry_run: bool = Field(default=True, description="Only show what would be removed.")
    seconds_to_retry: int = Field(
        default=300,
        ge=0,
        description="After so long, what could not be removed is tried again, three times: somebody may be reading.",
    )


@dg.op(out=dg.Out(dg.Nothing), description="Goes through every place that keeps days; see the ledger for what it did.")
def remove_expired_days(
    context: dg.OpExecutionContext, config: RetentionConfig, settings: dg.ResourceParam[Settings]
) -> None:
    """Remove, read back, write the ledger.

    Raises:
        RetryRequested: something that has expired is left; the text of the failure that caused it says where.
        DatabaseError: the analytics database is out of reach.
    """
    before, reports = apply_retention(settings, context.instance, context.run_id, dry_run=config.dry_run)
    context.add_output_metadata(
        {
            "first day kept": str(before),
            "would be removed" if config.dry_run else "removed": dg.MetadataValue.md(markdown(reports)),
        }
    )
    if troubles := [f"{report.place}: {report.problem}" for report in reports if report.problem]:
        failure = dg.Failure(f"not everything that has expired was removed:\n{listed(troubles)}")
        raise dg.RetryRequested(_RETRIES, config.seconds_to_retry) from failure


@dg.job(description="Removes what has expired, everywhere. Launched by hand it only shows what would go (dry_run).")
def retention_job() -> None:
    """Remove the expired days."""
    remove_expired_days()


@dg.sensor(
    job=retention_job,
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests a run of retention_job when a day has expired, once for each first day that is kept.",
)
def retention_sensor(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.RunRequest | dg.SkipReason:
    """Compare what every place has with the first day that is kept. Raises DatabaseError."""
    with open_store(settings) as store:
        before = store.window().first
        if not overdue(registry(settings, store, context.instance), before):
            return dg.SkipReason(f"nothing is older than {before}, the first day that is kept")
    config = RetentionConfig(dry_run=False)
    return dg.RunRequest(run_key=str(before), run_config=dg.RunConfig({remove_expired_days.name: config}))


def nothing_older_result(settings: Settings, store: Store, instance: dg.DagsterInstance) -> dg.AssetCheckResult:
    """Every place against the first day that is kept."""
    places = registry(settings, store, instance)
    found = overdue(places, store.window().first)
    return dg.AssetCheckResult(
        passed=not found,
        check_name=NOTHING_OLDER,
        description=f"{listed(found)}\n\n{_RECOVERY}" if found else None,
        metadata={"places checked": len(places)},
    )


def nothing_older_check(metric: Metric) -> dg.AssetChecksDefinition:
    """The check of `nothing_older_result`; it concerns every place, whichever metric it stands at."""

    @dg.asset_check(
        asset=metric.asset,
        name=NOTHING_OLDER,
        description="No place keeps a day that has expired: tables, dumps, and what Dagster has recorded.",
    )
    def check(context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
        with open_store(settings) as store:
            return nothing_older_result(settings, store, context.instance)

    return check


RETENTION_CHECKS: Final = [nothing_older_check(metric) for metric in METRICS]


def markdown(reports: Sequence[Report]) -> str:
    """The reports as a table."""
    lines = ["| place | days | rows | oldest day left | problem |", "| --- | ---: | ---: | --- | --- |"]
    lines += [
        f"| {report.place} | {report.expired.days} | {report.expired.rows} | {report.oldest or ''} | {report.problem} |"
        for report in reports
    ]
    return "\n".join(lines)
