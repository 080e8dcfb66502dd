"""What Dagster loads: the only module that knows every part."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import dagster as dg

from analytics_assets.contract import METRICS, ContractError
from analytics_assets.database import kept_engines
from analytics_assets.defs.assets import make_assets
from analytics_assets.defs.checks import (
    database_checks,
    login_checks,
    metric_checks,
    published_checks,
    published_pages_check,
)
from analytics_assets.defs.jobs import daily_metrics_job, publication_job, retention_job
from analytics_assets.defs.partitions import daily_partitions
from analytics_assets.defs.schedules import make_daily_schedule
from analytics_assets.defs.sensors import alert_sensor, publication_sensor, retention_sensor
from analytics_assets.dictionary import asset_descriptions
from analytics_assets.publication.pages.publish import INSTALLED
from analytics_assets.settings import Settings, SettingsError


def build_definitions(settings: Settings, **overrides: Any) -> dg.Definitions:
    """Return all definitions on the given settings. A test may override arguments of `dg.Definitions`.

    Raises:
        ContractError: an asset has no entry in the data dictionary.
        SettingsError: steps are to go to workers, and what that needs is not installed.
    """
    checks = [
        *map(metric_checks, METRICS),
        database_checks,
        published_checks,
        login_checks,
        *([published_pages_check] if INSTALLED else []),
    ]
    arguments: dict[str, Any] = {
        "assets": make_assets(settings, daily_partitions(settings), checks),
        "asset_checks": checks,
        "jobs": [daily_metrics_job, publication_job, retention_job],
        "schedules": [make_daily_schedule(settings.time_zone)],
        "sensors": [retention_sensor, publication_sensor, alert_sensor],
        "resources": {"settings": _make_resource(settings)},
        "executor": _choose_executor(settings),
    }
    definitions = dg.Definitions(**(arguments | overrides))
    documented = asset_descriptions(settings)
    for spec in definitions.resolve_all_asset_specs():
        if tuple(spec.key.path) not in documented:
            raise ContractError(f"asset {spec.key.to_user_string()!r} is not in the contract: declare it there first")
    return definitions


def _choose_executor(settings: Settings) -> dg.ExecutorDefinition:
    if settings.broker_url is None:
        # The assets are small: a process for each would cost more than the work.
        return dg.in_process_executor
    try:
        from analytics_assets.workers import make_executor  # of the extra that only workers need
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"celery", "dagster_celery"}:
            raise
        raise SettingsError(
            'ANALYTICS_EXECUTOR is the URL of a Redis, which needs the extra "celery" on every machine:'
            " pip install 'analytics-assets[celery]', or leave it unset to run every step here"
        ) from None
    return make_executor(settings.broker_url)


def _make_resource(settings: Settings) -> dg.ResourceDefinition:
    """Return the settings as a resource. Dagster opens one per run and process, and each logs in to a database once."""

    def open_settings(_: dg.InitResourceContext) -> Iterator[Settings]:
        with kept_engines():
            yield settings

    return dg.ResourceDefinition(open_settings)


# These have been beta for years, and a warning per metric and start would bury the others. Dagster passes the sensor's
# `owners` itself when it binds resources.
warnings.filterwarnings(
    "ignore", "(Parameter `(backfill_policy|owners)`|Class `(CodeReferencesMetadataValue|Local))", dg.BetaWarning
)

defs = build_definitions(Settings.from_env())

# All that is loaded by now stays. Unless Python is told, it goes through it again and again while counts are collected,
# and takes it apart at the end of each process, which takes a second.
gc.freeze()
