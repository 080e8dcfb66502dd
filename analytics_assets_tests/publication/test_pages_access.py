"""docs/publication.md carried out: the real nginx, and the views of the page in Starlette and Django."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import uvicorn
from starlette.applications import Starlette

from analytics_assets.local.pages import serve
from analytics_assets.local.processes import stop
from analytics_assets.local.server import ROOT
from analytics_assets.publication.pages.html import HEADERS, Page
from analytics_assets.publication.pages.writing import write_pages
from analytics_assets_tests.support.deployment import program
from analytics_assets_tests.support.processes import free_port, wait_until

PAGE = (ROOT / "docs/publication.md").read_text(encoding="utf-8")
CONFIGURATIONS = dict(re.findall(r"^```nginx\n# (/\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
VIEWS = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))

MINE, OTHER = "7", "8"


def organizes(request: Any, event_id: int) -> bool:
    """The application's own check: ana organizes event 7."""
    cookies = request.cookies if hasattr(request, "cookies") else request.COOKIES
    return bool(cookies.get("user") == "ana" and event_id == int(MINE))


def view(name: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "views", "organizes": organizes}
    exec(VIEWS[name], namespace)  # noqa: S102  # our own page
    return namespace


@contextmanager
def starlette_application(*names: str) -> Iterator[int]:
    """The views of the page behind uvicorn."""
    port = free_port()
    application = Starlette(routes=[route for name in names for route in view(f"starlette{name}")["routes"]])
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def django_application(*names: str) -> Iterator[int]:
    """The views of the page behind wsgiref, resolved as Django does."""
    from django.core.exceptions import PermissionDenied
    from django.core.handlers.wsgi import WSGIRequest
    from django.http import Http404, HttpResponse
    from django.urls.resolvers import RegexPattern, URLResolver

    from analytics_assets_tests.support import django_site  # noqa: F401  # configures Django for this process

    patterns = [pattern for name in names for pattern in view(f"django{name}")["urlpatterns"]]
    resolver = URLResolver(RegexPattern(r"^/"), patterns)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        try:
            match = resolver.resolve(environ["PATH_INFO"])
            response = match.func(WSGIRequest(environ), *match.args, **match.kwargs)
        except PermissionDenied:
            response = HttpResponse(status=403)
        except Http404:
            response = HttpResponse(status=404)
        start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
        return [response.content]

    with make_server("127.0.0.1", 0, application, handler_class=_Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages with what they are for their content, as they are written."""
    folder = tmp_path_factory.mktemp("pages")
    paths = ["core/index.html", f"core/events/{MINE}.html", "overview/index.html"]
    paths += [
        f"events/{event_id}/{name}" for event_id in (MINE, OTHER) for name in ("index.html", "data.csv", "data.json")
    ]
    write_pages(folder, ["core", "overview", "events"], [Page(path, f"this is {path}".encode()) for path in paths])
    return folder


@contextmanager
def nginx(folder: Path, pages: Path, application: int) -> Iterator[dict[str, int]]:
    """The real nginx with the configuration of the page. Yields the ports of its servers."""
    ports = {port: free_port() for port in ("8080", "8081", "8082")}
    core = "server { listen 8082; include /etc/nginx/analytics/core.conf; }"
    for name, shown in (CONFIGURATIONS | {"/etc/nginx/conf.d/core.conf": core}).items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = shown.replace("/var/lib/analytics/pages", str(pages)).replace("/etc/nginx", f"{folder}/etc/nginx")
        text = re.sub(r"listen (\d+);", lambda found: f"listen 127.0.0.1:{ports[found[1]]};", text)
        path.write_text(text.replace("127.0.0.1:8000", f"127.0.0.1:{application}"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    around = [
        f"user {getuser()};" if os.geteuid() == 0 else "",
        f"pid {folder}/pid; daemon off; error_log {folder}/error.log;",
        f"events {{}} http {{ access_log {folder}/access.log;",
        *(f"{kind}_temp_path {folder}/{kind};" for kind in kinds),
        f"include {folder}/etc/nginx/conf.d/*.conf; }}",
    ]
    main_file = folder / "nginx.conf"
    main_file.write_text("\n".join(around))
    process = subprocess.Popen([program("nginx"), "-e", f"{folder}/error.log", "-c", str(main_file)])
    try:
        wait_until(lambda: all(_listens(port) for port in ports.values()) or process.poll() is not None)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield ports
    finally:
        stop(process)


def _listens(port: int) -> bool:
    try:
        get(port, "/")
    except OSError:
        return False
    return True


def get(port: int, path: str, user: str | None = None) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of a request with exactly this path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Cookie": f"user={user}"} if user else {})
    response = connection.getresponse()
    found = response.status, response.read().decode(), dict(response.getheaders())
    connection.close()
    return found


APPLICATIONS = {"starlette": starlette_application, "django": django_application}


@pytest.fixture(scope="module", params=APPLICATIONS)
def ports(
    request: pytest.FixtureRequest, pages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        application = stack.enter_context(APPLICATIONS[request.param]("", "-ask"))
        yield stack.enter_context(nginx(tmp_path_factory.mktemp("nginx"), pages, application))


REDIRECTED = "/events/{}/usage/{}"
ASKED = "/events/{}/{}"
WAYS = {"8080": REDIRECTED, "8081": ASKED}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [
        ("", "index.html", "text/html; charset=utf-8"),
        ("data.csv", "data.csv", "text/csv"),
        ("data.json", "data.json", "application/json"),
    ],
)
def test_an_organizer_gets_their_event_with_the_headers(
    ports: dict[str, int], way: str, name: str, file: str, kind: str
) -> None:
    status, body, headers = get(ports[way], WAYS[way].format(MINE, name), "ana")
    assert (status, body) == (200, f"this is events/{MINE}/{file}")
    assert headers["Content-Type"].startswith(kind)
    assert headers.items() >= HEADERS.items()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("user", ["ana", None])
def test_nobody_gets_what_they_may_not_see(ports: dict[str, int], way: str, user: str | None) -> None:
    own = WAYS[way].format(MINE, "") if user else WAYS[way].format(OTHER, "")
    for path in (
        *(WAYS[way].format(OTHER, name) for name in ("", "index.html", "data.csv", "data.json")),
        f"{own}../../{OTHER}/data.csv",
        f"{own}../{OTHER}/data.csv",
        f"{own}%2e%2e/{OTHER}/data.csv",
        f"{own}%2e%2e%2f{OTHER}%2fdata.csv",
        f"{own}..%2f..%2f{OTHER}%2fusage%2fdata.csv",
        f"{own}core/index.html",
        f"{own}..;/{OTHER}/data.csv",
        f"{own}../{MINE}/../{OTHER}/data.csv",
    ):
        status, body, _ = get(ports[way], path, user)
        assert status == 403, path
        assert "this is" not in body, path


@pytest.mark.parametrize("way", WAYS)
def test_no_other_path_leads_to_a_page(ports: dict[str, int], way: str) -> None:
    for path in (
        f"{WAYS[way].format(MINE, '')}../../../core/index.html",
        f"{WAYS[way].format(MINE, '')}%2e%2e/%2e%2e/%2e%2e/%2e%2e/core/index.html",
        "/core/index.html",
        "/core/",
        "//core//index.html",
        "/overview/index.html",
        f"/_pages/events/{OTHER}/data.csv",
        f"/_pages/events/{MINE}/data.csv",
        f"/_pages/../_pages/events/{OTHER}/data.csv",
        f"//_pages/events/{OTHER}/index.html",
        f"/%5fpages/events/{OTHER}/index.html",
        "/_pages/core/index.html",
        f"/_may_see/{OTHER}",
        f"//events//{OTHER}//data.csv",
        f"/events//{OTHER}/usage//data.csv",
        f"/events/{OTHER}%00/data.csv",
    ):
        status, body, _ = get(ports[way], path, "ana")
        assert status in {400, 403, 404}, path
        assert "this is" not in body, path


def test_the_core_pages_are_where_the_teams_login_is(ports: dict[str, int]) -> None:
    status, body, headers = get(ports["8082"], "/pages/")
    assert (status, body) == (200, "this is core/index.html")
    assert headers.items() >= HEADERS.items()
    assert get(ports["8082"], f"/pages/events/{MINE}.html")[:2] == (200, f"this is core/events/{MINE}.html")
    for path in (
        "/pages/../events/8/data.csv",
        "/pages../events/8/data.csv",
        "/pages/%2e%2e/events/8/data.csv",
        "/pages/events/",
    ):
        status, body, _ = get(ports["8082"], path)
        assert status in {400, 403, 404}
        assert "this is" not in body


def test_serve_shows_the_pages_on_loopback_with_the_same_headers(pages: Path) -> None:
    (pages / "events" / MINE / ".data.csv.new").write_text("half")
    with serve(pages, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert server.server_address[0] == "127.0.0.1"
            for path, file in (("/core/", "core/index.html"), (f"/events/{MINE}/data.csv", f"events/{MINE}/data.csv")):
                status, body, headers = get(server.server_port, path)
                assert (status, body) == (200, f"this is {file}")
                assert headers.items() >= HEADERS.items()
            for path in ("/", "/events/", f"/events/{MINE}/.data.csv.new", "/../core/secret", "/%2e%2e/x"):
                status, _, headers = get(server.server_port, path)
                assert status == 404, path
                assert headers.items() >= HEADERS.items()
        finally:
            server.shutdown()
            thread.join()
            (pages / "events" / MINE / ".data.csv.new").unlink()
