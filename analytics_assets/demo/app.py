"""The demonstration application: a small events directory, and an example of how to put the telemetry into one.

What counting takes stands in four places:

* `create_app` makes the `Telemetry`,
* `build_app` adds the middleware that counts the responses,
* three methods of `Pages` (`directory`, `search`, `organizer`) count what no table knows,
* `not_counted` says who is left out.

Sign-ups, visibility and consent are counted by the pipeline, from the tables, and take nothing here.

    $ uvicorn --factory analytics_assets.demo.app:create_app
    $ gunicorn --worker-class asgi 'analytics_assets.demo.app:create_app()'

What the pages look like stands in `demo_pages`, what they know in `demo_directory`. There is no log-in: a cookie names
the profile, which is good enough for made-up people only.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
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
    """The application with its database.

    Its settings are its own, not the pipeline's: DEMO_APP_DATABASE_URL, DEMO_APP_DUMP_DIR and DEMO_APP_TIME_ZONE.
    """
    telemetry = Telemetry(
        os.environ["DEMO_APP_DUMP_DIR"],
        source="web",
        time_zone=os.environ.get("DEMO_APP_TIME_ZONE", "UTC"),
    )
    return build_app(DatabaseDirectory(os.environ["DEMO_APP_DATABASE_URL"]), telemetry)


def build_app(directory: Directory, telemetry: Telemetry) -> Starlette:
    """The application on some data, counting by some telemetry."""
    pages = Pages(directory, telemetry)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        telemetry.close()
        directory.close()

    return Starlette(
        routes=[
            Route("/", pages.home),
            Route("/events", pages.events),
            Route("/events/{event_id:int}", pages.event),
            Route("/events/{event_id:int}/signup", pages.sign_up, methods=["POST"]),
            Route("/events/{event_id:int}/cancel", pages.cancel, methods=["POST"]),
            Route("/events/{event_id:int}/visibility", pages.change_visibility, methods=["POST"]),
            Route("/events/{event_id:int}/consent", pages.change_consent, methods=["POST"]),
            Route("/events/{event_id:int}/directory", pages.directory),
            Route("/events/{event_id:int}/directory/search", pages.search),
            Route("/organizer/events/{event_id:int}/signups", pages.organizer),
            Route("/organizer/events/{event_id:int}/signups", pages.organizer_sign_up, methods=["POST"]),
            Route("/organizer/events/{event_id:int}/visibility", pages.organizer_visibility, methods=["POST"]),
            Route("/counting", pages.change_counting, methods=["POST"]),
            Route("/broken", pages.broken),
        ],
        middleware=[Middleware(CountResponses, telemetry=telemetry, exclude=not_counted)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
        lifespan=lifespan,
    )


def not_counted(scope: Scope) -> bool:
    """Whether nothing of a request is counted: who has opted out, here or in the browser.

    That somebody changes their mind is not counted either, or their number would be known.
    """
    request = Request(scope)
    return _signalled(request) or COOKIE_OPTED_OUT in request.cookies or scope["path"] == "/counting"


def _signalled(request: Request) -> bool:
    """Whether the browser says so: Do Not Track, Global Privacy Control."""
    return "1" in (request.headers.get("DNT"), request.headers.get("Sec-GPC"))


class Pages:
    """One method a route. Those that find no event raise HTTPException, 404."""

    def __init__(self, directory: Directory, telemetry: Telemetry) -> None:
        self._directory = directory
        self._telemetry = telemetry

    async def home(self, _: Request) -> Response:
        """The first page is the list of events."""
        return RedirectResponse("/events")

    async def events(self, request: Request) -> Response:
        """Every event."""
        return _page(request, "events", "Events", events=await self._directory.events())

    async def event(self, request: Request) -> Response:
        """One event, with the form to sign up or, for who has, to change what they agreed to."""
        event = await self._event(request)
        profile = _profile(request)
        attendee = await self._directory.attendee(event.id, profile) if profile else None
        return _page(request, "event", event.title, event=event, attendee=attendee, person=_made_up(), problem="")

    async def directory(self, request: Request) -> Response:
        """Who is coming to an event and wants to be seen."""
        event = await self._event(request)
        attendees = await self._directory.attendees(event.id)
        self._telemetry.count("directory_page_viewed", event_id=event.id)
        return _directory_page(request, event, attendees, query="")

    async def search(self, request: Request) -> Response:
        """Who of them has a name like that."""
        event = await self._event(request)
        query = _text(request.query_params.get("q", ""))
        attendees = await self._directory.attendees(event.id, query)
        self._telemetry.count("directory_searched", event_id=event.id)  # that somebody searched, not what for
        return _directory_page(request, event, attendees, query=query)

    async def organizer(self, request: Request) -> Response:
        """The directory as organizers see it: everybody."""
        event = await self._event(request)
        page = await self._organizer_page(request, event, _made_up())
        self._telemetry.count("directory_page_viewed", event_id=event.id, source="admin")
        return page

    async def sign_up(self, request: Request) -> Response:
        """Sign up; the cookie remembers who it was."""
        event = await self._event(request)
        person = await _form(request)
        problem, status_code, profile = await self._enter(event, person, SITE, request)
        if problem:
            return _page(
                request, "event", event.title, status_code, event=event, attendee=None, person=person, problem=problem
            )
        response = _back_to(f"/events/{event.id}")
        response.set_cookie(_COOKIE_PROFILE, str(profile), path=f"/events/{event.id}", httponly=True, samesite="lax")
        return response

    async def organizer_sign_up(self, request: Request) -> Response:
        """Sign somebody else up."""
        event = await self._event(request)
        person = await _form(request)
        problem, status_code, _ = await self._enter(event, person, BY_ORGANIZER, request)
        if problem:
            return await self._organizer_page(request, event, person, problem, status_code)
        return _back_to(f"/organizer/events/{event.id}/signups")

    async def cancel(self, request: Request) -> Response:
        """Cancel one's own sign-up."""
        event, profile = await self._event(request), await self._own_profile(request)
        await self._directory.cancel(event.id, profile)
        return _back_to(f"/events/{event.id}")

    async def change_visibility(self, request: Request) -> Response:
        """Show or hide oneself in the directory."""
        event, profile = await self._event(request), await self._own_profile(request)
        visible = _yes_or_no(await _form(request), "visible")
        await self._directory.show(event.id, profile, profile, _browser(request), visible=visible)
        return _back_to(f"/events/{event.id}")

    async def organizer_visibility(self, request: Request) -> Response:
        """Show or hide somebody else."""
        event, form = await self._event(request), await _form(request)
        profile = _number(form.get("profile", ""))
        if await self._directory.attendee(event.id, profile) is None:
            raise HTTPException(404)
        visible = _yes_or_no(form, "visible")
        await self._directory.show(event.id, profile, ORGANIZER, _browser(request), visible=visible)
        return _back_to(f"/organizer/events/{event.id}/signups")

    async def change_consent(self, request: Request) -> Response:
        """Give or withdraw consent to be written to."""
        event, profile = await self._event(request), await self._own_profile(request)
        given = _yes_or_no(await _form(request), "given")
        await self._directory.consent(event.id, profile, _browser(request), given=given)
        return _back_to(f"/events/{event.id}")

    async def change_counting(self, request: Request) -> Response:
        """Opt out of being counted, or in again."""
        counted = _yes_or_no(await _form(request), "counted")
        response = _back_to("/events")
        if counted:
            response.delete_cookie(COOKIE_OPTED_OUT)
        else:
            response.set_cookie(COOKIE_OPTED_OUT, "1", max_age=365 * 86_400, httponly=True, samesite="lax")
        return response

    async def broken(self, _: Request) -> Response:
        """A page that fails, so that there is something to see among the error rates."""
        raise RuntimeError("this page fails on purpose")

    async def _event(self, request: Request) -> Event:
        event = await self._directory.event(request.path_params["event_id"])
        if event is None:
            raise HTTPException(404)
        return event

    async def _own_profile(self, request: Request) -> int:
        profile = _profile(request)
        if not profile or await self._directory.attendee(request.path_params["event_id"], profile) is None:
            raise HTTPException(403)
        return profile

    async def _enter(
        self, event: Event, person: Mapping[str, str], channel: str, request: Request
    ) -> tuple[str, int, int]:
        """Sign up. Returns what is wrong, empty when nothing is, its status code, and the new profile."""
        if not person["name"] or "@" not in person["email"]:
            return "A name and an email address are needed.", 422, 0
        try:
            return "", 0, await self._directory.sign_up(event.id, person, channel, _browser(request))
        except AddressTakenError:
            return "Somebody has signed up with this email address already.", 409, 0

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
        "path_now": request.url.path,
        "signalled": _signalled(request),
        "opted_out": COOKIE_OPTED_OUT in request.cookies,
    }
    return HTMLResponse(render(page, title=title, **{"event": None} | visitor | values), status_code)


def _back_to(path: str) -> Response:
    return RedirectResponse(path, _SEE_OTHER)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 # that is what it is registered for
    response = _page(request, "problem", error.detail, error.status_code, problem=_PROBLEMS.get(error.status_code, ""))
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, _: Exception) -> Response:
    return _page(request, "problem", "That did not work", 500, problem="The page has failed; try again later.")


_PROBLEMS: Final = {403: "Sign up first.", 404: "There is no such page or event."}


def _made_up() -> dict[str, str]:
    """What the form to sign up proposes, so that nobody needs to enter anything real."""
    number = secrets.token_hex(4)
    return _NOTHING | {"name": f"Robin Canary {number}", "email": f"canary-{number}@example.org"}


_NOTHING: Final = {"name": "", "email": "", "dietary_notes": "", "visible": "", "consent": ""}


async def _form(request: Request) -> dict[str, str]:
    # Starlette's own needs another package.
    body = (await request.body()).decode("utf-8", "replace")
    return _NOTHING | {name: _text(value) for name, value in parse_qsl(body)}


def _text(value: str) -> str:
    # PostgreSQL's text holds no NUL.
    return value.replace("\0", "").strip()


def _yes_or_no(form: Mapping[str, str], name: str) -> bool:
    if form.get(name) not in {"yes", "no"}:
        raise HTTPException(422)
    return form[name] == "yes"


def _profile(request: Request) -> int:
    """The profile that the cookie names, 0 for none."""
    return _number(request.cookies.get(_COOKIE_PROFILE, ""))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


def _browser(request: Request) -> Browser:
    return Browser(request.client.host if request.client else "", request.headers.get("User-Agent", ""))
