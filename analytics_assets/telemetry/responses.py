"""What the middlewares share: which route a response belongs to, and whether it is to be counted at all."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Generic, Literal, TypeVar

from analytics_assets.telemetry.counters import FAILED, Telemetry

Request = TypeVar("Request")

SERVER_ERROR: Final = 500


class Responses(Generic[Request]):
    """Counts responses without ever failing: what the two functions raise stays here.

    Args:
        telemetry: what counts.
        route: the route template of a request, None when no route was found.
        exclude: whether nothing of a request is to be counted.
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

    def excluded(self, request: Request) -> bool:
        """Whether the request is to be left out; also when that cannot be found out."""
        if self._exclude is None:
            return False
        try:
            return bool(self._exclude(request))
        except Exception as error:
            self._telemetry.drop(FAILED, 1, f"`exclude` raised {type(error).__name__}")
            return True

    def count(self, request: Request, method: str, status_code: int) -> None:
        """Count one response."""
        self.count_of(self.route(request), method, status_code)

    def route(self, request: Request) -> str | Literal[False] | None:
        """The route template; None when there is none, False when that cannot be found out."""
        try:
            return self._route(request)
        except Exception as error:
            self._telemetry.drop(FAILED, 1, f"`route` raised {type(error).__name__}")
            return False

    def count_of(self, route: str | Literal[False] | None, method: str, status_code: int) -> None:
        """Count one response of a route that `route` has found."""
        if type(status_code) is HTTPStatus:
            status_code = status_code.value  # nothing but a plain number is a number to the contract
        if route is not False:
            self._telemetry.count_response(method, route, status_code)
