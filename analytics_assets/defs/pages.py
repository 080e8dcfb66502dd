"""The assets that write pages, and what their health line knows from Dagster."""

from collections.abc import Iterable
from typing import Any, Final

import dagster as dg

from analytics_assets.contract import FRICTION_PATH, METRICS, PAGES, PUBLISHED_PATH
from analytics_assets.defs.retries import retried
from analytics_assets.publication.pages.core import FOLDER, Health
from analytics_assets.publication.pages.publish import write_core_pages, write_published_pages
from analytics_assets.publication.pages.writing import Written
from analytics_assets.settings import Settings
from analytics_assets.store import open_store

GROUP: Final = "publication"
CORE: Final = "core_pages"
PUBLISHED: Final = "published_pages"

_HISTORY: Final = 5
"""Executions of a check that are looked through for one that has ended: this run's may only be planned."""

_ENDED: Final = {"SUCCEEDED", "FAILED"}


def make_core_pages(checks: Iterable[dg.AssetCheckKey]) -> dg.AssetsDefinition:
    """Return the asset of the core team's pages, whose health line is about `checks`."""

    @dg.asset(
        name=CORE,
        description=PAGES[CORE],
        group_name=GROUP,
        deps=[*(metric.asset for metric in METRICS), dg.AssetKey(FRICTION_PATH)],
        kinds={"html"},
        owners=["team:core"],
    )
    @retried
    def core_pages(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> dg.MaterializeResult[None]:
        with open_store(settings) as store:
            written = write_core_pages(store, read_health(context.instance, checks))
        return dg.MaterializeResult(metadata=_metadata(settings, f"{FOLDER}/index.html", written))

    return core_pages


@dg.asset(
    name=PUBLISHED,
    description=PAGES[PUBLISHED],
    group_name=GROUP,
    deps=[dg.AssetKey(PUBLISHED_PATH)],
    kinds={"html", "csv", "json"},
    owners=["team:core"],
)
@retried
def published_pages(settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[None]:
    """Write the pages for everybody else."""
    with open_store(settings) as store:
        written = write_published_pages(store)
    return dg.MaterializeResult(metadata=_metadata(settings, "overview/index.html", written))


def read_health(instance: dg.DagsterInstance, checks: Iterable[dg.AssetCheckKey]) -> Health:
    """Return which asset checks fail and which services of Dagster do not run."""
    passed = {key: _last_passed(instance, key) for key in checks}
    statuses = instance.get_daemon_statuses().values()
    return Health(
        checks=sum(result is not None for result in passed.values()),
        failing=sorted(
            f"{key.asset_key.to_user_string()}: {key.name}" for key, good in passed.items() if good is False
        ),
        stopped=sorted(
            status.daemon_type.lower().replace("_", " ")
            for status in statuses
            if status.required and not status.healthy
        ),
    )


def _last_passed(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> bool | None:
    """Whether the last execution that has ended passed; a warning counts as passed. None when there is none."""
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=_HISTORY):
        if record.status.value not in _ENDED:
            continue
        evaluation = record.evaluation
        return evaluation is not None and (evaluation.passed or evaluation.severity == dg.AssetCheckSeverity.WARN)
    return None


def _metadata(settings: Settings, index: str, written: Written) -> dict[str, dg.MetadataValue[Any] | int]:
    return {
        "preview": dg.MetadataValue.md(written.preview or "No page yet: nothing was collected, or nothing published."),
        "index": dg.MetadataValue.path(settings.publish_dir / index),
        "pages": written.pages,
        "changed": written.changed,
        "removed": written.removed,
    }
