"""Count the responses of an ASGI application (Starlette, FastAPI) by route template and status code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from analytics_assets.telemetry.counters import Telemetry, do_not_count
from analytics_assets.telemetry.responses import SERVER_ERROR, ResponseCounter
from analytics_assets.telemetry.routes import StarletteRoutes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class CountResponses:
    """ASGI middleware: `app.add_middleware(CountResponses, telemetry=telemetry)`.

    A response is counted when it starts, before the server sends it. An exception before that counts as 500 and is
    raised again. A request that is cancelled before that has no response and is not counted. Websockets and lifespan
    pass through. Bodies are neither read nor buffered.

    Args:
        app: the application.
        telemetry: counts the responses.
        route: returns the route template of a scope, None when it has no route; called when the response starts.
        exclude: returns whether a request is left out: neither its response is counted nor what the application counts
            while it answers. When `exclude` raises, the request is left out.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        *,
        route: Callable[[Scope], str | None] | None = None,
        exclude: Callable[[Scope], bool] | None = None,
    ) -> None:
        self.app = app
        self._responses = ResponseCounter(telemetry, route or StarletteRoutes().template, exclude)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._responses.is_excluded(scope):
            with do_not_count():
                await self.app(scope, receive, send)
            return

        method, started = scope["method"], False

        # Not a coroutine: returning the one of the server's `send` saves one coroutine per message.
        def count_and_send(message: MutableMapping[str, Any]) -> Awaitable[None]:
            nonlocal started
            if not started and message["type"] == "http.response.start":
                started = True
                self._responses.count(scope, method, message["status"])
            return send(message)

        try:
            await self.app(scope, receive, count_and_send)
        except Exception:
            if not started:
                self._responses.count(scope, method, SERVER_ERROR)
            raise
