"""The check that the pipeline's login reads nothing of the host's database but the source views.

It belongs to the views' assets, and asks the catalog as it is now: no day, no partition, no row.
"""

from typing import Final

import dagster as dg

from analytics_assets.contract import Metric
from analytics_assets.database import engine, without_values
from analytics_assets.defs.checks import listed
from analytics_assets.defs.collect import source_key
from analytics_assets.settings import Settings
from analytics_assets.sources.app_views import view_metrics
from analytics_assets.sources.login import beyond_the_views

ONLY_VIEWS: Final = "login_reads_only_the_views"

_RECOVERY: Final = (
    "The SQL ends it, run by the operator of the host's database; what PUBLIC loses, the application's own roles may"
    " need by name. `analytics-assets grants host` prints what the pipeline's login does need."
)


def login_check(metric: Metric) -> dg.AssetChecksDefinition:
    """The check, at the view that the metric is counted from."""

    @dg.asset_check(
        asset=source_key(metric),
        name=ONLY_VIEWS,
        description="The login of ANALYTICS_SOURCE_URL can read nothing in the host's database but the source views.",
    )
    def check(settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
        with (
            without_values("reading the catalog of the host application's database (ANALYTICS_SOURCE_URL)"),
            engine(settings.source_url, "ANALYTICS_SOURCE_URL", read_only=True) as database,
            database.connect() as connection,
        ):
            found = beyond_the_views(connection)
        return dg.AssetCheckResult(
            passed=not found,
            description=f"It can read:\n{listed(found)}\n\n{_RECOVERY}" if found else None,
            metadata={"findings": len(found)},
        )

    return check


LOGIN_CHECKS: Final = [login_check(metric) for metric in view_metrics()]
