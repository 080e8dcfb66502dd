"""The UI in a real browser: Chromium, Dagster's webserver, daemon and code server, and a pipeline, all of them real.

The tests click like a user does, and what a page then says is compared with what the databases hold. They share one
running Dagster, and can be run in any order: each materializes days of its own, and leaves checks as it found them.

The pictures in docs/ are made here: `SCREENSHOTS=1 .venv/bin/pytest analytics_assets_tests/test_browser.py`. It takes
some minutes longer, because nearly every retained day is then collected for them.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Locator, Page, expect

from analytics_assets.days import span
from analytics_assets.defs.assets import CONTRACT_FILE, GROUP, find_entries
from analytics_assets.defs.evaluation import AT_SOURCE, CHECK_NAMES, STORED
from analytics_assets.local.server import ROOT
from analytics_assets_tests.support.browser import (
    BUSY_DAYS,
    EXPIRED_DAYS,
    Site,
    chromium,
    follow_notification,
    materialize,
    new_page,
    open_check,
    type_days,
)
from analytics_assets_tests.support.clock import clock_at, noon_of
from analytics_assets_tests.support.database import as_superuser, pipeline_settings
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL
from analytics_assets_tests.support.processes import PATIENCE, wait_until

SCREENSHOTS = os.environ.get("SCREENSHOTS") == "1"
OTHERS = ["consent_changes", "counter_dumps", "profile_visibility_changes", "retention_ledger", "signups"]

expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def site(
    browser: Browser,
    make_analytics_database: Callable[[], sa.URL],
    make_dagster_database: Callable[[], str],
    make_database: Callable[[str], sa.URL],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    # The browser comes first: without it there is no need to start the rest.
    with Host.create(make_database("host")) as host:
        settings = pipeline_settings(make_analytics_database(), host.reader_url, tmp_path_factory.mktemp("browser"))
        with Site.open(host, replace(settings, dagster_url=make_dagster_database())) as opened:
            yield opened


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    with new_page(browser, site) as opened:
        yield opened


def picture(page: Page, name: str, tmp_path: Path) -> None:
    folder = ROOT / "docs" if SCREENSHOTS else tmp_path
    page.screenshot(path=folder / name, animations="disabled")


def metadata(page: Page, key: str) -> Locator:
    """The value beside a key, in the table of an asset's or a check's metadata."""
    row = page.get_by_role("row").filter(has=page.get_by_role("cell", name=key, exact=True))
    return row.get_by_role("cell").last


def test_one_day_is_materialized_by_clicking(site: Site, page: Page) -> None:
    page.goto("/assets/event_signups")
    latest = page.get_by_role("dialog").get_by_role("button", name="Latest")
    materialize(page, "Materialize…", lambda _: latest.click(), days=1)
    expect(page.get_by_text("Success", exact=True)).to_be_visible()

    page.goto("/assets/event_signups")
    expect(metadata(page, "dagster/partition_row_count")).to_have_text("1")
    expect(metadata(page, "total")).to_have_text("3")
    assert site.pipeline.stored("event_signups", site.day(1)) == {("event_signup", "1", "web"): 3}
    assert site.day(1) in site.recorded("event_signups")


def test_a_backfill_of_a_range_is_launched_by_clicking(site: Site, page: Page) -> None:
    last = site.day(1 if SCREENSHOTS else 2)
    first = last - timedelta(days=site.settings.retention_days - 1 if SCREENSHOTS else 4)
    days = span(first, last)
    page.goto(f"/locations/analytics_assets/asset-groups/{GROUP}/lineage")
    materialize(page, f"Materialize all ({len(ALL)})…", type_days(first, last), days=len(days))
    # The status, and the heading of a column.
    patience = 600 if SCREENSHOTS else 2 * PATIENCE
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(2, timeout=patience * 1000)
    expect(page.get_by_text("100% completed")).to_have_count(len(ALL))

    page.get_by_role("link", name="directory_searches").click()
    page.get_by_role("tab", name="Partitions").click()
    recorded = {asset: site.recorded(asset) for asset in ALL}
    expect(page.get_by_text(f"Materialized ({len(recorded['directory_searches'])})")).to_be_visible()
    for asset in ALL:
        assert {day for day in recorded[asset] if first <= day <= last} == set(days)
    for day in days:
        back = (site.settings.today() - day).days
        expected = {("directory_searched", "1", "web"): 2 + back} if back <= BUSY_DAYS else {}
        assert site.pipeline.stored("directory_searches", day) == expected


def test_the_lineage_shows_sources_assets_and_checks(browser: Browser, site: Site, tmp_path: Path) -> None:
    # Dagster draws only the nodes that the window has room for, and cuts long names in a narrower one.
    with new_page(browser, site, width=1440, height=2400) as page:
        page.goto(f"/locations/analytics_assets/asset-groups/{GROUP}/lineage")
        for name in {*OTHERS, *ALL}:
            both = 2 if name in OTHERS and name in ALL else 1
            expect(page.get_by_text(name, exact=True)).to_have_count(both)
        checks = page.get_by_role("link", name=f"/ {len(CHECK_NAMES)} Passed")
        expect(checks).to_have_count(len(ALL))
        assert {link.get_attribute("href") for link in checks.all()} == {f"/assets/{name}?view=checks" for name in ALL}
        expect(page.get_by_text("Loading…")).to_have_count(0)
        picture(page, "lineage.png", tmp_path)


@pytest.fixture
def poisoned(site: Site) -> Iterator[Path]:
    """A dump with a field too many, of a day that has been collected before and is collected again afterwards."""
    day = site.day(7)
    site.collect(["directory_searches"], day, day)
    poison = site.settings.dump_dir / str(day) / f"{'0123456789abcdef' * 2}.ndjson"
    line = {"event_date": str(day), "event_name": "directory_searched", "event_id": "1", "count": 1, "query": "canary"}
    poison.write_text(json.dumps(line) + "\n")
    yield poison
    poison.unlink()
    site.collect(["directory_searches"], day, day)


def test_a_failing_check_is_red_and_says_what_to_do_but_shows_no_value(
    site: Site, poisoned: Path, page: Page, tmp_path: Path
) -> None:
    day = date.fromisoformat(poisoned.parent.name)
    before = site.pipeline.stored("directory_searches", day)
    assert before

    page.goto("/assets/directory_searches")
    materialize(page, "Materialize…", type_days(day, day), days=1)
    expect(page.get_by_text("Failure", exact=True)).to_be_visible()
    assert "canary" not in page.content()

    open_check(page, "directory_searches", AT_SOURCE)
    found = f"{day}/{poisoned.name} line 1: (row) has a field that the contract does not allow"
    expect(page.get_by_role("listitem").get_by_text(found)).to_be_visible()
    expect(
        page.get_by_text(re.compile("Nothing was written for these days.*then materialize these days"))
    ).to_be_visible()
    expect(metadata(page, "violations")).to_have_text("1")
    picture(page, "failing-check.png", tmp_path)
    assert "canary" not in page.content()
    assert site.webserver.check_statuses(["directory_searches"])["directory_searches"][AT_SOURCE] == "FAILED"
    assert site.pipeline.stored("directory_searches", day) == before
    assert "canary" not in (site.settings.data_dir / "dagster.log").read_text(encoding="utf-8")


@contextmanager
def column_more(site: Site) -> Iterator[None]:
    """Change a table in a way that only somebody else could."""
    as_superuser(site.settings, "alter table analytics.daily_event_counts add column email text")
    try:
        yield
    finally:
        as_superuser(site.settings, "alter table analytics.daily_event_counts drop column email")


def test_the_check_of_what_is_stored_is_executed_by_itself(site: Site, page: Page) -> None:
    def execute() -> None:
        page.get_by_role("button", name=re.compile("Execute$")).click()
        follow_notification(page)

    with column_more(site):
        open_check(page, "consent_changes", STORED)
        execute()
        expect(page.get_by_text("Success", exact=True)).to_be_visible()
        open_check(page, "consent_changes", STORED)
        expect(page.get_by_text("Something other than this pipeline has changed the table")).to_be_visible()

    execute()
    expect(page.get_by_text("Success", exact=True)).to_be_visible()
    open_check(page, "consent_changes", STORED)
    expect(page.get_by_text("Passed", exact=True)).to_be_visible()
    assert site.webserver.check_statuses(["consent_changes"])["consent_changes"][STORED] == "SUCCEEDED"


def test_open_code_leads_to_the_entry_of_the_metric(page: Page) -> None:
    page.goto("/assets/event_signups")
    link = page.get_by_role("link", name=re.compile("^Open contract.py .*in editor$"))
    line = find_entries(CONTRACT_FILE)["event_signups"]
    expect(link).to_have_attribute("href", re.compile(rf"/analytics_assets/contract\.py:{line}"))


LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""
RUN = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } } } }"
WIPE = """
mutation Wipe($ranges: [PartitionsByAssetSelector!]!) {
  wipeAssets(assetPartitionRanges: $ranges) { __typename }
}
"""


def ended(site: Site, run_id: str) -> dict[str, Any]:
    """The run, once it is over."""
    run: dict[str, Any] = {}

    def over() -> bool:
        run.update(site.webserver.query(RUN, id=run_id)["runOrError"])
        return run["status"] in {"SUCCESS", "FAILURE", "CANCELED"}

    wait_until(over)
    return run


def wait_for_the_first_removal(site: Site) -> str:
    """Wait for what the sensor has to remove when the daemon starts. Returns the id of the run."""
    query = "select run_id, days from analytics.retention_ledger where target = 'counter dumps' order by id"
    wait_until(lambda: bool(site.pipeline.sql(query)))
    ((run_id, days), *_) = site.pipeline.sql(query)
    assert days == 1
    return str(run_id)


def test_the_sensor_has_removed_what_had_expired_when_the_daemon_started(site: Site) -> None:
    run = ended(site, wait_for_the_first_removal(site))
    assert not (site.settings.dump_dir / str(site.day(EXPIRED_DAYS))).exists()
    assert run["status"] == "SUCCESS"
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert tags["dagster/sensor_name"] == "retention_sensor"
    assert tags["dagster/run_key"] == str(site.day(site.settings.retention_days))


def test_after_a_removal_the_ui_shows_exactly_the_days_that_are_kept(site: Site, page: Page) -> None:
    wait_for_the_first_removal(site)
    days = site.collected_days
    before = {asset: site.recorded(asset) for asset in ALL}
    assert all(set(days) <= recorded for recorded in before.values())

    with clock_at(site.settings, noon_of(site.settings, days[0] + timedelta(days=site.settings.retention_days + 1))):
        job = {
            "repositoryLocationName": "analytics_assets",
            "repositoryName": "__repository__",
            "jobName": "retention_job",
        }
        config = {"ops": {"remove_expired_days": {"config": {"dry_run": False}}}}
        launched = site.webserver.query(LAUNCH, params={"selector": job, "runConfigData": config})["launchRun"]
        assert ended(site, launched["run"]["runId"])["status"] == "SUCCESS"
    for asset in ALL:
        kept = {day for day in before[asset] if day > days[0]}
        assert site.recorded(asset) == kept
        page.goto(f"/assets/{asset}?view=partitions")
        expect(page.get_by_text(f"Materialized ({len(kept)})")).to_be_visible()

    # What the UI's own "wipe" asks for.
    wiped = {"range": {"start": str(days[1]), "end": str(days[2])}}
    ranges = [{"assetKey": {"path": ["event_signups"]}, "partitions": wiped}]
    assert site.webserver.query(WIPE, ranges=ranges)["wipeAssets"]["__typename"] == "AssetWipeSuccess"
    left = {day for day in before["event_signups"] if day > days[2]}
    assert site.recorded("event_signups") == left
    page.goto("/assets/event_signups?view=partitions")
    expect(page.get_by_text(f"Materialized ({len(left)})")).to_be_visible()
    site.collect(ALL, days[0], days[2])  # it is kept again, and would be missing
