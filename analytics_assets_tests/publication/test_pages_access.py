"""docs/publication.md carried out: the real nginx, and the views of the page in Starlette and Django."""

from __future__ import annotations

import http.client
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from grp import getgrnam
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from analytics_assets.local.pages import list_indexes, serve
from analytics_assets.local.processes import ServerError, stop
from analytics_assets.local.server import ROOT
from analytics_assets.publication.pages.html import HEADERS, Page
from analytics_assets.publication.pages.writing import write_pages
from analytics_assets_tests.support import deployment
from analytics_assets_tests.support.deployment import program
from analytics_assets_tests.support.processes import PATIENCE, free_port, wait_until

PAGE = (ROOT / "docs/publication.md").read_text(encoding="utf-8")
CONFIGURATIONS = dict(re.findall(r"^```nginx\n# (/\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
(INCLUDE,) = re.findall(r"^```nginx\n( +include .*;)\n```", PAGE, re.MULTILINE)
(FOLDERS,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
VIEWS = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))

SERVER = deployment.files()["/etc/nginx/analytics/server.conf"]
"""Of the server that core.conf goes into."""

ROOTS = os.geteuid() == 0
WRITER = 64_001
"""The number of a user and group that nobody has, for user and group `analytics`. Only root can be somebody else."""

MINE, OTHER = "7", "8"


def organizes(request: Any, event_id: int) -> bool:
    """The application's own check: ana organizes event 7."""
    cookies = request.cookies if hasattr(request, "cookies") else request.COOKIES
    return bool(cookies.get("user") == "ana" and event_id == int(MINE))


def view(name: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "views", "organizes": organizes}
    exec(VIEWS[name], namespace)  # noqa: S102  # our own page
    return namespace


def mistake(request: Any, path: str | None = None) -> Any:
    """A view that redirects to whatever it is asked for, in Starlette and in Django."""
    if path is None:
        return Response(headers={"X-Accel-Redirect": f"/_pages/{request.path_params['path']}"})
    from django.http import HttpResponse

    return HttpResponse(headers={"X-Accel-Redirect": f"/_pages/{path}"})


@contextmanager
def starlette_application(*names: str) -> Iterator[int]:
    """The views of the page behind uvicorn."""
    port = free_port()
    routes = [route for name in names for route in view(f"starlette{name}")["routes"]]
    application = Starlette(routes=[*routes, Route("/mistake/{path:path}", mistake)])
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
    from django.urls import path
    from django.urls.resolvers import RegexPattern, URLResolver

    from analytics_assets_tests.support import django_site  # noqa: F401  # configures Django for this process

    patterns = [pattern for name in names for pattern in view(f"django{name}")["urlpatterns"]]
    resolver = URLResolver(RegexPattern(r"^/"), [*patterns, path("mistake/<path:path>", mistake)])

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


@contextmanager
def acting_as_the_service() -> Iterator[None]:
    """Be the user of the service, with its umask and in no group but its own."""
    umask, groups = os.umask(0o077), os.getgroups()
    try:
        if ROOTS:
            os.setgroups([])
            os.setegid(WRITER)
            os.seteuid(WRITER)
        yield
    finally:
        if ROOTS:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
        os.umask(umask)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that stands for /. Every user may pass through it, unlike through pytest's own."""
    with tempfile.TemporaryDirectory(prefix="analytics-tests-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="module")
def pages(place: Path) -> Path:
    """Pages with what they are for their content, written as the service does, in the folders that the page makes."""
    # As useradd makes it where HOME_MODE is 0700.
    (place / "var/lib/analytics").mkdir(parents=True)
    (place / "var/lib/analytics").chmod(0o700)
    block = FOLDERS.replace(" /var/lib", f" {place}/var/lib")
    block = re.sub(r"(-[og]) analytics", rf"\1 {WRITER}", block) if ROOTS else re.sub(r" -[og] \S+", "", block)
    subprocess.run(["bash", "-euc", block], check=True)
    folder = place / "var/lib/analytics/pages"
    paths = ["core/index.html", f"core/events/{MINE}.html", "overview/index.html"]
    paths += [
        f"events/{event_id}/{name}" for event_id in (MINE, OTHER) for name in ("index.html", "data.csv", "data.json")
    ]
    with acting_as_the_service():
        write_pages(folder, ["core", "overview", "events"], [Page(path, f"this is {path}".encode()) for path in paths])
    return folder


@contextmanager
def nginx(folder: Path, pages: Path, application: int) -> Iterator[dict[str, int]]:
    """The real nginx with the configuration of the page, as its own user. Yields the ports of its servers."""
    ports = {port: free_port() for port in ("8080", "8081", "8082")}
    core = "\n".join(["server {", "listen 8082;", *re.findall("^add_header .*$", SERVER, re.MULTILINE), INCLUDE, "}"])
    for name, shown in (CONFIGURATIONS | {"/etc/nginx/conf.d/core.conf": core}).items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = shown.replace("/var/lib/analytics/pages", str(pages)).replace("/etc/nginx", f"{folder}/etc/nginx")
        text = re.sub(r"listen (\d+);", lambda found: f"listen 127.0.0.1:{ports[found[1]]};", text)
        path.write_text(text.replace("127.0.0.1:8000", f"127.0.0.1:{application}"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    around = [
        "user www-data;" if ROOTS else "",
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
def ports(request: pytest.FixtureRequest, pages: Path, place: Path) -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        application = stack.enter_context(APPLICATIONS[request.param]("", "-ask"))
        yield stack.enter_context(nginx(place / request.param, pages, application))


REDIRECTED = "/events/{}/usage/{}"
ASKED = "/events/{}/{}"
WAYS = {"8080": REDIRECTED, "8081": ASKED}


def test_every_block_of_the_page_is_carried_out() -> None:
    """A block that the fixtures do not know would be shown untried."""
    assert Counter(re.findall(r"^```(\w+)$", PAGE, re.MULTILINE)) == {
        "sh": 1,
        "nginx": len(CONFIGURATIONS) + 1,  # and the line that includes one
        "python": len(VIEWS),
    }
    assert VIEWS.keys() == {f"{name}{way}" for name in APPLICATIONS for way in ("", "-ask")}


@pytest.mark.skipif(not ROOTS, reason="only root can be two users")
def test_what_the_service_makes_in_core_belongs_to_the_group_of_nginx(pages: Path) -> None:
    """The service is no member of that group, so that Linux drops setgid at a chmod."""
    for path, mode in (("core", 0o2750), ("core/events", 0o2750), (f"core/events/{MINE}.html", 0o640)):
        found = (pages / path).stat()
        assert (found.st_uid, found.st_gid) == (WRITER, getgrnam("www-data").gr_gid), path
        assert stat.S_IMODE(found.st_mode) == mode, path
    assert stat.S_IMODE((pages / "events" / MINE).stat().st_mode) == 0o755


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


@pytest.mark.parametrize(
    "path",
    [
        "core/index.html",
        "overview/index.html",
        "events/../core/index.html",
        "events/%2e%2e/core/index.html",
        "",
        "core/",
    ],
)
def test_a_mistake_in_the_application_leads_to_no_other_page(ports: dict[str, int], path: str) -> None:
    status, body, _ = get(ports["8080"], f"/mistake/events/{MINE}/data.csv")
    assert (status, body) == (200, f"this is events/{MINE}/data.csv"), "the view of this test redirects"
    status, body, _ = get(ports["8080"], f"/mistake/{path.replace('%', '%25')}")
    assert status != 200
    assert "this is" not in body


def test_the_core_pages_are_where_the_teams_login_is(ports: dict[str, int]) -> None:
    status, body, headers = get(ports["8082"], "/pages/")
    assert (status, body) == (200, "this is core/index.html")
    of_the_server = dict(re.findall(r'^add_header (\S+) "(.*)" always;$', SERVER, re.MULTILINE))
    assert "Strict-Transport-Security" in of_the_server
    assert headers.items() >= (HEADERS | of_the_server).items()
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
            status, body, headers = get(server.server_port, "/")
            assert status == 200
            assert re.findall(r'href="(.*?)"', body) == ["core/", "overview/"]
            assert headers.items() >= HEADERS.items()
            for path in ("/events/", f"/events/{MINE}/.data.csv.new", "/../core/secret", "/%2e%2e/x"):
                status, _, headers = get(server.server_port, path)
                assert status == 404, path
                assert headers.items() >= HEADERS.items()
        finally:
            server.shutdown()
            thread.join()
            (pages / "events" / MINE / ".data.csv.new").unlink()


def test_serve_names_only_what_has_been_written(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no page has been written yet"), serve(tmp_path, 0):
        pass
    write_pages(tmp_path, ["overview"], [Page("overview/index.html", b"")])
    assert list_indexes(tmp_path) == ["overview/"]


def test_the_command_without_a_page_says_where_some_are(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analytics_assets", "serve", "--port", str(free_port())]
    environment = os.environ | {"ANALYTICS_DATA_DIR": str(tmp_path), "ANALYTICS_PUBLISH_DIR": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: no page has been written yet: ")
    assert ended.stderr.endswith("ANALYTICS_DATA_DIR=.analytics/demo analytics-assets serve\n")
