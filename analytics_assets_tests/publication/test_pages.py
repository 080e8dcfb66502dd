"""The pages: what they say equals the tables, and nothing but what has changed is written."""

import fcntl
import json
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from html import escape
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.contract import FUNNEL, METRICS, TARGETS, metric
from analytics_assets.days import span
from analytics_assets.defs.checks import SAY_ONLY_WHAT_IS_PUBLISHED
from analytics_assets.defs.pages import CORE, PUBLISHED
from analytics_assets.publication.findings import refresh_friction
from analytics_assets.publication.fives import BASE
from analytics_assets.publication.pages import publish as publish_module
from analytics_assets.publication.pages.core import Health
from analytics_assets.publication.pages.html import NOT_COLLECTED, Page
from analytics_assets.publication.pages.publish import find_untrue_pages, write_core_pages, write_published_pages
from analytics_assets.publication.pages.published import FILLED, HOW_TO_READ, find_bounds
from analytics_assets.publication.pages.reading import MARGIN, label, read_core, read_published
from analytics_assets.publication.pages.series import period_to
from analytics_assets.publication.pages.writing import write_pages
from analytics_assets.publication.publish import fill as publish_day_later
from analytics_assets.publication.publish import publish_closed
from analytics_assets.retention.sweep import MANUAL, apply_retention
from analytics_assets.retention.targets import Pages
from analytics_assets.settings import Settings
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import read_window
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import admin_url, as_superuser, event, insert, set_up
from analytics_assets_tests.support.pages import BUSY, EVENTS, QUIET, UUID, Tables, days_of, files, fill, published
from analytics_assets_tests.support.pipeline import Pipeline, replace_day, run_check
from analytics_assets_tests.support.processes import PATIENCE, SPAWN, wait_until


@pytest.fixture(scope="module")
def database(make_database: Callable[[str], sa.URL], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that no test changes, with all its pages."""
    settings = set_up(make_database("analytics"), "postgresql://unused", tmp_path_factory.mktemp("pages"))
    with published(settings) as opened:
        write_all(opened)
        yield opened


@pytest.fixture
def store(database: Store, tmp_path: Path) -> Store:
    """The same with a copy of its pages, which a test may change."""
    shutil.copytree(database.settings.publish_dir, tmp_path / "pages")
    return replace(database, settings=replace(database.settings, publish_dir=tmp_path / "pages"))


@pytest.fixture
def folder(store: Store) -> Path:
    return store.settings.publish_dir


@pytest.fixture
def changing(settings: Settings) -> Iterator[Store]:
    """A store of its own for a test that changes the counts."""
    with published(settings, days=40) as opened:
        write_all(opened)
        yield opened


def write_all(store: Store) -> None:
    write_core_pages(store, Health(checks=3))
    write_published_pages(store)


def scalar(store: Store, query: str, **parameters: object) -> int:
    with store.transaction("asking") as connection:
        return int(connection.scalar(sa.text(query), parameters) or 0)


COLLECTED = "select count(*) from analytics.collected_days where asset = :asset and event_date between :first and :last"
PUBLISHED_DAYS = (
    "select count(*) from published.days where event_name = :name and state = 'published'"
    " and event_date between :first and :last"
)


def exact(store: Store, heading: str, first: date, last: date, event_id: str | None = None) -> str:
    """What a cell of a core page should say, by its heading, asked of the tables by itself."""
    among = "event_date between :first and :last"
    parameters: dict[str, object] = {"first": first, "last": last}
    if heading in {"Responses", "Errors"}:
        asset, where = "endpoint_error_rates", f"{among} and status_code >= {400 if heading == 'Errors' else 0}"
        value = scalar(store, f"select sum(count) from analytics.daily_response_counts where {where}", **parameters)  # noqa: S608
    else:
        (name,) = (name for m in METRICS for name in m.event_names if label(name) == heading)
        (asset,) = (m.asset for m in METRICS if name in m.event_names)
        where = f"{among} and event_name = :name" + (" and event_id = :id" if event_id else "")
        parameters |= {"name": name, "id": event_id}
        value = scalar(store, f"select sum(count) from analytics.daily_event_counts where {where}", **parameters)  # noqa: S608
    return f"{value:,}" if scalar(store, COLLECTED, asset=asset, **parameters) else NOT_COLLECTED


def in_fives(store: Store, heading: str, first: date, last: date, event_id: str | None = None) -> str:
    """The same for a published page."""
    (name,) = (name for m in METRICS for name in m.event_names if label(name) == heading)
    parameters: dict[str, object] = {"first": first, "last": last, "name": name, "id": event_id}
    if name in FUNNEL:
        where = "event_name = :name and event_date between :first and :last"
        where += " and event_id = :id" if event_id else ""
        value = scalar(store, f"select sum(count) from published.daily where {where}", **parameters)  # noqa: S608
        known = scalar(store, PUBLISHED_DAYS, **parameters)
    else:
        value = scalar(
            store,
            "select count from published.weekly_counts where event_name = :name and week_start = :first",
            **parameters,
        )
        known = 1
    below = "<5" if event_id or name not in FUNNEL else "<5 each"
    return NOT_COLLECTED if not known else f"{value:,}" if value else below


def compare(
    store: Store, body: bytes, expected: Callable[..., str], last: date, event_id: str | None = None
) -> dict[str, int]:
    """Compare each cell of the tables by day, week, running total and funnel. Returns how many of each."""
    compared: dict[str, int] = {}
    for heading, *rows in Tables(body).tables:
        kind = heading[0]
        for row in rows:
            if kind in {"Week", "Day"}:
                cells = [(name, *days_of(row[0]), text) for name, text in zip(heading[1:], row[1:], strict=True)]
            elif kind == "Step":
                cells = [(row[0], last - timedelta(days=27), last, row[1])]
            else:
                continue
            for name, first, to, text in cells:
                assert text == expected(store, name, first, to, event_id), (kind, name, first, to)
                compared[kind] = compared.get(kind, 0) + 1
    return compared


def test_every_cell_of_the_core_pages_equals_the_tables(store: Store, folder: Path) -> None:
    last = store.settings.today() - timedelta(days=1)
    index = (folder / "core/index.html").read_bytes()
    compared = compare(store, index, exact, last)
    assert compared["Step"] == len(FUNNEL)
    assert compared["Week"] >= 9 * 7
    for event_id in EVENTS:
        page = (folder / f"core/events/{event_id}.html").read_bytes()
        assert compare(store, page, exact, last, event_id)["Day"] == 70 * 6
    tables = {table[0][0]: table for table in Tables(index).tables}
    now = (last - timedelta(days=27), last)
    for event_id, *cells in tables["Event"][1:]:
        assert cells[:3] == [exact(store, label(name), *now, event_id) for name in FUNNEL]
    assert {row[0] for row in tables["Event"][1:]} == EVENTS.keys()
    (endpoint,) = tables["Endpoint"][1:]
    assert endpoint[:3] == ["GET /events", exact(store, "Responses", *now), exact(store, "Errors", *now)]
    assert {row[0] for row in tables["Metric"][1:]} == {metric.asset for metric in METRICS}


def test_every_target_is_shown_with_value_threshold_verdict_and_trend(store: Store, folder: Path) -> None:
    last = store.settings.today() - timedelta(days=1)
    index = (folder / "core/index.html").read_text()
    verdicts = set()
    for target in TARGETS:
        card = index.split(f"<h3>{target.name}</h3>")[1].split("</article>")[0]
        shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", card))
        ratios = []
        for end in (last, last - timedelta(days=28)):
            totals = [
                scalar(
                    store,
                    "select sum(count) from analytics.daily_event_counts"
                    " where event_name = :name and event_date between :first and :last",
                    name=name,
                    first=end - timedelta(days=27),
                    last=end,
                )
                for name in (target.numerator, target.denominator)
            ]
            ratios.append(totals[0] / totals[1])
        verdict = "Met" if target.is_met(ratios[0]) else "Not met"
        # On one of the days before, searches were not collected.
        before = NOT_COLLECTED if "directory_searched" in {target.numerator, target.denominator} else f"{ratios[1]:.2f}"
        assert shown.startswith(f" {target.question} {ratios[0]:.2f} {verdict} : {target.direction.value}")
        assert f"{target.direction.value} {target.threshold} in 28 days; in the 28 days before: {before} " in (
            shown.replace("&ndash;", NOT_COLLECTED)
        )
        assert len(re.findall(r"\d+,\d+", card.split("polyline points=")[1])) >= 8, "a point per week"
        verdicts.add(verdict)
    assert verdicts == {"Met", "Not met"}


def test_a_target_is_not_judged_while_a_day_is_missing(changing: Store) -> None:
    day = changing.settings.today() - timedelta(days=5)
    as_superuser(
        changing.settings,
        f"delete from analytics.collected_days where asset = 'consent_changes' and event_date = '{day}'",  # noqa: S608
    )
    write_core_pages(changing, Health(checks=3))
    index = (changing.settings.publish_dir / "core/index.html").read_text()
    cards = {target.name: index.split(f"<h3>{target.name}</h3>")[1].split("</article>")[0] for target in TARGETS}
    assert [name for name, card in cards.items() if "Not judged" in card] == ["Consents withdrawn per consent given"]


def test_every_cell_of_the_published_pages_equals_the_published_tables(store: Store, folder: Path) -> None:
    last = store.settings.today() - timedelta(days=3)
    overview = compare(store, (folder / "overview/index.html").read_bytes(), in_fives, last)
    assert overview["Week"] >= 9 * 6
    assert overview["Day"] == 68 * 3
    for event_id in EVENTS:
        page = (folder / f"events/{event_id}/index.html").read_bytes()
        assert compare(store, page, in_fives, last, event_id)["Day"] == 68 * 3
        for heading, *rows in Tables(page).tables:
            for row in rows if heading[0] == "By the end of" else ():
                assert re.fullmatch(r"<5|[\d,]*[05]", row[1])


def test_the_files_of_an_event_are_its_published_days(store: Store, folder: Path) -> None:
    with store.transaction("reading") as connection:
        rows = connection.execute(
            sa.text("select event_date, event_name, event_id, count, state from published.daily where event_id = :id"),
            {"id": BUSY},
        ).all()
    lines = [",".join("" if value is None else str(value) for value in row) + ",false" for row in rows]
    written = (folder / f"events/{BUSY}/data.csv").read_text().splitlines()
    assert written[0] == "event_date,event_name,event_id,count,state,filled"
    assert sorted(written[1:]) == sorted(lines)
    data = json.loads((folder / f"events/{BUSY}/data.json").read_text())
    assert data["how_to_read"] == HOW_TO_READ
    keys = ("event_date", "event_name", "event_id", "count", "state", "filled")
    blank = {None: "", False: "false"}
    days = [{"event_id": BUSY} | {key: blank.get(value, value) for key, value in day.items()} for day in data["days"]]
    assert sorted(",".join(str(day[key]) for key in keys) for day in days) == sorted(lines)


def test_published_reader_is_enough_for_the_published_pages(store: Store) -> None:
    url = sa.make_url(admin_url(store.settings)).set(username="published_reader")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = read_published(connection, store.settings)
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            connection.exec_driver_sql("select * from analytics.daily_event_counts")
    engine.dispose()
    assert found
    assert [one.event_id for one in found.events] == sorted(EVENTS)


def test_nothing_is_written_when_nothing_has_changed(store: Store, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert write_core_pages(store, Health(checks=3)).changed == 0
    assert write_published_pages(store).changed == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert len(before) == 1 + 3 + 1 + 3 * 3


def test_a_page_does_not_hang_on_the_machine(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(folder)
    shutil.rmtree(folder)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    from analytics_assets.publication.pages import charts

    charts._draw.cache_clear()
    write_all(store)
    assert files(folder) == before


def test_only_pages_that_changed_are_written_and_those_of_events_that_are_gone_are_removed(changing: Store) -> None:
    store, folder = changing, changing.settings.publish_dir
    day = store.settings.today() - timedelta(days=1)
    as_superuser(
        store.settings,
        insert("daily_event_counts", **event(day, event_id=QUIET, event_name="event_signup", source="admin", count=3)),
        f"delete from analytics.daily_event_counts where event_id = '{UUID}'",  # noqa: S608
    )
    (folder / "core/somebody.txt").write_text("not ours")
    written = write_core_pages(store, Health(checks=3))
    assert (written.pages, written.changed, written.removed) == (3, 2, 1)
    assert not (folder / f"core/events/{UUID}.html").exists()
    assert (folder / "core/somebody.txt").exists(), "it has not the name of a page"
    assert not list(folder.rglob(".*")), "nothing is left beside the pages"


def test_a_reader_never_sees_half_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page("overview/index.html", b"old")
    write_pages(tmp_path, ["overview"], [page])
    open_before = (tmp_path / page.path).open("rb")

    def fail(self: Path, target: Path) -> Path:
        assert target.read_bytes() == b"old"
        raise OSError

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError):  # noqa: PT011  # any
        write_pages(tmp_path, ["overview"], [replace(page, body=b"new")])
    assert files(tmp_path) == {page.path: b"old"}
    with open_before:
        assert open_before.read() == b"old"


def test_the_folders_of_the_operator_stay(tmp_path: Path) -> None:
    pages = [Page(path, b"<time datetime='2026-01-01'>") for path in ("core/events/7.html", "events/7/data.csv")]
    write_pages(tmp_path, ["core", "events"], pages)
    assert write_pages(tmp_path, ["core", "events"], []).removed == 2
    folders = {"core", "events"}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == folders
    write_pages(tmp_path, ["core", "events"], pages)
    assert [amount.rows for amount in Pages(tmp_path).remove(date(2026, 1, 2))] == [2]
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == folders


def test_only_what_a_killed_writer_has_left_beside_a_page_is_removed(tmp_path: Path) -> None:
    page = Page("events/7/data.csv", b"")
    left = ["events/7/.data.csv.new", "events/9/.index.html.new", "events/.somebody.new", "events/7/data.csv.new"]
    for path in left:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("half")
    assert write_pages(tmp_path, ["events"], [page]).removed == 0, "no page"
    assert files(tmp_path).keys() == {page.path, *left[2:]}
    assert not (tmp_path / "events/9").exists()


def read_and_wait(settings: Settings, signals: Path) -> None:
    """Another process: it has read the numbers, and writes when it is told to."""

    def read(*arguments: Any) -> Any:
        found = read_core(*arguments)
        (signals / "has read").touch()
        wait_until((signals / "may write").exists, seconds=2 * PATIENCE)  # by then, the other one has started
        return found

    with pytest.MonkeyPatch.context() as patched, open_store(settings) as store:
        patched.setattr(publish_module, "read_core", read)
        write_core_pages(store, Health(checks=3))


def say_and_wait(settings: Settings, signals: Path) -> None:
    """Another process: it says so when it has to wait for its turn."""
    take = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        try:
            take(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            (signals / "waits").touch()
            take(descriptor, operation)

    with pytest.MonkeyPatch.context() as patched, open_store(settings) as store:
        patched.setattr(fcntl, "flock", flock)
        write_core_pages(store, Health(checks=3))


def begin_a_page(settings: Settings, signals: Path) -> None:
    """Another process: it has written beside a page, and then does nothing until it is killed."""

    def hang(self: Path, target: Path) -> None:
        (signals / "has begun").touch()
        wait_until((signals / "never").exists, seconds=2 * PATIENCE)

    with pytest.MonkeyPatch.context() as patched, open_store(settings) as store:
        patched.setattr(Path, "replace", hang)
        write_core_pages(store, Health(checks=3))


def test_of_two_writers_at_once_the_newer_numbers_stay(changing: Store, tmp_path: Path) -> None:
    day = changing.settings.today() - timedelta(days=1)
    slow, second = (
        SPAWN.Process(target=target, args=(changing.settings, tmp_path)) for target in (read_and_wait, say_and_wait)
    )
    slow.start()
    try:
        wait_until((tmp_path / "has read").exists, slow)
        more = event(day, event_id=QUIET, event_name="event_signup", source="admin", count=3)
        as_superuser(changing.settings, insert("daily_event_counts", **more))
        second.start()
        wait_until(lambda: (tmp_path / "waits").exists() or not second.is_alive())
    finally:
        (tmp_path / "may write").touch()
    for process in (slow, second):
        process.join(2 * PATIENCE)
        assert process.exitcode == 0
    assert write_core_pages(changing, Health(checks=3)).changed == 0


def test_a_killed_writer_stops_nobody_and_leaves_nothing(changing: Store, tmp_path: Path) -> None:
    folder = changing.settings.publish_dir
    before = files(folder)
    (folder / "core/index.html").unlink()
    writer = SPAWN.Process(target=begin_a_page, args=(changing.settings, tmp_path))
    writer.start()
    try:
        wait_until((tmp_path / "has begun").exists, writer)
    finally:
        writer.kill()
        writer.join()
    assert files(folder).keys() - before.keys() == {"core/.index.html.new"}
    write_core_pages(changing, Health(checks=3))
    assert files(folder) == before


def test_the_core_teams_files_are_for_their_group_only(store: Store, folder: Path) -> None:
    modes = {path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in [*folder.rglob("*")]}
    assert modes["core"] == modes["core/events"] == 0o750
    assert modes["core/index.html"] == modes[f"core/events/{BUSY}.html"] == 0o640
    assert modes["events"] == modes[f"events/{BUSY}"] == 0o755
    assert modes[f"events/{BUSY}/data.csv"] == 0o644


def test_pages_stay_within_their_size(store: Store, folder: Path) -> None:
    sizes = {name: len(body) for name, body in files(folder).items()}
    assert sizes["core/index.html"] < 500_000
    assert max(size for name, size in sizes.items() if name.startswith("events/")) < 150_000


def test_no_page_runs_a_script_asks_for_anything_or_leads_out_of_its_folder(folder: Path) -> None:
    for name, body in files(folder).items():
        if name.endswith(".html"):
            text = body.decode()
            assert not re.search(r"<script|<iframe|@import|url\(|https?://|\bon[a-z]+=", text), name
            links = set(re.findall(r'(?:href|src)="([^"]*)"', text)) - {"data:,", "#main"}
            if name.startswith("events/"):
                assert links == {"data.csv", "data.json"}
                assert HOW_TO_READ.replace("<", "&lt;") in text
            elif name == "overview/index.html":
                assert links == set()
                assert not any(event_id in text for event_id in (UUID,))
            elif name == "core/index.html":
                assert links == {f"events/{event_id}.html" for event_id in EVENTS}
            else:
                assert links == {"../index.html"}


# --- the audit, by planted faults


def say(folder: Path, path: str, old: str, new: str) -> None:
    file = folder / path
    text = file.read_text()
    assert old in text, old
    file.write_text(text.replace(old, new, 1))


INDEX = f"events/{BUSY}/index.html"
FAULTS = {
    "a raw figure in an aria-label": (INDEX, ", the highest ", ", 1 more than the highest "),
    "a raw figure in a title": (INDEX, "<h1>", '<h1 title="of 4711">'),
    "a raw figure in an alt text": (INDEX, "<h1>", '<img alt="4711 views" src="x"><h1>'),
    "a raw figure in the title of the page": (INDEX, ": usage</title>", ": 4711 views</title>"),
    "a raw figure in a sentence": (INDEX, "Nothing here is about a person.", "Read 4711 times."),
    "a number that is not the sum it claims": (INDEX, '"n" data-of="sum event_signup', '"n" data-of="sum no_such_name'),
    "a true zero": (f"events/{QUIET}/index.html", "&lt;5</td>", "0</td>"),
    "a percentage of too little": (f"events/{QUIET}/index.html", ' dim">\N{EN DASH}</td>', '">12%</td>'),
    "an exact total": ("overview/index.html", 'class="big"', 'class="big" title="4712"'),
    "a bound": ("overview/index.html", "At least ", "At least 1"),
    "a count in the CSV": (f"events/{BUSY}/data.csv", "5,value", "6,value"),
    "a true zero in the CSV": (f"events/{QUIET}/data.csv", ",0,below", ",0,value"),
    "a column in the CSV": (f"events/{BUSY}/data.csv", "filled\n", "filled,exact\n"),
    "a day that was not filled": (f"events/{BUSY}/data.csv", ",false", ",true"),
    "a count in the JSON": (f"events/{BUSY}/data.json", '5,\n   "state": "value"', '6,\n   "state": "value"'),
    "a key in the JSON": (f"events/{BUSY}/data.json", '"days"', '"exact": 4711,\n "days"'),
    "a sentence in the JSON": (f"events/{BUSY}/data.json", "Numbers of an event", "4711: numbers of an event"),
    "a comment": (INDEX, "<main", "<!-- 4711 --><main"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_number_that_was_not_published_is_found(store: Store, folder: Path, fault: str) -> None:
    path, old, new = FAULTS[fault]
    say(folder, path, old, new)
    found = find_untrue_pages(store)
    assert any(line.startswith(f"{path}: ") and "is not what" not in line for line in found), found
    assert f"{path}: is not what the published tables give" in found
    assert not any("4711" in line for line in found), "a finding names no value"


def test_whatever_is_drawn_differently_is_found(store: Store, folder: Path) -> None:
    assert find_untrue_pages(store) == []
    text = (folder / INDEX).read_text()
    bar = re.search(r'<path d="M[^"]*"', text)
    assert bar
    (folder / INDEX).write_text(text.replace(bar[0], bar[0].replace("M", "M1", 1)))
    (folder / "events/9/").mkdir()
    header = (folder / f"events/{QUIET}/data.csv").read_text().splitlines()[0]
    (folder / "events/9/data.csv").write_text(f"{header}\n2026-01-01,event_signup,9,4711,value,false\n")
    (folder / f"events/{QUIET}/data.json").unlink()
    assert find_untrue_pages(store) == [
        f"{INDEX}: is not what the published tables give",
        f"events/{QUIET}/data.json: is missing or cannot be read",
        "events/9/data.csv: is not a page",
        "events/9/data.csv: row 1 is not in the published tables",
    ]


def test_days_that_were_filled_later_are_said_and_widen_the_bounds(settings: Settings) -> None:
    with open_store(settings) as store:
        last = read_window(store).last
        filled = last - timedelta(days=10)
        fill(store, last - timedelta(days=34), last)
        forget = f"delete from analytics.collected_days where asset = 'event_signups' and event_date = '{filled}'"  # noqa: S608
        as_superuser(settings, forget)
        publish_closed(store)
        write_published_pages(store)
        overview = settings.publish_dir / "overview/index.html"
        assert escape(FILLED) not in overview.read_text()
        fill(store, filled, filled)
        publish_day_later(store, filled)
        write_published_pages(store)
        assert find_untrue_pages(store) == []
        assert escape(FILLED) in overview.read_text()
        assert escape(FILLED) in (settings.publish_dir / INDEX).read_text()
        first = last - timedelta(days=29)
        query = (
            "select event_id, sum(count) from analytics.daily_event_counts where event_name = 'event_signup'"
            " and event_date between :first and :last group by 1"
        )
        with store.transaction("reading") as connection:
            found = read_published(connection, settings)
            exact = connection.execute(sa.text(query), {"first": first, "last": first + timedelta(days=27)}).all()
        assert found
        bounds = find_bounds(found, "event_signup", period_to(found.period.last))
        assert bounds
        assert bounds.low <= sum(count for _, count in exact) <= bounds.high
        with_numbers = [one for one in found.events if any(one.series[-1].days.values())]
        assert bounds.high - sum(found.everything[-1].days[day] or 0 for day in span(first, found.period.last)) == (
            len(with_numbers) * 2 * (BASE - 1)
        )
        say(settings.publish_dir, "overview/index.html", ", at most ", ", at most 1")
        assert find_untrue_pages(store)


def test_a_sum_over_events_without_a_number_is_not_shown_as_a_small_number(settings: Settings) -> None:
    with open_store(settings) as store:
        days = span(settings.today() - timedelta(days=40), settings.today() - timedelta(days=1))
        for day in days:
            counts = {str(number): 4 for number in range(20)} if day == days[-5] else {"1": 5 * (day == days[0])}
            rows = [event(day, event_id=of, count=count) for of, count in counts.items() if count]
            replace_day(store, metric("event_signups"), day, rows, allow_empty=True)
        publish_closed(store)
        write_published_pages(store)
        assert find_untrue_pages(store) == []
        overview = (settings.publish_dir / "overview/index.html").read_text()
        assert "&lt;5 each" in overview
        assert "&lt;5<" not in overview
        assert overview.count("At least") == 1, "no bound where no event has a number, or a day is missing"


def test_after_a_change_of_the_base_the_pages_begin_anew(settings: Settings) -> None:
    with published(settings, days=60) as store:
        change = settings.today() - timedelta(days=30)
        # As if the days before had been published in tens.
        as_superuser(settings, f"update published.days set base = 10 where event_date < '{change}'")  # noqa: S608
        with store.transaction("reading") as connection:
            found = read_published(connection, settings)
        assert found
        assert found.period.first == change
        as_superuser(settings, "update published.days set base = 10")
        assert write_published_pages(store).pages == 0


def test_a_share_of_days_that_were_not_collected_is_not_shown(changing: Store) -> None:
    write_core_pages(changing, Health())
    page = (changing.settings.publish_dir / f"core/events/{BUSY}.html").read_text()
    assert page.count('data-of="share ') == 2
    day = changing.settings.today() - timedelta(days=5)
    as_superuser(
        changing.settings,
        f"delete from analytics.collected_days where asset = 'directory_searches' and event_date = '{day}'",  # noqa: S608
    )
    write_core_pages(changing, Health())
    page = (changing.settings.publish_dir / f"core/events/{BUSY}.html").read_text()
    assert 'data-of="share ' not in page


def test_a_metric_that_was_never_collected_is_called_so(settings: Settings) -> None:
    with open_store(settings) as store:
        replace_day(store, metric("event_signups"), settings.today() - timedelta(days=1), [])
        write_core_pages(store, Health())
    index = (settings.publish_dir / "core/index.html").read_text()
    assert "Directory searches (never)" in index
    assert "Event signups (" not in index


# --- Dagster


def test_the_assets_write_the_pages_and_show_a_preview(changing: Store, pipeline: Pipeline) -> None:
    definitions = pipeline.definitions()
    job = definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=pipeline.instance, asset_selection=[dg.AssetKey(CORE), dg.AssetKey(PUBLISHED)]
    )
    made = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    metadata = {materialization.asset_key.to_user_string(): materialization.metadata for materialization in made}
    assert metadata[CORE]["index"].value == str(changing.settings.publish_dir / "core/index.html")
    assert metadata[CORE]["pages"].value == 4
    assert re.search(r"\| Event signups \| ([+-]\d+%|0%|\N{EN DASH}) \|", str(metadata[CORE]["preview"].value))
    index = changing.settings.publish_dir / "core/index.html"
    assert "0 checks executed, none failing" in index.read_text()
    assert metadata[PUBLISHED]["pages"].value == 10
    assert run_check(pipeline, PUBLISHED, SAY_ONLY_WHAT_IS_PUBLISHED).passed
    say(changing.settings.publish_dir, INDEX, "Nothing here", "4711")
    failed = run_check(pipeline, PUBLISHED, SAY_ONLY_WHAT_IS_PUBLISHED)
    assert not failed.passed
    assert "4711" not in str(failed)
    job.execute_in_process(instance=pipeline.instance, asset_selection=[dg.AssetKey(CORE)])
    failing = f'failing checks: <span class="mono">{PUBLISHED}: {SAY_ONLY_WHAT_IS_PUBLISHED}</span>;'
    assert failing in index.read_text(), "also a check of another job"


def test_without_a_collected_day_there_is_no_page(settings: Settings) -> None:
    with open_store(settings) as store:
        write_pages(settings.publish_dir, ["overview"], [Page("overview/index.html", b"of before")])
        assert write_core_pages(store, Health()).pages == 0
        assert write_published_pages(store).removed == 1
        assert find_untrue_pages(store) == []


@pytest.mark.parametrize("days", [3, 4, 12])
def test_the_first_days_have_pages(settings: Settings, days: int) -> None:
    with published(settings, days=days) as store:
        write_all(store)
        assert find_untrue_pages(store) == []
        first = settings.today() - timedelta(days=days)
        for name, body in files(settings.publish_dir).items():
            named = [date.fromisoformat(day) for day in re.findall(r"datetime='([\d-]+)'", body.decode())]
            assert min(named, default=first) >= first, name


def test_days_without_any_number_have_an_overview(settings: Settings) -> None:
    with open_store(settings) as store:
        for metric in METRICS:
            replace_day(store, metric, settings.today() - timedelta(days=3), [])
        publish_closed(store)
        assert write_core_pages(store, Health()).pages == 1
        assert write_published_pages(store).pages == 1
        assert find_untrue_pages(store) == []


# --- retention


KEPT_DAYS = """
select 'published' as place, event_date from published.daily union all
select 'published', week_start from published.weekly_counts union all
select 'days', event_date from published.days union all
select 'days', week_start from published.weeks union all
select 'notes', event_date from analytics.publications union all
select 'carries', event_date from analytics.published_carries union all
select 'friction', event_date from analytics.friction
"""


def test_after_200_days_nothing_is_left_of_a_day(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    with published(settings, days=100) as store:
        burst = settings.today() - timedelta(days=1)
        rows = [event(burst, event_name="event_signup", event_id=QUIET, source="web", count=400)]
        replace_day(store, METRICS[0], burst, rows)
        refresh_friction(store)
        write_all(store)
        places = {place for place, _ in pipeline.sql(KEPT_DAYS)}
        assert places == {"published", "days", "notes", "carries", "friction"}
        assert len(files(settings.publish_dir)) == 14
        set_clock(settings, noon_of(settings, settings.today() + timedelta(days=200)))
        apply_retention(settings, pipeline.instance, MANUAL)
        assert pipeline.sql(KEPT_DAYS) == []
        assert files(settings.publish_dir) == {}
        assert (write_core_pages(store, Health()).pages, write_published_pages(store).pages) == (0, 0)


def test_no_page_shows_a_day_that_expires_within_a_week(settings: Settings) -> None:
    with published(replace(settings, retention_days=180), days=179) as store:
        write_core_pages(store, Health())
        write_published_pages(store)
        pages = Pages(settings.publish_dir)
        today = settings.today()
        oldest = pages.oldest()
        assert oldest
        assert 0 <= (oldest - (today - timedelta(days=180))).days - 7 <= MARGIN
        assert list(pages.remove(oldest)) == []
        assert pages.expired(oldest + timedelta(days=1)).rows > 0
        (removed,) = pages.remove(oldest + timedelta(days=14))
        assert removed.rows == 14
        assert files(settings.publish_dir) == {}
