"""The demonstration application: a small events directory, and an example of an application with telemetry.

Counting needs code in four places:

* `create_app` creates the `Telemetry`,
* `build_app` adds the middleware that counts the responses,
* three methods of `Pages` (`directory`, `search`, `organizer`) count what is in no table,
* `is_excluded` decides which requests are not counted.

The pipeline counts sign-ups, visibility and consent from the tables, so they need no code here.

    $ uvicorn --factory analytics_assets.demo.app:create_app
    $ gunicorn --worker-class asgi 'analytics_assets.demo.app:create_app()'

`pages` has the HTML, `directory` the data. There is no login: a cookie holds the id of the profile, which is acceptable
only for made-up people.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from analytics_assets.demo.directory import (
    BY_ORGANIZER,
    EVENTS,
    ORGANIZER,
    PAGE_SIZE,
    SITE,
    AddressTakenError,
    Attendee,
    Browser,
    DatabaseDirectory,
    Directory,
    Event,
)
from analytics_assets.demo.pages import render
from analytics_assets.telemetry import Telemetry
from analytics_assets.telemetry.asgi import CountResponses, Scope

COOKIE_OPTED_OUT: Final = "do_not_count"
_COOKIE_PROFILE: Final = "profile"
_SEE_OTHER: Final = 303


def create_app() -> Starlette:
    """Create the application with its database.

    It reads its own settings, not the pipeline's: DEMO_APP_DATABASE_URL, DEMO_APP_DUMP_DIR and DEMO_APP_TIME_ZONE.
    """
    time_zone = os.environ.get("DEMO_APP_TIME_ZONE", "UTC")
    telemetry = Telemetry(os.environ["DEMO_APP_DUMP_DIR"], source="web", time_zone=time_zone)
    return build_app(DatabaseDirectory(os.environ["DEMO_APP_DATABASE_URL"]), telemetry)


def build_app(directory: Directory, telemetry: Telemetry, render: Callable[..., str] = render) -> Starlette:
    """Create the application with the given data and telemetry. `render` returns the HTML of a page."""
    pages = Pages(directory, telemetry)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        telemetry.close()
        directory.close()

    app = Starlette(
        routes=[
            Route("/", pages.home),
            Route("/events", pages.events),
            Route("/events/{event_id:int}", pages.event),
            Route("/events/{event_id:int}/directory", pages.directory),
            Route("/events/{event_id:int}/directory/search", pages.search),
            Route("/organizer/events/{event_id:int}/signups", pages.organizer),
            Route("/events/{event_id:int}/signup", pages.sign_up, methods=["POST"]),
            Route("/events/{event_id:int}/cancel", pages.cancel, methods=["POST"]),
            Route("/events/{event_id:int}/visibility", pages.change_visibility, methods=["POST"]),
            Route("/events/{event_id:int}/consent", pages.change_consent, methods=["POST"]),
            Route("/organizer/events/{event_id:int}/signups", pages.organizer_sign_up, methods=["POST"]),
            Route("/organizer/events/{event_id:int}/visibility", pages.organizer_visibility, methods=["POST"]),
            Route("/counting", pages.change_counting, methods=["POST"]),
            Route("/broken", pages.broken),
        ],
        middleware=[Middleware(CountResponses, telemetry=telemetry, exclude=is_excluded)],
        exception_handlers={HTTPException: _http_error_page, Exception: _server_error_page},
        lifespan=lifespan,
    )
    app.state.render = render
    return app


def is_excluded(scope: Scope) -> bool:
    """Whether a request is not counted, because the visitor has opted out, here or in the browser.

    Opting out and in is not counted either: the counts would reveal how many people do so.
    """
    request = Request(scope)
    return _has_opt_out_signal(request) or _has_opted_out(request) or scope["path"] == "/counting"


def _has_opt_out_signal(request: Request) -> bool:
    """Whether the browser sends Do Not Track or Global Privacy Control."""
    return "1" in (request.headers.get("DNT"), request.headers.get("Sec-GPC"))


def _has_opted_out(request: Request) -> bool:
    """Whether the visitor has opted out here."""
    return COOKIE_OPTED_OUT in request.cookies


class Pages:
    """One method per route. They raise HTTPException (404) when the event does not exist."""

    def __init__(self, directory: Directory, telemetry: Telemetry) -> None:
        self._directory = directory
        self._telemetry = telemetry

    async def home(self, _: Request) -> Response:
        """Redirect to the list of events."""
        return RedirectResponse("/events")

    async def events(self, request: Request) -> Response:
        """List all events."""
        return _page(request, "events", "Events", events=EVENTS)

    async def event(self, request: Request) -> Response:
        """Show one event, with the sign-up form or, for an attendee, the visibility and consent."""
        event = self._event(request)
        profile = _profile_id(request)
        attendee = await self._directory.attendee(event.id, profile) if profile else None
        return _page(request, "event", event.title, event=event, attendee=attendee, person=_sample_person(), problem="")

    async def directory(self, request: Request) -> Response:
        """List the attendees of an event who want to be seen."""
        event = self._event(request)
        attendees = await self._directory.attendees(event.id)
        self._telemetry.count("directory_page_viewed", event_id=event.id)
        return _directory_page(request, event, attendees, query="")

    async def search(self, request: Request) -> Response:
        """List those attendees whose name contains the query."""
        event = self._event(request)
        query = _clean(request.query_params.get("q", ""))
        attendees = await self._directory.attendees(event.id, query)
        self._telemetry.count("directory_searched", event_id=event.id)  # the count does not include the query
        return _directory_page(request, event, attendees, query=query)

    async def organizer(self, request: Request) -> Response:
        """List all attendees of an event, for organizers."""
        event = self._event(request)
        page = await self._organizer_page(request, event, _sample_person())
        self._telemetry.count("directory_page_viewed", event_id=event.id, source="admin")
        return page

    async def sign_up(self, request: Request) -> Response:
        """Sign up, and set the cookie with the id of the new profile."""
        event = self._event(request)
        person = await _read_form(request)
        problem, status_code, profile = await self._try_sign_up(event, person, SITE, request)
        if problem:
            return _page(
                request, "event", event.title, status_code, event=event, attendee=None, person=person, problem=problem
            )
        response = _redirect(f"/events/{event.id}")
        response.set_cookie(_COOKIE_PROFILE, str(profile), path=f"/events/{event.id}", httponly=True, samesite="lax")
        return response

    async def organizer_sign_up(self, request: Request) -> Response:
        """Sign another person up."""
        event = self._event(request)
        person = await _read_form(request)
        problem, status_code, _ = await self._try_sign_up(event, person, BY_ORGANIZER, request)
        if problem:
            return await self._organizer_page(request, event, person, problem, status_code)
        return _redirect(f"/organizer/events/{event.id}/signups")

    async def cancel(self, request: Request) -> Response:
        """Cancel one's own sign-up."""
        event, profile = self._event(request), await self._own_profile(request)
        await self._directory.cancel(event.id, profile)
        return _redirect(f"/events/{event.id}")

    async def change_visibility(self, request: Request) -> Response:
        """Show or hide one's own profile in the directory."""
        event, profile = self._event(request), await self._own_profile(request)
        visible = _parse_yes_no(await _read_form(request), "visible")
        await self._directory.set_visibility(event.id, profile, profile, _browser(request), visible=visible)
        return _redirect(f"/events/{event.id}")

    async def organizer_visibility(self, request: Request) -> Response:
        """Show or hide the profile of another person."""
        event, form = self._event(request), await _read_form(request)
        profile = _parse_id(form.get("profile", ""))
        if await self._directory.attendee(event.id, profile) is None:
            raise HTTPException(404)
        visible = _parse_yes_no(form, "visible")
        await self._directory.set_visibility(event.id, profile, ORGANIZER, _browser(request), visible=visible)
        return _redirect(f"/organizer/events/{event.id}/signups")

    async def change_consent(self, request: Request) -> Response:
        """Give or withdraw one's own consent to be emailed."""
        event, profile = self._event(request), await self._own_profile(request)
        given = _parse_yes_no(await _read_form(request), "given")
        await self._directory.set_consent(event.id, profile, _browser(request), given=given)
        return _redirect(f"/events/{event.id}")

    async def change_counting(self, request: Request) -> Response:
        """Opt out of being counted, or opt in again."""
        counted = _parse_yes_no(await _read_form(request), "counted")
        response = _redirect("/events")
        if counted:
            response.delete_cookie(COOKIE_OPTED_OUT)
        else:
            response.set_cookie(COOKIE_OPTED_OUT, "1", max_age=365 * 86_400, httponly=True, samesite="lax")
        return response

    async def broken(self, _: Request) -> Response:
        """Fail, so that the error rates show an error."""
        raise RuntimeError("this page fails on purpose")

    def _event(self, request: Request) -> Event:
        event = next((event for event in EVENTS if event.id == request.path_params["event_id"]), None)
        if event is None:
            raise HTTPException(404)
        return event

    async def _own_profile(self, request: Request) -> int:
        profile = _profile_id(request)
        if not profile or await self._directory.attendee(request.path_params["event_id"], profile) is None:
            raise HTTPException(403)
        return profile

    async def _try_sign_up(
        self, event: Event, person: Mapping[str, str], channel: str, request: Request
    ) -> tuple[str, int, int]:
        """Sign up. Returns the problem (empty on success), its status code, and the id of the new profile."""
        if not person["name"] or "@" not in person["email"]:
            return "Please enter a name and an email address.", 422, 0
        try:
            return "", 0, await self._directory.sign_up(event.id, person, channel, _browser(request))
        except AddressTakenError:
            return "This email address has already been used to sign up.", 409, 0

    async def _organizer_page(
        self, request: Request, event: Event, person: Mapping[str, str], problem: str = "", status_code: int = 200
    ) -> Response:
        return _page(
            request,
            "organizer",
            f"{event.title}: sign-ups",
            status_code,
            event=event,
            attendees=await self._directory.attendees(event.id, hidden=True),
            page_size=PAGE_SIZE,
            person=person,
            problem=problem,
        )


def _directory_page(request: Request, event: Event, attendees: Sequence[Attendee], *, query: str) -> Response:
    title = f"Who is coming to {event.title}?"
    return _page(request, "directory", title, event=event, attendees=attendees, page_size=PAGE_SIZE, query=query)


def _page(request: Request, page: str, title: str, status_code: int = 200, **values: Any) -> Response:
    visitor = {
        "path_now": request.scope["path"],
        "has_opt_out_signal": partial(_has_opt_out_signal, request),
        "has_opted_out": partial(_has_opted_out, request),
    }
    html = request.app.state.render(page, title=title, **{"event": None} | visitor | values)
    return HTMLResponse(html, status_code)


def _redirect(path: str) -> Response:
    return RedirectResponse(path, _SEE_OTHER)


async def _http_error_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 # it is registered for HTTPException only
    response = _page(request, "problem", error.detail, error.status_code, problem=_PROBLEMS.get(error.status_code, ""))
    response.headers.update(error.headers or {})
    return response


async def _server_error_page(request: Request, _: Exception) -> Response:
    return _page(request, "problem", "Something went wrong", 500, problem="This page failed. Please try again later.")


_PROBLEMS: Final = {403: "Please sign up first.", 404: "This page or event does not exist."}


def _sample_person() -> dict[str, str]:
    """Made-up values that prefill the sign-up form, so that nobody needs to enter real ones."""
    number = secrets.token_hex(4)
    return _EMPTY_FORM | {"name": f"Robin Canary {number}", "email": f"canary-{number}@example.org"}


_EMPTY_FORM: Final = {"name": "", "email": "", "dietary_notes": "", "visible": "", "consent": ""}


async def _read_form(request: Request) -> dict[str, str]:
    # Starlette's own form parser needs another package (python-multipart).
    body = (await request.body()).decode("utf-8", "replace")
    return _EMPTY_FORM | {name: _clean(value) for name, value in parse_qsl(body)}


def _clean(value: str) -> str:
    # PostgreSQL's text type cannot store NUL.
    return value.replace("\0", "").strip()


def _parse_yes_no(form: Mapping[str, str], name: str) -> bool:
    if form.get(name) not in {"yes", "no"}:
        raise HTTPException(422)
    return form[name] == "yes"


def _profile_id(request: Request) -> int:
    """Id of the profile in the cookie, 0 for none."""
    return _parse_id(request.cookies.get(_COOKIE_PROFILE, ""))


def _parse_id(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


def _browser(request: Request) -> Browser:
    return Browser(request.client.host if request.client else "", request.headers.get("User-Agent", ""))
