"""The data of the demonstration application: events and their attendees, in its database or in memory.

`Directory` defines the rows that a sign-up writes, and its subclasses where they are written. Every row is about a
person, so nothing is counted here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool

ORGANIZER: Final = 1
"""The profile that organizes every event."""
SITE, BY_ORGANIZER, IMPORT = "site", "organizer", "import"
"""The channels of a sign-up."""
PAGE_SIZE: Final = 50
"""How many attendees one page lists."""

Row = dict[str, Any]
Result = TypeVar("Result")


class Event(NamedTuple):
    """An event of the directory."""

    id: int
    slug: str

    @property
    def title(self) -> str:
        """The name shown on pages."""
        return self.slug.replace("-", " ").title()


EVENTS: Final = tuple(
    Event(number, slug)
    for number, slug in enumerate(
        (
            "city-marathon",
            "spring-book-fair",
            "open-data-meetup",
            "jazz-night",
            "makers-weekend",
            "choir-festival",
            "python-workshop",
            "allotment-day",
            "chess-open",
            "repair-cafe",
            "beekeepers-forum",
            "lighthouse-tour",
        ),
        start=1,
    )
)


class Browser(NamedTuple):
    """What a request reveals about its sender."""

    ip_address: str
    user_agent: str


class Attendee(NamedTuple):
    """A person who has signed up for an event and not cancelled."""

    profile_id: int
    name: str
    visible: bool
    consents: bool


class AddressTakenError(ValueError):
    """A profile with this email address already exists."""


def utc_now() -> datetime:
    """The current time."""
    return datetime.now(UTC)


class Directory(ABC):
    """The application's data.

    Args:
        now: returns the time that is written with every row.
    """

    def __init__(self, now: Callable[[], datetime] = utc_now) -> None:
        self._now = now

    async def sign_up(self, event_id: int, person: Mapping[str, str], channel: str, browser: Browser) -> int:
        """Sign a person up, with the fields of the form. Returns the id of the new profile.

        Raises:
            AddressTakenError: a profile with that email address already exists.
        """
        at, profile = self._now(), await self._new_profile_id()
        entered_by = profile if channel == SITE else ORGANIZER
        rows = [
            ("profiles", profile_row(profile, person, browser, at)),
            (
                "signups",
                {
                    "event_id": event_id,
                    "profile_id": profile,
                    "channel": channel,
                    "dietary_notes": person.get("dietary_notes", ""),
                    "ip_address": browser.ip_address,
                    "created_at": at,
                    "cancelled_at": None,
                },
            ),
        ]
        if person.get("consent"):
            rows.append(self._consent_change(event_id, profile, entered_by, browser, withdrawn=False))
        if person.get("visible"):
            rows.append(self._visibility_change(event_id, profile, entered_by, browser, visible=True))
        await self._write(rows)
        return profile

    async def set_visibility(
        self, event_id: int, profile: int, changed_by: int, browser: Browser, *, visible: bool
    ) -> None:
        """Show a profile in the directory of an event, or hide it."""
        await self._write([self._visibility_change(event_id, profile, changed_by, browser, visible=visible)])

    async def set_consent(self, event_id: int, profile: int, browser: Browser, *, given: bool) -> None:
        """Record that a person gives or withdraws the consent to be emailed."""
        await self._write([self._consent_change(event_id, profile, profile, browser, withdrawn=not given)])

    def close(self) -> None:
        """Close open connections."""
        return

    @abstractmethod
    async def cancel(self, event_id: int, profile: int) -> None:
        """Cancel a sign-up; its row stays, with the time of the cancellation."""

    @abstractmethod
    async def attendee(self, event_id: int, profile: int) -> Attendee | None:
        """One attendee, None when that profile is not signed up for the event."""

    @abstractmethod
    async def attendees(self, event_id: int, name: str = "", *, hidden: bool = False) -> Sequence[Attendee]:
        """Attendees whose name contains `name`, the latest first, at most PAGE_SIZE.

        Args:
            event_id: the event.
            name: matched without regard to case; empty for all.
            hidden: include attendees who do not want to be seen.
        """

    @abstractmethod
    async def _new_profile_id(self) -> int: ...

    @abstractmethod
    async def _write(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Insert rows, each with the name of its table, all of them or none."""

    def _visibility_change(
        self, event_id: int, profile: int, changed_by: int, browser: Browser, *, visible: bool
    ) -> tuple[str, Row]:
        return "profile_visibility_changes", {
            "event_id": event_id,
            "profile_id": profile,
            "changed_by": changed_by,
            "visible": visible,
            "ip_address": browser.ip_address,
            "changed_at": self._now(),
        }

    def _consent_change(
        self, event_id: int, profile: int, changed_by: int, browser: Browser, *, withdrawn: bool
    ) -> tuple[str, Row]:
        return "consent_changes", {
            "event_id": event_id,
            "profile_id": profile,
            "changed_by": changed_by,
            "withdrawn": withdrawn,
            "ip_address": browser.ip_address,
            "user_agent": browser.user_agent,
            "changed_at": self._now(),
        }


def profile_row(profile: int, person: Mapping[str, str], browser: Browser, at: datetime) -> Row:
    """Row of a profile with the fields of the form."""
    return {
        "id": profile,
        "name": person["name"],
        "email": person["email"],
        "phone": person.get("phone", ""),
        "bio": person.get("bio", ""),
        "last_login_ip": browser.ip_address,
        "user_agent": browser.user_agent,
        "created_at": at,
    }


def insert(connection: sa.Connection, table: str, rows: Sequence[Row]) -> None:
    """Insert rows with the same keys into a table of the application."""
    if rows:
        connection.execute(sa.insert(sa.table(table, *map(sa.column, rows[0]), schema="public")), rows)


_ATTENDEES: Final = """
with visible as (
    select distinct on (profile_id) profile_id, visible from public.profile_visibility_changes
    where event_id = :event_id order by profile_id, changed_at desc, id desc
), withdrawn as (
    select distinct on (profile_id) profile_id, withdrawn from public.consent_changes
    where event_id = :event_id order by profile_id, changed_at desc, id desc
)
select profile_id, profiles.name, coalesce(visible, false), coalesce(not withdrawn, false)
from public.signups
join public.profiles on profiles.id = signups.profile_id
left join visible using (profile_id)
left join withdrawn using (profile_id)
where event_id = :event_id and cancelled_at is null
"""
_ATTENDEE: Final = sa.text(f"{_ATTENDEES} and profile_id = :profile")
_MATCHES: Final = sa.text(
    f"{_ATTENDEES} and (visible or :hidden) and position(lower(:name) in lower(profiles.name)) > 0"
    f" order by signups.created_at desc limit {PAGE_SIZE}"
)


class DatabaseDirectory(Directory):
    """The data in the tables of app.sql.

    It connects at the first request, so that a server may fork before.
    """

    def __init__(self, url: str, now: Callable[[], datetime] = utc_now) -> None:
        super().__init__(now)
        self._engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True)

    def close(self) -> None:
        """See Directory."""
        self._engine.dispose()

    async def cancel(self, event_id: int, profile: int) -> None:
        """See Directory."""
        statement = sa.text(
            "update public.signups set cancelled_at = greatest(created_at, :at)"
            " where event_id = :event_id and profile_id = :profile and cancelled_at is null"
        )
        await self._in_transaction(
            lambda connection: connection.execute(
                statement, {"at": self._now(), "event_id": event_id, "profile": profile}
            )
        )

    async def attendee(self, event_id: int, profile: int) -> Attendee | None:
        """See Directory."""
        rows = await self._rows(_ATTENDEE, event_id=event_id, profile=profile)
        return Attendee._make(rows[0]) if rows else None

    async def attendees(self, event_id: int, name: str = "", *, hidden: bool = False) -> Sequence[Attendee]:
        """See Directory."""
        return [Attendee._make(row) for row in await self._rows(_MATCHES, event_id=event_id, name=name, hidden=hidden)]

    async def _new_profile_id(self) -> int:
        rows = await self._rows(sa.text("select nextval(pg_get_serial_sequence('public.profiles', 'id'))"))
        return int(rows[0][0])

    async def _write(self, rows: Sequence[tuple[str, Row]]) -> None:
        def write(connection: sa.Connection) -> None:
            for table, row in rows:
                insert(connection, table, [row])

        try:
            await self._in_transaction(write)
        except sa.exc.IntegrityError as error:
            diagnostics = getattr(error.orig, "diag", None)
            if getattr(diagnostics, "constraint_name", None) != "profiles_email_key":
                raise
            raise AddressTakenError from None

    async def _rows(self, statement: sa.TextClause, **parameters: object) -> Sequence[sa.Row[Any]]:
        return await self._in_transaction(lambda connection: connection.execute(statement, parameters).all())

    async def _in_transaction(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Run `work` in a transaction on a thread, outside the event loop. Returns its result."""

        def run() -> Result:
            with self._engine.begin() as connection:
                return work(connection)

        return await run_in_threadpool(run)


class MemoryDirectory(Directory):
    """The data in memory, which starts with the events only.

    Args:
        now: returns the time that is written with every row.
        next_profile: id of the first profile; the ids of further profiles follow it.
    """

    def __init__(self, now: Callable[[], datetime], next_profile: int) -> None:
        super().__init__(now)
        self.rows: dict[str, list[Row]] = {
            # In an order of insertion that satisfies the foreign keys.
            "profiles": [],
            "signups": [],
            "profile_visibility_changes": [],
            "consent_changes": [],
        }
        self.search_is_down = False
        self._next_profile = next_profile
        self._attendees: dict[int, dict[int, Attendee]] = defaultdict(dict)

    async def cancel(self, event_id: int, profile: int) -> None:
        """See Directory."""
        for row in self.rows["signups"]:
            if (row["event_id"], row["profile_id"], row["cancelled_at"]) == (event_id, profile, None):
                row["cancelled_at"] = self._now()
                del self._attendees[event_id][profile]

    async def attendee(self, event_id: int, profile: int) -> Attendee | None:
        """See Directory."""
        return self._attendees[event_id].get(profile)

    async def attendees(self, event_id: int, name: str = "", *, hidden: bool = False) -> Sequence[Attendee]:
        """See Directory.

        Raises:
            ConnectionError: `name` is given while `search_is_down`.
        """
        if name and self.search_is_down:
            raise ConnectionError("the search index is down")
        latest = reversed(self._attendees[event_id].values())
        matches = [one for one in latest if (one.visible or hidden) and name.lower() in one.name.lower()]
        return matches[:PAGE_SIZE]

    async def _new_profile_id(self) -> int:
        self._next_profile += 1
        return self._next_profile - 1

    async def _write(self, rows: Sequence[tuple[str, Row]]) -> None:
        for table, row in rows:
            self.rows[table].append(row)
            if table == "profiles":
                name = row["name"]
                continue
            attendees, profile = self._attendees[row["event_id"]], row["profile_id"]
            match table:
                case "signups":
                    attendees[profile] = Attendee(profile, name, visible=False, consents=False)
                case "profile_visibility_changes" if profile in attendees:
                    attendees[profile] = attendees[profile]._replace(visible=row["visible"])
                case "consent_changes" if profile in attendees:
                    attendees[profile] = attendees[profile]._replace(consents=not row["withdrawn"])
