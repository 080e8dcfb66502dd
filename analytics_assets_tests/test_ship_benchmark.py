"""The benchmark of dumps behind a URL runs and refuses to compare other counts; how fast anything is, is no test."""

import os
import re
import subprocess
import sys
from pathlib import Path

from analytics_assets.local.server import ROOT


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--files", "3", "--keys", "5", "--rounds", "1"]
    command = [sys.executable, str(ROOT / "benchmarks/ship.py"), *options]
    return subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)


def test_every_place_is_shipped_to_and_read() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert "a day of 3 files, every metric counted and compared, 1 rounds, all with the same counts" in done.stdout
    named = re.findall(r"^  (\S.*?)(?: +\d+\.\d+){3,4}$", done.stdout, re.MULTILINE)
    assert named == [*["a share (file://)", "S3"], "the local folder", "a share (file://)", "S3", "S3, downloads only"]


def test_other_counts_are_not_compared(tmp_path: Path) -> None:
    # Python imports this module at start.
    (tmp_path / "sitecustomize.py").write_text(
        "from analytics_assets import remote\n"
        "read = remote.RemoteFolder.read\n"
        "remote.RemoteFolder.read = lambda *given: read(*given).replace(b'1}', b'2}')\n"
    )
    done = run(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert "no comparison" in done.stderr
    assert "ratio" not in done.stdout
