"""The saturation benchmark, in small: it loads every part and names the knee; how fast anything is, is no test."""

import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from analytics_assets.local.server import ROOT

pytestmark = pytest.mark.server

SATURATION = str(ROOT / "benchmarks/saturation.py")
KNEE = re.compile(r"^  (?:knee:|no knee up to) \d+ ([a-z ]+), [\d,]+ (\S+); exhausted: .+$", re.MULTILINE)


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SATURATION, "--quick", *options]
    return subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)


@pytest.fixture
def saturation(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return runpy.run_path(SATURATION)


def test_every_part_is_loaded_and_its_knee_is_named(saturation: dict[str, Any]) -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert KNEE.findall(done.stdout) == [(part.load, part.unit) for part in saturation["PARTS"].values()]


def test_another_result_is_not_measured(tmp_path: Path) -> None:
    # Python imports this module at start.
    (tmp_path / "sitecustomize.py").write_text(
        "from analytics_assets import remote\nremote.RemoteFolder.read = lambda *_: b'other'\n"
    )
    done = run("--only", "share", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert "a dump was not read; nothing is measured" in done.stderr
    assert "exhausted" not in done.stdout


@pytest.mark.parametrize(
    ("rates", "knee"),
    [([1], 1), ([10, 20, 39], 4), ([10, 20, 22], 4), ([10, 20, 21.9], 2), ([10, 9, 20, 21], 4), ([5, 4], 1)],
)
def test_the_knee_is_the_first_load_after_which_none_brings_a_tenth_more(
    saturation: dict[str, Any], rates: list[float], knee: int
) -> None:
    levels = [saturation["Level"](2**step, rate, {}, Counter(), 0) for step, rate in enumerate(rates)]
    assert levels[saturation["find_knee"](levels)].load == knee


@pytest.mark.parametrize(
    ("cores", "waits", "named"),
    [
        ({"webserver": 0.95}, {}, "the one core of webserver"),
        ({"webserver": 0.95, "PostgreSQL": 0.9}, {}, "the one core of webserver and the cores of the machine"),
        ({"PostgreSQL": 0.95}, {"IO WalSync": 6, "a processor": 4}, "no processor; PostgreSQL waited for IO WalSync"),
        ({"PostgreSQL": 0.95}, {"IO WalSync": 4, "Lock tuple": 3, "a processor": 3}, "no processor"),
    ],
)
def test_what_is_exhausted_is_named(
    saturation: dict[str, Any], cores: dict[str, float], waits: dict[str, int], named: str
) -> None:
    level = saturation["Level"](1, 1, cores, Counter(waits), 0)
    assert saturation["exhausted"](saturation["PARTS"]["webserver"], level, 2) == named
