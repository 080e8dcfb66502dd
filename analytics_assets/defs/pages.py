"""The assets that write pages, and what their health line knows from Dagster."""

from collections.abc import Iterable
from typing import Any, Final

import dagster as dg

from analytics_assets.contract import FRICTION_PATH, METRICS, PAGES, PUBLISHED_PATH
from analytics_assets.defs.retries import retried
from analytics_assets.operations import Level
from analytics_assets.operations.services import read_check, read_daemons
from analytics_assets.publication.pages.core import FOLDER, Health
from analytics_assets.publication.pages.publish import write_core_pages, write_published_pages
from analytics_assets.publication.pages.writing import Written
from analytics_assets.settings import PAGES_QUEUE, Settings
from analytics_assets.store import open_store

GROUP: Final = "publication"
CORE: Final = "core_pages"
PUBLISHED: Final = "published_pages"
ON_PAGES_MACHINE: Final = {"dagster-celery/queue": PAGES_QUEUE}
"""With several workers, a step of these tags runs where the folder of the pages is."""


def make_core_pages(checks: Iterable[dg.AssetCheckKey]) -> dg.AssetsDefinition:
    """Return the asset of the core team's pages, whose health line is about `checks`."""

    @dg.asset(
        name=CORE,
        description=PAGES[CORE],
        group_name=GROUP,
        deps=[*(metric.asset for metric in METRICS), dg.AssetKey(FRICTION_PATH)],
        kinds={"html"},
        op_tags=ON_PAGES_MACHINE,
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
    op_tags=ON_PAGES_MACHINE,
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
    states = {key: read_check(instance, key) for key in checks}
    return Health(
        checks=sum(state is not None for state in states.values()),
        failing=sorted(
            f"{key.asset_key.to_user_string()}: {key.name}"
            for key, state in states.items()
            if state and state.level is Level.RED
        ),
        stopped=[name for name, status in read_daemons(instance).items() if not status.healthy],
    )


def _metadata(settings: Settings, index: str, written: Written) -> dict[str, dg.MetadataValue[Any] | int]:
    return {
        "preview": dg.MetadataValue.md(written.preview or "No page yet: nothing was collected, or nothing published."),
        "index": dg.MetadataValue.path(settings.publish_dir / index),
        "pages": written.pages,
        "changed": written.changed,
        "removed": written.removed,
    }
