"""The ASGI middleware on Starlette, FastAPI and plain applications, driven by the protocol's own messages."""

import asyncio
import os
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from analytics_assets.telemetry.asgi import CountResponses
from analytics_assets.telemetry.wsgi import CountResponses as WsgiCountResponses
from analytics_assets_tests.support.http import Answer, http_scope, send_request
from analytics_assets_tests.support.telemetry import Counting, responses, rows

with warnings.catch_warnings(action="ignore"):  # it is deprecated, and what people use
    from starlette.middleware.wsgi import WSGIMiddleware

ROOT = Path(__file__).parents[2]


def ask(app: Any, target: str | bytes, method: str = "GET", **arguments: Any) -> Answer:
    return asyncio.run(send_request(app, http_scope(target, method, **arguments)))


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def new_endpoint() -> Callable[[Request], Awaitable[Response]]:
    """An endpoint of its own; most applications have one a route."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    return endpoint


def counted_starlette(counting: Counting, routes: Iterable[BaseRoute], **arguments: Any) -> Starlette:
    """As the documentation has it."""
    app = Starlette(routes=list(routes), **arguments)
    app.add_middleware(CountResponses, telemetry=counting.telemetry)
    return app


@pytest.mark.parametrize(
    ("declared", "target", "template"),
    [
        ("/", "/", "/"),
        ("/events", "/events?q=canary", "/events"),
        ("/events/{event_id}", "/events/canary", "/events/{event_id}"),
        ("/events/{event_id:int}/people/", "/events/42/people/", "/events/{event_id}/people/"),
        ("/files/{path:path}", "/files/a/canary/c", "/files/{path}"),
        ("/files/{path:path}", "/files/", "/files/{path}"),
        ("/u/{key:uuid}", "/u/0b5c2c0e-6f5e-4d39-9a43-0d7a1c7c9f11", "/u/{key}"),
        ("/p/{x:float}", "/p/1.5", "/p/{x}"),
        ("/a-{x}.{y}/~z", "/a-canary.7/~z", "/a-{x}.{y}/~z"),
        ("/2024/report", "/2024/report", "/~2024/report"),
        ("/jour née/{größe}", "/jour%20n%C3%A9e/1", None),
        ("/straße/{x}", "/stra%C3%9Fe/1", "/stra~e/{x}"),
        ("/@{handle}", "/@canary", "/~{handle}"),
    ],
)
def test_the_endpoint_is_the_declared_template(
    counting: Counting, declared: str, target: str, template: str | None
) -> None:
    # `{größe}` is no parameter to Starlette, which takes it as written.
    app = counted_starlette(counting, [Route(declared, ok)])
    status = 200 if template else 404
    assert ask(app, target).status == status
    assert counting.seen() == {(f"GET {template}" if template else "(unmatched)", status): 1}


def test_mounts_give_their_prefix_with_its_parameters(counting: Counting, tmp_path: Path) -> None:
    (tmp_path / "logo.svg").write_text("<svg/>")
    inner = Starlette(routes=[Route("/{item:int}", new_endpoint()), Route("/", new_endpoint())])
    app = counted_starlette(
        counting,
        [
            Mount("/o/{organiser}", routes=[Mount("/e/{event:int}/", routes=[Route("/talks/{talk}", new_endpoint())])]),
            Mount("/inner/{team}", inner),
            Mount("/static", StaticFiles(directory=tmp_path)),
            Mount("/opaque/{who}", PlainTextResponse("ok")),
            Mount("/wrapped", inner, middleware=[Middleware(GZipMiddleware)]),
            Mount("/hidden/{x}", CORSMiddleware(GZipMiddleware(Router([Route("/talks/{talk}", new_endpoint())])))),
            Mount("", routes=[Route("/last", new_endpoint())]),
        ],
    )
    for target, status in {
        "/o/canary/e/7/talks/canary": 200,
        "/o/canary/e/7/canary": 404,
        "/inner/canary/5": 200,
        "/inner/canary/": 200,
        "/inner/canary/canary": 404,
        "/inner/canary": 404,  # the last mount takes it before a slash is added
        "/static/logo.svg": 200,
        "/static/canary.svg": 404,
        "/opaque/canary/anything/canary": 200,
        "/wrapped/5": 200,
        "/hidden/canary/talks/canary": 200,
        "/hidden/canary/canary": 404,
        "/last": 200,
        "/canary": 404,
    }.items():
        assert ask(app, target).status == status, target
    assert counting.seen() == {
        ("GET /o/{organiser}/e/{event}/talks/{talk}", 200): 1,
        ("GET /inner/{team}/{item}", 200): 1,
        ("GET /inner/{team}/", 200): 1,
        ("GET /static/{path}", 200): 1,
        ("GET /static/{path}", 404): 1,
        ("GET /opaque/{who}/{path}", 200): 1,
        ("GET /wrapped/{item}", 200): 1,
        ("GET /hidden/{x}/talks/{talk}", 200): 1,
        ("GET /last", 200): 1,
        ("(unmatched)", 404): 5,
    }


def test_hosts_have_templates_without_the_host(counting: Counting) -> None:
    app = counted_starlette(
        counting,
        [
            Host("{customer}.example.test", Router([Route("/of/{item}", new_endpoint())])),
            Host("plain.test", PlainTextResponse("ok")),
            Route("/of/{item}", new_endpoint()),
        ],
    )
    for host in ("canary.example.test", "example.test", "plain.test"):
        assert ask(app, "/of/1", headers={"host": host}).status == 200
    assert counting.seen() == {("GET /of/{item}", 200): 2, ("GET /{path}", 200): 1}


def test_fastapi_routers_and_applications_inside_each_other(counting: Counting) -> None:
    async def read(item: int) -> int:
        return item

    def listing() -> list[int]:
        return []

    router = APIRouter(prefix="/items")
    router.get("/{item}")(read)
    router.get("")(listing)
    router.add_route("/plain/{x}", new_endpoint())
    router.mount("/mounted/{y}", Router([Route("/{z}", new_endpoint())]))
    outer = APIRouter(prefix="/outer/{o}")
    outer.include_router(router)
    api = FastAPI()
    api.include_router(router, prefix="/v1")
    api.include_router(router, prefix="/v2/{tenant}")
    api.include_router(outer)
    api.get("/health")(new_endpoint())
    api.mount("/star", Starlette(routes=[Route("/{s}", new_endpoint())]))
    sub = FastAPI()
    sub.get("/{deep}")(read_text := new_endpoint())
    sub.get("/a/{b}")(read_text)
    api.mount("/sub/{tenant}", sub)
    site = Starlette(routes=[Mount("/api", api), Route("/", new_endpoint())])

    expected = {
        "/v1/items/1": "/v1/items/{item}",
        "/v2/canary/items/1": "/v2/{tenant}/items/{item}",
        "/v1/items": "/v1/items",
        "/v2/canary/items": "/v2/{tenant}/items",
        "/outer/canary/items/1": "/outer/{o}/items/{item}",
        "/outer/canary/plain/canary": "/outer/{o}/plain/{x}",
        "/v1/plain/canary": "/v1/plain/{x}",
        "/v1/mounted/canary/canary": "/v1/mounted/{y}/{z}",
        "/health?request=1": "/health",
        "/star/canary": "/star/{s}",
        "/sub/canary/canary?request=1": "/sub/{tenant}/{deep}",
        "/sub/canary/a/canary?request=1": "/sub/{tenant}/a/{b}",
        "/openapi.json": "/openapi.json",
        "/docs": "/docs",
    }
    for app, prefix in ((api, ""), (site, "/api")):
        for target in expected:
            assert ask(counting.around(app), prefix + target).status == 200, target
    assert ask(counting.around(api), "/v1/items/canary").status == 422
    assert ask(counting.around(api), "/v1/items/1", "DELETE").status == 405
    assert counting.seen() == {
        **{(f"GET {template}", 200): 1 for template in expected.values()},
        **{(f"GET /api{template}", 200): 1 for template in expected.values()},
        ("GET /v1/items/{item}", 422): 1,
        ("DELETE /v1/items/{item}", 405): 1,
    }


def test_an_endpoint_on_several_routes_is_told_apart_by_the_path(counting: Counting) -> None:
    shared = Starlette(routes=[Route("/{x}", ok), Route("/{x}/{y}", ok)])
    app = counted_starlette(
        counting,
        [
            Route("/events/{event_id}", ok),
            Route("/events/{event_id}/people", ok),
            Route("/events/{event_id}/people", ok, methods=["POST"]),
            Route("/files/{name:path}", ok),
            Mount("/one", shared),
            Mount("/two/{z}", shared),
            Route("/number/{n:int}", ok),
            Route("/number/{word}", ok),
        ],
    )
    for target in ("/events/1", "/events/1/people", "/files/", "/files/a/people", "/one/a", "/one/a/b", "/two/a/b/c"):
        assert ask(app, target).status == 200
    assert ask(app, "/events/1/people", "POST").status == 200
    assert ask(app, "/root/two/a/b", root_path="/root").status == 200
    assert ask(app, "/number/5").status == 200
    assert ask(app, "/number/five").status == 200
    assert counting.seen() == {
        ("GET /events/{event_id}", 200): 1,
        ("GET /events/{event_id}/people", 200): 1,
        ("POST /events/{event_id}/people", 200): 1,
        ("GET /files/{name}", 200): 2,
        ("GET /one/{x}", 200): 1,
        ("GET /one/{x}/{y}", 200): 1,
        ("GET /two/{z}/{x}/{y}", 200): 1,
        ("GET /two/{z}/{x}", 200): 1,
        ("GET /number/{n}", 200): 1,
        ("GET /number/{word}", 200): 1,
    }


def test_endpoints_of_any_kind(counting: Counting) -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("ok")(scope, receive, send)

        async def method(self, request: Request) -> Response:
            return PlainTextResponse("ok")

    class View(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("ok")

    async def of(number: int, request: Request) -> Response:
        return PlainTextResponse(str(number))

    def synchronous(request: Request) -> Response:
        return PlainTextResponse("ok")

    kinds: list[Any] = [
        Unhashable(),
        Unhashable(),
        Unhashable().method,
        View,
        partial(of, 1),
        partial(of, 2),
        synchronous,
    ]
    app = counted_starlette(counting, [Route(f"/kind-{n}/{{x}}", kind) for n, kind in enumerate(kinds)])
    for n in range(len(kinds)):
        assert ask(app, f"/kind-{n}/canary").status == 200
    assert ask(app, "/kind-3/canary", "PUT").status == 405
    assert counting.seen() == {
        **{(f"GET /kind-{n}/{{x}}", 200): 1 for n in range(len(kinds))},
        ("PUT /kind-3/{x}", 405): 1,
    }


def test_routes_added_after_the_first_request(counting: Counting) -> None:
    inner = Router()
    app = counted_starlette(counting, [Mount("/inner", inner), Route("/", new_endpoint())])
    assert [ask(app, target).status for target in ("/", "/later", "/inner/later")] == [200, 404, 404]
    app.router.routes.append(Route("/later", new_endpoint()))
    inner.routes.append(Route("/later", new_endpoint()))
    assert [ask(app, target).status for target in ("/", "/later", "/inner/later")] == [200, 200, 200]
    assert counting.seen() == {
        ("GET /", 200): 2,
        ("(unmatched)", 404): 2,
        ("GET /later", 200): 1,
        ("GET /inner/later", 200): 1,
    }


def test_the_routing_table_is_walked_once_also_for_an_endpoint_that_is_not_in_it(counting: Counting) -> None:
    class Own(BaseRoute):
        """A route that says nothing about itself."""

        def __init__(self, path: str) -> None:
            self.at = path

        def matches(self, scope: Scope) -> tuple[Any, Scope]:
            found = Route(self.at, ok).matches(scope)[0]
            return found, {"endpoint": elsewhere}

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("ok")(scope, receive, send)

    def elsewhere() -> None: ...

    walks = 0

    class Table(list[BaseRoute]):
        def __iter__(self) -> Iterator[BaseRoute]:
            nonlocal walks
            walks += 1
            return super().__iter__()

    app = Starlette()
    app.router.routes = Table([Own("/one"), Own("/two"), Route("/three", ok)])
    counted = counting.around(app)
    for target in ("/one", "/two", "/three") * 5:
        assert ask(counted, target).status == 200
    # Starlette walks the table once per request; telemetry walks it once, and remembers that `elsewhere` is not in it.
    assert walks == 15 + 1
    assert counting.seen() == {("(unmatched)", 200): 10, ("GET /three", 200): 5}


def test_methods(counting: Counting) -> None:
    app = counted_starlette(counting, [Route("/events/{x}", ok, methods=["GET", "OPTIONS", "BREW"])])
    methods = {"GET": 200, "HEAD": 200, "OPTIONS": 200, "POST": 405, "BREW": 200, "get": 405, "CANARY": 405, "": 405}
    for method, status in methods.items():
        assert ask(app, "/events/1", method).status == status
    assert ask(app, "/nowhere", "CANARY").status == 404
    assert counting.seen() == {
        ("GET /events/{x}", 200): 1,
        ("HEAD /events/{x}", 200): 1,
        ("OPTIONS /events/{x}", 200): 1,
        ("POST /events/{x}", 405): 1,
        ("(other) /events/{x}", 200): 1,
        ("(other) /events/{x}", 405): 3,
        ("(unmatched)", 404): 1,
    }


def test_a_redirected_slash_and_a_preflight_have_no_route(counting: Counting) -> None:
    app = counted_starlette(counting, [Route("/events/", ok)])
    app.add_middleware(CORSMiddleware, allow_origins=["https://canary.test"])
    outside = counting.around(app)
    preflight = {"origin": "https://canary.test", "access-control-request-method": "GET"}
    assert ask(app, "/events").status == 307
    # An outer middleware answers the preflight, so only a middleware outside of that one sees it.
    assert ask(app, "/events/", "OPTIONS", headers=preflight).status == 200
    assert ask(outside, "/events/", "OPTIONS", headers=preflight).status == 200
    assert counting.seen() == {("(unmatched)", 307): 1, ("(unmatched)", 200): 1}


@pytest.mark.parametrize("status", [HTTPStatus.IM_A_TEAPOT, 418])
def test_a_status_is_a_number_also_as_a_member_of_an_enumeration(counting: Counting, status: int) -> None:
    async def answer(request: Request) -> Response:
        return Response(status_code=status)

    async def refuse(request: Request) -> Response:
        raise HTTPException(status)

    app = counted_starlette(counting, [Route("/answer", answer), Route("/refuse", refuse)])
    assert [ask(app, target).status for target in ("/answer", "/refuse")] == [418, 418]
    assert counting.seen() == {("GET /answer", 418): 1, ("GET /refuse", 418): 1}


def test_a_status_that_is_none_is_dropped(counting: Counting) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for status in ("canary", None, 99, 600):
            await send({"type": "http.response.start", "status": status, "headers": []})

    for _ in range(4):
        assert len(ask(counting.around(app), "/").messages) == 4
    assert sum(counting.telemetry.dropped.values()) == 4
    assert responses(counting.folder) == {}


def test_an_exception_before_the_response_is_500_and_goes_on_as_it_is(counting: Counting) -> None:
    raised = ValueError("canary")

    async def fail(request: Request) -> Response:
        raise raised

    app = counted_starlette(counting, [Route("/fail/{x}", fail)])
    # Starlette's own outer error middleware answers, and raises the exception again.
    answer = ask(app, "/fail/canary")
    assert (answer.status, answer.error) == (500, raised)
    assert answer.error is raised
    bare = ask(counting.around(Router([Route("/fail/{x}", fail)])), "/fail/canary")
    assert bare.error is raised
    assert bare.messages == []
    assert counting.seen() == {("GET /fail/{x}", 500): 2}


def test_an_exception_that_the_application_handles_counts_as_what_it_answers(counting: Counting) -> None:
    async def fail(request: Request) -> Response:
        raise KeyError("canary")

    async def handle(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sorry", status_code=409)

    app = counted_starlette(counting, [Route("/fail", fail)], exception_handlers={KeyError: handle})
    assert ask(app, "/fail").status == 409
    assert counting.seen() == {("GET /fail", 409): 1}


def test_an_exception_after_the_start_leaves_the_status_that_was_sent(counting: Counting) -> None:
    raised = ValueError("canary")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"piece"
        raise raised

    async def fail(request: Request) -> Response:
        return StreamingResponse(pieces(), status_code=201)

    for app in (counted_starlette(counting, [Route("/", fail)]), counting.around(Starlette(routes=[Route("/", fail)]))):
        answer = ask(app, "/")
        assert (answer.status, answer.body) == (201, b"piece")
        assert answer.error is raised
    assert counting.seen() == {("GET /", 201): 2}


def test_a_stream_is_passed_on_piece_by_piece_and_counted_before_its_end(counting: Counting) -> None:
    log: list[object] = []

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            log.append(f"made {number}")
            yield b"%d" % number

    async def stream(request: Request) -> Response:
        return StreamingResponse(pieces())

    app = counted_starlette(counting, [Route("/stream", stream)])

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        log.append((message["type"], message.get("body"), responses(counting.folder)))

    asyncio.run(app(http_scope("/stream"), receive, send))
    counted = {("GET /stream", 200): 1}
    assert log == [
        ("http.response.start", None, counted),
        "made 0",
        ("http.response.body", b"0", counted),
        "made 1",
        ("http.response.body", b"1", counted),
        "made 2",
        ("http.response.body", b"2", counted),
        ("http.response.body", b"", counted),
    ]
    assert counting.seen() == counted


def test_background_tasks_run_after_the_response_and_their_failure_counts_nothing(counting: Counting) -> None:
    ran = []

    async def work() -> None:
        ran.append(counting.seen())
        raise ValueError

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(work))

    answer = ask(counted_starlette(counting, [Route("/", endpoint)]), "/")
    assert answer.status == 200
    assert isinstance(answer.error, ValueError)
    assert ran == [counting.seen()] == [{("GET /", 200): 1}]


def test_the_application_gets_the_scope_and_the_messages_of_the_server(counting: Counting) -> None:
    given: list[object] = []
    messages: list[Message] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b"},
        {"type": "http.disconnect"},
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.extend([scope, *[await receive() for _ in messages]])

    coming = iter(messages)

    async def receive() -> Message:
        return next(coming)

    async def send(message: Message) -> None:
        raise AssertionError

    scope = http_scope("/")
    before = dict(scope)
    asyncio.run(counting.around(app)(scope, receive, send))
    assert [id(each) for each in given] == [id(each) for each in [scope, *messages]]
    assert scope == before
    # The request has no response, so there is nothing to count.
    assert counting.seen() == {}


def test_websockets_and_lifespan_pass_through(counting: Counting) -> None:
    began = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        began.append("up")
        yield
        began.append("down")

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    app = counted_starlette(counting, [WebSocketRoute("/echo/{x}", echo)], lifespan=lifespan)

    async def talk(scope: Scope, incoming: list[Message]) -> list[str]:
        sent: list[str] = []

        async def receive() -> Message:
            return incoming.pop(0)

        async def send(message: Message) -> None:
            sent.append(message["type"])

        await app(scope, receive, send)
        return sent

    socket = {**http_scope("/echo/canary"), "type": "websocket", "subprotocols": []}
    del socket["method"]
    said = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "canary"}]
    assert asyncio.run(talk(socket, [*said])) == ["websocket.accept", "websocket.send", "websocket.close"]
    assert asyncio.run(talk({**socket, "path": "/canary"}, [*said])) == ["websocket.close"]
    # A websocket cannot be accepted after the client has disconnected.
    with pytest.raises(IndexError):
        asyncio.run(talk(socket, []))
    turns: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert asyncio.run(talk({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, turns)) == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert began == ["up", "down"]
    assert counting.seen() == {}


def test_a_request_that_ends_before_its_response_is_not_counted(counting: Counting) -> None:
    async def wait(request: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def leave(request: Request) -> Response:
        await request.is_disconnected()
        raise asyncio.CancelledError

    app = counted_starlette(counting, [Route("/wait", wait), Route("/leave", leave)])

    async def cancelled() -> None:
        task = asyncio.create_task(send_request(app, http_scope("/wait")))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def disconnected() -> None:
        with pytest.raises(asyncio.CancelledError):
            await send_request(app, http_scope("/leave"))

    asyncio.run(cancelled())
    asyncio.run(disconnected())
    assert counting.seen() == {}


def test_a_request_that_ends_during_its_stream_is_counted_once(counting: Counting) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"piece"
            await asyncio.sleep(0)

    async def stream(request: Request) -> Response:
        return StreamingResponse(pieces())

    app = counted_starlette(counting, [Route("/stream", stream)])

    async def cancelled() -> None:
        task = asyncio.create_task(send_request(app, http_scope("/stream")))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def gone(spec_version: str, error: type[Exception] | None) -> None:
        """The client goes after three messages; newer servers say so by failing to send."""
        sent = 0

        async def receive() -> Message:
            while sent < 3:
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal sent
            sent += 1
            if error is not None and sent > 3:
                raise error

        scope = http_scope("/stream")
        scope["asgi"]["spec_version"] = spec_version
        await app(scope, receive, send)

    asyncio.run(cancelled())
    asyncio.run(gone("2.3", None))
    with pytest.raises(ClientDisconnect):
        asyncio.run(gone("2.4", OSError))
    assert counting.seen() == {("GET /stream", 200): 3}


def test_a_server_that_cannot_send_the_start_leaves_one_count(counting: Counting) -> None:
    broken = BrokenPipeError()

    async def send(message: Message) -> None:
        raise broken

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("ok")(scope, receive, send)

    with pytest.raises(BrokenPipeError) as caught:
        asyncio.run(counting.around(app)(http_scope("/"), None, send))
    assert caught.value is broken
    assert counting.seen() == {("(unmatched)", 200): 1}


def test_a_start_that_is_sent_twice_counts_once(counting: Counting) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.start", "status": 500, "headers": []})

    assert len(ask(counting.around(app), "/").messages) == 2
    assert counting.seen() == {("(unmatched)", 200): 1}


class Passing(BaseHTTPMiddleware):
    """A middleware as many write them."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        if "stop" in request.query_params:
            return PlainTextResponse("stopped", status_code=429)
        response = await call_next(request)
        response.headers["x-passed"] = "yes"
        return response


@pytest.mark.parametrize("outermost", [True, False])
def test_other_middlewares_further_in_and_further_out(counting: Counting, outermost: bool) -> None:
    async def fail(request: Request) -> Response:
        raise ValueError

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def stream(request: Request) -> Response:
        return StreamingResponse(pieces())

    own = Middleware(CountResponses, telemetry=counting.telemetry)
    others = [Middleware(Passing), Middleware(GZipMiddleware)]
    app = Starlette(
        routes=[Route("/e/{x}", ok), Route("/fail", fail), Route("/stream", stream)],
        middleware=[own, *others] if outermost else [*others, own],
    )
    for target, status in {"/e/1": 200, "/fail": 500, "/stream": 200, "/canary": 404, "/e/1?stop": 429}.items():
        assert ask(app, target).status == status
    assert ask(app, "/stream").body == b"ab"
    expected = {("GET /e/{x}", 200): 1, ("GET /fail", 500): 1, ("GET /stream", 200): 2, ("(unmatched)", 404): 1}
    # An inner middleware does not see the answer of an outer one.
    assert counting.seen() == (expected | {("(unmatched)", 429): 1} if outermost else expected)


def test_an_excluded_request_counts_nothing_nor_does_what_answers_it(counting: Counting) -> None:
    def look(request: Request) -> Response:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        return PlainTextResponse("ok")

    async def look_async(request: Request) -> Response:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        await asyncio.to_thread(counting.telemetry.count, "directory_page_viewed", event_id=1)
        return StreamingResponse(pieces(), background=BackgroundTask(look, request))

    async def pieces() -> AsyncIterator[bytes]:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        yield b"a"

    async def fail(request: Request) -> Response:
        raise ValueError

    def exclude(scope: Mapping[str, Any]) -> bool:
        return (b"sec-gpc", b"1") in scope["headers"]

    app = Starlette(
        routes=[Route("/sync", look), Route("/async", look_async), Route("/fail", fail)],
        middleware=[
            Middleware(CountResponses, telemetry=counting.telemetry, exclude=exclude),
            Middleware(Passing),
        ],
    )
    for target in ("/sync", "/async", "/fail", "/canary"):
        ask(app, target, headers={"Sec-GPC": "1"})
    assert not counting.folder.exists()
    for target in ("/sync", "/async", "/fail", "/canary"):
        ask(app, target)
    assert counting.seen() == {
        ("GET /sync", 200): 1,
        ("GET /async", 200): 1,
        ("GET /fail", 500): 1,
        ("(unmatched)", 404): 1,
    }
    assert sum(row["count"] for row in rows(counting.folder) if row["event_name"] == "directory_page_viewed") == 5


def test_requests_at_the_same_time_are_excluded_each_for_itself(counting: Counting) -> None:
    async def look(request: Request) -> Response:
        await asyncio.sleep(0)
        counting.telemetry.count("directory_page_viewed", event_id=1)
        return PlainTextResponse("ok")

    app = counting.around(
        Starlette(routes=[Route("/", look)]), exclude=lambda scope: scope["query_string"] == b"excluded"
    )

    async def all_at_once() -> None:
        await asyncio.gather(*(send_request(app, http_scope(f"/?{['', 'excluded'][n % 2]}")) for n in range(20)))
        counting.telemetry.count("directory_searched", event_id=1)

    asyncio.run(all_at_once())
    assert counting.seen() == {("GET /", 200): 10}
    assert sorted(row["count"] for row in rows(counting.folder)) == [1, 10, 10]


def test_an_excluded_request_raises_what_the_application_raises(counting: Counting) -> None:
    raised = ValueError("canary")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise raised

    assert ask(counting.around(app, exclude=lambda scope: True), "/").error is raised
    assert counting.seen() == {}


def test_when_exclude_raises_nothing_is_counted_and_the_drop_is(
    counting: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    def exclude(scope: Mapping[str, Any]) -> bool:
        raise KeyError(f"canary {scope['path']}")

    def look(request: Request) -> Response:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        return PlainTextResponse("ok")

    app = counting.around(Starlette(routes=[Route("/", look)]), exclude=exclude)
    assert [ask(app, "/").status, ask(app, "/canary").status] == [200, 404]
    assert counting.seen(dropped={"failed": 2}) == {}
    assert rows(counting.folder) == []
    (record,) = caplog.records
    assert record.getMessage() == "not counted (failed): `exclude` raised KeyError; 1 since this process started"


def test_a_route_of_ones_own(counting: Counting, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["found"] = {"/a": "/a/{x}", "/b": None, "/c": "canary @", "/d": 5, "/e": ["/e"]}[scope["path"]]
        await PlainTextResponse("ok")(scope, receive, send)

    counted = counting.around(app, route=lambda scope: scope["found"])
    for target in ("/a", "/b", "/c", "/d", "/e"):
        assert ask(counted, target).status == 200
    assert counting.seen(dropped={"refused": 3}) == {("GET /a/{x}", 200): 1, ("(unmatched)", 200): 1}

    def fail(scope: Mapping[str, Any]) -> str | None:
        raise LookupError("canary")

    assert ask(counting.around(app, route=fail), "/a").status == 200
    assert counting.telemetry.dropped == {"refused": 3, "failed": 1}
    assert "`route` raised LookupError" in caplog.text
    assert "canary" not in caplog.text


def test_an_application_without_routes_is_unmatched(counting: Counting) -> None:
    def app_of(found: dict[str, Any]) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope.update(found)
            await PlainTextResponse("ok")(scope, receive, send)

        return app

    for found in ({}, {"endpoint": ok}, {"router": Router()}, {"router": Router(), "endpoint": ok}):
        assert ask(counting.around(app_of(found)), "/canary").status == 200
    assert counting.seen() == {("(unmatched)", 200): 4}


# --- a client that goes before its response starts


async def hung_up(app: Any, scope: Scope, *received: Message) -> BaseException | None:
    """One request whose client goes after some messages. Returns what the application raises."""
    messages = iter([*received, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        """Like uvicorn, drop what is sent to nobody."""

    try:
        await app(scope, receive, send)
    except Exception as error:
        return error
    return None


PART: Message = {"type": "http.request", "body": b'{"a": ', "more_body": True}


@pytest.mark.parametrize("around", [True, False])
def test_a_client_that_hangs_up_during_the_upload_is_not_counted(counting: Counting, around: bool) -> None:
    async def body(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def handled(request: Request) -> Response:
        try:
            await request.body()
        except ClientDisconnect:
            return PlainTextResponse("gone", status_code=400)
        raise AssertionError

    app = Starlette(routes=[Route(f"/{at.__name__}", at, methods=["POST"]) for at in (body, handled)])
    app.add_middleware(Passing)
    api = FastAPI()

    @api.post("/json")
    async def json_body(item: dict[str, str]) -> str:
        return "ok"

    @api.post("/raw")
    async def raw_body(request: Request) -> str:
        return str(await request.body())

    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise RuntimeError

    app.mount("/api", api)
    if around:
        counted = counting.around(app)
    else:
        app.add_middleware(CountResponses, telemetry=counting.telemetry)
        counted = app
    for target in ("/body", "/handled", "/api/json", "/api/raw"):
        asyncio.run(hung_up(counted, http_scope(target, "POST", {"content-type": "application/json"}), PART))
    assert isinstance(asyncio.run(hung_up(counting.around(plain), http_scope("/"), PART)), RuntimeError)
    assert counting.seen() == {}
    for target, status in {"/body": 200, "/api/json": 422, "/api/raw": 200}.items():
        assert ask(counted, target, "POST").status == status
    assert counting.seen() == {("POST /body", 200): 1, ("POST /api/json", 422): 1, ("POST /api/raw", 200): 1}


def test_a_client_that_hangs_up_after_the_start_is_counted_once(counting: Counting) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await receive()
        raise RuntimeError

    assert isinstance(asyncio.run(hung_up(counting.around(app), http_scope("/"))), RuntimeError)
    assert counting.seen() == {("(unmatched)", 201): 1}


UPLOADS = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from analytics_assets.telemetry import Telemetry
from analytics_assets.telemetry.asgi import CountResponses

async def upload(request):
    print("started", flush=True)
    try:
        return PlainTextResponse(str(len(await request.body())))
    finally:
        print("ended", flush=True)

app = Starlette(routes=[Route("/upload", upload, methods=["POST"])])
app.add_middleware(CountResponses, telemetry=Telemetry(sys.argv[1]))
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))

async def main():
    import asyncio
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving

import asyncio
asyncio.run(main())
"""


def test_a_client_that_hangs_up_and_what_the_server_answers_itself_are_not_counted_on_uvicorn(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", UPLOADS, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(b"no request at all\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 400")
            head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345"
            for rest in (None, b"67890"):
                with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                    client.sendall(head)
                    assert process.stdout.readline() == "started\n"
                    if rest:
                        client.sendall(rest)
                        assert client.recv(100).startswith(b"HTTP/1.1 200")
                assert process.stdout.readline() == "ended\n"
        finally:
            process.terminate()
    assert responses(tmp_path) == {("POST /upload", 200): 1}


# --- handlers of everything


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
@pytest.mark.parametrize("handles", [Exception, 500])
def test_a_handler_of_everything_counts_as_what_it_answers_where_the_application_is_wrapped(
    counting: Counting, kind: type[Starlette], handles: type[Exception] | int
) -> None:
    async def fail(request: Request) -> Response:
        raise ValueError("canary")

    async def unavailable(request: Request, error: Exception) -> Response:
        return PlainTextResponse("later", status_code=503)

    plain, added = (kind(exception_handlers={handles: unavailable}) for _ in range(2))
    for app in (plain, added):
        app.router.routes.append(Route("/fail/{x}", fail))
    answer = ask(counting.around(plain), "/fail/canary")
    assert (answer.status, type(answer.error)) == (503, ValueError)
    assert counting.seen() == {("GET /fail/{x}", 503): 1}
    # An added middleware is inside of that handler; with both, the outermost one counts.
    added.add_middleware(CountResponses, telemetry=counting.telemetry)
    assert ask(counting.around(added), "/fail/canary").status == 503
    assert counting.seen() == {("GET /fail/{x}", 503): 2}
    assert ask(added, "/fail/canary").status == 503
    assert counting.seen() == {("GET /fail/{x}", 503): 2, ("GET /fail/{x}", 500): 1}


# --- root paths


@pytest.mark.parametrize("root", ["", "/", "/api", "/api/", "/api/v1", "/apikeys", "/a p"])
@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_an_endpoint_of_two_routes_below_any_root_path(counting: Counting, kind: type[Starlette], root: str) -> None:
    inner = Starlette(routes=[Route("/{x}", ok), Route("/{x}/{y}/", ok)])
    routes = [
        Route("/apikeys/{x}", ok),
        Route("/apikeys/{x}/{y}/", ok),
        Mount("/api", inner),
        Mount("/apikeys2", inner),
    ]
    app = counted_starlette(counting, []) if kind is Starlette else FastAPI()
    if kind is FastAPI:
        app.add_middleware(CountResponses, telemetry=counting.telemetry)
    app.router.routes.extend(routes)
    expected: Counter[tuple[str, int]] = Counter()
    # A server passes the path with the root path; some leave it out, and then Starlette does not find what is mounted.
    for prefix in {"", root.removesuffix("/")}:
        for target, template in {
            "/apikeys/1": "/apikeys/{x}",
            "/apikeys/1/2/": "/apikeys/{x}/{y}/",
            "/api/1": "/api/{x}",
            "/api/1/2/": "/api/{x}/{y}/",
            "/apikeys2/1": "/apikeys2/{x}",
            "/apikeys2/1/2/": "/apikeys2/{x}/{y}/",
        }.items():
            status = ask(app, prefix + target, root_path=root).status
            expected[f"GET {template}" if status == 200 else "(unmatched)", status] += 1
            if prefix == root:
                assert status == 200, target
    assert counting.seen() == dict(expected)
    assert expected["GET /apikeys/{x}", 200] >= 1


# --- middlewares in middlewares


def nested_applications(counting: Counting, **inner_arguments: Any) -> dict[str, Any]:
    """Applications with a middleware of ours -> mounted below their name in an application that has one, too."""

    async def fail(request: Request) -> Response:
        raise ValueError

    def own(app: Any) -> Any:
        app.add_middleware(CountResponses, telemetry=counting.telemetry, **inner_arguments)
        return app

    def flask_app() -> Flask:
        app = Flask("inner")
        app.add_url_rule("/e/<x>", view_func=lambda x: "ok", endpoint="e")
        app.wsgi_app = WsgiCountResponses(app.wsgi_app, counting.telemetry, **inner_arguments)  # type: ignore[method-assign]
        return app

    api = FastAPI()
    api.get("/e/{x}")(new_endpoint())
    router = Router([Route("/e/{x}", ok), Route("/fail", fail)])
    return {
        "starlette": own(Starlette(routes=[Route("/e/{x}", ok), Route("/fail", fail)])),
        "fastapi": own(api),
        "router": counting.around(router, **inner_arguments),
        "deep": own(Starlette(routes=[Mount("/d", own(Starlette(routes=[Route("/e/{x}", ok)])))])),
        "copying": copies_the_scope(own(Starlette(routes=[Route("/e/{x}", ok)]))),
        "flask": WSGIMiddleware(flask_app()),
    }


def copies_the_scope(app: Any) -> ASGIApp:
    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await app(dict(scope), receive, send)

    return middleware


def test_where_middlewares_are_nested_the_outermost_one_counts(counting: Counting) -> None:
    mounted = nested_applications(counting)
    app = counted_starlette(counting, [Mount(f"/{name}", inner) for name, inner in mounted.items()])
    app.add_middleware(CountResponses, telemetry=counting.telemetry)  # once more by mistake
    for name in mounted:
        assert ask(app, f"/{name}/d/e/1" if name == "deep" else f"/{name}/e/1").status == 200, name
    assert ask(app, "/starlette/fail").status == 500
    assert ask(app, "/router/fail").status == 500
    assert ask(app, "/starlette/canary").status == 404
    assert counting.seen() == {
        ("GET /starlette/e/{x}", 200): 1,
        ("GET /fastapi/e/{x}", 200): 1,
        ("GET /router/e/{x}", 200): 1,
        ("GET /deep/d/e/{x}", 200): 1,
        ("GET /copying/{path}", 200): 1,
        ("GET /flask/{path}", 200): 1,
        ("GET /starlette/fail", 500): 1,
        ("GET /router/fail", 500): 1,
        ("(unmatched)", 404): 1,
    }


def test_what_an_inner_middleware_excludes_is_not_counted_by_the_outer_one(counting: Counting) -> None:
    mounted = nested_applications(counting, exclude=lambda _: True)
    app = counted_starlette(counting, [Mount(f"/{name}", inner) for name, inner in mounted.items()])
    for name in mounted:
        assert ask(app, f"/{name}/d/e/1" if name == "deep" else f"/{name}/e/1").status == 200, name
    assert ask(app, "/starlette/fail").status == 500
    assert ask(app, "/router/fail").status == 500
    assert counting.seen() == {}
    assert ask(app, "/canary").status == 404
    assert counting.seen() == {("(unmatched)", 404): 1}


def test_applications_that_answer_one_after_the_other_and_inside_each_other_count_each(counting: Counting) -> None:
    inner = counting.around(Starlette(routes=[Route("/inner/{x}", ok)]))

    async def ask_the_other(request: Request) -> Response:
        answers = [await send_request(inner, http_scope("/inner/1")) for _ in range(2)]
        return PlainTextResponse(str([answer.status for answer in answers]))

    app = counted_starlette(counting, [Route("/outer", ask_the_other)])
    assert ask(app, "/outer").body == b"[200, 200]"
    scope = http_scope("/inner/1")
    for _ in range(2):  # one scope, handed on after the first application is done
        asyncio.run(send_request(inner, scope))
    assert counting.seen() == {("GET /outer", 200): 1, ("GET /inner/{x}", 200): 4}


def test_an_application_that_empties_its_scope_is_counted(counting: Counting) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        fails = scope["path"] == "/fail"
        scope.clear()
        if fails:
            raise ValueError
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert ask(counting.around(app), "/").status == 200
    assert isinstance(ask(counting.around(app), "/fail").error, ValueError)
    assert counting.seen() == {("(unmatched)", 200): 1, ("(unmatched)", 500): 1}
