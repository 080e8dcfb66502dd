"""The benchmark of whole runs works, and so does the report of all; how fast anything is, is no test."""

import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest

from analytics_assets.local.server import ROOT

pytestmark = [pytest.mark.server, pytest.mark.long]


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
        "from analytics_assets.retention.event_log import EventLogStorage\n"
        "EventLogStorage.store_event_batch = lambda *_: None\n"
    )
    done = run("range", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "range: 0 of 3 days of an asset recorded; no comparison" in done.stderr
    assert "target" not in done.stdout


def test_what_is_not_checked_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from analytics_assets.defs import evaluation\nevaluation.count_row_violations = lambda *_: 1 / 0\n"
    )
    done = run("range", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "target" not in done.stdout


@pytest.mark.parametrize("lost", ["event_signups", "endpoint_error_rates"])
def test_a_total_that_the_application_does_not_have_is_not_compared(tmp_path: Path, lost: str) -> None:
    """The checks are made to see nothing of it."""
    (tmp_path / "sitecustomize.py").write_text(
        "from analytics_assets.defs import evaluation\nfrom analytics_assets.store import counts\n"
        "replace = counts.replace_days\n"
        "counts.replace_days = lambda store, metric, days, *begun, **allowed: replace(\n"
        f"    store, metric, {{d: days[d][metric.asset == {lost!r}:] for d in days}}, *begun, **allowed)\n"
        "match = evaluation._compare_totals\n"
        "evaluation._compare_totals = lambda *arguments: match(*arguments)._replace(passed=True)\n"
    )
    done = run("range", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert f"range: the stored total of {lost} differs from the application's; no comparison" in done.stderr
    assert "target" not in done.stdout


DEMO = [sys.executable, str(ROOT / "benchmarks/demo.py"), "--days", "4", "--rounds", "1"]


def test_a_green_demonstration_is_timed() -> None:
    done = subprocess.run(DEMO, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = r"demonstration of 4 days: \d+ s .*\(target: at most 75 s\) (?:met|MISSED)"
    assert re.fullmatch(line, done.stdout.strip()), done.stdout


def test_a_demonstration_that_is_not_green_is_not_timed() -> None:
    env = os.environ | {"ANALYTICS_TIMEZONE": "Nowhere/Nothing"}
    done = subprocess.run(DEMO, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "not everything is green; nothing is measured" in done.stderr
    assert done.stdout.strip() == ""


REPORT = [sys.executable, str(ROOT / "benchmarks/report.py"), "--quick", "--only"]


def test_the_report_has_the_machine_the_versions_and_what_was_printed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = subprocess.run([*REPORT, "storage", "--write", str(page)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert f"| dagster | {version('dagster')} |" in text
    assert "| Python | " in text
    printed = done.stdout.split("\n", 1)[1].strip()
    assert "ours / stock" in printed
    assert f"```text\n{printed}\n```" in text


def test_the_page_shows_the_plot_of_what_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = subprocess.run([*REPORT, "scaling", "--write", str(page)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    curves = ["sign-ups of a day", "events of a day", "days of a run", "dumps of a day", "keys of a day"]
    text, plot = page.read_text(), tmp_path / "scaling.svg"
    assert re.findall(r"^([a-z-]+ of a [a-z]+); ", text, re.MULTILINE) == curves
    assert len(re.findall(r"^  cost per x10: at most x\d+\.\d\d \(.*\) (?:met|MISSED)", text, re.MULTILINE)) == 5
    assert f"({plot.name})" in text
    drawn = {element.text for element in ElementTree.parse(plot).iter("{http://www.w3.org/2000/svg}text")}  # noqa: S314  # our own
    assert {curve.capitalize() for curve in curves} <= drawn


def test_a_benchmark_that_fails_leaves_the_page_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['analytics_assets'] = None\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*REPORT, "storage", "--write", str(page)], check=False, capture_output=True, env=env)
    assert done.returncode == 1
    assert page.read_text() == "before"


def test_the_report_knows_every_benchmark_of_cost() -> None:
    known = runpy.run_path(str(ROOT / "benchmarks/report.py"))["BENCHMARKS"]
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    # Friction is about errors; load, saturation and workers are about what many runs or processes do to each other. The
    # benchmark of whole runs starts one_run.
    assert set(known) == scripts - {"report", "friction", "load", "saturation", "workers", "one_run"}
