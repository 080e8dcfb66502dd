"""What the middlewares share: find the route of a response, and decide whether to count it.

Middlewares may be nested, for example on an application and on one that is mounted in it. The outermost one counts. It
marks the request: `COUNTING` is a key of the scope or environ, which is True, or False when an inner `exclude` has left
the request out.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Generic, Literal, TypeVar

from analytics_assets.contract import FAILED
from analytics_assets.telemetry.counters import Telemetry

Request = TypeVar("Request")

SERVER_ERROR: Final = 500
COUNTING: Final = "analytics_assets.counting"

_CLIENT_GONE: Final = {"ClientDisconnected", "RequestAborted", "UnreadablePostError"}
"""Exceptions of Werkzeug and Django when they read the body of a request whose client has gone."""


def is_client_gone(error: Exception) -> bool:
    """Whether a request failed because its client has gone while its body was read: it has no response."""
    return any(kind.__name__ in _CLIENT_GONE for kind in type(error).__mro__)


class ResponseCounter(Generic[Request]):
    """Counts responses and never raises, whatever `route` and `exclude` raise.

    Args:
        telemetry: counts the responses.
        route: returns the route template of a request, None when it has no route.
        exclude: returns whether a request is left out.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        route: Callable[[Request], str | None],
        exclude: Callable[[Request], bool] | None,
    ) -> None:
        self._telemetry = telemetry
        self._route = route
        self._exclude = exclude
        self.may_exclude = exclude is not None

    def is_excluded(self, request: Request) -> bool:
        """Whether the request is left out; True when `exclude` raises."""
        if self._exclude is None:
            return False
        try:
            return bool(self._exclude(request))
        except Exception as error:
            self._telemetry.drop(FAILED, 1, f"`exclude` raised {type(error).__name__}")
            return True

    def count(self, request: Request, method: str, status_code: int) -> None:
        """Count one response."""
        try:
            route = self._route(request)
        except Exception as error:
            self._drop(error)
            return
        # Not by `count_route`: one call less for each response.
        if type(status_code) is HTTPStatus:
            status_code = status_code.value  # the contract accepts only a plain int
        self._telemetry.count_response(method, route, status_code)

    def find_route(self, request: Request) -> str | Literal[False] | None:
        """The route template, None when the request has no route, False when `route` raises."""
        try:
            return self._route(request)
        except Exception as error:
            self._drop(error)
            return False

    def _drop(self, error: Exception) -> None:
        self._telemetry.drop(FAILED, 1, f"`route` raised {type(error).__name__}")

    def count_route(self, route: str | Literal[False] | None, method: str, status_code: int) -> None:
        """Count one response of a route that `find_route` has returned; nothing for False."""
        if type(status_code) is HTTPStatus:
            status_code = status_code.value
        if route is not False:
            self._telemetry.count_response(method, route, status_code)
