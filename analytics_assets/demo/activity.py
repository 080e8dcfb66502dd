"""The activity of the demonstration application's users: requests of past days, and a few to the running application.

Every request of a past day goes through the application, with the clock of its telemetry and its data set to that day.
Only the HTML of its pages is left out.
The same date always has the same activity, in whatever order the days are filled. So a demonstration can be stopped and
continued, and two of them can be compared. Every personal value and every search text contains the word `canary`:
finding the word anywhere else reveals a leak from the application's own tables.

The application decides what is counted; nothing of the pipeline belongs here.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from importlib.resources import files
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import requests
import sqlalchemy as sa

from analytics_assets.days import bounds
from analytics_assets.demo.app import build_app
from analytics_assets.demo.directory import (
    BY_ORGANIZER,
    EVENTS,
    IMPORT,
    ORGANIZER,
    SITE,
    Browser,
    MemoryDirectory,
    insert,
    profile_row,
)
from analytics_assets.sources.hosts.postgresql import GRANTS
from analytics_assets.telemetry import Telemetry


@dataclass(frozen=True)
class Crowd:
    """How active the attendees of one event are."""

    event_id: int
    usual_signups: int
    """Expected on a working day."""
    opens_on: int | None = None
    """Signup opens on days whose ordinal modulo OPENING_CYCLE equals this number."""
    quiet: bool = False
    """The event has activity only in every fifth week."""


CROWDS: Final = (
    Crowd(1, 24),
    Crowd(2, 18),
    Crowd(3, 12, opens_on=2),
    Crowd(4, 10),
    Crowd(5, 8, opens_on=16),
    Crowd(6, 6),
    Crowd(7, 5, opens_on=30),
    Crowd(8, 4, opens_on=44),
    Crowd(9, 3),
    Crowd(10, 2),
    Crowd(11, 3, quiet=True),
    Crowd(12, 2, quiet=True),
)

# Unusual days depend on the ordinal of the date, so any 200 days include every kind of them.
OPENING_CYCLE: Final = 8 * 7  # whole weeks, so that every opening is a Tuesday
OPENING_BURST: Final = (6, 3, 2)  # factors of the usual signups, on the opening day and the two days after it
HOLIDAY_CYCLE, HOLIDAY = 45, 20
ERROR_SPIKE_CYCLE: Final = 90

PROCESSES: Final = 3
"""The maximum number of the application's processes per day; the minimum is one."""

DAYS_PER_PROCESS: Final = 10
"""With fewer days to fill, starting another process costs more than it saves."""

_PROFILES_PER_DAY = 10_000  # each day has its own range of ids, so that no day depends on another
_SCANS = ("/wp-login.php", "/.env", "/admin/canary", "/api/v1/users?email=canary%40example.org", "/events/7/canary")


def create_demo_app(connection: sa.Connection) -> None:
    """Create the application's tables, source views, their reader, the events and their organizer, and commit.

    Needs a connection of `engine.connect()`. Running it again changes nothing.
    """
    connection.exec_driver_sql(files("analytics_assets.demo").joinpath("app.sql").read_text(encoding="utf-8"))
    connection.exec_driver_sql(GRANTS)
    if connection.scalar(sa.text("select not exists (select from public.events)")):
        founded = datetime(2020, 1, 1, tzinfo=UTC)
        insert(connection, "profiles", [profile_row(ORGANIZER, _person(ORGANIZER), _browser(ORGANIZER), founded)])
        insert(
            connection,
            "events",
            [
                {**event._asdict(), "title": event.title, "organizer_id": ORGANIZER, "created_at": founded}
                for event in EVENTS
            ],
        )
    connection.commit()


def missing_days(connection: sa.Connection, days: Sequence[date]) -> list[date]:
    """Those of `days` that are not filled yet, in the given order."""
    filled = set(connection.scalars(sa.text("select day from public.demo_days")))
    return [day for day in days if day not in filled]


def record_activity(
    connection: sa.Connection,
    dump_dir: Path,
    days: Sequence[date],
    time_zone: str,
    on_day: Callable[[date], None] | None = None,
) -> None:
    """Fill the missing ones of `days`, calendar days in `time_zone` (an IANA name), and call `on_day` after each.

    Needs a connection of `engine.connect()`, because every day is a separate transaction. A day's dumps are moved in
    place before its rows are committed, and replace only dumps of an earlier attempt. So an interrupted day is written
    again completely, and the counts and rows of the running application are kept.
    """
    staging = dump_dir.with_name(f"{dump_dir.name}.staging")  # a sibling: moving needs the same file system
    shutil.rmtree(staging, ignore_errors=True)
    missing = missing_days(connection, days)
    with _mapping(len(missing)) as apply:
        for day, rows in zip(missing, apply(partial(_simulate, time_zone, staging), missing), strict=True):
            _move_dumps(staging / day.isoformat(), dump_dir / day.isoformat())
            for table, rows_of_table in rows.items():
                insert(connection, table, rows_of_table)
            insert(connection, "demo_days", [{"day": day}])
            connection.commit()
            if on_day:
                on_day(day)
    shutil.rmtree(staging, ignore_errors=True)


def _simulate(time_zone: str, staging: Path, day: date) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Live through one day. Its dumps are left in a folder of `staging`. Returns the rows of each table."""
    simulation = _Day(day, time_zone, staging / day.isoformat())
    asyncio.run(simulation.run())
    return simulation.directory.rows


@contextmanager
def _mapping(days: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield `map`, which uses all cores where there are many days: a day knows nothing of the others."""
    workers = min(os.cpu_count() or 1, days // DAYS_PER_PROCESS)
    if workers < 2:
        yield map
        return
    # Spawned, so that no process has a copy of the connection. Ctrl-C is for this process.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def click_through(url: str) -> None:
    """Send the requests of one visitor and one organizer to the running application.

    Raises:
        requests.RequestException: the application does not answer, or not as expected.
    """
    with requests.Session() as visitor:
        visitor.trust_env = False  # no proxy
        _expect(visitor.get(f"{url}/events"), 200)
        _expect(visitor.get(f"{url}/events/1"), 200)
        _expect(visitor.post(f"{url}/events/1/signup", {"name": "canary"}), 422)
        person = _person(secrets.randbits(48)) | {"visible": "on"}
        _expect(visitor.post(f"{url}/events/1/signup", person), 200)
        _expect(visitor.post(f"{url}/events/1/consent", {"given": "yes"}), 200)
        _expect(visitor.get(f"{url}/events/1/directory"), 200)
        _expect(visitor.get(f"{url}/events/1/directory/search", params={"q": "canary"}), 200)
        _expect(visitor.get(f"{url}/organizer/events/1/signups"), 200)
        _expect(visitor.get(f"{url}/events/99"), 404)
        _expect(visitor.get(f"{url}/broken"), 500)


def _expect(response: requests.Response, status_code: int) -> None:
    if response.status_code != status_code:
        raise requests.RequestException(f"the demonstration application answered with status {response.status_code}")


class _Action(NamedTuple):
    time: datetime
    number: int
    """Orders actions of the same time by when they were scheduled."""
    execute: Callable[[], Awaitable[None]]


class _Day:
    """One simulated day: the scheduled actions of its users, and the application's processes, which answer them.

    Args:
        day: the calendar day.
        time_zone: IANA name of the zone whose calendar day it is.
        dumps: the folder in which each process has its own dump folder.
    """

    def __init__(self, day: date, time_zone: str, dumps: Path) -> None:
        self._rng = Random(day.isoformat())  # noqa: S311 # it must be repeatable
        self._first, end = bounds(day, time_zone)
        self._last = end - timedelta(microseconds=1)
        self._now = self._first
        self._people = count(day.toordinal() * _PROFILES_PER_DAY)
        self._numbers = count()
        self._actions: list[_Action] = []
        self.directory = MemoryDirectory(lambda: self._now, next_profile=day.toordinal() * _PROFILES_PER_DAY)
        self._telemetries = [
            Telemetry(dumps / str(process), source="web", time_zone=time_zone, clock=self._seconds)
            for process in range(self._rng.randint(1, PROCESSES))
        ]
        self._processes = [build_app(self.directory, telemetry, _render_nothing) for telemetry in self._telemetries]
        self._plan(day)

    async def run(self) -> None:
        """Execute all actions in order of time."""
        while self._actions:
            action = heappop(self._actions)
            self._now = action.time
            await action.execute()
        for telemetry in self._telemetries:
            telemetry.close()

    def _seconds(self) -> float:
        return self._now.timestamp()

    def _plan(self, day: date) -> None:
        usual = {crowd.event_id: _usual_signups(crowd, day) for crowd in CROWDS}
        signups = [
            crowd.event_id
            for crowd in CROWDS
            for _ in range(_random_number(self._rng, usual[crowd.event_id] * _opening_factor(crowd, day)))
        ]
        self._rng.shuffle(signups)
        # These sign-ups tick both boxes of the form, so that every view has rows on both sides of midnight.
        edges = (self._first, self._last, self._first, self._last)
        for time, event_id in zip(edges, signups, strict=False):
            self._add(time, self._sign_up, event_id, {"visible": "on", "consent": "on"})
        for event_id in signups[len(edges) :]:
            ticked = {name: "on" for name, share in (("visible", 0.3), ("consent", 0.6)) if self._rng.random() < share}
            self._add(self._any_time(), self._sign_up, event_id, ticked)
        for event_id, expected in usual.items():
            for _ in range(_random_number(self._rng, 4 * expected) + signups.count(event_id)):
                self._add(self._any_time(), self._visit, event_id)
        for _ in range(_random_number(self._rng, 0.1 * len(signups))):
            self._add(self._any_time(), self._send, f"/events/{self._rng.choice(signups)}/signup", {"name": "canary"})
        for _ in range(self._rng.randint(1, 4)):
            self._add(self._any_time(), self._send, f"/events/{self._rng.randint(90, 99)}")
        for _ in range(self._rng.randint(3, 12)):
            self._add(self._any_time(), self._send, self._rng.choice(_SCANS))
        if day.toordinal() % ERROR_SPIKE_CYCLE == 0:
            self._plan_outage()

    def _plan_outage(self) -> None:
        """Schedule an hour in which the search fails and is retried many times."""
        begin, hour = self._first + (self._last - self._first) * 0.6, timedelta(hours=1)
        self._add(begin, self._set_search_down, True)
        self._add(begin + hour, self._set_search_down, False)
        for _ in range(self._rng.randint(60, 90)):
            event_id = self._rng.choice(CROWDS[:4]).event_id
            self._add(begin + hour * self._rng.random(), self._send, f"/events/{event_id}/directory/search?q=canary")

    def _add(self, time: datetime, execute: Callable[..., Awaitable[None]], *args: Any) -> None:
        heappush(self._actions, _Action(time, next(self._numbers), partial(execute, *args)))

    def _any_time(self) -> datetime:
        return self._first + (self._last - self._first) * self._rng.triangular(0, 1, 0.7)

    async def _set_search_down(self, down: bool) -> None:
        self.directory.search_is_down = down

    async def _visit(self, event_id: int) -> None:
        """Request the directory of an event, in some cases as its organizer or with an opt-out."""
        headers = {"Sec-GPC": "1"} if self._rng.random() < 0.03 else {}
        if self._rng.random() < 0.08:
            await self._send(f"/organizer/events/{event_id}/signups", headers=headers)
            return
        if self._rng.random() < 0.5:
            await self._send("/events", headers=headers)
        if self._rng.random() < 0.8:
            await self._send(f"/events/{event_id}", headers=headers)
        await self._send(f"/events/{event_id}/directory", headers=headers)
        if self._rng.random() < 0.3:
            query = urlencode({"q": f"canary-name-{self._rng.randint(1, 9)}"})
            await self._send(f"/events/{event_id}/directory/search?{query}", headers=headers)

    async def _sign_up(self, event_id: int, ticked: dict[str, str]) -> None:
        """Sign up by one of the channels, and schedule a later change in some cases."""
        number = next(self._people)
        person = _person(number) | ticked
        match self._rng.choices((SITE, BY_ORGANIZER, IMPORT), weights=(88, 9, 3))[0]:
            case "site":
                await self._send(f"/events/{event_id}/signup", person, number)
            case "organizer":
                await self._send(f"/organizer/events/{event_id}/signups", person)
            case channel:
                await self.directory.sign_up(event_id, person, channel, _browser(number))
        profile = self.directory.rows["profiles"][-1]["id"]
        cookie = {"Cookie": f"profile={profile}"}
        later = self._now + (self._last - self._now) * self._rng.random()
        if self._rng.random() < 0.1:
            self._add(later, self._send, f"/events/{event_id}/consent", {"given": "no"}, number, cookie)
        if self._rng.random() < 0.05:
            hidden = {"profile": str(profile), "visible": "no"}
            self._add(later, self._send, f"/organizer/events/{event_id}/visibility", hidden)
        if self._rng.random() < 0.06:
            self._add(later, self._send, f"/events/{event_id}/cancel", {}, number, cookie)

    async def _send(
        self,
        target: str,
        form: Mapping[str, str] | None = None,
        number: int = ORGANIZER,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request to one of the processes as a web server would: a GET, or the POST of a form."""
        path, _, query = target.partition("?")
        browser = _browser(number)
        sent = {"User-Agent": browser.user_agent} | dict(headers or {})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET" if form is None else "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "client": (browser.ip_address, 0),
            "server": ("127.0.0.1", 80),
        }
        body = {"type": "http.request", "body": urlencode(form).encode() if form else b"", "more_body": False}

        async def receive() -> dict[str, Any]:
            return body

        async def send(_: object) -> None:
            return

        # A web server would log the error.
        with suppress(ConnectionError):
            await self._rng.choice(self._processes)(scope, receive, send)


def _render_nothing(page: str, **_: object) -> str:
    """Stand in for the HTML of a page, which takes as long as all the rest and is read by nobody."""
    return page


def _move_dumps(staging: Path, folder: Path) -> None:
    """Move the dumps of all processes to the folder of the day, replacing those of an earlier attempt."""
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    for process in range(PROCESSES):
        name = hashlib.sha256(f"demo activity of {folder.name}, process {process}".encode()).hexdigest()[:32]
        target = folder / f"{name}.ndjson"
        target.unlink(missing_ok=True)
        for dump in (staging / str(process)).glob("*/*.ndjson"):
            dump.replace(target)


def _usual_signups(crowd: Crowd, day: date) -> float:
    """Expected signups on a working day, weekend day or holiday; 0 in the quiet weeks of a quiet event."""
    if crowd.quiet and day.toordinal() // 7 % 5:
        return 0
    if day.toordinal() % HOLIDAY_CYCLE == HOLIDAY:
        return crowd.usual_signups * 0.05
    return crowd.usual_signups * (0.4 if day.weekday() >= 5 else 1)


def _opening_factor(crowd: Crowd, day: date) -> int:
    """Factor of the usual signups: above 1 on the days after signup has opened."""
    if crowd.opens_on is None:
        return 1
    days_open = (day.toordinal() - crowd.opens_on) % OPENING_CYCLE
    return OPENING_BURST[days_open] if days_open < len(OPENING_BURST) else 1


def _random_number(rng: Random, expected: float) -> int:
    """A random number of independent occurrences (variance = mean)."""
    return max(0, round(rng.gauss(expected, expected**0.5)))


def _person(number: int) -> dict[str, str]:
    """The fields of a sign-up form."""
    return {
        "name": f"canary-name-{number}",
        "email": f"canary-{number}@example.org",
        "phone": f"canary-phone-{number}",
        "bio": f"canary-bio-{number}",
        "dietary_notes": f"canary-diet-{number}",
    }


def _browser(number: int) -> Browser:
    return Browser(f"canary-ip-{number}", f"canary-agent-{number}")
