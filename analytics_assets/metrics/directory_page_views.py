"""Views of the attendee directory per event and day: counted in the web application, summed from its dumps."""

import dagster as dg

from analytics_assets.contract import metric
from analytics_assets.defs.collect import CollectConfig, Results, asset_args, collect
from analytics_assets.settings import Settings
from analytics_assets.sources.counter_dumps import open_dumps

METRIC = metric("directory_page_views")


@dg.asset(**asset_args(METRIC))
def directory_page_views(
    context: dg.AssetExecutionContext, config: CollectConfig, settings: dg.ResourceParam[Settings]
) -> Results:
    """Sum the dumps of the day by event and side."""
    yield from collect(context, METRIC, open_dumps(METRIC, settings), settings, config)
