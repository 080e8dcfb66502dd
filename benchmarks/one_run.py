"""One run in a process of its own, for `runs.py`. Each run imports only what it needs.

    one_run.py ours FIRST LAST           the six metrics with their checks
    one_run.py job FIRST LAST            the daily job, with everything that it does
    one_run.py empty FIRST LAST NAME...  assets of these names that do nothing, on stock Dagster

Dagster's instance is that of DAGSTER_HOME. The exit status is 1 when a run has failed, or has not passed every check.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import dagster as dg


def run_ours(first: str, last: str, *, whole_job: bool) -> None:
    """Run the six metrics or the daily job. Exits with a sentence unless every check was evaluated and none failed."""
    from analytics_assets.contract import METRICS
    from analytics_assets.definitions import defs
    from analytics_assets.operations.runs import DAILY_JOB

    metrics = {dg.AssetKey(metric.asset) for metric in METRICS}
    checks = {key for key in defs.resolve_asset_graph().asset_check_keys if whole_job or key.asset_key in metrics}
    job = defs.resolve_job_def(DAILY_JOB) if whole_job else defs.resolve_implicit_global_asset_job_def()
    selection = None if whole_job else list(metrics)
    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(instance=instance, tags=range_of(first, last), asset_selection=selection)
    evaluations = result.get_asset_check_evaluations()
    fine = {e.asset_check_key for e in evaluations if e.passed or e.severity is dg.AssetCheckSeverity.WARN}
    if checks - fine:
        sys.exit(f"{len(checks - fine)} of {len(checks)} checks have not passed")


def run_empty(first: str, last: str, names: Sequence[str]) -> None:
    """Run assets that do nothing."""
    daily = dg.DailyPartitionsDefinition(start_date=first, end_offset=0)

    def empty(name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, partitions_def=daily, backfill_policy=dg.BackfillPolicy.single_run())
        def nothing() -> None: ...

        return nothing

    definitions = dg.Definitions(assets=list(map(empty, names)), executor=dg.in_process_executor)
    with dg.DagsterInstance.get() as instance:
        job = definitions.resolve_implicit_global_asset_job_def()
        job.execute_in_process(instance=instance, tags=range_of(first, last))


def range_of(first: str, last: str) -> dict[str, str]:
    """Return the tags that make one run out of a range of days."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


if __name__ == "__main__":
    name, first_day, last_day, *assets = sys.argv[1:]
    if name == "empty":
        run_empty(first_day, last_day, assets)
    else:
        run_ours(first_day, last_day, whole_job=name == "job")
