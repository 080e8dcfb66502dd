"""The days: Dagster's partitions, and which of them a run is about."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Final

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from analytics_assets.days import span
from analytics_assets.settings import Settings

_SETTINGS: Final = Settings.from_env()

KEPT_DAYS: Final = _SETTINGS.retention_days
"""The retention period that this process was started with."""

# The first day stays what it was when the code location was loaded, so the UI may offer days that have expired since;
# the assets refuse those themselves.
DAILY: Final = dg.DailyPartitionsDefinition(
    start_date=(_SETTINGS.today() - timedelta(days=KEPT_DAYS)).isoformat(),
    timezone=_SETTINGS.time_zone,
)


DAY_TAGS: Final = (PARTITION_NAME_TAG, ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
"""Tags of a run whose value is a day."""


def days_of_run(tags: Mapping[str, str]) -> list[date]:
    """The days a run was launched for, from its tags; empty for a run without partition."""
    first = tags.get(ASSET_PARTITION_RANGE_START_TAG, tags.get(PARTITION_NAME_TAG))
    last = tags.get(ASSET_PARTITION_RANGE_END_TAG, first)
    if first is None or last is None:
        return []
    return span(date.fromisoformat(first), date.fromisoformat(last))


def range_tags(first: date, last: date) -> dict[str, str]:
    """Tags that make one run out of a range of days."""
    return {ASSET_PARTITION_RANGE_START_TAG: first.isoformat(), ASSET_PARTITION_RANGE_END_TAG: last.isoformat()}
