"""The benchmark runs and refuses to compare what has not done its work; how fast anything is, is no test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analytics_assets.local.server import ROOT

pytestmark = pytest.mark.server


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--days", "3", "--rounds", "1", "--small", "10", "--large", "100"]
    command = [sys.executable, str(ROOT / "benchmarks/storage.py"), *options]
    return subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)


def test_every_alternative_runs_and_has_done_its_work() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert "each has recorded 3 of 3 days of 6 assets" in done.stdout
    named = re.findall(r"^  (ours|stock|(?:remove|drop|delete) (?:small|large)) +\d+\.\d+$", done.stdout, re.MULTILINE)
    assert named == [
        "ours",
        "stock",
        *(f"{how} {size}" for how in ("remove", "drop", "delete") for size in ("small", "large")),
    ]
    assert len(re.findall(r"\(target: at most", done.stdout)) == 2


def test_what_records_or_removes_nothing_is_not_compared(tmp_path: Path) -> None:
    # Python imports this module at start.
    (tmp_path / "sitecustomize.py").write_text(
        "from analytics_assets.retention.event_log import EventLogStorage\n"
        "EventLogStorage.store_event_batch = lambda *_: None\n"
        "from analytics_assets.store import expiry\n"
        "expiry.drop_day = lambda *_: 0\n"
    )
    done = run(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "ours: 0 of 3 days of an asset recorded; no comparison" in done.stderr
    assert "remove small: rows are left; no comparison" in done.stderr
    assert "target" not in done.stdout
