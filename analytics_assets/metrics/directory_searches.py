"""Searches of the attendee directory per event and day: a count, from the dumps; no query text exists anywhere."""

import dagster as dg

from analytics_assets.contract import metric
from analytics_assets.defs.collect import CollectConfig, Results, asset_args, collect
from analytics_assets.settings import Settings
from analytics_assets.sources.counter_dumps import open_dumps

METRIC = metric("directory_searches")


@dg.asset(**asset_args(METRIC))
def directory_searches(
    context: dg.AssetExecutionContext, config: CollectConfig, settings: dg.ResourceParam[Settings]
) -> Results:
    """Sum the dumps of the day by event and side."""
    yield from collect(context, METRIC, open_dumps(METRIC, settings), settings, config)
