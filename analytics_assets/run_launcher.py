"""Dagster's run launcher with a health check: a run whose process was killed does not keep its slot.

`dagster.yaml` names the class. The stock launcher cannot tell (Dagster 1.13): such a run would stay STARTED for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import dagster as dg
import psutil
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
_TOLERANCE: Final = 60
"""Seconds that the clock may have been corrected by since."""


class RunLauncher(DefaultRunLauncher):
    """The stock launcher, which run monitoring can ask whether the process of a run still exists."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring asks only a launcher that supports it."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Look for the process of a run.

        A process that cannot be seen from here counts as running. `max_runtime_seconds` ends such a run.
        """
        noted = self._noted_process(run)
        if noted is None or _may_be_a_run(*noted):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "The process of the run has ended: it was killed or crashed.")

    def _noted_process(self, run: dg.DagsterRun) -> tuple[int, float] | None:
        """Return the number that the process noted at its start, and when (Unix time).

        None when it is on another machine.
        """
        address = run_address(run)
        if "socket" not in address and address.get("host") not in _LOOPBACK:
            return None
        noted = self._instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        for entry in noted:
            pid = entry.get_dagster_event().engine_event_data.metadata.get("pid")
            if pid is not None:
                return int(str(pid.value)), entry.timestamp
        return None


def run_address(run: dg.DagsterRun) -> Mapping[str, Any]:
    """Return where the code server of a run listens: `socket`, or `host` and `port`. Nothing before the launch."""
    found: Mapping[str, Any] = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    return found


def _may_be_a_run(pid: int, noted: float) -> bool:
    """Return whether the process exists and is a Python process of Dagster, not one that got the number since.

    After a restart, a container gives the same numbers again.
    """
    try:
        process = psutil.Process(pid)
        words = " ".join(process.cmdline())
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and process.create_time() < noted + _TOLERANCE
            and ("multiprocessing" in words or "dagster" in words)
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
