"""Count the responses of a Django application by route template and status code, under WSGI and ASGI."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

from analytics_assets.telemetry.counters import Telemetry, do_not_count
from analytics_assets.telemetry.responses import SERVER_ERROR, ResponseCounter
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
    raised again.

    Args:
        telemetry: counts the responses.
        exclude: returns whether a request is left out: neither its response is counted nor what the views count. It is
            called before the inner middlewares; if it needs `request.user`, put the middleware after Django's
            authentication. When `exclude` raises, the request is left out.
    """
    responses = ResponseCounter(telemetry, django_route, exclude)

    def middleware(get_response: GetResponse) -> GetResponse:
        def answer(request: Any) -> Any:
            if responses.is_excluded(request):
                with do_not_count():
                    return get_response(request)
            try:
                response = get_response(request)
            except Exception:
                responses.count(request, request.method, SERVER_ERROR)
                raise
            responses.count(request, request.method, response.status_code)
            return response

        async def answer_async(request: Any) -> Any:
            if responses.is_excluded(request):
                with do_not_count():
                    return await get_response(request)
            try:
                response = await get_response(request)
            except Exception:
                responses.count(request, request.method, SERVER_ERROR)
                raise
            responses.count(request, request.method, response.status_code)
            return response

        return answer_async if _is_async(get_response) else answer

    middleware.sync_capable = middleware.async_capable = True  # type: ignore[attr-defined]  # Django reads these
    return middleware
