"""Responses of a Django application, counted by route template and status code, under WSGI and under ASGI."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

from analytics_assets.telemetry.counters import Telemetry, do_not_count
from analytics_assets.telemetry.responses import SERVER_ERROR, Responses
from analytics_assets.telemetry.routes import django_route

# Django marks its asynchronous chain for `inspect`, where that can be marked.
_is_async = inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction

GetResponse = Callable[[Any], Any]


def count_responses(
    telemetry: Telemetry, *, exclude: Callable[[Any], bool] | None = None
) -> Callable[[GetResponse], GetResponse]:
    """Django middleware, synchronous and asynchronous; name it first in MIDDLEWARE.

    `middleware = count_responses(telemetry)` in a module `mysite.counting`, and `"mysite.counting.middleware"` in the
    settings.

    A response is counted when the middlewares further in have returned it. An exception that comes out of them counts
    as 500 and goes on.

    Args:
        telemetry: what counts.
        exclude: whether nothing of a request is to be counted, neither its response nor what the views count. It is
            asked before the middlewares further in, so one that needs `request.user` is named after Django's
            authentication. When it raises, the request is not counted.
    """
    responses = Responses(telemetry, django_route, exclude)

    def middleware(get_response: GetResponse) -> GetResponse:
        def answer(request: Any) -> Any:
            if responses.excluded(request):
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
            if responses.excluded(request):
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

    middleware.sync_capable = middleware.async_capable = True  # type: ignore[attr-defined]  # how Django asks
    return middleware
