"""The benchmark of workers runs and compares what was stored; how fast anything is, is no test."""

import os
import re
import runpy
import subprocess
import sys
from datetime import date
from typing import Any

import pytest

from analytics_assets.contract import METRICS
from analytics_assets.local.server import ROOT

pytestmark = [pytest.mark.server, pytest.mark.long]

SCRIPT = ROOT / "benchmarks/workers.py"
DAYS = [date(2026, 11, 22), date(2026, 11, 23)]


def test_a_worker_collects_the_days() -> None:
    """Each of the others takes as long, and the test of two workers compares them with one process."""
    options = ["--days", "2", "--rows", "3", "--hashes", "1", "--rounds", "1", "--loads", "heavy", "--only"]
    command = [sys.executable, str(SCRIPT), *options, "one worker"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a backfill of 2 days of 6 assets, 1 rounds, all with the same counts" in done.stdout
    named = re.findall(r"^  (\S.*?)(?: +\d+\.\d+){4}$", done.stdout, re.MULTILINE)
    assert named == ["heavy load, one worker"]


def test_other_counts_and_missing_days_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    find_difference = runpy.run_path(str(SCRIPT))["find_difference"]
    collected = [(metric.asset, day, 1) for metric in METRICS for day in DAYS]
    stored: list[list[Any]] = [[(DAYS[0], "event_signup", "1", "web", 5)], [], collected]
    assert find_difference(stored, [list(rows) for rows in stored], DAYS) is None
    other = [[(DAYS[0], "event_signup", "1", "web", 6)], *stored[1:]]
    assert find_difference(stored, other, DAYS) == "other counts are stored"
    missing = [*stored[:2], collected[1:]]
    assert find_difference(missing, missing, DAYS) == "11 of 12 days of an asset were collected"
