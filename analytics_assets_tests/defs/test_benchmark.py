"""The benchmarks of collecting, in small: all runs, and different numbers are neither compared nor measured."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from analytics_assets.local.server import ROOT

pytestmark = pytest.mark.server


COLLECT = "collect.py --rows 3000 --events 20 --days 3 --rounds 1 --runs 1"
SCALING = "scaling.py --reduce 50 --steps 2 --rounds 1"
LESS = (
    "from analytics_assets.store import counts\n"
    "replace = counts.replace_days\n"
    "counts.replace_days = lambda store, metric, days: replace(store, metric, {d: days[d][1:] for d in days})\n"
)
"""A module that Python imports at its start: a row of every day is lost."""


def run(benchmark: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script, *options = benchmark.split()
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    return subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(("option", "head"), [("", ""), (" --no-index", ", no index")])
def test_every_alternative_runs_and_has_the_same_numbers(option: str, head: str) -> None:
    done = run(COLLECT + option)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"3,000 sign-ups of 20 events, 3 days{head}\n")
    named = re.findall(r"^([a-z, ]+?) +ours .*, alternative .*, ratio \d", done.stdout, re.MULTILINE)
    together = ["all days, no index"] if option else ["all days, index", "all days, no index"]
    assert named == [
        "count",
        "count, psql",
        "compare",
        "store a new day",
        "store again",
        "check",
        "whole run",
        *together,
    ]
    assert len(re.findall(r"\(target: at most [0-9.]+\) (?:met|MISSED)", done.stdout)) == 4
    assert re.search(r"^the plain statements of each day, .*: \d+\.\d s, \d+\.\d\d of the", done.stdout, re.MULTILINE)


def test_different_numbers_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LESS)
    done = run(COLLECT, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert "store: ours and the alternative have different numbers; no comparison" in done.stderr
    assert "target" not in done.stdout


def test_a_size_that_is_not_stored_as_it_was_put_in_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        LESS + "from analytics_assets.defs import evaluation\nevaluation.evaluate = lambda *_, **__: []\n"
    )
    done = run(SCALING, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert "sign-ups of a day, 600: what is stored of event_signups is not what was put in" in done.stderr
    assert "target" not in done.stdout


def test_a_size_whose_checks_fail_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LESS)
    done = run(SCALING, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert "event_signups: counts_match_source failed; nothing is measured" in done.stderr
    assert "target" not in done.stdout


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [((1.0, 2.0, 20.9), "met: at most linear"), ((1.0, 10.6, 11.0), "MISSED: worse than linear")],
)
def test_a_cost_is_compared_with_the_size_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: tuple[float, ...], verdict: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks/scaling.py"))
    costs = [script["Cost"](10**step, second, second, second) for step, second in enumerate(seconds)]
    script["report"](script["Curve"]("rows", "10 events", ()), costs)
    assert capsys.readouterr().out.endswith(f"(target: at most x10, 5% tolerance) {verdict}\n")
