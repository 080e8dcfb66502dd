"""The jobs: the daily one, publication by itself, and the one that removes expired days."""

from collections.abc import Sequence
from typing import Final

import dagster as dg
from dagster._core.storage.tags import PRIORITY_TAG
from pydantic import Field

from analytics_assets.contract import FRICTION_PATH, METRICS
from analytics_assets.defs.checks import LEDGER_KEY, PUBLISHED_KEY, database_checks, login_checks, make_cutoff_result
from analytics_assets.defs.evaluation import as_event, bullet_list
from analytics_assets.defs.pages import CORE, PUBLISHED
from analytics_assets.defs.retries import retried
from analytics_assets.operations.runs import DAILY_JOB, RETENTION_JOB, RETENTION_OP
from analytics_assets.publication.pages.publish import INSTALLED
from analytics_assets.retention.sweep import Report, apply_retention
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.expiry import UncertainError, read_cutoff

_RETRIES: Final = 3

_PUBLICATION: Final = dg.AssetSelection.assets(
    PUBLISHED_KEY, dg.AssetKey(FRICTION_PATH), *((CORE, PUBLISHED) if INSTALLED else ())
)
"""What comes after the metrics, with its checks."""

daily_metrics_job = dg.define_asset_job(
    DAILY_JOB,
    tags={PRIORITY_TAG: "1"},  # before a backfill, which has none
    selection=dg.AssetSelection.assets(*(metric.asset for metric in METRICS))
    | _PUBLICATION
    | dg.AssetSelection.checks(database_checks, login_checks),
    description="Collects the days of the run for every metric, publishes what is closed, finds friction, writes the"
    " pages, and executes every check.",
)

publication_job = dg.define_asset_job(
    "publication_job",
    tags={PRIORITY_TAG: "1"},
    selection=_PUBLICATION,
    description="Publishes what is closed, finds friction and writes the pages, without collecting anything: for the"
    " metrics that a failed run of daily_metrics_job has collected.",
)


class RetentionConfig(dg.Config):
    """Run config of the retention job."""

    dry_run: bool = Field(default=True, description="Only show what would be removed.")
    seconds_to_retry: int = Field(
        default=300,
        ge=0,
        description="Seconds before each of three retries: a reader may still hold a lock.",
    )


@dg.op(
    name=RETENTION_OP,
    out=dg.Out(dg.Nothing),
    description="Goes through every retention target. The ledger says what it removed.",
)
@retried
def remove_expired_days(
    context: dg.OpExecutionContext, config: RetentionConfig, settings: dg.ResourceParam[Settings]
) -> None:
    """Remove, read back, write the ledger.

    Raises:
        RetryRequested: an expired day is left. The failure that caused it names the target.
        UncertainError: the cut-off is not certain. The check says so, too.
        DatabaseError: the analytics database is out of reach.
    """
    try:
        before, reports = apply_retention(settings, context.instance, context.run_id, dry_run=config.dry_run)
    except UncertainError:
        with open_store(settings) as store:
            context.instance.report_runless_asset_event(as_event(LEDGER_KEY, make_cutoff_result(read_cutoff(store))))
        raise
    context.add_output_metadata(
        {
            "first day kept": str(before),
            "would be removed" if config.dry_run else "removed": dg.MetadataValue.md(_format_reports(reports)),
        }
    )
    if problems := [f"{report.target}: {report.problem}" for report in reports if report.problem]:
        failure = dg.Failure(f"not every expired day was removed:\n{bullet_list(problems)}")
        raise dg.RetryRequested(_RETRIES, config.seconds_to_retry) from failure


@dg.job(
    name=RETENTION_JOB,
    executor_def=dg.in_process_executor,  # run logs and pages are on the machine that starts the runs
    tags={PRIORITY_TAG: "2"},
    description="Removes expired days everywhere. With dry_run, the default of a launch by hand, it only looks.",
)
def retention_job() -> None:
    """Remove the expired days."""
    remove_expired_days()


def _format_reports(reports: Sequence[Report]) -> str:
    lines = ["| target | days | rows | oldest day left | problem |", "| --- | ---: | ---: | --- | --- |"]
    lines += [f"| {r.target} | {r.expired.days} | {r.expired.rows} | {r.oldest or ''} | {r.problem} |" for r in reports]
    return "\n".join(lines)
