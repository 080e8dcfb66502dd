"""The load benchmark, in small: it works behind a pooler, and says what has gone wrong; how fast it is, is no test."""

import re
import runpy
import subprocess
import sys

import pytest

from analytics_assets.local.server import ROOT
from analytics_assets_tests.support.pipeline import ALL, Pipeline

pytestmark = pytest.mark.server

LOAD = str(ROOT / "benchmarks/load.py")


def test_backfills_at_once_behind_a_pooler() -> None:
    done = subprocess.run(
        [sys.executable, LOAD, "--backfills", "2", "--clients", "2"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 backfills of a day of 6 assets" in done.stdout
    assert re.search(r"at most: counts: \d, dagster: \d, host: \d", done.stdout)


def test_what_has_gone_wrong_is_said(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    load = runpy.run_path(LOAD)
    seen = load["Seen"](failed=1)
    seen.connections.update(host=load["POOL"] + 1)
    assert load["find_problems"](pipeline.instance, ["lost"], seen) == [
        "a backfill has not succeeded",
        "a backfill has 0 runs, or one that has not succeeded",
        *(f"{asset}: a day is not recorded, or more than once" for asset in ALL),
        "neither the schedule nor a sensor was evaluated",
        "1 requests have failed",
        "there were other connections than the pooler allows",
    ]
