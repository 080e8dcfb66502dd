"""The Django middleware in a Django configured here, through its synchronous and its asynchronous handlers."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse, UnreadablePostError
from django.test import AsyncClient, Client
from django.urls import include, path, re_path
from starlette.applications import Starlette
from starlette.routing import Mount

from analytics_assets.telemetry.asgi import CountResponses
from analytics_assets.telemetry.django import count_responses
from analytics_assets.telemetry.wsgi import CountResponses as WsgiCountResponses
from analytics_assets_tests.support.django_site import COMMON, LOCALE, i18n_patterns, site_settings
from analytics_assets_tests.support.http import environ_of, http_scope, send_request
from analytics_assets_tests.support.telemetry import Counting, rows

Ask = Callable[..., HttpResponse]


def ok(request: HttpRequest, *_: object, **__: object) -> HttpResponse:
    return HttpResponse("ok")


async def ok_async(request: HttpRequest, *_: object, **__: object) -> HttpResponse:
    return HttpResponse("ok")


@pytest.fixture(params=["sync", "async"])
def chain(request: pytest.FixtureRequest) -> str:
    """Which of Django's two handlers answers."""
    return str(request.param)


@pytest.fixture
def site(counting: Counting, chain: str) -> Iterator[Callable[..., Ask]]:
    """Set up a site and return what asks it."""
    with ExitStack() as stack:

        def make(*patterns: Any, **more: Any) -> Ask:
            stack.enter_context(site_settings(counting.telemetry, *patterns, **more))
            client = (Client if chain == "sync" else AsyncClient)(raise_request_exception=False)

            def ask(target: str, method: str = "GET", **arguments: Any) -> HttpResponse:
                answer = client.generic(method, target, **arguments)
                return answer if chain == "sync" else asyncio.run(answer)

            return ask

        yield make


def test_the_endpoint_is_the_route_with_those_of_its_includes(counting: Counting, site: Callable[..., Ask]) -> None:
    people = [path("", ok), re_path(r"^by-(?P<year>\d{4})/$", ok), path("<slug:name>/", ok_async)]
    ask = site(
        path("", ok),
        path("events/<int:event_id>/", ok),
        path("plain", ok_async),
        path("f/<path:name>", ok),
        path("u/<uuid:key>.<str:ext>", ok),
        path("<slug:event>/people/", include((people, "people"), namespace="people")),
        path("nested/", include([path("<int:a>/", include([path("b/", include([path("<c>", ok)]))]))])),
        re_path(r"^old/(?P<slug>[\w-]+)/", include([re_path(r"^p(?P<page>\d+)\.html$", ok), path("<x>/", ok)])),
        re_path(r"^unnamed/([^/]+)/(\d+)/$", ok),
        re_path(r"^either/(?:new|old)/$", ok),
        re_path(r"^maybe/(?:page-(?P<page>\d+)/)?$", ok),
        re_path(r"^deep/(?P<outer>(?P<inner>[a-z]+)-[(x)]{1,2})/$", ok),
        re_path(r"^(?i:CASE)/(?P<x>.+)$", ok),
        path("2024/<int:month>/", ok),
        path("who/@<who>/", ok),
    )
    expected = {
        "/": "/",
        "/events/42/?q=canary": "/events/{event_id}/",
        "/plain": "/plain",
        "/f/canary/b": "/f/{name}",
        "/u/0b5c2c0e-6f5e-4d39-9a43-0d7a1c7c9f11.canary": "/u/{key}.{ext}",
        "/canary/people/": "/{event}/people/",
        "/canary/people/ada-lovelace/": "/{event}/people/{name}/",
        "/canary/people/by-2024/": "/{event}/people/by-{year}/",
        "/nested/5/b/canary": "/nested/{a}/b/{c}",
        "/old/canary/p5.html": "/old/{slug}/p{page}.html",
        "/old/canary/5/": "/old/{slug}/{x}/",
        "/unnamed/canary/5/": "/unnamed/{var}/{var}/",
        "/either/old/": "/either/{var}/",
        "/maybe/page-3/": "/maybe/page-{page}/",
        "/deep/canary-x/": "/deep/{outer}/",
        "/case/canary": "/CASE/{x}",
        "/2024/7/": "/~2024/{month}/",
        "/who/@canary/": "/who/~{who}/",
    }
    for target in (*expected, "/maybe/"):
        assert ask(target).status_code == 200, target
    assert counting.seen() == {
        **{(f"GET {template}", 200): 1 for template in expected.values()},
        ("GET /maybe/page-{page}/", 200): 2,
    }


@pytest.mark.parametrize("prefix_default_language", [True, False])
@pytest.mark.parametrize("outermost", [True, False])
def test_the_language_prefix_is_a_parameter(
    counting: Counting, site: Callable[..., Ask], prefix_default_language: bool, outermost: bool
) -> None:
    ask = site(
        path("health/", ok),
        *i18n_patterns(
            path("events/<slug:event>/", ok),
            path("", ok),
            re_path(r"^(?P<x>\d+)/$", ok),
            prefix_default_language=prefix_default_language,
        ),
        middleware=(None, LOCALE, COMMON) if outermost else (LOCALE, COMMON, None),
    )
    for target in ("/de/events/canary/", "/pt-br/events/canary/", "/de/", "/de/5/", "/health/"):
        assert ask(target).status_code == 200, target
    assert ask("/xx/events/canary/").status_code == 404
    expected = {
        ("GET /{language}/events/{event}/", 200): 2,
        ("GET /{language}/", 200): 1,
        ("GET /{language}/{x}/", 200): 1,
        ("GET /health/", 200): 1,
        ("(unmatched)", 404): 1,
    }
    if prefix_default_language:
        assert ask("/en/events/canary/").status_code == 200
        assert ask("/events/canary/").status_code == 302
        expected["GET /{language}/events/{event}/", 200] += 1
        expected["(unmatched)", 302] = 1
    else:
        assert ask("/events/canary/").status_code == 200
        expected["GET /events/{event}/", 200] = 1
    if not outermost:
        # The redirect to the language is still a 404 here; an outer middleware replaces it.
        expected = {key if key != ("(unmatched)", 302) else ("(unmatched)", 404): n for key, n in expected.items()}
        expected["(unmatched)", 404] = 2 if prefix_default_language else 1
    assert counting.seen() == expected


def test_answers_of_every_kind(counting: Counting, site: Callable[..., Ask]) -> None:
    def refuse(error: Exception) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, **_: object) -> HttpResponse:
            raise error

        return view

    def teapot(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        response.status_code = HTTPStatus.IM_A_TEAPOT
        return response

    ask = site(
        path("gone/<x>/", refuse(Http404("canary"))),
        path("denied/<x>/", refuse(PermissionDenied("canary"))),
        path("bad/<x>/", refuse(SuspiciousOperation("canary"))),
        path("fail/<x>/", refuse(ValueError("canary"))),
        path("teapot/", teapot),
        path("slash/<x>/", ok),
        middleware=(None, COMMON),
    )
    for target, method, status in [
        ("/gone/canary/", "GET", 404),
        ("/denied/canary/", "GET", 403),
        ("/bad/canary/", "GET", 400),
        ("/fail/canary/", "POST", 500),
        ("/teapot/", "GET", 418),
        ("/slash/canary", "GET", 301),
        ("/slash/canary/", "HEAD", 200),
        ("/slash/canary/", "OPTIONS", 200),
        ("/slash/canary/", "CANARY", 200),
        ("/slash/canary/", "get", 200),
        ("/canary/", "GET", 404),
        ("/canary/", "CANARY", 404),
    ]:
        assert ask(target, method).status_code == status, (method, target)
    assert counting.seen() == {
        ("GET /gone/{x}/", 404): 1,
        ("GET /denied/{x}/", 403): 1,
        ("GET /bad/{x}/", 400): 1,
        ("POST /fail/{x}/", 500): 1,
        ("GET /teapot/", 418): 1,
        ("(unmatched)", 301): 1,
        ("HEAD /slash/{x}/", 200): 1,
        ("OPTIONS /slash/{x}/", 200): 1,
        ("(other) /slash/{x}/", 200): 1,
        ("GET /slash/{x}/", 200): 1,  # Django makes methods upper-case
        ("(unmatched)", 404): 2,
    }


def test_an_exception_that_django_passes_on_is_500_and_the_same(counting: Counting, site: Callable[..., Ask]) -> None:
    raised = ValueError("canary")

    def fail(request: HttpRequest, x: str) -> HttpResponse:
        raise raised

    ask = site(path("fail/<x>/", fail), DEBUG_PROPAGATE_EXCEPTIONS=True)
    with pytest.raises(ValueError, match="canary") as caught:
        ask("/fail/canary/")
    assert caught.value is raised
    assert counting.seen() == {("GET /fail/{x}/", 500): 1}


def test_an_exception_of_a_middleware_counts_as_what_it_becomes(counting: Counting, site: Callable[..., Ask]) -> None:
    ask = site(path("x/", ok), middleware=(None, f"{__name__}.failing_before", COMMON, f"{__name__}.failing_after"))
    assert ask("/x/?before").status_code == 500
    assert ask("/x/?after").status_code == 500
    assert counting.seen() == {("(unmatched)", 500): 1, ("GET /x/", 500): 1}


def failing_before(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        if "before" in request.GET:
            raise ValueError("canary")
        return get_response(request)

    return middleware


def failing_after(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if "after" in request.GET:
            raise ValueError("canary")
        return response

    return middleware


def test_a_stream_is_handed_over_as_it_is(counting: Counting, site: Callable[..., Ask], chain: str) -> None:
    log: list[object] = []

    def pieces() -> Iterator[bytes]:
        log.append(counting.seen())
        yield b"a"
        yield b"b"

    async def pieces_async() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    def stream(request: HttpRequest) -> HttpResponse:
        return StreamingHttpResponse(pieces() if chain == "sync" else pieces_async(), status=206)

    answer = site(path("stream/", stream))("/stream/")
    assert log == []

    async def collected() -> bytes:
        return b"".join([piece async for piece in answer])

    assert (b"".join(answer) if chain == "sync" else asyncio.run(collected())) == b"ab"
    assert log == [{("GET /stream/", 206): 1}]
    assert counting.seen() == {("GET /stream/", 206): 1}


def signed_in(get_response: Any) -> Any:
    """Replaces Django's authentication: sets `request.user`."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request.user = SimpleNamespace(is_staff="staff" in request.GET)
        return get_response(request)

    return middleware


def test_an_excluded_request_counts_nothing_nor_do_its_views(counting: Counting, site: Callable[..., Ask]) -> None:
    def look(request: HttpRequest) -> HttpResponse:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        return HttpResponse("ok")

    async def look_async(request: HttpRequest) -> HttpResponse:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        await asyncio.to_thread(counting.telemetry.count, "directory_page_viewed", event_id=1)
        return HttpResponse("ok")

    def fail(request: HttpRequest) -> HttpResponse:
        raise ValueError

    def exclude(request: HttpRequest) -> bool:
        return bool(request.user.is_staff or request.headers.get("Sec-GPC") == "1")

    ask = site(
        path("sync/", look),
        path("async/", look_async),
        path("fail/", fail),
        middleware=(f"{__name__}.signed_in", None, COMMON),
        exclude=exclude,
    )
    targets = ("/sync/", "/async/", "/fail/", "/canary/")
    for target in targets:
        ask(f"{target}?staff")
        ask(target, headers={"Sec-GPC": "1"})
    assert not counting.folder.exists()
    for target in targets:
        ask(target)
    assert counting.seen() == {
        ("GET /sync/", 200): 1,
        ("GET /async/", 200): 1,
        ("GET /fail/", 500): 1,
        ("(unmatched)", 404): 1,
    }
    assert sum(row["count"] for row in rows(counting.folder) if row["event_name"] == "directory_page_viewed") == 3


def test_when_exclude_raises_nothing_is_counted_and_the_drop_is(
    counting: Counting, site: Callable[..., Ask], caplog: pytest.LogCaptureFixture
) -> None:
    def look(request: HttpRequest) -> HttpResponse:
        counting.telemetry.count("directory_page_viewed", event_id=1)
        return HttpResponse("ok")

    # There is no `request.user`, because no middleware has set it.
    ask = site(path("look/", look), exclude=lambda request: request.user.is_staff)
    assert [ask("/look/").status_code, ask("/canary/").status_code] == [200, 404]
    assert counting.seen(dropped={"failed": 2}) == {}
    assert rows(counting.folder) == []
    (said,) = (record.getMessage() for record in caplog.records if record.name.startswith("analytics_assets"))
    assert said == "not counted (failed): `exclude` raised AttributeError; 1 since this process started"


def test_an_exception_in_an_excluded_request_goes_on(counting: Counting, site: Callable[..., Ask]) -> None:
    raised = ValueError("canary")

    def fail(request: HttpRequest) -> HttpResponse:
        raise raised

    ask = site(path("fail/", fail), exclude=lambda request: True, DEBUG_PROPAGATE_EXCEPTIONS=True)
    with pytest.raises(ValueError, match="canary") as caught:
        ask("/fail/")
    assert caught.value is raised
    assert counting.seen() == {}


def test_a_telemetry_that_cannot_count_leaves_the_response_alone(counting: Counting, site: Callable[..., Ask]) -> None:
    counting.folder.write_text("not a folder")

    def odd(request: HttpRequest) -> HttpResponse:
        response = HttpResponse("ok")
        response.status_code = 999
        return response

    ask = site(path("look/", ok), path("odd/", odd), path("long/<" + "x" * 200 + ">/", ok))
    assert [ask(target).content for target in ("/look/", "/odd/", "/long/1/")] == [b"ok"] * 3
    assert counting.telemetry.dropped == {"io": 2, "refused": 1}


def test_a_template_that_the_contract_does_not_allow_is_unmatched(counting: Counting, site: Callable[..., Ask]) -> None:
    assert site(path("long/<" + "x" * 200 + ">/", ok))("/long/1/").status_code == 200
    assert counting.seen() == {("(unmatched)", 200): 1}


def test_the_chain_stays_asynchronous(counting: Counting) -> None:
    async def answer(request: Any) -> HttpResponse:
        return HttpResponse("ok")

    # Without the two marks, Django would run the middleware in a thread and the inner chain in another event loop.
    middleware: Any = count_responses(counting.telemetry)
    assert middleware.sync_capable
    assert middleware.async_capable
    assert asyncio.iscoroutinefunction(middleware(answer))
    assert not asyncio.iscoroutinefunction(middleware(ok))


def test_under_both_interfaces_of_servers(counting: Counting) -> None:
    with site_settings(counting.telemetry, path("sync/<x>/", ok), path("async/<x>/", ok_async)):
        wsgi, asgi = WSGIHandler(), ASGIHandler()
        for target in ("/sync/canary/", "/async/canary/"):
            assert b"".join(wsgi(environ_of(target), lambda *_: None)) == b"ok"
            assert asyncio.run(send_request(asgi, http_scope(target))).status == 200
    assert counting.seen() == {("GET /sync/{x}/", 200): 2, ("GET /async/{x}/", 200): 2}


def test_a_request_that_is_cancelled_is_not_counted(counting: Counting) -> None:
    async def wait(request: Any) -> HttpResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def cancelled() -> None:
        answer = count_responses(counting.telemetry)(wait)
        task = asyncio.create_task(answer(HttpRequest()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert counting.seen() == {}


def test_a_handler_of_everything_counts_as_what_it_answers(counting: Counting, site: Callable[..., Ask]) -> None:
    def fail(request: HttpRequest, x: str) -> HttpResponse:
        raise ValueError("canary")

    def unavailable(request: HttpRequest) -> HttpResponse:
        return HttpResponse("later", status=503)

    ask = site(path("fail/<x>/", fail))
    settings.ROOT_URLCONF.handler500 = unavailable
    assert ask("/fail/canary/").status_code == 503
    assert counting.seen() == {("GET /fail/{x}/", 503): 1}


class GoneInput(io.BytesIO):
    """The body of a request whose client has gone, as uWSGI and mod_wsgi report it."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError("canary")

    readline = read


@pytest.mark.parametrize("propagated", [False, True])
def test_a_client_that_hangs_up_during_the_upload_is_not_counted(counting: Counting, propagated: bool) -> None:
    def upload(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(len(request.body)))

    more = {"CONTENT_LENGTH": "10", "wsgi.input": GoneInput()}
    with site_settings(counting.telemetry, path("upload/", upload), DEBUG_PROPAGATE_EXCEPTIONS=propagated):
        ended = ExitStack()
        if propagated:
            ended.enter_context(pytest.raises(UnreadablePostError))
        with ended:
            WSGIHandler()(environ_of("/upload/", "POST", more), lambda *_: None)
        assert counting.seen() == {}
        WSGIHandler()(environ_of("/upload/", "POST"), lambda *_: None)
    assert counting.seen() == {("POST /upload/", 200): 1}


def test_a_client_that_hangs_up_on_the_asynchronous_handler_is_not_counted(counting: Counting) -> None:
    with site_settings(counting.telemetry, path("upload/", ok_async)):
        messages = iter([{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            raise AssertionError

        asyncio.run(ASGIHandler()(http_scope("/upload/", "POST"), receive, send))
    assert counting.seen() == {}


def test_where_middlewares_are_nested_the_outermost_one_counts(counting: Counting, site: Callable[..., Ask]) -> None:
    def fail(request: HttpRequest) -> HttpResponse:
        raise ValueError

    site(path("x/<y>/", ok), path("fail/", fail), middleware=(None, COMMON, None))
    # In Django alone, in another WSGI middleware, and mounted in an ASGI application.
    wsgi = WSGIHandler()
    around = WsgiCountResponses(wsgi, counting.telemetry, route=lambda environ: "/around")
    asgi = Starlette(routes=[Mount("/django", ASGIHandler())])
    asgi.add_middleware(CountResponses, telemetry=counting.telemetry)
    for target in ("/x/1/", "/fail/"):
        wsgi(environ_of(target), lambda *_: None)
        around(environ_of(target), lambda *_: None)
        asyncio.run(send_request(asgi, http_scope(f"/django{target}")))
    assert counting.seen() == {
        ("GET /x/{y}/", 200): 1,
        ("GET /fail/", 500): 1,
        ("GET /around", 200): 1,
        ("GET /around", 500): 1,
        ("GET /django/{path}", 200): 1,
        ("GET /django/{path}", 500): 1,
    }


def test_what_an_inner_middleware_excludes_is_not_counted_by_the_outer_one(
    counting: Counting, site: Callable[..., Ask]
) -> None:
    site(path("x/<y>/", ok), exclude=lambda request: True)
    around = WsgiCountResponses(WSGIHandler(), counting.telemetry, route=lambda environ: "/around")
    around(environ_of("/x/1/"), lambda *_: None)
    assert counting.seen() == {}
