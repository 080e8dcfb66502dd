"""The benchmark of collecting, in small: both sides run, and it refuses to compare different numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analytics_assets.local.server import ROOT

pytestmark = pytest.mark.server


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--rows", "3000", "--events", "20", "--days", "3", "--rounds", "1", "--runs", "1"]
    command = [sys.executable, str(ROOT / "benchmarks/collect.py"), *options]
    return subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)


def test_every_alternative_runs_and_has_the_same_numbers() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    named = re.findall(r"^([a-z ]+?) +ours .*, alternative .*, ratio \d", done.stdout, re.MULTILINE)
    assert named == ["count", "compare", "store a new day", "store again", "check", "whole run"]
    assert len(re.findall(r"\(target: at most [0-9.]+\) (?:met|MISSED)", done.stdout)) == 3


def test_different_numbers_are_not_compared(tmp_path: Path) -> None:
    # Python imports this module at start.
    (tmp_path / "sitecustomize.py").write_text(
        "from analytics_assets.store import counts\n"
        "replace = counts.replace_days\n"
        "counts.replace_days = lambda store, metric, days: replace(store, metric, {d: days[d][1:] for d in days})\n"
    )
    done = run(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert "store: ours and the alternative have different numbers; no comparison" in done.stderr
    assert "target" not in done.stdout
