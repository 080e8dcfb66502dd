"""The demonstration application: what its pages do, and what of that is counted. In memory and in PostgreSQL alike."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import sqlalchemy as sa
from starlette.applications import Starlette

from analytics_assets.demo.activity import create_demo_app
from analytics_assets.demo.app import build_app, create_app
from analytics_assets.demo.directory import (
    EVENTS,
    IMPORT,
    PAGE_SIZE,
    Browser,
    DatabaseDirectory,
    Directory,
    MemoryDirectory,
    utc_now,
)
from analytics_assets.telemetry import Telemetry

PERSON = {"name": "Canary <b>Alex</b>", "email": "canary@example.org", "visible": "on", "consent": "on"}
HOSTILE = "canary\0'\"<script>%_\\\ud7ff;drop table"


class Answer(NamedTuple):
    status_code: int
    headers: dict[str, str]
    text: str


def ask(app: Starlette, method: str, target: str, form: Mapping[str, str] | None = None, **headers: str) -> Answer:
    """Send one request; only the page that fails on purpose may raise."""
    path, _, query = target.partition("?")
    messages: list[Any] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("canary-ip", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": urlencode(form or {}).encode(), "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    async def answer() -> None:
        await app(scope, receive, send)

    try:
        asyncio.run(answer())
    except RuntimeError:
        assert path == "/broken"
    body = b"".join(message.get("body", b"") for message in messages[1:])
    sent = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return Answer(messages[0]["status"], sent, body.decode())


def counted(dump_dir: Path) -> Counter[tuple[Any, ...]]:
    """Endpoint and status code, or event name, event id and source -> count."""
    totals: Counter[tuple[Any, ...]] = Counter()
    for dump in dump_dir.glob("*/*"):
        for line in dump.read_text().splitlines():
            if line:
                row = json.loads(line)
                key = [
                    row[name] for name in row if name not in {"event_date", "count"} and row[name] != "http_response"
                ]
                totals[tuple(key)] += row["count"]
    return totals


@pytest.fixture
def database_url(make_database: Callable[[str], sa.URL]) -> str:
    url = make_database("demo_app")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        create_demo_app(connection)
    engine.dispose()
    return url.render_as_string(hide_password=False)


@pytest.fixture(params=["memory", pytest.param("database", marks=pytest.mark.server)])
def directory(request: pytest.FixtureRequest) -> Iterator[Directory]:
    if request.param == "memory":
        opened: Directory = MemoryDirectory(utc_now, 1001)
    else:
        opened = DatabaseDirectory(request.getfixturevalue("database_url"))
    yield opened
    opened.close()


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


@pytest.fixture
def app(directory: Directory, dumps: Path) -> Iterator[Starlette]:
    with Telemetry(dumps, source="web", strict=True) as telemetry:
        yield build_app(directory, telemetry)


def sign_up(app: Starlette, event_id: int = 1, **changes: str) -> str:
    """Sign somebody up. Returns the cookie they have then."""
    answer = ask(app, "POST", f"/events/{event_id}/signup", PERSON | changes)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/events/{event_id}")
    return answer.headers["set-cookie"].split(";")[0]


def test_every_page_answers_and_every_link_leads_somewhere(app: Starlette) -> None:
    cookie = sign_up(app)
    seen: set[str] = set()
    todo = {"/events"}
    while todo:
        page = todo.pop()
        seen.add(page)
        answer = ask(app, "GET", page, cookie=cookie)
        assert answer.status_code == (500 if page == "/broken" else 200), page
        assert answer.text.startswith("<!doctype html>")
        assert answer.text.rstrip().endswith("</html>")
        todo |= set(re.findall(r'href="(/[^"]*)"', answer.text)) - seen
    assert {"/broken", "/events/12", "/events/12/directory", "/organizer/events/12/signups"} < seen
    assert ask(app, "GET", "/").headers["location"] == "/events"


def test_every_input_has_a_label(app: Starlette) -> None:
    for page in ("/events/1", "/events/1/directory", "/organizer/events/1/signups"):
        text = ask(app, "GET", page).text
        fields = set(re.findall(r'<input id="(\w+)"', text))
        assert fields == set(re.findall(r'<label for="(\w+)"', text))
        assert fields


@pytest.mark.parametrize(
    ("method", "target", "status_code"),
    [
        ("GET", "/events/99", 404),
        ("GET", "/events/99/directory", 404),
        ("GET", "/events/99/directory/search?q=canary", 404),
        ("GET", f"/events/{10**30}", 404),
        ("GET", "/organizer/events/99/signups", 404),
        ("POST", "/events/99/signup", 404),
        ("POST", "/events/1/consent", 403),
        ("POST", "/organizer/events/1/visibility", 404),
        ("POST", "/counting", 422),
        ("DELETE", "/events", 405),
        ("GET", "/.env", 404),
    ],
)
def test_what_is_not_there_or_not_allowed_is_refused_on_a_page(
    app: Starlette, method: str, target: str, status_code: int
) -> None:
    answer = ask(app, method, target)
    assert answer.status_code == status_code
    assert '<a href="/events">' in answer.text
    assert ("allow" in answer.headers) == (status_code == 405)


def test_what_people_enter_is_escaped(app: Starlette) -> None:
    cookie = sign_up(app)
    pages = (
        "/events/1",
        "/events/1/directory",
        "/organizer/events/1/signups",
        f"/events/1/directory/search?{urlencode({'q': '<b>'})}",
    )
    for page in pages:
        text = ask(app, "GET", page, cookie=cookie).text
        assert "&lt;b&gt;Alex" in text
        assert "<b>" not in text
    refused = ask(app, "POST", "/events/1/signup", {"name": '"><script>', "email": "none"})
    assert refused.status_code == 422
    assert "<script>" not in refused.text


def test_nothing_that_is_sent_breaks_a_page(app: Starlette) -> None:
    cookie = sign_up(app)
    assert ask(app, "GET", f"/events/1/directory/search?{urlencode({'q': HOSTILE})}").status_code == 200
    assert "Alex" not in ask(app, "GET", "/events/1/directory/search?q=%25").text, "no wildcards"
    hostile = {"name": HOSTILE, "email": f"@{HOSTILE}", "dietary_notes": HOSTILE, "visible": HOSTILE}
    assert ask(app, "POST", "/events/1/signup", hostile).status_code == 303
    assert ask(app, "POST", "/events/1/consent", {"given": HOSTILE}, cookie=cookie).status_code == 422
    for forged in ("x", "-1", "9" * 50, "٣"):
        assert ask(app, "POST", "/organizer/events/1/visibility", {"profile": forged}).status_code == 404
    assert ask(app, "POST", "/events/1/consent", {"given": "yes"}, cookie="profile=999").status_code == 403


def test_a_sign_up_shows_hides_and_cancels_itself(app: Starlette) -> None:
    cookie = sign_up(app)
    assert "Alex" in ask(app, "GET", "/events/1/directory").text
    assert "Alex" not in ask(app, "GET", "/events/2/directory").text
    assert "Alex" in ask(app, "GET", "/events/1/directory/search?q=aLEX").text
    assert "Alex" not in ask(app, "GET", "/events/1/directory/search?q=somebody").text

    ask(app, "POST", "/events/1/visibility", {"visible": "no"}, cookie=cookie)
    assert "Alex" not in ask(app, "GET", "/events/1/directory").text
    assert "Alex" not in ask(app, "GET", "/events/1/directory/search?q=alex").text
    ask(app, "POST", "/events/1/consent", {"given": "no"}, cookie=cookie)
    own = ask(app, "GET", "/events/1", cookie=cookie).text
    assert "hidden from the directory" in own
    assert "may not" in own
    assert "Alex" in ask(app, "GET", "/organizer/events/1/signups").text

    profile = cookie.removeprefix("profile=")
    ask(app, "POST", "/organizer/events/1/visibility", {"profile": profile, "visible": "yes"})
    assert "Alex" in ask(app, "GET", "/events/1/directory").text
    ask(app, "POST", "/events/1/cancel", cookie=cookie)
    assert "Alex" not in ask(app, "GET", "/events/1/directory").text
    assert "Alex" not in ask(app, "GET", "/organizer/events/1/signups").text
    assert "Sign up</h2>" in ask(app, "GET", "/events/1", cookie=cookie).text


def test_a_page_lists_the_latest(app: Starlette) -> None:
    for number in range(PAGE_SIZE + 1):
        sign_up(app, name=f"Canary {number:02}", email=f"{number}@example.org")
    text = ask(app, "GET", "/events/1/directory").text
    assert re.findall(r"<li>Canary (\d+)", text) == [f"{n:02}" for n in range(PAGE_SIZE, 0, -1)]
    assert f"the latest {PAGE_SIZE}" in text


def test_counts_have_event_and_source_and_nothing_else(app: Starlette, dumps: Path) -> None:
    for event_id, views in ((1, 3), (7, 2)):
        for _ in range(views):
            ask(app, "GET", f"/events/{event_id}/directory", user_agent="canary", referer="http://canary.example/")
    ask(app, "GET", "/events/7/directory/search?q=canary")
    ask(app, "GET", "/organizer/events/7/signups")
    ask(app, "GET", "/canary")
    ask(app, "GET", "/broken")
    sign_up(app)
    ask(app, "POST", "/events/1/signup", {"name": "canary"})
    assert counted(dumps) == {
        ("directory_page_viewed", "1", "web"): 3,
        ("directory_page_viewed", "7", "web"): 2,
        ("directory_page_viewed", "7", "admin"): 1,
        ("directory_searched", "7", "web"): 1,
        ("GET /events/{event_id}/directory", 200): 5,
        ("GET /events/{event_id}/directory/search", 200): 1,
        ("GET /organizer/events/{event_id}/signups", 200): 1,
        ("(unmatched)", 404): 1,
        ("GET /broken", 500): 1,
        ("POST /events/{event_id}/signup", 303): 1,
        ("POST /events/{event_id}/signup", 422): 1,
    }
    assert all("canary" not in dump.read_text().lower() for dump in dumps.glob("*/*"))


@pytest.mark.parametrize(("header", "value"), [("cookie", "do_not_count=1"), ("dnt", "1"), ("sec_gpc", "1")])
def test_who_has_opted_out_leaves_no_trace(app: Starlette, dumps: Path, header: str, value: str) -> None:
    for target in ("/events", "/events/1/directory", "/events/1/directory/search?q=x", "/nowhere", "/broken"):
        answer = ask(app, "GET", target, None, **{header: value})
        assert "your views, searches and responses\nare not counted" in answer.text
    assert not dumps.exists()


def test_opting_out_and_in_again_is_not_counted_either(app: Starlette, dumps: Path) -> None:
    out = ask(app, "POST", "/counting", {"counted": "no"}).headers["set-cookie"]
    assert out.startswith("do_not_count=1;")
    back = ask(app, "POST", "/counting", {"counted": "yes"}, cookie="do_not_count=1").headers["set-cookie"]
    assert "Max-Age=0" in back
    assert not dumps.exists()
    ask(app, "GET", "/events")
    assert counted(dumps) == {("GET /events", 200): 1}


def test_a_search_that_is_down_counts_as_a_response_and_not_as_a_search(dumps: Path) -> None:
    directory = MemoryDirectory(utc_now, 1)
    directory.search_is_down = True
    with Telemetry(dumps, strict=True) as telemetry, pytest.raises(ConnectionError):
        ask(build_app(directory, telemetry), "GET", "/events/1/directory/search?q=canary")
    assert counted(dumps) == {("GET /events/{event_id}/directory/search", 500): 1}


def test_what_is_clicked_reaches_the_source_views(
    database_url: str, dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMO_APP_DATABASE_URL", database_url)
    monkeypatch.setenv("DEMO_APP_DUMP_DIR", str(dumps))
    app = create_app()
    cookie = sign_up(app, 3)
    ask(app, "POST", "/events/3/consent", {"given": "no"}, cookie=cookie)
    ask(app, "POST", "/events/3/visibility", {"visible": "no"}, cookie=cookie)
    taken = ask(app, "POST", "/organizer/events/3/signups", PERSON)
    assert taken.status_code == 409
    assert ask(app, "POST", "/organizer/events/3/signups", PERSON | {"email": "2@example.org"}).status_code == 303
    profile = cookie.removeprefix("profile=")
    ask(app, "POST", "/organizer/events/3/visibility", {"profile": profile, "visible": "yes"})

    engine = sa.create_engine(database_url)
    with engine.connect() as connection:

        def rows(text: str) -> Counter[tuple[Any, ...]]:
            return Counter(tuple(row) for row in connection.execute(sa.text(text)))

        assert rows("select event_id, source from analytics_source.signups") == {(3, "web"): 1, (3, "admin"): 1}
        assert rows("select event_id, source from analytics_source.profile_visibility_changes") == {
            (3, "web"): 2,
            (3, "admin"): 2,
        }
        assert rows("select event_id, source, turned_on from analytics_source.consent_changes") == {
            (3, "web", True): 1,
            (3, "web", False): 1,
            (3, "admin", True): 1,
        }
        assert rows("select name, last_login_ip from profiles where id > 1000") == {(PERSON["name"], "canary-ip"): 2}
    engine.dispose()
    asyncio.run(_shut_down(app))
    assert counted(dumps)["POST /organizer/events/{event_id}/signups", 409] == 1


async def _shut_down(app: Starlette) -> None:
    async with app.router.lifespan_context(app):
        pass


def test_an_import_has_no_source(database_url: str) -> None:
    directory = DatabaseDirectory(database_url)
    asyncio.run(directory.sign_up(1, PERSON, IMPORT, Browser("canary", "canary")))
    directory.close()
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("select count(*) from analytics_source.signups where source is null")) == 1
    engine.dispose()


def test_the_database_has_the_events_of_the_pages(database_url: str) -> None:
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("select id, slug from public.events order by id")).all()
    engine.dispose()
    assert [tuple(row) for row in rows] == list(EVENTS)
