"""The only place that knows every part. Dagster loads `defs`.

The assets follow from the contract: the file of a metric bears its name, so no list of files is kept here.
"""

from __future__ import annotations

import importlib
import warnings

import dagster as dg

from analytics_assets import metrics
from analytics_assets.contract import METRICS, ContractError, SourceView
from analytics_assets.defs.checks import CHECKS
from analytics_assets.defs.collect import DUMPS_KEY, GROUP, source_key
from analytics_assets.defs.login_check import LOGIN_CHECKS
from analytics_assets.defs.schedules import daily_metrics, daily_metrics_job
from analytics_assets.dictionary import asset_descriptions, column_text
from analytics_assets.retention.job import RETENTION_CHECKS, retention_job, retention_sensor
from analytics_assets.settings import Settings
from analytics_assets.sources.app_views import COLUMN_TYPES, view_metrics


def metric_assets() -> list[dg.AssetsDefinition]:
    """The asset of every metric of the contract, from its own file.

    Raises:
        ContractError: a metric has no file, or the file has no asset of its name.
    """
    assets = []
    for metric in METRICS:
        module = f"{metrics.__name__}.{metric.asset}"
        try:
            asset = getattr(importlib.import_module(module), metric.asset, None)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            asset = None
        if not isinstance(asset, dg.AssetsDefinition):
            file = f"analytics_assets/metrics/{metric.asset}.py"
            raise ContractError(f"metric {metric.asset!r}: write its asset, of the same name, in {file}")
        assets.append(asset)
    return assets


def source_assets() -> list[dg.AssetSpec]:
    """What the metrics are counted from, as external assets: each view and the dump folder."""
    views = [
        dg.AssetSpec(
            source_key(metric),
            group_name=GROUP,
            kinds={"postgres", "view"},
            metadata={
                "dagster/column_schema": dg.TableSchema(
                    columns=[
                        dg.TableColumn(
                            column.name, " or ".join(COLUMN_TYPES[column.name]), description=column_text(column)
                        )
                        for column in metric.origin.fields
                    ]
                )
            },
        )
        for metric in view_metrics()
        if isinstance(metric.origin, SourceView)
    ]
    return [*views, dg.AssetSpec(DUMPS_KEY, group_name=GROUP, kinds={"json", "file"})]


def build_definitions(settings: Settings) -> dg.Definitions:
    """Everything, on the given settings. A test builds its own.

    Raises:
        ContractError: an asset is not in the dictionary, or a metric has no asset.
    """
    descriptions = asset_descriptions(settings)

    def described(spec: dg.AssetSpec) -> dg.AssetSpec:
        if tuple(spec.key.path) not in descriptions:
            raise ContractError(f"asset {spec.key.to_user_string()!r} is not in the contract: declare it there first")
        return spec.replace_attributes(description=descriptions[tuple(spec.key.path)])

    with warnings.catch_warnings():
        # Code references are marked beta; without them the UI has no "open code".
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets = dg.with_source_code_references(dg.map_asset_specs(described, [*source_assets(), *metric_assets()]))
    return dg.Definitions(
        assets=assets,
        asset_checks=[*CHECKS, *RETENTION_CHECKS, *LOGIN_CHECKS],
        jobs=[daily_metrics_job, retention_job],
        schedules=[daily_metrics],
        sensors=[retention_sensor],
        resources={"settings": settings},
        # The assets are small: a process for each would cost more than the work.
        executor=dg.in_process_executor,
    )


defs = build_definitions(Settings.from_env())
