"""What the browser tests stand on: Dagster's real webserver, daemon and code server, and Chromium in front of them.

Clicks that several tests make belong here; what a page must show belongs to the tests.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from analytics_assets.days import bounds, span
from analytics_assets.demo.webserver import Webserver
from analytics_assets.local.server import HOST, dagster_dev, wait_until_ready
from analytics_assets.settings import Settings
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import ALL, Pipeline
from analytics_assets_tests.support.processes import PATIENCE, free_port

BUSY_DAYS = 10
"""Days before today with activity; the days before are empty."""

EXPIRED_DAYS = 190
"""Age of the day that is there although it has expired, when Dagster starts."""

_FLAGS = [
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Site:
    """A pipeline whose UI is up."""

    settings: Settings
    pipeline: Pipeline
    """To read what is stored."""
    webserver: Webserver

    @classmethod
    @contextmanager
    def open(cls, host: Host, settings: Settings) -> Iterator[Site]:
        """Let some days of activity happen in the host application, and start Dagster on it."""
        _act(host, settings)
        # Older than what is kept: the sensor finds it as soon as the daemon runs.
        (settings.dump_dir / str(settings.today() - timedelta(days=EXPIRED_DAYS))).mkdir()
        port = free_port()
        with (
            Pipeline.open(settings) as pipeline,
            dagster_dev(settings, port, log=settings.data_dir / "dagster.log") as process,
        ):
            site = cls(settings, pipeline, Webserver(f"http://{HOST}:{port}"))
            site.collect(ALL, site.collected_days[0], site.collected_days[-1])
            wait_until_ready(process, port)
            yield site

    @property
    def collected_days(self) -> list[date]:
        """The days that are there for every metric before anybody clicks: without a gap, or a check would be red."""
        return span(self.day(BUSY_DAYS), self.day(1))

    def collect(self, assets: Sequence[str], first: date, last: date) -> None:
        """Materialize a range of days without a click."""
        # Playwright's event loop occupies this thread, and a run needs one of its own.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(self.pipeline.run, assets, first, last).result().success

    def day(self, back: int) -> date:
        """The day so many days before today."""
        return self.settings.today() - timedelta(days=back)

    def recorded(self, asset: str) -> set[date]:
        """The days that Dagster records as materialized."""
        return self.webserver.materialized_days([asset])[asset]


def _act(host: Host, settings: Settings) -> None:
    """On the day n days ago: 2 + n sign-ups and searches, and a little of everything else."""
    today = settings.today()
    for day in span(today - timedelta(days=BUSY_DAYS), today - timedelta(days=1)):
        number = 2 + (today - day).days
        host.occur("signups", moments(day, settings.time_zone, number))
        host.occur("visibility", moments(day, settings.time_zone, 2))
        host.occur("consent", moments(day, settings.time_zone, 3), turned_on=True)
        start = bounds(day, settings.time_zone)[0].timestamp()
        telemetry = Telemetry(settings.dump_dir, time_zone=settings.time_zone, clock=partial(float, start))
        telemetry.count("directory_page_viewed", event_id=1, source="web", times=2 * number)
        telemetry.count("directory_searched", event_id=1, source="web", times=number)
        telemetry.count_response("GET", "/events/{event_id}", 200, times=40)
        telemetry.count_response("GET", "/events/{event_id}", 404)
        telemetry.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window. It fails where there is none: a skipped browser test is soon forgotten."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("the browser tests need Chromium: run `make test-programs`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def new_page(browser: Browser, site: Site, *, width: int = 1440, height: int = 1000) -> Iterator[Page]:
    """A page of a user who has been here before: Dagster's welcome, which loads things from elsewhere, is dismissed."""
    context = browser.new_context(base_url=site.webserver.url, viewport={"width": width, "height": height})
    context.set_default_timeout(PATIENCE * 1000)
    context.add_init_script("localStorage.setItem('communityNux', '\"1\"')")
    try:
        yield context.new_page()
    finally:
        context.close()


def materialize(page: Page, button: str, select: Callable[[Page], None], days: int) -> None:
    """Click a button that materializes, select days in its dialog, launch, and go to the run or backfill."""
    page.get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    # It offers the last 90 days only, and is ready when it says so.
    dialog.get_by_role("button", name="Show all partitions").click()
    select(page)
    expect(dialog.get_by_text(re.compile(rf"^{days} partitions?$"))).to_be_visible()
    dialog.get_by_role("button", name="Launch").click()
    follow_notification(page)


def type_days(first: date, last: date) -> Callable[[Page], None]:
    """Select a range in the dialog by typing it."""

    def select(page: Page) -> None:
        field = page.get_by_role("dialog").get_by_role("textbox")
        field.fill(f"[{first}...{last}]")
        field.press("Enter")

    return select


def follow_notification(page: Page) -> None:
    """Click View in the notification of what was launched."""
    page.get_by_role("region", name="Notifications").get_by_role("link", name="View").click()


def open_check(page: Page, asset: str, check: str) -> None:
    """Open a check of an asset on its Checks tab."""
    page.goto(f"/assets/{asset}")
    page.get_by_role("tab", name="Checks").click()
    # The list cuts long names in the middle; the title has them whole.
    page.get_by_title(check, exact=True).click()
