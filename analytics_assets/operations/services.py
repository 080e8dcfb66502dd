"""What Dagster's records say about its daemon and about asset checks. Only read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._daemon.controller import get_daemon_statuses
from dagster._daemon.types import DaemonStatus

from analytics_assets.operations import Level

HEARTBEAT_SECONDS: Final = 300
"""A daemon that was not heard of for longer does not run. It reports every 30 seconds; Dagster itself waits 1,800."""

_HISTORY: Final = 100
"""Executions of a check that are looked through for the one that turned it red."""


@dataclass(frozen=True)
class CheckState:
    """What the last executions of a check say."""

    level: Level
    since: datetime
    """The first of the executions in a row with this level."""


def read_check(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> CheckState | None:
    """Return the state of a check, None before its first execution. An execution that has not ended is left out."""
    state = None
    for limit in (5, _HISTORY):
        state, complete = _summarize(instance, key, limit)
        if complete:
            break
    return state


def _summarize(instance: dg.DagsterInstance, key: dg.AssetCheckKey, limit: int) -> tuple[CheckState | None, bool]:
    """Return the state, and whether more executions would not change it."""
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=limit)
    state = None
    for record in records:
        evaluation = record.evaluation
        if record.status is AssetCheckExecutionRecordStatus.PLANNED or evaluation is None:
            continue
        failed = Level.WARNING if evaluation.severity is dg.AssetCheckSeverity.WARN else Level.RED
        level = Level.OK if evaluation.passed else failed
        if state is not None and state.level is not level:
            return state, True
        state = CheckState(level, datetime.fromtimestamp(record.create_timestamp, UTC))
    # Since when a check passes is nobody's question.
    return state, len(records) < limit or (state is not None and state.level is Level.OK)


def read_daemons(instance: dg.DagsterInstance) -> dict[str, DaemonStatus]:
    """Return the daemons that this instance needs, by name: each with its last heartbeat and whether it runs."""
    needed: Iterable[str] = instance.get_required_daemon_types()
    statuses = get_daemon_statuses(instance, needed, heartbeat_tolerance_seconds=HEARTBEAT_SECONDS)
    return {name.lower().replace("_", " "): status for name, status in sorted(statuses.items())}
