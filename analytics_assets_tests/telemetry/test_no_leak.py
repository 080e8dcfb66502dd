"""No request leaves a trace: only route templates of the application and constants are written.

Every path, query and header that is sent here contains a canary, and no routing table does.
"""

import asyncio
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import Resolver404, include, path, re_path, resolve
from fastapi import APIRouter, FastAPI
from flask import Blueprint, Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from analytics_assets.contract import METHODS, OTHER, UNMATCHED
from analytics_assets.telemetry import Telemetry
from analytics_assets.telemetry import asgi as telemetry_asgi
from analytics_assets.telemetry import wsgi as telemetry_wsgi
from analytics_assets_tests.support.django_site import COMMON, LOCALE, i18n_patterns, site_settings
from analytics_assets_tests.support.http import environ_of, http_scope, send_request
from analytics_assets_tests.support.telemetry import Clock, responses, rows

WORKLOAD = Path(__file__).parents[3] / "shared" / "realworld" / "workload_pretalx.jsonl.gz"
MAX_KEYS = 2000


def assert_no_trace(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No canary in the names or contents of written files, or in a log record of this package."""
    written = [(str(entry.relative_to(folder)), entry) for entry in folder.rglob("*")]
    assert written
    for name, entry in written:
        assert "canary" not in name.lower()
        assert entry.is_dir() or b"canary" not in entry.read_bytes().lower()
    for record in caplog.records:
        if record.name.startswith("analytics_assets"):
            assert "canary" not in f"{record.getMessage()} {record.args} {record.exc_info}".lower()


def assert_only_templates(folder: Path, templates: set[str], requests: int) -> None:
    """Every request is counted, each under a template of the application or a constant."""
    seen = responses(folder)
    allowed = {f"{method} {template}" for method in (*METHODS, OTHER) for template in templates}
    assert {endpoint for endpoint, _ in seen} <= allowed | {UNMATCHED}
    assert sum(seen.values()) == requests
    assert len(seen) < MAX_KEYS


@pytest.mark.parametrize("trace", ["path", "file name", "log line"])
def test_the_assertions_of_this_module_notice_a_trace(
    trace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Telemetry(tmp_path, clock=Clock()) as telemetry:
        telemetry.count_response("GET", "/{x}", 200)
        assert_only_templates(tmp_path, {"/{x}"}, 1)
        assert_no_trace(tmp_path, caplog)
        with pytest.raises(AssertionError):
            assert_only_templates(tmp_path, {"/{x}"}, 2)
        if trace == "path":
            telemetry.count_response("GET", "/Canary", 200)
            with pytest.raises(AssertionError):
                assert_only_templates(tmp_path, {"/{x}"}, 2)
        elif trace == "file name":
            (tmp_path / "canary").mkdir()
        else:
            telemetry.drop("failed", 1, "canary")
    with pytest.raises(AssertionError):
        assert_no_trace(tmp_path, caplog)


# --- a real application's requests


@pytest.fixture(scope="module")
def workload() -> list[dict[str, Any]]:
    if not WORKLOAD.exists():
        pytest.skip(f"needs a real application's requests in {WORKLOAD}")
    with gzip.open(WORKLOAD, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def recorded(request: Any, **_: object) -> HttpResponse:
    return HttpResponse(status=int(request.headers["X-Recorded-Status"]))


def redirecting(get_response: Any) -> Any:
    """Stands for that application's middlewares, which redirect or know no such event before anything is routed."""

    def middleware(request: Any) -> HttpResponse:
        return recorded(request) if "X-Before-Routing" in request.headers else get_response(request)

    return middleware


def is_routed(target: str) -> bool:
    try:
        resolve(target.partition("?")[0])
    except Resolver404:
        return False
    return True


def pretalx_patterns(routes: set[str]) -> list[Any]:
    """The routes as declared: those of an event inside an include, regular expressions below a prefix."""
    of_event, patterns = [], []
    for route in sorted(routes):
        if route.endswith("$"):
            prefix, parameter, rest = route.partition("<slug:event>/")
            patterns.append(path(prefix + parameter, include([re_path(f"^{rest}", recorded)])))
        elif route.startswith("<slug:event>/"):
            of_event.append(path(route.removeprefix("<slug:event>/"), recorded))
        else:
            patterns.append(path(route, recorded))
    return [*patterns, path("<slug:event>/", include(of_event))]


@pytest.mark.parametrize("chain", ["sync", "async"])
def test_the_requests_of_a_real_application(
    workload: list[dict[str, Any]], chain: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    routes = {row["route"] for row in workload if row["route"] is not None}
    templates = {
        route: "/" + re.sub(r"\(\?P<(\w+)>[^)]*\)|<(?:\w+:)?(\w+)>", r"{\1\2}", route).removesuffix("$")
        for route in routes
    }
    sent: Counter[tuple[str, int]] = Counter()
    with (
        Telemetry(tmp_path, clock=Clock()) as telemetry,
        site_settings(telemetry, *pretalx_patterns(routes), middleware=(None, f"{__name__}.redirecting", COMMON)),
    ):
        application = WSGIHandler() if chain == "sync" else ASGIHandler()
        for row in workload:
            headers = {"X-Recorded-Status": str(row["status"])}
            if row["route"] is None and (row["status"] != 404 or is_routed(row["path"])):
                headers["X-Before-Routing"] = "yes"
            request = Sent(row["method"], row["path"].encode(), headers)
            status, error = (
                through_wsgi(application, request) if chain == "sync" else through_asgi(application, request)
            )
            assert (status, error) == (row["status"], None)
            endpoint = UNMATCHED if row["route"] is None else f"{row['method']} {templates[row['route']]}"
            sent[endpoint, row["status"]] += 1
        assert telemetry.dropped == {}
    assert sum(b"canary" in row["path"].encode() for row in workload) > 300
    assert responses(tmp_path) == sent
    assert len(rows(tmp_path)) == len(sent) < MAX_KEYS
    assert_no_trace(tmp_path, caplog)


# --- applications to scan


@dataclass
class Sent:
    """One request, percent-encoded as it comes over the wire."""

    method: str
    target: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Outcome = tuple[int | None, type[BaseException] | None]
"""Status that was sent, exception that reached the server."""


def through_asgi(app: Any, sent: Sent) -> Outcome:
    answer = asyncio.run(send_request(app, http_scope(sent.target, sent.method, sent.headers)))
    started = [message["status"] for message in answer.messages if message["type"] == "http.response.start"]
    return (started[0] if started else None), type(answer.error) if answer.error else None


def through_wsgi(app: Any, sent: Sent) -> Outcome:
    raw, _, query = sent.target.partition(b"?")
    headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in sent.headers.items()}
    environ = environ_of(
        unquote_to_bytes(raw).decode("latin-1"), sent.method, {"QUERY_STRING": query.decode("latin-1"), **headers}
    )
    lines: list[str] = []
    try:
        body = app(environ, lambda line, *_: lines.append(line))
        b"".join(body)
        getattr(body, "close", lambda: None)()
    except Exception as error:
        return (int(lines[0][:3]) if lines else None), type(error)
    return int(lines[0][:3]), None


def fails(x: str) -> bool:
    return x.startswith("fail")


async def endpoint(request: Request) -> Response:
    if any(map(fails, map(str, request.path_params.values()))):
        raise ValueError(f"canary {request.url.path}")
    return PlainTextResponse("ok", status_code=404 if "gone" in request.url.path else 200)


def starlette_app(folder: Path) -> tuple[Any, set[str]]:
    def own() -> Any:
        async def each(request: Request) -> Response:
            return await endpoint(request)

        return each

    inner = Router([Route("/{item:int}/", own()), Route("/{item}/edit", own(), methods=["POST", "PUT"])])
    app = Starlette(
        routes=[
            Route("/", own()),
            Route("/events/{event}", own()),
            Route("/shared/{a}", endpoint),
            Route("/shared/{a}/{b:path}", endpoint),
            Mount("/o/{organiser}", routes=[Mount("/inner", inner)]),
            Mount("/static", StaticFiles(directory=folder)),
            Host("admin.test", inner),
        ]
    )
    return app, {
        "/",
        "/events/{event}",
        "/shared/{a}",
        "/shared/{a}/{b}",
        "/o/{organiser}/inner/{item}/",
        "/o/{organiser}/inner/{item}/edit",
        "/static/{path}",
        "/{item}/",
        "/{item}/edit",
    }


def fastapi_app(folder: Path) -> tuple[Any, set[str]]:
    def read(x: int) -> int:
        return x

    def write(x: str, body: dict[str, int]) -> str:
        if fails(x):
            raise ValueError(f"canary {x}")
        return x

    router = APIRouter(prefix="/events")
    router.get("/{x}")(read)
    router.post("/{x}/people")(write)
    sub = FastAPI()
    sub.get("/{x}")(read)
    app = FastAPI()
    app.include_router(router)
    app.include_router(router, prefix="/v2/{tenant}")
    app.mount("/o/{organiser}", sub)
    app.get("/static/{x:path}")(write)
    return app, {
        "/events/{x}",
        "/events/{x}/people",
        "/v2/{tenant}/events/{x}",
        "/v2/{tenant}/events/{x}/people",
        "/o/{organiser}/{x}",
        "/static/{x}",
        *(f"{prefix}{page}" for prefix in ("", "/o/{organiser}") for page in ("/docs", "/redoc", "/openapi.json")),
        *(f"{prefix}/docs/oauth2-redirect" for prefix in ("", "/o/{organiser}")),
    }


def flask_app(folder: Path) -> tuple[Any, set[str]]:
    def view(**found: Any) -> Any:
        if any(map(fails, map(str, found.values()))):
            raise ValueError(f"canary {found}")
        return "ok", 404 if "gone" in str(found) else 200

    app = Flask("scanned", static_folder=str(folder))
    organiser = Blueprint("organiser", "organiser", url_prefix="/o/<organiser>")
    rules = {
        "/": "/",
        "/events/<event>": "/events/{event}",
        "/events/<int(min=3):event>/people/": "/events/{event}/people/",
        "/shared/<path:a>": "/shared/{a}",
    }
    for number, rule in enumerate(rules):
        app.add_url_rule(rule, f"v{number}", view, methods=["GET", "POST"])
    organiser.add_url_rule("/<uuid:x>", "x", view)
    organiser.add_url_rule("/inner/<x>", "inner", view)
    app.register_blueprint(organiser)
    static = "/{filename}"
    return app, {*rules.values(), "/o/{organiser}/{x}", "/o/{organiser}/inner/{x}", f"/{folder.name}{static}"}


def django_patterns() -> tuple[list[Any], set[str]]:
    def view(request: Any, *found: Any, **named: Any) -> HttpResponse:
        values = [str(value) for value in (*found, *named.values())]
        if any(map(fails, values)):
            raise ValueError(f"canary {values}")
        return HttpResponse("ok", status=404 if "gone" in str(values) else 200)

    patterns = [
        path("", view),
        path("events/<event>/", view),
        path("shared/<path:a>", view),
        re_path(
            r"^o/(?P<organiser>[^/]+)/", include([path("<int:x>/", view), re_path(r"^(?:in|out)-([^/]*)/$", view)])
        ),
        *i18n_patterns(path("static/<x>/", view), prefix_default_language=False),
    ]
    return patterns, {
        "/",
        "/events/{event}/",
        "/shared/{a}",
        "/o/{organiser}/{x}/",
        "/o/{organiser}/{var}-{var}/",
        "/static/{x}/",
        "/{language}/static/{x}/",
    }


@contextmanager
def scanned(kind: str, telemetry: Telemetry, folder: Path) -> Iterator[tuple[Callable[[Sent], None], set[str]]]:
    """Yield a function that compares a request with and without counting, and the application's templates."""
    if kind.startswith("django"):
        patterns, templates = django_patterns()
        through, handler = {"sync": (through_wsgi, WSGIHandler), "async": (through_asgi, ASGIHandler)}[kind[7:]]
        with site_settings(telemetry, *patterns, middleware=(LOCALE, COMMON)):
            bare = handler()
        with site_settings(telemetry, *patterns, middleware=(None, LOCALE, COMMON)):
            yield same_outcome(through, bare, handler()), templates
    elif kind == "flask":
        app, templates = flask_app(folder)
        counted = telemetry_wsgi.CountResponses(app.wsgi_app, telemetry)
        yield same_outcome(through_wsgi, app, counted), templates
    else:
        app, templates = {"starlette": starlette_app, "fastapi": fastapi_app}[kind](folder)
        yield same_outcome(through_asgi, app, telemetry_asgi.CountResponses(app, telemetry)), templates


def same_outcome(through: Callable[[Any, Sent], Outcome], bare: Any, counted: Any) -> Callable[[Sent], None]:
    def send(sent: Sent) -> None:
        assert through(counted, sent) == through(bare, sent)

    return send


KINDS = ["starlette", "fastapi", "flask", "django sync", "django async"]


# --- a scanner's requests

PREFIXES = [
    "/",
    "/events/",
    "/shared/",
    "/o/canary/",
    "/o/canary/inner/",
    "/o/canary/in-",
    "/static/",
    "/v2/canary/events/",
]
PREFIXES += ["/de/static/", "/docs", "/files/", "//", "/%2e%2e/"]
CANARIES = [
    "",
    "canary",
    "canary/",
    "5/",
    "failcanary",
    "gone-canary",
    "7",
    "canary/edit",
    "canary/people",
    "4/people/",
    "..%2f..%2fetc/canary",
    "../../../../etc/canary",
    "..\\..\\canary",
    "canary%00.php",
    "canary\0",
    "%c0%ae%c0%ae/canary",
    "%ff%fecanary",
    "canary%0d%0aSet-Cookie:%20canary",
    "canary\r\nX: y",
    "%25%32%66canary",
    "%zzcanary%",
    "<script>canary</script>",
    "{canary}",
    "{event}",
    "(?P<canary>.*)",
    "${jndi:ldap://canary.test/a}",
    "' or 1=1 -- canary",
    "canary;jsessionid=canary",
    "канарейка-canary",
    "\U0001f426canary",
    "wp-login.php?canary=1",
    ".git/config?canary",
    ".env#canary",
    "0b5c2c0e-6f5e-4d39-9a43-0d7a1c7c9f11",
    "canary" * 1400,
    "a/" * 4000 + "canary",
]
SCANNED_METHODS = [*METHODS, "PROPFIND", "CANARY", "get", "GET canary", "", "G\0T", "канарейка", "X" * 500]
QUERIES = ["", "?q=canary", "?canary", "?q=%ff%00canary&q=canary", "?" + "canary=canary&" * 500, "?next=//canary.test"]
HEADERS: list[dict[str, str]] = [
    {},
    {"Host": "canary.test"},
    {"Host": "admin.test"},
    {"Host": "canary@[::1]:99999\\"},
    {"Host": ""},
    {"User-Agent": "canary\xff\x00", "Cookie": "canary=canary; sessionid=canary; django_language=canary"},
    {"Accept-Language": "canary;q=canary, de;q=0.5", "Referer": "https://canary.test/canary?canary"},
    {"Content-Type": "canary", "Content-Length": "canary"},
    {"X-Forwarded-For": "canary", "X-Forwarded-Host": "canary", "X-HTTP-Method-Override": "CANARY"},
    {"Origin": "https://canary.test", "Access-Control-Request-Method": "CANARY"},
    {"Transfer-Encoding": "canary", "Expect": "canary", "Upgrade": "canary", "X-Script-Name": "/canary"},
    {f"X-Canary-{number}": "canary" * 100 for number in range(50)},
]


NO_QUERY = [byte for byte in range(256) if byte != ord("?")]


def scan() -> Iterator[Sent]:
    """Every path with every prefix; methods, queries and headers in turn."""
    chance = random.Random(20261122)  # noqa: S311 # the same requests every time
    for prefix in PREFIXES:
        for canary in CANARIES:
            method = "GET" if chance.random() < 0.5 else chance.choice(SCANNED_METHODS)
            raw = (prefix + canary).encode()
            if chance.random() < 0.3:
                raw = quote(raw, safe="/%?").encode()
            yield Sent(method, raw + chance.choice(QUERIES).encode(), chance.choice(HEADERS))
    for number in range(300):
        # Without a query: Django refuses one that is not ASCII before it asks any middleware, under ASGI.
        raw = bytes(chance.choices(NO_QUERY, k=chance.choice([1, 10, 100, 8000])))
        yield Sent(chance.choice(SCANNED_METHODS), b"/canary" * (number % 2) + raw, chance.choice(HEADERS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scanner(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "static").mkdir()
    requests = list(scan())
    with (
        Telemetry(tmp_path / "dumps", clock=Clock()) as telemetry,
        scanned(kind, telemetry, tmp_path / "static") as (send, templates),
    ):
        for request in requests:
            send(request)
        assert telemetry.dropped == {}
    assert_only_templates(tmp_path / "dumps", templates, len(requests))
    assert_no_trace(tmp_path / "dumps", caplog)
    # It has found something.
    assert len({endpoint.partition(" ")[2] for endpoint, _ in responses(tmp_path / "dumps")}) > len(templates) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_scanner_while_nothing_can_be_written(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "static").mkdir()
    (tmp_path / "dumps").write_text("not a folder")
    requests = list(scan())[::5]
    with (
        Telemetry(tmp_path / "dumps", clock=Clock()) as telemetry,
        scanned(kind, telemetry, tmp_path / "static") as (send, _),
    ):
        for request in requests:
            send(request)
        assert telemetry.dropped == {"io": len(requests)}
    assert any(record.name.startswith("analytics_assets") for record in caplog.records)
    assert_no_trace(tmp_path, caplog)


# --- requests that hypothesis makes

ANY_TARGET = st.builds(
    lambda prefix, raw, query: prefix.encode() + raw + b"canary" + query.encode(),
    st.sampled_from(PREFIXES),
    st.lists(st.sampled_from(NO_QUERY), max_size=60).map(bytes)
    | st.text(max_size=30).map(lambda text: quote(text).encode()),
    st.sampled_from(QUERIES),
)
ANY_HEADERS = st.dictionaries(
    st.sampled_from(["Host", "Cookie", "Accept-Language", "Content-Type", "Content-Length", "Referer", "Sec-GPC"]),
    st.text(st.characters(max_codepoint=255), max_size=20).map("canary{}".format),
    max_size=3,
)
REQUESTS = st.builds(Sent, st.sampled_from(SCANNED_METHODS) | st.text(max_size=8), ANY_TARGET, ANY_HEADERS)


@pytest.mark.parametrize("kind", KINDS)
def test_any_request(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "static").mkdir()
    with (
        Telemetry(tmp_path / "dumps", clock=Clock()) as telemetry,
        scanned(kind, telemetry, tmp_path / "static") as (send, templates),
    ):
        sent = 0

        @settings(deadline=None, max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
        @given(REQUESTS)
        def any_request(request: Sent) -> None:
            nonlocal sent
            send(request)
            sent += 1

        any_request()
        assert telemetry.dropped == {}
    assert_only_templates(tmp_path / "dumps", templates, sent)
    assert_no_trace(tmp_path / "dumps", caplog)
