"""Responses of a WSGI application (Flask), counted by route template and status code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from analytics_assets.telemetry.counters import Telemetry, do_not_count
from analytics_assets.telemetry.responses import SERVER_ERROR, Responses
from analytics_assets.telemetry.routes import flask_route

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


class CountResponses:
    """WSGI middleware: `app.wsgi_app = CountResponses(app.wsgi_app, telemetry)`.

    A response is counted when the application hands over its body, which is passed on as it is, or, where the
    application starts its response later, with the first piece. An exception before that counts as 500 and goes on.

    Args:
        app: the application.
        telemetry: what counts.
        route: the route template of an environ, None when no route was found; read when the response starts.
        exclude: whether nothing of a request is to be counted, neither its response nor what the application counts
            while it answers (before its body is streamed). When it raises, the request is not counted.
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
        self._responses = Responses(telemetry, route, exclude)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if self._responses.excluded(environ):
            with do_not_count():
                return self.app(environ, start_response)

        responses, method, status_code, found = self._responses, environ["REQUEST_METHOD"], 0, None

        def recording_start_response(status: str, *arguments: Any) -> Any:
            nonlocal status_code, found
            status_code = int(status[:3]) if status[:3].isdecimal() else SERVER_ERROR
            # Now, because Flask takes its request out of the environ before it hands over the body.
            found = responses.route(environ)
            return start_response(status, *arguments)

        def count(failed: bool) -> None:
            route = found if status_code else responses.route(environ)
            responses.count_of(route, method, SERVER_ERROR if failed else status_code or SERVER_ERROR)

        try:
            body = self.app(environ, recording_start_response)
        except Exception:
            count(True)
            raise
        if not status_code:
            return _LateBody(body, count)
        count(False)
        return body


class _LateBody:
    """A body whose application tells the status only when the first piece is asked for."""

    def __init__(self, body: Iterable[bytes], count: Callable[[bool], None]) -> None:
        self._body = body
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        counted = False
        try:
            for piece in self._body:
                if not counted:
                    counted = True
                    self._count(False)
                yield piece
        except Exception:
            if not counted:
                self._count(True)
            raise
        if not counted:
            self._count(False)

    def close(self) -> None:
        """Close the application's body, as PEP 3333 has it."""
        if hasattr(self._body, "close"):
            self._body.close()
