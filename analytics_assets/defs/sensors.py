"""The sensor that requests the removal of expired days."""

from typing import Final

import dagster as dg

from analytics_assets.defs.checks import LEDGER_KEY, make_cutoff_result
from analytics_assets.defs.evaluation import as_event
from analytics_assets.defs.jobs import RetentionConfig, remove_expired_days, retention_job
from analytics_assets.retention.sweep import find_overdue, registry
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.expiry import read_cutoff

_UNCERTAIN: Final = "uncertain: "
"""Before the cut-off in the cursor, when it was not certain."""


@dg.sensor(
    job=retention_job,
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests one run of retention_job per cut-off, when a retention target keeps an older day.",
)
def retention_sensor(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.RunRequest | dg.SkipReason:
    """Compare what every target keeps with the cut-off, which is the first day that is kept.

    The cursor is the cut-off that was compared last, so that a tick with the same cut-off costs one query. A cut-off
    that is not certain turns the check red at once, and green again when a person has confirmed it or the clock is
    right. Raises DatabaseError.
    """
    with open_store(settings) as store:
        cutoff = read_window(store).first
        if context.cursor == str(cutoff):
            return dg.SkipReason(f"the cut-off is still {cutoff}")
        uncertain = (context.cursor or "").startswith(_UNCERTAIN)
        found = read_cutoff(store)
        if bool(found.doubt) != uncertain:
            context.instance.report_runless_asset_event(as_event(LEDGER_KEY, make_cutoff_result(found)))
        if found.doubt:
            context.update_cursor(f"{_UNCERTAIN}{cutoff}")
            return dg.SkipReason(found.doubt)
        overdue = find_overdue(registry(store, context.instance), cutoff)
    context.update_cursor(str(cutoff))
    if not overdue:
        return dg.SkipReason(f"nothing is older than the cut-off, {cutoff}")
    config = RetentionConfig(dry_run=False)
    return dg.RunRequest(run_key=str(cutoff), run_config=dg.RunConfig({remove_expired_days.name: config}))
