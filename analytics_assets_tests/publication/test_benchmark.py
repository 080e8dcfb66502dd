"""The benchmark of publishing, in small."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_part_runs_and_its_numbers_are_right() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/publish.py")]
    sizes = ["--events", "20", "--nightly-events", "30", "--pages", "3", "--rounds", "1"]
    run = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "series with a wrong total: 0; findings of the checks: 0" in run.stdout
    assert "pages: 8; differences from what is published: 0" in run.stdout
    assert len(re.findall(r"\(target: .*\) (?:met|MISSED)", run.stdout)) == 5
