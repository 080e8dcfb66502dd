"""The WSGI middleware on Flask and plain applications, where possible with a validator on both of its sides."""

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from flask import Blueprint, Flask, Response, abort, redirect, request, stream_with_context
from werkzeug.exceptions import ClientDisconnected
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.routing import BaseConverter

from analytics_assets.telemetry.wsgi import CountResponses
from analytics_assets_tests.support.http import Environ, environ_of
from analytics_assets_tests.support.telemetry import Counting, rows

App = Callable[..., Iterable[bytes]]


def served(app: App, path: str = "/", more: Environ | None = None) -> tuple[str, bytes]:
    """Status line and body that wsgiref's server sends, which follows the protocol to the letter."""
    output = io.BytesIO()
    handler = SimpleHandler(io.BytesIO(), output, io.StringIO(), environ_of(path, more=more))
    handler.run(app)
    head, _, body = output.getvalue().partition(b"\r\n\r\n")
    return head.splitlines()[0].decode().removeprefix("HTTP/1.0 "), body


def counted(counting: Counting, app: App, **arguments: Any) -> App:
    """The application in the middleware, between two validators."""
    found: App = validator(CountResponses(validator(app), counting.telemetry, **arguments))
    return found


def flask_app(counting: Counting) -> Flask:
    app = Flask("directory")
    app.wsgi_app = CountResponses(app.wsgi_app, counting.telemetry)  # type: ignore[method-assign]
    return app


def test_the_endpoint_is_the_rule_with_that_of_its_blueprints(counting: Counting) -> None:
    class Anything(BaseConverter):
        regex = ".*"
        part_isolating = False

        def __init__(self, map: Any, *arguments: Any, **keywords: Any) -> None:
            super().__init__(map)

    app = flask_app(counting)
    app.url_map.converters["anything"] = Anything
    inner = Blueprint("inner", "inner", url_prefix="/inner/<int:year>")
    outer = Blueprint("outer", "outer", url_prefix="/<lang>")
    rules = {
        "/": "/",
        "/events/": "/events/",
        "/events/<int:event_id>": "/events/{event_id}",
        "/events/<int(min=1, max=9):n>/x": "/events/{n}/x",
        "/f/<path:name>": "/f/{name}",
        "/u/<uuid:key>.<string(length=2):ext>": "/u/{key}.{ext}",
        "/any/<any(one,two,'a:b','<c>'):which>": "/any/{which}",
        "/re/<anything('[^<>]+', x=':y'):z>": "/re/{z}",
        "/2024/über": "/~2024/~ber",
    }
    paths = ["/", "/events/", "/events/42", "/events/7/x", "/f/canary/b"]
    paths += ["/u/0b5c2c0e-6f5e-4d39-9a43-0d7a1c7c9f11.ab", "/any/two", "/re/canary", "/2024/über"]
    for number, rule in enumerate(rules):
        app.add_url_rule(rule, f"v{number}", lambda **_: "ok")
    inner.add_url_rule("/day/<d>", "day", lambda **_: "ok")
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    app.register_blueprint(outer, name="again", url_prefix="/again")
    client = app.test_client()
    for path in (*paths, "/canary/inner/2026/day/1", "/again/inner/2026/day/1"):
        assert client.get(f"{path}?q=canary").status_code == 200, path
    templates = (*rules.values(), "/{lang}/inner/{year}/day/{d}", "/again/inner/{year}/day/{d}")
    assert counting.seen() == {(f"GET {template}", 200): 1 for template in templates}


def test_flask_answers_of_every_kind(counting: Counting) -> None:
    app = flask_app(counting)

    @app.route("/teapot/<x>")
    def teapot(x: str) -> Any:
        abort(418 if x == "abort" else 404)

    @app.post("/form")
    def form() -> Any:
        return redirect("/canary")

    @app.route("/slash/")
    def slash() -> str:
        return "ok"

    @app.route("/fail")
    def fail() -> str:
        raise ValueError("canary")

    @app.route("/stream")
    def stream() -> Response:
        def pieces() -> Iterator[str]:
            yield "a"
            yield "b"

        return Response(stream_with_context(pieces()))

    client = app.test_client()
    for path, method, status in [
        ("/teapot/abort", "GET", 418),
        ("/teapot/canary", "GET", 404),
        ("/form", "POST", 302),
        ("/form", "GET", 405),
        ("/form", "OPTIONS", 200),
        ("/slash", "GET", 308),
        ("/slash/", "HEAD", 200),
        ("/slash/", "OPTIONS", 200),
        ("/slash/", "CANARY", 405),
        ("/fail", "GET", 500),
        ("/stream", "GET", 200),
        ("/static/canary.css", "GET", 404),
        ("/canary", "GET", 404),
    ]:
        assert client.open(path, method=method).status_code == status, (method, path)
    assert counting.seen() == {
        ("GET /teapot/{x}", 418): 1,
        ("GET /teapot/{x}", 404): 1,
        ("POST /form", 302): 1,
        ("OPTIONS /form", 200): 1,
        ("HEAD /slash/", 200): 1,
        ("OPTIONS /slash/", 200): 1,
        ("GET /fail", 500): 1,
        ("GET /stream", 200): 1,
        ("GET /static/{filename}", 404): 1,
        # Werkzeug sets no rule for requests that it refuses or redirects.
        ("(unmatched)", 405): 2,
        ("(unmatched)", 308): 1,
        ("(unmatched)", 404): 1,
    }


def test_an_exception_that_flask_passes_on_is_500_and_the_same(counting: Counting) -> None:
    app = flask_app(counting)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    raised = ValueError("canary")

    @app.route("/fail/<x>")
    def fail(x: str) -> str:
        raise raised

    with pytest.raises(ValueError, match="canary") as caught:
        app.test_client().get("/fail/canary")
    assert caught.value is raised
    # Flask has already removed the request when a middleware sees the exception. In production, it propagates none.
    assert counting.seen() == {("(unmatched)", 500): 1}


def test_an_excluded_flask_request_counts_nothing(counting: Counting) -> None:
    app = Flask("directory")
    app.wsgi_app = CountResponses(  # type: ignore[method-assign]
        app.wsgi_app, counting.telemetry, exclude=lambda environ: environ.get("HTTP_SEC_GPC") == "1"
    )

    @app.route("/look")
    def look() -> str:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        return "ok"

    client = app.test_client()
    assert client.get("/look", headers={"Sec-GPC": "1"}).data == b"ok"
    assert not counting.folder.exists()
    assert client.get("/look").data == b"ok"
    assert counting.seen() == {("GET /look", 200): 1}
    assert len(rows(counting.folder)) == 2


def test_when_exclude_raises_nothing_is_counted_and_the_drop_is(
    counting: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    def exclude(environ: Environ) -> bool:
        raise LookupError(f"canary {environ['PATH_INFO']}")

    assert served(counted(counting, app, exclude=exclude), "/canary") == ("200 OK", b"ok")
    assert counting.seen(dropped={"failed": 1}) == {}
    assert rows(counting.folder) == []
    assert "`exclude` raised LookupError" in caplog.text
    assert "canary" not in caplog.text


class Body:
    """A body that notes what happens to it; its application may start the response late."""

    def __init__(self, log: list[str], pieces: list[bytes | Exception], start: Callable[[], Any] | None = None) -> None:
        self.log, self.pieces, self.start = log, pieces, start

    def __iter__(self) -> Iterator[bytes]:
        self.log.append("iter")
        if self.start:
            self.start()
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            self.log.append(piece.decode())
            yield piece

    def close(self) -> None:
        self.log.append("close")


PLAIN = [("Content-Type", "text/plain")]


def test_a_generator_that_starts_its_response_late(counting: Counting) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("404 Nicht da", PLAIN)
        yield b"a"
        yield b"b"

    assert served(counted(counting, app)) == ("404 Nicht da", b"ab")
    assert counting.seen() == {("(unmatched)", 404): 1}


def test_a_late_response_is_counted_with_its_first_piece_and_closed(counting: Counting) -> None:
    log: list[str] = []

    def app(environ: Environ, start_response: Any) -> Body:
        return Body(log, [b"a", b"b"], lambda: start_response("201 Created", PLAIN))

    body = CountResponses(app, counting.telemetry)(environ_of(), lambda *_: None)
    assert (counting.seen(), log) == ({}, [])
    pieces = iter(body)
    assert (counting.seen(), next(pieces)) == ({}, b"a")
    assert counting.seen() == {("(unmatched)", 201): 1}
    assert list(pieces) == [b"b"]
    body.close()  # type: ignore[attr-defined]
    assert log == ["iter", "a", "b", "close"]
    assert counting.seen() == {("(unmatched)", 201): 1}


@pytest.mark.parametrize("started", [True, False])
def test_a_late_response_that_fails_before_its_first_piece_is_500(counting: Counting, started: bool) -> None:
    raised = ValueError("canary")

    def app(environ: Environ, start_response: Any) -> Body:
        return Body([], [raised], (lambda: start_response("200 OK", PLAIN)) if started else None)

    with pytest.raises(ValueError, match="canary") as caught:
        list(CountResponses(app, counting.telemetry)(environ_of(), lambda *_: None))
    assert caught.value is raised
    assert served(CountResponses(app, counting.telemetry))[0] == "500 Internal Server Error"
    assert counting.seen() == {("(unmatched)", 500): 2}


def test_a_response_that_fails_after_its_first_piece_keeps_its_status(counting: Counting) -> None:
    def app(environ: Environ, start_response: Any) -> Body:
        return Body([], [b"a", ValueError()], lambda: start_response("200 OK", PLAIN))

    def early(environ: Environ, start_response: Any) -> Body:
        start_response("200 OK", PLAIN)
        return Body([], [b"a", ValueError()])

    for each in (app, early):
        with pytest.raises(ValueError, match=r"^$"):
            list(CountResponses(each, counting.telemetry)(environ_of(), lambda *_: None))
    assert counting.seen() == {("(unmatched)", 200): 2}


def test_a_late_response_without_a_piece(counting: Counting) -> None:
    log: list[str] = []

    def empty(environ: Environ, start_response: Any) -> Body:
        return Body(log, [], lambda: start_response("204 No Content", []))

    def silent(environ: Environ, start_response: Any) -> Body:
        return Body(log, [])

    assert served(CountResponses(empty, counting.telemetry))[0] == "204 No Content"
    assert counting.seen() == {("(unmatched)", 204): 1}
    assert served(CountResponses(silent, counting.telemetry))[0] == "500 Internal Server Error"
    assert counting.seen() == {("(unmatched)", 204): 1, ("(unmatched)", 500): 1}
    # The server closes the body before it reads the first piece.
    CountResponses(empty, counting.telemetry)(environ_of(), lambda *_: None).close()  # type: ignore[attr-defined]
    CountResponses(lambda *_: iter([]), counting.telemetry)(environ_of(), lambda *_: None).close()  # type: ignore[attr-defined]
    assert counting.seen() == {("(unmatched)", 204): 1, ("(unmatched)", 500): 1}
    assert log == ["iter", "close", "iter", "close", "close"]


def test_a_body_is_handed_over_as_it_is(counting: Counting) -> None:
    # A server sends a file in one system call if the body is an object of its own `wsgi.file_wrapper`.
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        given.append(environ["wsgi.file_wrapper"](io.BytesIO(b"file"), 2))
        return given[-1]  # type: ignore[no-any-return]

    given: list[Any] = []
    environ = environ_of(more={"wsgi.file_wrapper": FileWrapper})
    assert CountResponses(app, counting.telemetry)(environ, lambda *_: None) is given[0]
    assert served(counted(counting, app), more={"wsgi.file_wrapper": FileWrapper}) == ("200 OK", b"file")
    assert counting.seen() == {("(unmatched)", 200): 2}


def test_the_body_is_closed_once_and_counted_before(counting: Counting) -> None:
    log: list[str] = []

    def app(environ: Environ, start_response: Any) -> Body:
        start_response("200 OK", PLAIN)
        return Body(log, [b"a"])

    assert served(counted(counting, app)) == ("200 OK", b"a")
    assert log == ["iter", "a", "close"]
    assert counting.seen() == {("(unmatched)", 200): 1}


def test_a_late_body_that_the_server_abandons_is_closed_once(counting: Counting) -> None:
    class Pieces:
        """Its own iterator and with a `close`, like Werkzeug's ClosingIterator."""

        def __init__(self, start: Callable[[], Any]) -> None:
            self.start, self.closed = start, 0

        def __iter__(self) -> Iterator[bytes]:
            return self

        def __next__(self) -> bytes:
            self.start()
            return b"a"

        def close(self) -> None:
            self.closed += 1

    made: list[Pieces] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        made.append(Pieces(lambda: start_response("200 OK", PLAIN)))
        return made[0]

    body: Any = CountResponses(app, counting.telemetry)(environ_of(), lambda *_: None)
    pieces = iter(body)
    assert [next(pieces), next(pieces)] == [b"a", b"a"]
    pieces.close()
    body.close()
    assert made[0].closed == 1


def test_write_is_that_of_the_server(counting: Counting) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("202 Accepted", PLAIN)
        write(b"a")
        write(b"b")
        return [b"c"]

    assert served(counted(counting, app)) == ("202 Accepted", b"abc")
    assert counting.seen() == {("(unmatched)", 202): 1}


def test_an_error_page_in_place_of_a_response_counts_alone(counting: Counting) -> None:
    passed: list[Any] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        try:
            raise ValueError("canary")
        except ValueError:
            passed.append(sys.exc_info())
            start_response("503 Later", PLAIN, passed[0])
        return [b"later"]

    assert served(counted(counting, app)) == ("503 Later", b"later")
    received: list[Any] = []
    CountResponses(app, counting.telemetry)(environ_of(), lambda *arguments: received.append(arguments))
    assert received[1][2] is passed[-1] or received[1][2][1] is not None
    assert counting.seen() == {("(unmatched)", 503): 2}


def test_what_the_server_raises_in_start_response_reaches_the_application(counting: Counting) -> None:
    raised = AssertionError("headers are sent")
    met = []

    def start_response(*_: Any) -> Any:
        raise raised

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        try:
            start_response("200 OK", PLAIN)
        except AssertionError as error:
            met.append(error)
            raise
        return []

    with pytest.raises(AssertionError) as caught:
        CountResponses(app, counting.telemetry)(environ_of(), start_response)
    assert met == [raised]
    assert caught.value is raised
    assert counting.seen() == {("(unmatched)", 500): 1}


def test_an_exception_after_the_start_of_a_response_that_never_left_is_500(counting: Counting) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        raise ValueError

    assert served(CountResponses(app, counting.telemetry))[0] == "500 Internal Server Error"
    assert counting.seen() == {("(unmatched)", 500): 1}


@pytest.mark.parametrize(("line", "status"), [("299", 299), ("451 Grund: canary", 451), ("canary", 500), ("", 500)])
def test_status_lines(counting: Counting, line: str, status: int) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(line, PLAIN)
        return []

    CountResponses(app, counting.telemetry)(environ_of(), lambda *_: None)
    assert counting.seen() == {("(unmatched)", status): 1}


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_worker_that_is_stopped_has_not_answered(counting: Counting, error: type[BaseException]) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise error

    with pytest.raises(error):
        CountResponses(app, counting.telemetry)(environ_of(), lambda *_: None)
    assert counting.seen() == {}


def test_a_route_of_ones_own(counting: Counting, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["found"] = "/found/{x}"
        start_response("200 OK", PLAIN)
        return [b"ok"]

    def route(environ: Environ) -> str | None:
        return environ["found" if environ["PATH_INFO"] == "/a" else "canary"]  # type: ignore[no-any-return]

    assert served(counted(counting, app, route=route), "/a") == ("200 OK", b"ok")
    assert served(counted(counting, app, route=route), "/b") == ("200 OK", b"ok")
    assert counting.seen(dropped={"failed": 1}) == {("GET /found/{x}", 200): 1}
    assert "`route` raised KeyError" in caplog.text
    assert "canary" not in caplog.text


def test_a_handler_of_everything_counts_as_what_it_answers(counting: Counting) -> None:
    app = flask_app(counting)

    @app.errorhandler(Exception)
    def unavailable(error: Exception) -> Any:
        return "later", 503

    @app.route("/fail/<x>")
    def fail(x: str) -> str:
        raise ValueError("canary")

    assert app.test_client().get("/fail/canary").status_code == 503
    assert counting.seen() == {("GET /fail/{x}", 503): 1}


def test_a_client_that_hangs_up_during_the_upload_counts_only_where_the_application_answers(counting: Counting) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise ClientDisconnected

    def lazy(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise ClientDisconnected
        yield b""

    for each in (app, lazy):
        with pytest.raises(ClientDisconnected):
            list(CountResponses(each, counting.telemetry)(environ_of(), lambda *_: None))
    assert counting.seen() == {}

    flask = flask_app(counting)

    @flask.post("/upload")
    def upload() -> str:
        return str(len(request.get_data()))

    more = {"CONTENT_LENGTH": "10", "wsgi.input": io.BytesIO(b"12345")}
    assert (
        served(flask.wsgi_app, more=more | {"PATH_INFO": "/upload", "REQUEST_METHOD": "POST"})[0] == "400 BAD REQUEST"
    )
    assert counting.seen() == {("POST /upload", 400): 1}


def test_where_middlewares_are_nested_the_outermost_one_counts(counting: Counting) -> None:
    def late(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("404 Nicht da", PLAIN)
        yield b"a"

    def late_around(environ: Environ, start_response: Any) -> Iterator[bytes]:
        yield from CountResponses(late, counting.telemetry)(environ, start_response)

    def fail(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise ValueError

    inner = flask_app(counting)
    inner.add_url_rule("/e/<x>", "e", lambda x: x)
    outer = flask_app(counting)
    outer.wsgi_app = DispatcherMiddleware(outer.wsgi_app, {"/inner": inner})  # type: ignore[method-assign]
    outer.wsgi_app = CountResponses(  # type: ignore[method-assign]
        outer.wsgi_app, counting.telemetry, route=lambda environ: "/outer"
    )
    assert inner.test_client().get("/e/1").status_code == 200
    assert outer.test_client().get("/inner/e/1").status_code == 200
    assert outer.test_client().get("/nothing").status_code == 404
    for app, status in ((late, "404 Nicht da"), (late_around, "404 Nicht da"), (fail, "500 Internal Server Error")):
        assert served(counted(counting, CountResponses(app, counting.telemetry)))[0] == status
    assert counting.seen() == {
        ("GET /e/{x}", 200): 1,
        ("GET /outer", 200): 1,
        ("GET /outer", 404): 1,
        ("(unmatched)", 404): 2,
        ("(unmatched)", 500): 1,
    }


def test_what_an_inner_middleware_excludes_is_not_counted_by_the_outer_one(counting: Counting) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return [b"ok"]

    def late(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"ok"

    def fail(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise ValueError

    for each in (app, late, fail):
        inner = CountResponses(each, counting.telemetry, exclude=lambda environ: True)
        served(CountResponses(inner, counting.telemetry))
    assert counting.seen() == {}
