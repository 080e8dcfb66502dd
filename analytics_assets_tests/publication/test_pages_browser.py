"""The pages in real Chromium: both themes, three widths, print, keyboard, and axe-core.

The pictures in docs/ are made here: `SCREENSHOTS=1 .venv/bin/pytest
analytics_assets_tests/publication/test_pages_browser.py`.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from analytics_assets.contract import METRICS
from analytics_assets.local.pages import serve
from analytics_assets.local.server import ROOT
from analytics_assets.publication.findings import refresh_friction
from analytics_assets.publication.pages.core import Health
from analytics_assets.publication.pages.html import CONTENT_SECURITY_POLICY
from analytics_assets.publication.pages.publish import write_core_pages, write_published_pages
from analytics_assets_tests.support.browser import chromium
from analytics_assets_tests.support.database import event, set_up
from analytics_assets_tests.support.pages import BUSY, QUIET, published
from analytics_assets_tests.support.pipeline import replace_day

SCREENSHOTS = os.environ.get("SCREENSHOTS") == "1"
PATHS = {
    "core": "core/index.html",
    "core-event": f"core/events/{BUSY}.html",
    "overview": "overview/index.html",
    "event": f"events/{BUSY}/index.html",
    "quiet-event": f"events/{QUIET}/index.html",
}
WIDTHS = (390, 900, 1600)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def site(
    browser: Browser, make_database: Callable[[str], sa.URL], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of served pages."""
    if SCREENSHOTS:
        os.environ["ANALYTICS_TIMEZONE"] = "UTC"
    settings = set_up(make_database("analytics"), "postgresql://unused", tmp_path_factory.mktemp("browser"))
    with published(settings, days=120) as store:
        burst = settings.today() - timedelta(days=1)
        rows = [event(burst, event_name="event_signup", event_id=QUIET, source="web", count=60)]
        replace_day(store, METRICS[0], burst, rows)
        refresh_friction(store)
        write_core_pages(store, Health(checks=40))
        write_published_pages(store)
    with serve(settings.publish_dir, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def opened(browser: Browser, address: str, width: int = 1200, theme: str = "light") -> Iterator[tuple[Page, list[str]]]:
    """A page, and what it asks for and complains about."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
        java_script_enabled=True,
    )
    page = context.new_page()
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda request: seen.append(request.url))
    response = page.goto(address)
    assert response
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    try:
        yield page, seen
    finally:
        context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PATHS)
def test_a_page_fits_asks_for_nothing_and_complains_of_nothing(
    browser: Browser, site: str, tmp_path: Path, name: str, theme: str
) -> None:
    colours = set()
    for width in WIDTHS:
        with opened(browser, site + PATHS[name], width, theme) as (page, seen):
            assert [entry for entry in seen if not entry.startswith("data:")] == [site + PATHS[name]]
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.context.cookies() == []
            for summary in page.locator("summary").all():
                summary.click()
            assert page.evaluate("document.documentElement.scrollWidth") == width, "with every table open"
            charts = page.locator("svg.chart")
            sizes = charts.evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
            assert all(250 <= size <= 440 for size in sizes), sizes
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 1


@pytest.mark.parametrize("name", PATHS)
def test_the_themes_differ(browser: Browser, site: str, name: str) -> None:
    colours = set()
    for theme in ("light", "dark"):
        with opened(browser, site + PATHS[name], theme=theme) as (page, _):
            bar = page.locator("svg.chart path[fill^='var(--series-1)']").first
            colours.add(
                (
                    page.evaluate("getComputedStyle(document.body).backgroundColor"),
                    bar.evaluate("one => getComputedStyle(one).fill"),
                )
            )
    assert len({background for background, _ in colours}) == len({fill for _, fill in colours}) == 2


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PATHS)
def test_axe_finds_no_serious_violation(browser: Browser, site: str, name: str, theme: str) -> None:
    with opened(browser, site + PATHS[name], theme=theme) as (page, _):
        for summary in page.locator("summary").all():
            summary.click()
        found = Axe().run(page).response["violations"]
        serious = [
            (violation["id"], [node["html"] for node in violation["nodes"]][:3])
            for violation in found
            if violation["impact"] in {"serious", "critical"}
        ]
        assert serious == []


def test_every_chart_states_its_finding_and_has_its_table(browser: Browser, site: str) -> None:
    for name, path in PATHS.items():
        with opened(browser, site + path) as (page, _):
            figures = page.locator("figure").all()
            assert figures, name
            assert len(figures) == page.locator("svg.chart").count()
            for figure in figures:
                label = figure.get_attribute("aria-label") or ""
                assert any(letter.isdigit() for letter in label), label
                assert figure.locator("svg.chart[aria-hidden=true]").count() == 1
                table = figure.locator("details table")
                assert table.locator("thead th[scope=col]").count() >= 2
                assert table.locator("tbody th[scope=row]").count() == table.locator("tbody tr").count() > 0


def test_everything_is_reached_with_the_keyboard(browser: Browser, site: str) -> None:
    with opened(browser, site + PATHS["event"]) as (page, _):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the numbers"
        assert page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]  # it is there
        reached = 0
        for _ in range(page.locator("summary, a").count() - 1):
            page.keyboard.press("Tab")
            reached += page.evaluate("document.activeElement.matches('summary, a')")
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert reached == page.locator("summary, a").count() - 1
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details").first.get_attribute("open") is not None


def test_in_print_the_weeks_are_there_and_the_ink_is_black(browser: Browser, site: str) -> None:
    with opened(browser, site + PATHS["event"], theme="dark") as (page, _):
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        rows = page.locator("figure details:not(.days) tbody tr")
        assert rows.count() > 3 * 10
        assert rows.first.bounding_box()["height"] > 5  # type: ignore[index]  # the closed table is printed
        assert not page.locator("details.days").first.is_visible()
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_pictures_of_the_readme(browser: Browser, site: str, tmp_path: Path) -> None:
    folder = ROOT / "docs" if SCREENSHOTS else tmp_path
    for name, file in (("core", "core-page.png"), ("event", "event-page.png")):
        with opened(browser, site + PATHS[name]) as (page, _):
            page.screenshot(path=folder / file, animations="disabled")
            assert (folder / file).stat().st_size > 10_000
