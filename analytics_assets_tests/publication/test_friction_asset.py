"""The asset `product_friction` on a real PostgreSQL: what is planted is found, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import get_args

import dagster as dg
import pytest

from analytics_assets.contract import FRICTION_KINDS, FRICTION_PATH, LOOKBACK_DAYS, METRICS, RETENTION_DAYS, metric
from analytics_assets.days import span
from analytics_assets.defs.evaluation import NO_FRICTION
from analytics_assets.defs.partitions import range_tags
from analytics_assets.publication.findings import HISTORY_DAYS, list_judged
from analytics_assets.publication.friction import Finding, Kind, ranked, strongest
from analytics_assets.publication.pages.core import MAX_FINDINGS, Health
from analytics_assets.publication.pages.html import format_date
from analytics_assets.publication.pages.publish import write_core_pages
from analytics_assets.publication.pages.reading import label
from analytics_assets.settings import Settings
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import Window, read_window
from analytics_assets_tests.support.database import as_superuser, insert
from analytics_assets_tests.support.pipeline import Pipeline, replace_day, run_check

STEADY, QUIET = "7", "8"
SEARCH = "GET /events/{event_id}/directory/search"
DAYS = 110
USUAL = {"event_signup": 20, "directory_page_viewed": 100, "directory_searched": 30}
ASSETS = ("event_signups", "directory_page_views", "directory_searches", "endpoint_error_rates")
"""Those that are filled. The other two are not collected at all."""


def count(name: str, event_id: str, days_ago: int) -> int:
    """The counts of a day: a steady event, and one that is active one week in five."""
    if event_id == QUIET and days_ago // 7 % 5:
        return 0
    usual = USUAL[name] * (0.4 if days_ago % 7 < 2 else 1)
    counted = Random(f"{name} {event_id} {days_ago}").gauss(usual, usual**0.5)  # noqa: S311  # repeatable
    if event_id == STEADY:
        if name == "event_signup" and days_ago in {20, 19, 18}:
            counted *= {20: 6, 19: 3, 18: 2}[days_ago]  # sign-up opens
        if name == "directory_page_viewed" and days_ago <= 7:
            counted /= 3  # hardly anybody comes any more
        if name == "directory_searched" and days_ago <= 28:
            counted *= 0.5  # the search is found less often
    return max(0, round(counted))


def rows_of(asset: str, day: date, days_ago: int) -> list[dict[str, object]]:
    if asset == "endpoint_error_rates":
        failed = 70 if days_ago == 10 else 1 + days_ago % 3
        counts = {200: 300 + days_ago % 20, 500: failed}
        return [{"event_date": day, "endpoint": SEARCH, "status_code": code, "count": n} for code, n in counts.items()]
    (name,) = metric(asset).event_names
    return [
        {"event_date": day, "event_name": name, "event_id": event_id, "source": "web", "count": counted}
        for event_id in (STEADY, QUIET)
        if (counted := count(name, event_id, days_ago))
    ]


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """A store with what is planted above."""
    with open_store(settings) as opened:
        last = read_window(opened).last
        for days_ago in range(1, DAYS + 1):
            day = last - timedelta(days=days_ago - 1)
            for asset in ASSETS:
                replace_day(opened, metric(asset), day, rows_of(asset, day, days_ago))
        yield opened


def find(pipeline: Pipeline, first: date | None = None, last: date | None = None) -> dict[str, int]:
    """Materialize the asset, for days or by hand. Returns its metadata."""
    result = (
        pipeline.definitions()
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            instance=pipeline.instance,
            asset_selection=[dg.AssetKey(FRICTION_PATH)],
            tags=range_tags(first, last or first) if first else {},
        )
    )
    (event,) = result.get_asset_materialization_events()
    return {name: int(str(entry.value)) for name, entry in event.materialization.metadata.items()}


def found(pipeline: Pipeline) -> list[tuple[int, str, str, str, float]]:
    """How many days ago, event name, series, kind and score of everything that is kept."""
    today = pipeline.settings.today()
    rows = pipeline.sql(
        "select event_date, event_name, series, kind, score from analytics.friction order by 1, 2, 3, 4"
    )
    return [((today - day).days, *rest) for day, *rest in rows]


def test_what_is_planted_is_found_and_nothing_else_and_again_changes_nothing(
    pipeline: Pipeline, store: Store, yesterday: date
) -> None:
    said = find(pipeline)
    rows = found(pipeline)
    opening = {(days_ago, "event_signup", STEADY, "spike") for days_ago in (20, 19)}
    outage = (10, "http_response", SEARCH, "error spike")
    assert {row[:4] for row in rows if row[3] in {"spike", "error spike"}} == opening | {outage}
    drop = {row[:3] for row in rows if row[3] == "drop"}
    assert (1, "directory_page_viewed", STEADY) in drop
    assert {name for _, name, _ in drop} <= {"directory_page_viewed", "directory_searched"}
    assert {days_ago for days_ago, name, _ in drop if name == "directory_page_viewed"} <= set(range(1, 8))
    assert {row[1] for row in rows if row[3] == "drop-off"} == {"directory_searched"}
    assert QUIET not in {row[2] for row in rows}, "quiet weeks are no friction"
    assert said["days judged"] == RETENTION_DAYS - HISTORY_DAYS
    assert [said[f"findings: {kind}"] for kind in FRICTION_KINDS] == [
        sum(row[3] == kind for row in rows) for kind in FRICTION_KINDS
    ]

    # By hand, by the daily run, or day by day: the same day has the same findings.
    assert find(pipeline) == said
    assert found(pipeline) == rows
    assert find(pipeline, yesterday - timedelta(days=LOOKBACK_DAYS), yesterday)["days judged"] == LOOKBACK_DAYS + 1
    for days_ago in (20, 10):
        find(pipeline, yesterday - timedelta(days=days_ago - 1))
    assert found(pipeline) == rows


def test_a_corrected_day_loses_its_findings(pipeline: Pipeline, store: Store, yesterday: date) -> None:
    find(pipeline)
    before = found(pipeline)
    opening = yesterday - timedelta(days=19)
    replace_day(store, metric("event_signups"), opening, rows_of("event_signups", opening, 41), allow_decrease=True)
    find(pipeline, opening)
    assert found(pipeline) == [row for row in before if row[:2] != (20, "event_signup")]
    assert len(found(pipeline)) < len(before)


def test_a_day_that_was_not_collected_is_never_judged(pipeline: Pipeline, store: Store, yesterday: date) -> None:
    find(pipeline)
    before = {row[:4] for row in found(pipeline)}
    day = yesterday - timedelta(days=40)
    spike = (41, "event_signup", STEADY, "spike")
    many = {"event_date": day, "event_id": STEADY, "source": "admin", "count": 9999}
    as_superuser(
        pipeline.settings,
        insert("daily_event_counts", event_name="event_signup", **many),
        insert("daily_event_counts", event_name="consent_turned_on", **many),  # never collected
    )
    find(pipeline, day)
    assert {row[:4] for row in found(pipeline)} == before | {spike}, "it was collected"
    note = f"asset = 'event_signups' and event_date = '{day}'"
    as_superuser(pipeline.settings, f"delete from analytics.collected_days where {note}")  # noqa: S608
    find(pipeline)
    assert {row[:4] for row in found(pipeline)} == before


def test_findings_are_warnings_of_the_metric_without_numbers(pipeline: Pipeline, store: Store, yesterday: date) -> None:
    for m in METRICS:
        evaluation = run_check(pipeline, m.asset, NO_FRICTION)
        assert evaluation.severity is dg.AssetCheckSeverity.WARN
        assert evaluation.passed == (m.asset not in {"directory_page_views", "directory_searches"}), m.asset
    views = str(run_check(pipeline, "directory_page_views", NO_FRICTION).description)
    assert f"- directory_page_viewed, {STEADY}: less than usual in the week to {yesterday}\n" in views
    searches = str(run_check(pipeline, "directory_searches", NO_FRICTION).description)
    assert "directory_searched, 7: less per directory_page_viewed in the four weeks to" in searches
    assert "docs/friction.md" in searches
    for said in (views, searches):
        assert set(re.findall(r"\d+", said.replace(str(yesterday), ""))) == {STEADY}, "no count, no score"


def test_the_core_page_ranks_what_was_found(pipeline: Pipeline, store: Store, yesterday: date) -> None:
    def section() -> str:
        write_core_pages(store, Health(checks=1))
        index = (pipeline.settings.publish_dir / "core/index.html").read_text(encoding="utf-8")
        return index.split('<h2 id="findings">')[1].split("</section>")[0]

    assert "Nothing was found." in section()
    find(pipeline)
    shown = re.findall(r"<li>([^:]+): ([^<]*?)(?: <a href=\"events/(\w+)\.html\">.*)?</li>", section())
    best: dict[tuple[str, str, str], float] = {}
    for _, name, series, kind, score in found(pipeline):
        best[name, series, kind] = max(score, best.get((name, series, kind), 0))
    assert [(what, link) for what, _, link in shown] == [
        (label(name), series) if series == STEADY else (series, "")
        for name, series, _ in sorted(best, key=lambda key: -best[key])
    ]
    assert {link for _, _, link in shown} == {STEADY, ""}
    assert any(format_date(yesterday - timedelta(days=9)) in text for what, text, _ in shown if what == SEARCH)

    as_superuser(
        pipeline.settings,
        *(
            f"insert into analytics.friction values ('{yesterday}', 'event_signup', '{1000 + n}', 'spike', 4.1)"  # noqa: S608
            for n in range(MAX_FINDINGS)
        ),
    )
    text = section()
    assert text.count("<li>") == MAX_FINDINGS
    assert f"{len(best)} more are in the table" in text


def test_it_comes_after_the_metrics_and_before_the_core_pages(pipeline: Pipeline) -> None:
    graph = pipeline.definitions().resolve_asset_graph()
    node = graph.get(dg.AssetKey(FRICTION_PATH))
    assert node.group_name == "publication"
    assert {key.to_user_string() for key in node.parent_keys} == {m.asset for m in METRICS}
    assert {key.to_user_string() for key in node.child_keys} == {"core_pages"}


# --- which days are judged


def test_a_day_whose_history_has_begun_to_expire_keeps_what_was_found() -> None:
    last = date(2026, 6, 30)
    window = Window(last - timedelta(days=179), last, last - timedelta(days=LOOKBACK_DAYS), datetime.now(UTC))
    first = window.first + timedelta(days=HISTORY_DAYS)
    assert list_judged(window) == span(first, last)
    assert list_judged(window, [first - timedelta(days=1), first, last, last + timedelta(days=1)]) == [first, last]
    assert list_judged(window, [window.first]) == []


@pytest.mark.parametrize("kept", [1, 2, 3, 30, HISTORY_DAYS])
def test_with_a_short_retention_the_days_of_the_daily_run_are_judged(kept: int) -> None:
    last = date(2026, 6, 30)
    window = Window(last - timedelta(days=kept - 1), last, last - timedelta(days=LOOKBACK_DAYS), datetime.now(UTC))
    assert list_judged(window) == span(max(window.first, last - timedelta(days=LOOKBACK_DAYS)), last)


def test_the_strongest_of_each_series_and_kind_is_shown() -> None:
    def finding(day: int, score: float, series: str = "7") -> Finding:
        return Finding("drop", "event_signup", series, date(2026, 6, day), score)

    every = [finding(1, 4), finding(2, 6), finding(3, 5), finding(1, 9, "8")]
    assert strongest(every) == [finding(1, 9, "8"), finding(2, 6)]
    assert strongest([]) == []
    assert ranked(strongest(every)) == strongest(every)


def test_the_contract_has_the_kinds_of_the_statistic() -> None:
    assert get_args(Kind) == FRICTION_KINDS
