"""The benchmark runs and refuses to compare what has not counted the same; how fast anything is, is no test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
LEANEST = "ours / leanest peer"
COMPARISONS = {
    "views": ["count", "prometheus_client", "the least that counts"],
    "responses": ["count_response", "prometheus_client"],
    "flatness": ["1 keys", "10 keys", "100 keys", "1000 keys", "2000 keys"],
    "asgi": [
        "CountResponses",
        "fastapi-instrumentator",
        "starlette-exporter",
        "the least that counts",
        "the least that counts what ours does",
    ],
    "asgi-multiprocess": [
        "CountResponses",
        "fastapi-instrumentator",
        "starlette-exporter",
        "the least that counts",
        "the least that counts what ours does",
    ],
    "django": ["count_responses", "django-prometheus"],
    "django-multiprocess": ["count_responses", "django-prometheus"],
}


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/telemetry.py"), "--rounds", "2", "--calls", "3"]
    return subprocess.run(
        command, env={**os.environ, **environment}, check=False, capture_output=True, text=True, timeout=300
    )


def by_comparison(output: str) -> dict[str, str]:
    """Name -> what was printed about it; the note above them all has none."""
    return dict(re.findall(r"^([a-z-]+): (.*(?:\n  .*)*)", output, re.MULTILINE))


def test_every_alternative_runs_and_has_counted_the_same() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "ours only counts" in done.stdout
    printed = by_comparison(done.stdout)
    assert printed.keys() == COMPARISONS.keys()
    for name, alternatives in COMPARISONS.items():
        assert "each has counted 2,006 of 2,006" in printed[name]
        table = re.findall(r"^  (.*?)(?: +-?[0-9]+\.[0-9]{2}){3}$", printed[name], re.MULTILINE)
        assert table[1:] == alternatives
        assert (LEANEST in printed[name]) == (name != "flatness")


def test_what_loses_counts_is_not_compared(tmp_path: Path) -> None:
    # Python imports this module at start, also in the processes that the benchmark starts.
    (tmp_path / "sitecustomize.py").write_text(
        "from analytics_assets.telemetry import Telemetry\nTelemetry.count_response = lambda *_, **__: None\n"
    )
    done = run(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "count_response: 0 counted as 'GET /page0/{event_id} 200', 21 made; no comparison" in done.stderr
    assert "CountResponses: 0 counted as 'GET /events/{event_id} 200', 2006 made; no comparison" in done.stderr
    compared = {name for name, text in by_comparison(done.stdout).items() if "fastest" in text or LEANEST in text}
    assert compared == {"views", "flatness"}
