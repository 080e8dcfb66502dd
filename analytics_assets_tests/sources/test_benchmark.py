"""The benchmark runs and refuses to compare what has not counted the same; how fast anything is, is no test."""

import os
import re
import subprocess
import sys
from pathlib import Path

from analytics_assets.local.server import ROOT


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--files", "2", "--keys", "30", "--small", "20", "--times", "2", "--rounds", "2"]
    command = [sys.executable, str(ROOT / "benchmarks/dumps.py"), *options]
    return subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)


def test_every_alternative_runs_and_has_counted_the_same() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert "a day of 60 lines, 30 keys, 2 rounds, all with the same counts" in done.stdout
    named = re.findall(r"^  (\S.*?)(?: +\d+\.\d+){3}", done.stdout, re.MULTILINE)
    assert named == [
        "DuckDB, nothing checked",
        "count one metric",
        "count and compare one metric",
        "count and compare every metric",
        "a file per line",
        "one file",
    ]
    assert "the same 20 lines, every metric counted and compared" in done.stdout
    assert re.search(r"^peak memory, 4 files, 30 keys: \d+ MiB", done.stdout, re.MULTILINE)


def test_other_counts_are_not_compared(tmp_path: Path) -> None:
    # Python imports this module at start.
    (tmp_path / "sitecustomize.py").write_text(
        "from collections import Counter\n"
        "from analytics_assets.sources import counter_dumps\n"
        "counter_dumps._sum_again = lambda folder: Counter()\n"
    )
    done = run(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert "its total differs; no comparison" in done.stderr
    assert "ratio" not in done.stdout
