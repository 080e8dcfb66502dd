"""Consent given and withdrawn per event and day: counted in the host's database, `turned_on` decides which."""

import dagster as dg

from analytics_assets.contract import metric
from analytics_assets.defs.collect import CollectConfig, Results, asset_args, collect
from analytics_assets.settings import Settings
from analytics_assets.sources.app_views import open_view

METRIC = metric("consent_changes")


@dg.asset(**asset_args(METRIC))
def consent_changes(
    context: dg.AssetExecutionContext, config: CollectConfig, settings: dg.ResourceParam[Settings]
) -> Results:
    """Count the rows of the view by event, side and direction."""
    yield from collect(context, METRIC, open_view(METRIC, settings), settings, config)
