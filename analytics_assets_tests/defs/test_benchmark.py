"""The benchmark of whole runs works, and refuses to compare what has not done its work; how fast it is, is no test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analytics_assets.local.server import ROOT

pytestmark = pytest.mark.server


def run(comparison: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--days", "3", "--rounds", "1", "--only", comparison]
    command = [sys.executable, str(ROOT / "benchmarks/runs.py"), *options]
    return subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)


def test_every_alternative_runs_and_has_done_its_work() -> None:
    done = run("job")  # which does what the others do, and more
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^  (job|empty) +\d+\.\d+  \(", done.stdout, re.MULTILINE) == ["job", "empty"]


def test_what_stores_nothing_is_not_compared(tmp_path: Path) -> None:
    # Python imports this module at start.
    (tmp_path / "sitecustomize.py").write_text(
        "from dagster_postgres.event_log import PostgresEventLogStorage\n"
        "PostgresEventLogStorage.store_event_batch = lambda *_: None\n"
    )
    done = run("range", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "range: 0 of 3 days of an asset recorded; no comparison" in done.stderr
    assert "target" not in done.stdout
