"""Count the responses of a Django application by route template and status code, under WSGI and ASGI."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

from analytics_assets.telemetry.counters import Telemetry, do_not_count
from analytics_assets.telemetry.responses import COUNTING, SERVER_ERROR, ResponseCounter, is_client_gone
from analytics_assets.telemetry.routes import django_route

# Django marks an asynchronous `get_response` for `inspect` from Python 3.12 on, and for `asyncio` before.
_is_async = inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction

GetResponse = Callable[[Any], Any]


def count_responses(
    telemetry: Telemetry, *, exclude: Callable[[Any], bool] | None = None
) -> Callable[[GetResponse], GetResponse]:
    """Create a Django middleware, synchronous and asynchronous; put it first in MIDDLEWARE.

    Write `middleware = count_responses(telemetry)` in a module `mysite.counting`, and `"mysite.counting.middleware"` in
    the settings.

    A response is counted when the inner middlewares have returned it. An exception that they raise counts as 500 and is
    raised again. A request is not counted when its view fails because the client has gone while the view read the body.
    Where middlewares are nested, also those of another framework around Django, the outermost one counts.

    Args:
        telemetry: counts the responses.
        exclude: returns whether a request is left out: neither its response is counted nor what the views count. It is
            called before the inner middlewares; if it needs `request.user`, put the middleware after Django's
            authentication. When `exclude` raises, the request is left out.
    """
    responses = ResponseCounter(telemetry, django_route, exclude)

    def is_left_out(request: Any, marks: MutableMapping[str, Any]) -> bool:
        excluded = responses.may_exclude and responses.is_excluded(request)
        if excluded and COUNTING in marks:
            marks[COUNTING] = False
        return excluded

    def note_that_the_client_has_gone(request: Any, error: Exception) -> None:
        if is_client_gone(error):
            _marks(request)[COUNTING] = False

    def middleware(get_response: GetResponse) -> GetResponse:
        def answer(request: Any) -> Any:
            marks = _marks(request)
            if is_left_out(request, marks):
                with do_not_count():
                    return get_response(request)
            if COUNTING in marks:
                return get_response(request)
            marks[COUNTING] = True
            try:
                response = get_response(request)
            except Exception as error:
                note_that_the_client_has_gone(request, error)
                if marks.pop(COUNTING, True):
                    responses.count(request, request.method, SERVER_ERROR)
                raise
            if marks.pop(COUNTING, True):
                responses.count(request, request.method, response.status_code)
            return response

        async def answer_async(request: Any) -> Any:
            marks = _marks(request)
            if is_left_out(request, marks):
                with do_not_count():
                    return await get_response(request)
            if COUNTING in marks:
                return await get_response(request)
            marks[COUNTING] = True
            try:
                response = await get_response(request)
            except Exception as error:
                note_that_the_client_has_gone(request, error)
                if marks.pop(COUNTING, True):
                    responses.count(request, request.method, SERVER_ERROR)
                raise
            if marks.pop(COUNTING, True):
                responses.count(request, request.method, response.status_code)
            return response

        chosen: Any = answer_async if _is_async(get_response) else answer
        chosen.process_exception = note_that_the_client_has_gone  # Django calls it when a view fails
        return chosen  # type: ignore[no-any-return]  # either of the two

    middleware.sync_capable = middleware.async_capable = True  # type: ignore[attr-defined]  # Django reads these
    return middleware


def _marks(request: Any) -> MutableMapping[str, Any]:
    """Where a request is marked as being counted: its ASGI scope, or its WSGI environ."""
    marks: MutableMapping[str, Any] = request.scope if hasattr(request, "scope") else getattr(request, "META", {})
    return marks
