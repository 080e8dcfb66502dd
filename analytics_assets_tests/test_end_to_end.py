"""From requests to stored numbers: real servers whose workers are killed, then the pipeline, against a client's notes.

A server's master starts a new worker for each that dies. A request that gets no answer because its worker is killed at
that moment may or may not have been counted: such kills are a test of their own, with an endpoint of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import requests
import sqlalchemy as sa

from analytics_assets.demo.activity import create_demo_app
from analytics_assets.local.processes import stop
from analytics_assets.local.server import HOST, ROOT
from analytics_assets.settings import Settings
from analytics_assets_tests.support.database import pipeline_settings
from analytics_assets_tests.support.pipeline import ALL, Pipeline, failures
from analytics_assets_tests.support.processes import free_port

PATIENCE = 120
THREADS = 4

ASGI_APP = "analytics_assets_tests.support.served:asgi_app"
UVICORN = ["uvicorn", "--factory", ASGI_APP, "--workers", "2", "--no-access-log"]
GUNICORN = ["gunicorn", "--no-control-socket", "--workers", "3", "--graceful-timeout", "3"]
GUNICORN_ASGI = [*GUNICORN, "--worker-class", "asgi", f"{ASGI_APP}()"]
GUNICORN_WSGI = [*GUNICORN, "analytics_assets_tests.support.served:wsgi_app()"]
SERVERS = {
    "uvicorn": UVICORN,
    "gunicorn asgi": GUNICORN_ASGI,
    "gunicorn asgi preload": [*GUNICORN_ASGI, "--preload"],
    "gunicorn wsgi": GUNICORN_WSGI,
    "gunicorn wsgi threads preload": [*GUNICORN_WSGI, "--worker-class", "gthread", "--threads", "4", "--preload"],
}


class Request(NamedTuple):
    """What the client asks for, and the event that an answer of 200 means."""

    endpoint: str
    path: str
    event: tuple[str, str, str] | None = None
    form: dict[str, str] | None = None


def visits(event_id: int) -> list[Request]:
    return [
        Request("GET /events/{event_id}", f"/events/{event_id}"),
        Request(
            "GET /events/{event_id}/directory",
            f"/events/{event_id}/directory?from=canary",
            ("directory_page_viewed", str(event_id), "web"),
        ),
        Request(
            "GET /events/{event_id}/directory/search",
            f"/events/{event_id}/directory/search?q=canary",
            ("directory_searched", str(event_id), "web"),
        ),
        Request(
            "GET /organizer/events/{event_id}/signups",
            f"/organizer/events/{event_id}/signups",
            ("directory_page_viewed", str(event_id), "admin"),
        ),
    ]


ROUND = [
    *visits(1) * 3,
    *visits(2) * 2,
    *visits(12),
    *visits(99),  # there is no such event
    Request("(unmatched)", "/canary"),
    Request("GET /broken", "/broken"),
]


def signups(numbers: Iterator[int]) -> list[Request]:
    endpoint, path = "POST /events/{event_id}/signup", "/events/3/signup"
    person = {"name": "canary", "email": f"canary-e2e-{next(numbers)}@example.org", "consent": "on", "visible": "on"}
    return [Request(endpoint, path, form=person), Request(endpoint, path, form={"name": "canary"})]


@dataclass
class Client:
    """Somebody who asks a server and writes down what comes back."""

    url: str
    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    events: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)

    def ask(self, asked: Sequence[Request]) -> bool:
        """Send requests, THREADS at a time, each over a connection of its own. Returns False, to be asked again."""
        with ThreadPoolExecutor(THREADS) as pool:
            for request, status_code in zip(asked, pool.map(self._status_code, asked), strict=True):
                if status_code is None:
                    self.unanswered[request.endpoint] += 1
                    continue
                self.responses[request.endpoint, status_code] += 1
                if request.event and status_code == 200:
                    self.events[request.event] += 1
        return False

    def _status_code(self, asked: Request) -> int | None:
        try:
            return requests.request(
                "GET" if asked.form is None else "POST",
                self.url + asked.path,
                data=asked.form,
                headers={"Connection": "close"},
                allow_redirects=False,
                timeout=PATIENCE,
            ).status_code
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            return None


@dataclass
class Server:
    """A server with several workers."""

    process: subprocess.Popen[bytes]
    dump_dir: Path
    killed: list[str] = field(default_factory=list)

    def counting(self) -> dict[psutil.Process, str]:
        """Workers that have counted, each with the dump it writes."""
        found = {}
        for worker in psutil.Process(self.process.pid).children():
            try:
                dumps = [file.path for file in worker.open_files() if file.path.startswith(f"{self.dump_dir}/")]
            except psutil.NoSuchProcess:
                continue
            if dumps:
                found[worker] = dumps[0]
        return found

    def kill_one(self) -> None:
        """Kill a worker that has counted, in a way it cannot notice."""
        worker, dump = next(iter(self.counting().items()))
        worker.kill()
        worker.wait(PATIENCE)
        self.killed.append(dump)


@pytest.fixture
def app_settings(make_database: Callable[[str], sa.URL], tmp_path: Path) -> dict[str, str]:
    """Settings of the application, whose database is set up."""
    url = make_database("demo_app")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        create_demo_app(connection)
    engine.dispose()
    return {
        "DEMO_APP_DATABASE_URL": url.render_as_string(hide_password=False),
        "DEMO_APP_DUMP_DIR": str(tmp_path / "dumps"),
        "DEMO_APP_TIME_ZONE": os.environ["ANALYTICS_TIMEZONE"],
    }


@pytest.fixture
def settings(
    make_analytics_database: Callable[[], sa.URL],
    make_dagster_database: Callable[[], str],
    app_settings: dict[str, str],
    tmp_path: Path,
) -> Settings:
    """Settings of a pipeline that reads the application."""
    reader = sa.make_url(app_settings["DEMO_APP_DATABASE_URL"]).set(username="analytics_source_reader")
    made = pipeline_settings(make_analytics_database(), reader.render_as_string(hide_password=False), tmp_path)
    return replace(made, dagster_url=make_dagster_database())


@contextmanager
def serving(command: Sequence[str], env: dict[str, str], log: Path) -> Iterator[tuple[Server, Client]]:
    """Run a server until the end of the block, then stop it as its operator would."""
    port = free_port()
    bind = ["--host", HOST, "--port", str(port)] if command[0] == "uvicorn" else ["--bind", f"{HOST}:{port}"]
    client = Client(f"http://{HOST}:{port}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, *bind],
            env=os.environ | env,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until(lambda: answers(client.url), log)
        yield Server(process, Path(env["DEMO_APP_DUMP_DIR"])), client
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        stop(process)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/events", headers={"Sec-GPC": "1"}, timeout=PATIENCE).ok  # which is not counted
    except requests.ConnectionError:
        return False


def until(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("name", SERVERS)
def test_stored_counts_are_what_the_client_sent_and_received(
    name: str, app_settings: dict[str, str], settings: Settings, yesterday: date, tmp_path: Path
) -> None:
    numbers = count()
    with_tables = "wsgi" not in name
    log = tmp_path / "server.log"

    def ask_until(condition: Callable[[], bool]) -> None:
        client.ask(ROUND)
        if with_tables:
            client.ask(signups(numbers))
        until(lambda: condition() or client.ask(ROUND), log)

    with serving(SERVERS[name], app_settings, log) as (server, client):
        ask_until(lambda: len(server.counting()) >= 2)
        for _ in range(2):
            server.kill_one()
            survivors = set(server.counting())
            # They alone answer until the master has started another one; until that has counted, too.
            ask_until(lambda survivors=survivors: bool(set(server.counting()) - survivors))  # type: ignore[misc]
        dumps = {str(path) for path in server.dump_dir.glob("*/*")}
        assert {*server.killed, *server.counting().values()} <= dumps
        assert len(dumps) >= 4

    assert not client.unanswered
    with Pipeline.open(settings) as pipeline:
        stored = collect(pipeline, yesterday)
    assert stored.responses == client.responses
    assert stored.events == client.events
    assert stored.error_rates == error_rates(client.responses)
    signed_up = client.responses["POST /events/{event_id}/signup", 303]
    assert stored.from_tables == (
        {"event_signup": signed_up, "profile_visibility_toggled": signed_up, "consent_turned_on": signed_up}
        if with_tables
        else {}
    )
    assert signed_up == (3 if with_tables else 0)
    assert all("canary" not in dump.read_text() for dump in (tmp_path / "dumps").glob("*/*"))


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn asgi preload", "gunicorn wsgi"])
def test_a_kill_under_load_costs_at_most_what_was_not_answered(
    name: str, app_settings: dict[str, str], settings: Settings, yesterday: date, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    kills = 3
    with serving(SERVERS[name], app_settings, log) as (server, client):
        for _ in range(kills):
            until(lambda: len(server.counting()) >= 2 or client.ask(ROUND), log)
            goal = client.responses["GET /events", 200] + 50
            with ThreadPoolExecutor(1) as background:
                load = background.submit(client.ask, [Request("GET /events", "/events")] * 400)
                until(lambda goal=goal: client.responses["GET /events", 200] >= goal, log)  # type: ignore[misc]
                server.kill_one()
                load.result()
        client.ask(ROUND)

    assert set(client.unanswered) <= {"GET /events"}
    assert client.unanswered.total() <= kills * THREADS
    with Pipeline.open(settings) as pipeline:
        stored = collect(pipeline, yesterday)
    answered = client.responses.pop(("GET /events", 200))
    assert answered <= stored.responses.pop(("GET /events", 200)) <= answered + client.unanswered.total()
    assert stored.responses == client.responses
    assert stored.events == client.events
    assert stored.error_rates.pop("GET /events") == 0
    assert stored.error_rates == error_rates(client.responses)


class Stored(NamedTuple):
    """What the analytics database has of a day."""

    responses: Counter[tuple[Any, ...]]
    events: Counter[tuple[Any, ...]]
    from_tables: dict[str, int]
    error_rates: dict[str, Fraction]


def collect(pipeline: Pipeline, day: date) -> Stored:
    """Materialize the day and read it back."""
    result = pipeline.run(ALL, day)
    assert result.success, failures(result)
    rates = pipeline.sql(
        "select distinct endpoint, error_rate from analytics.daily_error_rates where event_date = :day", day=day
    )
    in_tables = [
        key_and_count
        for asset in ("event_signups", "profile_visibility_toggles", "consent_changes")
        for key_and_count in pipeline.stored(asset, day).items()
    ]
    assert {key[1:] for key, _ in in_tables} <= {("3", "web")}
    return Stored(
        responses=Counter(pipeline.stored("endpoint_error_rates", day)),
        events=Counter(pipeline.stored("directory_page_views", day) | pipeline.stored("directory_searches", day)),
        from_tables={key[0]: total for key, total in in_tables},
        error_rates={endpoint: Fraction(rate).limit_denominator(100_000) for endpoint, rate in rates},
    )


def error_rates(responses: Counter[tuple[str, int]]) -> dict[str, Fraction]:
    """The share of responses from 400 up of each endpoint."""
    rates = {}
    for endpoint in {endpoint for endpoint, _ in responses}:
        of_endpoint = {status: total for (name, status), total in responses.items() if name == endpoint}
        errors = sum(total for status, total in of_endpoint.items() if status >= 400)
        rates[endpoint] = Fraction(errors, sum(of_endpoint.values()))
    return rates
