"""The walked example of docs/adding-a-metric.md, done to a copy of the project: one entry, and the rest follows."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa

from analytics_assets.contract import METRICS
from analytics_assets.defs.evaluation import CHECK_NAMES
from analytics_assets_tests.support.database import admin_url, event, insert
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/adding-a-metric.md").read_text(encoding="utf-8")
ASSET = "event_cancellations"


def block(name: str) -> str:
    """The fenced block below the comment of that name."""
    (text,) = re.findall(rf"<!-- {re.escape(name)} -->\n```[a-z]+\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the package with the page's entry."""
    assert ASSET not in {metric.asset for metric in METRICS}
    copy = tmp_path / "project"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "analytics_assets", copy / "analytics_assets", ignore=ignored)
    shutil.copy(ROOT / "dagster.yaml", copy)
    contract = copy / "analytics_assets/contract.py"
    before, declaration, metrics = contract.read_text(encoding="utf-8").partition("METRICS: Final = (\n")
    entries, end, after = metrics.partition("\n)\n")
    entry = textwrap.indent(block("contract entry"), "    ").rstrip("\n") + ","
    contract.write_text(f"{before}{declaration}{entries}\n{entry}{end}{after}", encoding="utf-8")
    return copy


def run(project: Path, environment: Mapping[str, str], *arguments: str) -> str:
    """Run a module with the copy first on the path, and the tests of the project behind it."""
    path = os.pathsep.join(map(str, (project, ROOT)))
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | environment | {"PYTHONPATH": path},
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_one_entry_is_enough(pipeline: Pipeline, host: Host, yesterday: date, project: Path) -> None:
    settings = pipeline.settings
    environment = settings.environment()
    host.occur("signups", moments(yesterday, settings.time_zone, 4))
    assert pipeline.run(["event_signups"], yesterday).success
    counts = pipeline.sql("select * from analytics.daily_event_counts")
    assert len(counts) == 1
    with pytest.raises(sa.exc.IntegrityError, match="daily_event_counts_event_name"):
        pipeline.sql(insert("daily_event_counts", **event(yesterday, event_name="signup_cancelled")))

    host.sql("alter table signups add cancelled_at timestamptz, add cancelled_by text")
    host.sql(block("source view"))
    signups = sa.table("signups", *map(sa.column, ("event_id", "cancelled_at", "cancelled_by")))
    for event_id, side, number in (("7", "web", 5), ("7", "admin", 2), ("8", None, 1)):
        for moment in moments(yesterday, settings.time_zone, number):
            row = {"event_id": event_id, "cancelled_at": moment, "cancelled_by": side}
            host.connection.execute(sa.insert(signups).values(row))

    run(project, environment, "analytics_assets", "init-db", "--admin-url", admin_url(settings))
    assert pipeline.sql("select * from analytics.daily_event_counts") == counts
    assert "event_cancellations: ok" in run(project, environment, "analytics_assets", "sources")

    found = json.loads(
        run(project, environment, "analytics_assets_tests.support.seventh_metric", ASSET, str(yesterday))
    )
    assert Path(found["package"]).is_relative_to(project)
    assert found["success"]
    assert sorted(found["stored"], key=str) == [
        ["signup_cancelled", "7", "admin", 2],
        ["signup_cancelled", "7", "web", 5],
        ["signup_cancelled", "8", None, 1],
    ]
    assert found["passed"] == dict.fromkeys(CHECK_NAMES, True)
    assert found["materialized"] == [str(yesterday)]
    assert found["refused by telemetry"], "it is counted in the host's database"
    assert found["counted from"] == ["analytics_source/signup_cancellations"]
    assert found["code"] == [str(project / "analytics_assets/contract.py"), "Metric(", f'asset="{ASSET}",']
    assert found["described"].startswith("How many sign-ups are cancelled for each event?")
    assert pipeline.stored("event_signups", yesterday) == {("event_signup", "1", "web"): 4}

    page = run(project, environment, "analytics_assets", "dictionary")
    assert "### `event_cancellations`\n\nHow many sign-ups are cancelled for each event?" in page
    assert "### `analytics_source.signup_cancellations`" in page
