"""Switches of profile visibility per event and day: counted in the host's database, on or off alike, whoever did it."""

import dagster as dg

from analytics_assets.contract import metric
from analytics_assets.defs.collect import CollectConfig, Results, asset_args, collect
from analytics_assets.settings import Settings
from analytics_assets.sources.app_views import open_view

METRIC = metric("profile_visibility_toggles")


@dg.asset(**asset_args(METRIC))
def profile_visibility_toggles(
    context: dg.AssetExecutionContext, config: CollectConfig, settings: dg.ResourceParam[Settings]
) -> Results:
    """Count the rows of the view by event and side."""
    yield from collect(context, METRIC, open_view(METRIC, settings), settings, config)
