"""Responses of an ASGI application (Starlette, FastAPI), counted by route template and status code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from analytics_assets.telemetry.counters import Telemetry, do_not_count
from analytics_assets.telemetry.responses import SERVER_ERROR, Responses
from analytics_assets.telemetry.routes import StarletteRoutes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class CountResponses:
    """ASGI middleware: `app.add_middleware(CountResponses, telemetry=telemetry)`.

    A response is counted when it starts, before the server sends it. An exception before that counts as 500 and goes
    on; a request that is cancelled before that has no response and is not counted. Websockets and lifespan pass
    through. Bodies are neither read nor held back.

    Args:
        app: the application.
        telemetry: what counts.
        route: the route template of a scope, None when no route was found; read when the response starts.
        exclude: whether nothing of a request is to be counted, neither its response nor what the application counts
            while it answers. When it raises, the request is not counted.
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
        self._responses = Responses(telemetry, route or StarletteRoutes().template, exclude)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._responses.excluded(scope):
            with do_not_count():
                await self.app(scope, receive, send)
            return

        method, started = scope["method"], False

        # Not a coroutine: it hands over the one that the server's `send` returns, which saves one layer a message.
        def counting_send(message: MutableMapping[str, Any]) -> Awaitable[None]:
            nonlocal started
            if not started and message["type"] == "http.response.start":
                started = True
                self._responses.count(scope, method, message["status"])
            return send(message)

        try:
            await self.app(scope, receive, counting_send)
        except Exception:
            if not started:
                self._responses.count(scope, method, SERVER_ERROR)
            raise
