"""Responses per endpoint, status code and day, errors or not: the rate needs both; from the dumps of the middleware."""

import dagster as dg

from analytics_assets.contract import metric
from analytics_assets.defs.collect import CollectConfig, Results, asset_args, collect
from analytics_assets.settings import Settings
from analytics_assets.sources.counter_dumps import open_dumps

METRIC = metric("endpoint_error_rates")


@dg.asset(**asset_args(METRIC))
def endpoint_error_rates(
    context: dg.AssetExecutionContext, config: CollectConfig, settings: dg.ResourceParam[Settings]
) -> Results:
    """Sum the dumps of the day by endpoint and status code."""
    yield from collect(context, METRIC, open_dumps(METRIC, settings), settings, config)
