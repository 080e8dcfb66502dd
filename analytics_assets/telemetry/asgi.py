"""Count the responses of an ASGI application (Starlette, FastAPI) by route template and status code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from analytics_assets.telemetry.counters import Telemetry, do_not_count
from analytics_assets.telemetry.responses import COUNTING, SERVER_ERROR, ResponseCounter
from analytics_assets.telemetry.routes import StarletteRoutes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class CountResponses:
    """ASGI middleware: `app.add_middleware(CountResponses, telemetry=telemetry)`, or `CountResponses(app, telemetry)`.

    A response is counted when it starts, before the server sends it. An exception before that counts as 500 and is
    raised again. A request that is cancelled before that, or whose client has gone before that, has no response and is
    not counted. Where middlewares are nested, the outermost one counts. Websockets and lifespan pass through. Bodies
    are neither read nor buffered.

    Starlette and FastAPI run a handler for `Exception` or 500 outside of all added middlewares. If there is one, wrap
    the whole application, or its answer counts as 500.

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
        if self._responses.may_exclude and self._responses.is_excluded(scope):
            if COUNTING in scope:
                scope[COUNTING] = False
            with do_not_count():
                await self.app(scope, receive, send)
            return
        if COUNTING in scope:
            await self.app(scope, receive, send)
            return

        method, settled = scope["method"], False

        # Not a coroutine: returning the one of the server's `send` saves one coroutine per message.
        def count_and_send(message: MutableMapping[str, Any]) -> Awaitable[None]:
            nonlocal settled
            if not settled and message["type"] == "http.response.start":
                settled = True
                if scope.get(COUNTING, True):
                    self._responses.count(scope, method, message["status"])
            return send(message)

        async def receive_and_note_the_end() -> MutableMapping[str, Any]:
            nonlocal settled
            message = await receive()
            if message["type"] == "http.disconnect":
                settled = True  # nobody gets a response that starts from now on
            return message

        scope[COUNTING] = True
        try:
            await self.app(scope, receive_and_note_the_end, count_and_send)
        except Exception:
            if not settled and scope.get(COUNTING, True):
                self._responses.count(scope, method, SERVER_ERROR)
            raise
        finally:
            # The caller may pass the scope on to another application.
            scope.pop(COUNTING, None)
