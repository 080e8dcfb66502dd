"""From the analytics database to files: what the page assets do, and the check of what is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Final

from analytics_assets.folders import lock
from analytics_assets.publication.pages import core as core_pages
from analytics_assets.publication.pages.audit import Facts, find_differences, read_facts
from analytics_assets.publication.pages.core import Health, render_core
from analytics_assets.publication.pages.html import NOT_COLLECTED
from analytics_assets.publication.pages.published import FOLDERS, render_published
from analytics_assets.publication.pages.reading import read_core, read_published
from analytics_assets.publication.pages.series import Change, Series, period_to
from analytics_assets.publication.pages.writing import Written, write_pages
from analytics_assets.store import Store
from analytics_assets.store.counts import read_window

INSTALLED: Final = all(map(find_spec, ("altair", "vl_convert")))
"""Whether the extra `pages` is installed."""


def write_core_pages(store: Store, health: Health) -> Written:
    """Write the core team's pages. `health` has what Dagster knows; the days are read here.

    Writers take turns. Each reads the numbers when its turn has come, so that older ones never replace newer ones.

    Raises:
        DatabaseError: the analytics database is out of reach.
        OSError: a file cannot be written.
    """
    settings = store.settings
    with lock(settings.publish_dir):
        window = read_window(store)
        with store.transaction("reading the counts for the pages") as connection:
            core = read_core(connection, window, settings, health)
        written = write_pages(settings.publish_dir, [core_pages.FOLDER], render_core(core) if core else ())
    if core is None:
        return written
    series = [series for metric in core.metrics for series in metric.series]
    return replace(written, preview=preview([*series, core.responses.requests, core.responses.errors]))


def write_published_pages(store: Store) -> Written:
    """Write the pages for everybody else. Takes turns and raises as `write_core_pages` does."""
    settings = store.settings
    with lock(settings.publish_dir):
        with store.transaction("reading what is published for the pages") as connection:
            published = read_published(connection, settings)
        written = write_pages(settings.publish_dir, FOLDERS, render_published(published) if published else ())
    return replace(written, preview=preview(published.everything)) if published else written


def find_untrue_pages(store: Store) -> list[str]:
    """Return what the published pages say that the published tables do not.

    It takes turns with the writers and raises as `write_core_pages` does.
    """
    settings = store.settings
    with lock(settings.publish_dir):
        with store.transaction("reading what is published for the pages") as connection:
            published = read_published(connection, settings)
            facts = read_facts(connection, published.period.first) if published else Facts({}, {}, {})
        pages = render_published(published) if published else iter(())
        return list(find_differences(settings.publish_dir, pages, facts))


def preview(all_series: Sequence[Series]) -> str:
    """Return how the last four weeks compare with the four before as a Markdown table.

    It has no sums: Dagster keeps it longer than the days that they are of.
    """
    lines = ["| | last four weeks against the four before |", "| --- | ---: |"]
    for series in all_series:
        now = period_to(series.period.last)
        change = Change(series.total(now), series.total(now.before()))
        lines.append(f"| {series.label} | {change.percent or NOT_COLLECTED} |")
    return "\n".join(lines)
