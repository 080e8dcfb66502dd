"""What the middlewares share: find the route of a response, and decide whether to count it."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Generic, Literal, TypeVar

from analytics_assets.contract import FAILED
from analytics_assets.telemetry.counters import Telemetry

Request = TypeVar("Request")

SERVER_ERROR: Final = 500


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
        self.count_route(self.find_route(request), method, status_code)

    def find_route(self, request: Request) -> str | Literal[False] | None:
        """The route template, None when the request has no route, False when `route` raises."""
        try:
            return self._route(request)
        except Exception as error:
            self._telemetry.drop(FAILED, 1, f"`route` raised {type(error).__name__}")
            return False

    def count_route(self, route: str | Literal[False] | None, method: str, status_code: int) -> None:
        """Count one response of a route that `find_route` has returned; nothing for False."""
        if type(status_code) is HTTPStatus:
            status_code = status_code.value  # the contract accepts only a plain int
        if route is not False:
            self._telemetry.count_response(method, route, status_code)
