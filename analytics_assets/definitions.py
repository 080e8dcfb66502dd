"""The only place that names every part. Dagster loads `defs`."""

from __future__ import annotations

import warnings
from typing import Final

import dagster as dg

from analytics_assets.access import LOGIN_CHECKS
from analytics_assets.checks import CHECKS
from analytics_assets.collect import DUMPS_KEY, GROUP, source_key
from analytics_assets.contract import SourceView
from analytics_assets.metrics.consent_changes import consent_changes
from analytics_assets.metrics.directory_page_views import directory_page_views
from analytics_assets.metrics.directory_searches import directory_searches
from analytics_assets.metrics.endpoint_error_rates import endpoint_error_rates
from analytics_assets.metrics.event_signups import event_signups
from analytics_assets.metrics.profile_visibility_toggles import profile_visibility_toggles
from analytics_assets.schedules import daily_metrics, daily_metrics_job
from analytics_assets.settings import Settings
from analytics_assets.sources.app_views import COLUMN_TYPES, view_metrics

METRIC_ASSETS: Final = [
    event_signups,
    directory_page_views,
    directory_searches,
    profile_visibility_toggles,
    consent_changes,
    endpoint_error_rates,
]


def source_assets() -> list[dg.AssetSpec]:
    """What the metrics are counted from, as external assets: each view and the dump folder."""
    views = [
        dg.AssetSpec(
            source_key(metric),
            group_name=GROUP,
            kinds={"postgres", "view"},
            description="View over the host application's tables, written by its operator; one row an occurrence.",
            metadata={
                "dagster/column_schema": dg.TableSchema(
                    columns=[dg.TableColumn(name, COLUMN_TYPES[name][0]) for name in metric.origin.columns]
                )
            },
        )
        for metric in view_metrics()
        if isinstance(metric.origin, SourceView)
    ]
    dumps = dg.AssetSpec(
        DUMPS_KEY,
        group_name=GROUP,
        kinds={"json", "file"},
        description="Counters of the web application, one file a process and day: keys of the contract, counts.",
    )
    return [*views, dumps]


def build_definitions(settings: Settings) -> dg.Definitions:
    """Everything, on the given settings. A test builds its own."""
    with warnings.catch_warnings():
        # Code references are marked beta; without them the UI has no "open code".
        warnings.simplefilter("ignore", dg.BetaWarning)
        metrics = dg.with_source_code_references(METRIC_ASSETS)
    return dg.Definitions(
        assets=[*source_assets(), *metrics],
        asset_checks=[*CHECKS, *LOGIN_CHECKS],
        jobs=[daily_metrics_job],
        schedules=[daily_metrics],
        resources={"settings": settings},
        # The assets are small: a process for each would cost more than the work.
        executor=dg.in_process_executor,
    )


defs = build_definitions(Settings.from_env())
