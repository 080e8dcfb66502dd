"""Count the responses of a WSGI application (Flask) by route template and status code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import chain, islice
from typing import Any

from analytics_assets.telemetry.counters import Telemetry, do_not_count
from analytics_assets.telemetry.responses import COUNTING, SERVER_ERROR, ResponseCounter, is_client_gone
from analytics_assets.telemetry.routes import flask_route

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


class CountResponses:
    """WSGI middleware: `app.wsgi_app = CountResponses(app.wsgi_app, telemetry)`.

    A response is counted when the application returns its body, which is passed on unchanged. If the application starts
    its response later, the response is counted with the first piece of the body. An exception before that counts as 500
    and is raised again. Where middlewares are nested, the outermost one counts.

    Args:
        app: the application.
        telemetry: counts the responses.
        route: returns the route template of an environ, None when it has no route; called when the response starts.
        exclude: returns whether a request is left out: neither its response is counted nor what the application counts
            while it answers (before its body is streamed). When `exclude` raises, the request is left out.
    """

    def __init__(
        self,
        app: WSGIApp,
        telemetry: Telemetry,
        *,
        route: Callable[[Environ], str | None] = flask_route,
        exclude: Callable[[Environ], bool] | None = None,
    ) -> None:
        self.app = app
        self._responses = ResponseCounter(telemetry, route, exclude)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        outer = environ if COUNTING in environ else _find_scope(start_response)
        if self._responses.may_exclude and self._responses.is_excluded(environ):
            if outer is not None:
                outer[COUNTING] = False
            with do_not_count():
                return self.app(environ, start_response)
        if outer is not None:
            return self.app(environ, start_response)

        responses, method, status_code, route = self._responses, environ["REQUEST_METHOD"], 0, None

        def record_start(status: str, *arguments: Any) -> Any:
            nonlocal status_code, route
            status_code = int(status[:3]) if status[:3].isdecimal() else SERVER_ERROR
            # Find the route now: Flask removes its request from the environ before it returns the body.
            route = responses.find_route(environ)
            return start_response(status, *arguments)

        def count(failed: bool) -> None:
            if not environ.pop(COUNTING, True):
                return
            found = route if status_code else responses.find_route(environ)
            responses.count_route(found, method, SERVER_ERROR if failed else status_code or SERVER_ERROR)

        environ[COUNTING] = True
        try:
            body = self.app(environ, record_start)
        except Exception as error:
            if not is_client_gone(error):
                count(True)
            raise
        if not status_code:
            return _LazyBody(body, count)
        count(False)
        return body


def _find_scope(start_response: StartResponse) -> MutableMapping[str, Any] | None:
    """The scope that an outer ASGI middleware counts, where Starlette or asgiref call a WSGI application in it."""
    scope = getattr(getattr(start_response, "__self__", None), "scope", None)
    return scope if isinstance(scope, MutableMapping) and COUNTING in scope else None


class _LazyBody:
    """The body of an application that calls `start_response` only when the first piece is read."""

    def __init__(self, body: Iterable[bytes], count: Callable[[bool], None]) -> None:
        self._body = body
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        try:
            pieces = iter(self._body)
            first = list(islice(pieces, 1))
        except Exception as error:
            if not is_client_gone(error):
                self._count(True)
            raise
        self._count(False)
        # `chain` has no `close`: only the server closes the body, and only once.
        yield from chain(first, pieces)

    def close(self) -> None:
        """Close the application's body, as PEP 3333 requires."""
        if hasattr(self._body, "close"):
            self._body.close()
