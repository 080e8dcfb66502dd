"""Compare the cost of counting with that of other libraries: `make bench-telemetry`.

The alternatives of one comparison take turns in one process: a small batch each, for many rounds. So other load on the
machine slows all of them, and the result is the median over the rounds. The time of the bare loop or the bare
application is subtracted. Then each alternative must have counted every call under its key, or the run fails with
status 1. A missed target is printed but does not fail the run, because the machine may be the reason.

Each comparison runs in its own interpreter, because prometheus_client decides on import whether it keeps its numbers in
memory or, as a prefork server needs, in memory-mapped files.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from mmap import mmap
from pathlib import Path
from statistics import median
from threading import Lock
from time import perf_counter_ns, time
from types import ModuleType
from typing import Any, Final

from analytics_assets.telemetry import Telemetry

MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
KEYS: Final = (1, 10, 100, 1000, 2000)
WARM_UP: Final = max(KEYS)
"""Calls of each alternative before the first round, enough to use every key once."""

NOTE: Final = (
    "The peers of the middlewares also time each request, measure its size, and keep histograms; ours only counts.\n"
    "Ours keeps its counts in memory-mapped files, as the peers do in the comparisons called multiprocess.\n"
    "The least that counts is a floor: it checks no value, and never starts a new day or file. As a middleware, it is\n"
    "given its only route, and does not count requests that raise an error. The least that counts what ours does also\n"
    "looks up the route, counts requests that raise an error, and counts once where middlewares are nested.\n"
    "Where a floor is above the target, we know of no way to meet the target in Python."
)


@dataclass(frozen=True)
class Alternative:
    """`run` makes a number of calls that cycle through `keys`; `counted` returns the resulting counts."""

    name: str
    run: Callable[[int], None]
    keys: Sequence[str] = ()
    counted: Callable[[], Counter[str]] = Counter
    is_floor: bool = False
    """Whether it does the least that such a call can do, and is no peer."""


def cycle_calls(call: Callable[[str], object], arguments: Sequence[str]) -> Callable[[int], None]:
    """Return a function that makes a number of calls, cycling through the arguments."""
    endless = cycle(arguments)

    def run(times: int) -> None:
        for argument in islice(endless, times):
            call(argument)

    return run


def read_dumps(folder: Path, *fields: str) -> Counter[str]:
    """Counts in the counter dumps below a folder, by the given fields."""
    total: Counter[str] = Counter()
    for path in folder.glob("*/*.ndjson"):
        for row in map(json.loads, filter(None, path.read_bytes().split(b"\n"))):
            total[" ".join(str(row[name]) for name in fields)] += row["count"]
    return total


def read_peer(metric: str, *labels: str) -> Counter[str]:
    """Counts of a prometheus_client metric, by the given labels."""
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = REGISTRY
    if MULTIPROCESS in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    total: Counter[str] = Counter()
    for sample in (sample for family in registry.collect() for sample in family.samples):
        if sample.name == metric:
            total[" ".join(sample.labels[name] for name in labels)] += int(sample.value)
    return total


def make_floor(file: Path) -> tuple[Callable[..., None], Callable[[], Counter[str]]]:
    """Return a `count` that only takes a lock, reads the clock, looks up the key and stores a byte or the whole number.

    No value is checked, no day ends, no file is full, and no caller is told to count nothing. The second function
    returns what it has counted, by event id and source.
    """
    width = 12
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(width * 4096))
    with file.open("r+b") as opened:
        mapped = mmap(opened.fileno(), 0)
    lock, lines = Lock(), dict[tuple[object, ...], list[int]]()

    def count(event_name: str, *, event_id: str, source: object) -> None:
        key = (event_name, event_id, type(event_id), source)
        with lock:
            time()
            line = lines.get(key)
            if line is None:
                line = lines[key] = [(len(lines) + 1) * width, 0]
            line[1] += 1
            if digit := line[1] % 10:
                mapped[line[0] - 1] = 48 + digit
            else:
                mapped[line[0] - width : line[0]] = b"%12d" % line[1]

    def counted() -> Counter[str]:
        texts = {f"{key[1]} {key[3]}": mapped[end - width : end] for key, (end, _) in lines.items()}
        return Counter({key: int(text.replace(b"\0", b" ")) for key, text in texts.items()})

    return count, counted


def views(folder: Path) -> list[Alternative]:
    """One `count` and one `labels(...).inc()` of prometheus_client, multiprocess; 100 keys."""
    from prometheus_client import Counter as Prometheus

    ids = [str(number) for number in range(100)]
    keys = [f"{event_id} web" for event_id in ids]
    count, labels = Telemetry(folder).count, Prometheus("views", "Views.", ["event_id", "source"]).labels
    ours = cycle_calls(lambda event_id: count("directory_page_viewed", event_id=event_id, source="web"), ids)
    theirs = cycle_calls(lambda event_id: labels(event_id, "web").inc(), ids)
    least, counted = make_floor(folder / "floor")
    floor = cycle_calls(lambda event_id: least("directory_page_viewed", event_id=event_id, source="web"), ids)
    return [
        Alternative("an empty function", cycle_calls(lambda event_id: None, ids)),
        Alternative("count", ours, keys, lambda: read_dumps(folder, "event_id", "source")),
        Alternative("prometheus_client", theirs, keys, lambda: read_peer("views_total", "event_id", "source")),
        Alternative("the least that counts", floor, keys, counted, is_floor=True),
    ]


def responses(folder: Path) -> list[Alternative]:
    """One `count_response` and one `labels(...).inc()` of prometheus_client, multiprocess; 100 keys."""
    from prometheus_client import Counter as Prometheus

    routes = [f"/page{number}/{{event_id}}" for number in range(100)]
    keys = [f"GET {route} 200" for route in routes]
    count, names = Telemetry(folder).count_response, ["method", "route", "status"]
    labels = Prometheus("responses", "Responses.", names).labels
    ours = cycle_calls(lambda route: count("GET", route, 200), routes)
    theirs = cycle_calls(lambda route: labels("GET", route, "200").inc(), routes)
    return [
        Alternative("an empty function", cycle_calls(lambda route: None, routes)),
        Alternative("count_response", ours, keys, lambda: read_dumps(folder, "endpoint", "status_code")),
        Alternative("prometheus_client", theirs, keys, lambda: read_peer("responses_total", *names)),
    ]


def flatness(folder: Path) -> list[Alternative]:
    """One `count` with different numbers of keys, up to the cap."""

    def with_keys(number: int) -> Alternative:
        ids, below = [str(event_id) for event_id in range(number)], folder / str(number)
        count = Telemetry(below).count
        run = cycle_calls(lambda event_id: count("directory_page_viewed", event_id=event_id, source="web"), ids)
        return Alternative(f"{number} keys", run, ids, lambda: read_dumps(below, "event_id"))

    return [Alternative("an empty function", cycle_calls(lambda event_id: None, "1")), *map(with_keys, KEYS)]


def asgi(folder: Path) -> list[Alternative]:
    """A request to a Starlette application with one route, called as a server calls it."""
    from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route
    from starlette_exporter import PrometheusMiddleware

    from analytics_assets.telemetry.asgi import CountResponses
    from analytics_assets.telemetry.responses import COUNTING
    from analytics_assets.telemetry.routes import StarletteRoutes

    async def page(request: Request) -> Response:
        return PlainTextResponse(request.path_params["event_id"])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        pass

    request = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "query_string": b""}
    request |= {"root_path": "", "server": ("localhost", 80), "client": ("127.0.0.1", 50000)}
    request |= {"headers": [(b"host", b"localhost"), (b"user-agent", b"Mozilla/5.0"), (b"accept", b"text/html")]}
    loop = asyncio.new_event_loop()

    def requests(*middleware: Middleware) -> Callable[[int], None]:
        app = Starlette(routes=[Route("/events/{event_id}", page)], middleware=middleware)

        async def answer(times: int) -> None:
            for number in range(times):
                path = f"/events/{number}"
                await app({**request, "path": path, "raw_path": path.encode()}, receive, send)

        return lambda times: loop.run_until_complete(answer(times))

    class LeastMiddleware:
        """Counts the status of one route that it knows, by the least count. It looks for nothing, nor at errors."""

        def __init__(self, app: Any, count: Callable[..., None]) -> None:
            self.app, self.count = app, count

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            def count_and_send(message: Any) -> Any:
                if message["type"] == "http.response.start":
                    self.count("http_response", event_id="GET /events/{event_id}", source=message["status"])
                return send(message)

            await self.app(scope, receive, count_and_send)

    class RightMiddleware:
        """Counts what ours counts, by the least count: by route, once where middlewares are nested, and what fails."""

        def __init__(self, app: Any, count: Callable[..., None]) -> None:
            self.app, self.count, self.route = app, count, StarletteRoutes().template

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or COUNTING in scope:
                await self.app(scope, receive, send)
                return
            method, settled = scope["method"], False

            def count_and_send(message: Any) -> Any:
                nonlocal settled
                if not settled and message["type"] == "http.response.start":
                    settled = True
                    self.count(method, event_id=self.route(scope), source=message["status"])
                return send(message)

            async def receive_and_note_the_end() -> Any:
                nonlocal settled
                message = await receive()
                settled = settled or message["type"] == "http.disconnect"
                return message

            scope[COUNTING] = True
            try:
                await self.app(scope, receive_and_note_the_end, count_and_send)
            except Exception:
                if not settled:
                    self.count(method, event_id=self.route(scope), source=500)
                raise
            finally:
                scope.pop(COUNTING, None)

    template = "/events/{event_id} 200"
    keys = [f"GET {template}"]
    ours = requests(Middleware(CountResponses, telemetry=Telemetry(folder)))
    # Like ours, count by template and full status code.
    instrumentator = requests(Middleware(PrometheusInstrumentatorMiddleware, should_group_status_codes=False))
    exporter = requests(Middleware(PrometheusMiddleware, group_paths=True))
    (least, counted), (right, counted_right) = make_floor(folder / "floor"), make_floor(folder / "right")
    floor, right_floor = (
        requests(Middleware(LeastMiddleware, count=least)),
        requests(Middleware(RightMiddleware, count=right)),
    )
    http, starlette = ("method", "handler", "status"), ("method", "path", "status_code")
    return [
        Alternative("no middleware", requests()),
        Alternative("CountResponses", ours, keys, lambda: read_dumps(folder, "endpoint", "status_code")),
        Alternative("fastapi-instrumentator", instrumentator, keys, lambda: read_peer("http_requests_total", *http)),
        Alternative("starlette-exporter", exporter, keys, lambda: read_peer("starlette_requests_total", *starlette)),
        Alternative("the least that counts", floor, keys, counted, is_floor=True),
        Alternative("the least that counts what ours does", right_floor, [template], counted_right, is_floor=True),
    ]


def django(folder: Path) -> list[Alternative]:
    """A request to a Django project with one route, through its WSGI handler."""
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.test import RequestFactory, override_settings
    from django.urls import path

    from analytics_assets.telemetry.django import count_responses

    def page(request: HttpRequest, event_id: int) -> HttpResponse:
        return HttpResponse(str(event_id))

    modules = {name: ModuleType(name) for name in ("urls", "counting")}
    # django-prometheus counts by route name, ours by route template: a name equal to the template makes them agree.
    vars(modules["urls"])["urlpatterns"] = [path("events/<int:event_id>/", page, name="/events/{event_id}/")]
    vars(modules["counting"])["middleware"] = count_responses(Telemetry(folder))
    sys.modules |= modules
    settings.configure(ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"])
    environ = RequestFactory()._base_environ()

    def requests(*middleware: str) -> Callable[[int], None]:
        with override_settings(MIDDLEWARE=middleware):
            app = WSGIHandler()

        def answer(times: int) -> None:
            for number in range(times):
                app({**environ, "PATH_INFO": f"/events/{number}/"}, lambda *_: None).close()

        return answer

    keys, labels = ["GET /events/{event_id}/ 200"], ("method", "view", "status")
    metric = "django_http_responses_total_by_status_view_method_total"
    ours = requests("counting.middleware")
    theirs = requests(*(f"django_prometheus.middleware.Prometheus{place}Middleware" for place in ("Before", "After")))
    return [
        Alternative("no middleware", requests()),
        Alternative("count_responses", ours, keys, lambda: read_dumps(folder, "endpoint", "status_code")),
        Alternative("django-prometheus", theirs, keys, lambda: read_peer(metric, *labels)),
    ]


@dataclass(frozen=True)
class Comparison:
    """Compares the bare call or application, ours, and the peers, in this order."""

    alternatives: Callable[[Path], list[Alternative]]
    target: float | None
    """The largest share of the leanest peer's cost that ours may have; None without peers."""
    multiprocess: bool = False


COMPARISONS: Final = {
    "views": Comparison(views, 0.3, multiprocess=True),
    "responses": Comparison(responses, 0.3, multiprocess=True),
    "flatness": Comparison(flatness, None),
    "asgi": Comparison(asgi, 0.06),
    "asgi-multiprocess": Comparison(asgi, 0.06, multiprocess=True),
    "django": Comparison(django, 0.1),
    "django-multiprocess": Comparison(django, 0.1, multiprocess=True),
}


def measure(alternatives: Sequence[Alternative], rounds: int, calls: int) -> list[list[float]]:
    """Microseconds per call: a list per alternative with a number per round."""
    for alternative in alternatives:
        alternative.run(WARM_UP)
    times: list[list[float]] = [[] for _ in alternatives]
    for number in range(rounds):
        for place in range(len(alternatives)):
            turn = (number + place) % len(alternatives)  # rotate who goes first
            start = perf_counter_ns()
            alternatives[turn].run(calls)
            times[turn].append((perf_counter_ns() - start) / calls / 1000)
    return times


def verify(alternatives: Sequence[Alternative], calls: int) -> None:
    """Exit with a message unless each alternative has counted all calls under the right keys."""
    for alternative in alternatives:
        expected, counted = Counter(islice(cycle(alternative.keys), calls)), alternative.counted()
        if counted != expected:
            key = next(key for key in expected | counted if expected[key] != counted[key])
            sys.exit(f"{alternative.name}: {counted[key]} counted as {key!r}, {expected[key]} made; no comparison")
    print(f"  each has counted {calls:,} of {calls:,}, under the right keys")


def report(times: Sequence[Sequence[float]], alternatives: Sequence[Alternative], target: float | None) -> None:
    """Print a table and the final ratio. The added time is the median of the differences to the first alternative."""
    added = [median(value - bare for value, bare in zip(values, times[0], strict=True)) for values in times]
    print(f"  {'microseconds, median':<40} {'total':>8} {'added':>8} {'ratio':>8}")
    for alternative, values, value in zip(alternatives, times, added, strict=True):
        print(f"  {alternative.name:<40} {median(values):8.2f} {value:8.2f} {value / added[1]:8.2f}")
    if target is None:
        print(f"  slowest / fastest: {max(added[1:]) / min(added[1:]):.3f}")
    else:
        others = list(zip(alternatives[2:], added[2:], strict=True))
        leanest = min(value for alternative, value in others if not alternative.is_floor)
        ratio = added[1] / leanest
        print(f"  ours / leanest peer: {ratio:.3f}, target {target:.3f}: {'met' if ratio <= target else 'MISSED'}")
        for alternative, value in others:
            if alternative.is_floor:
                beyond = "; above the target" if value / leanest > target else ""
                print(f"  {alternative.name} / leanest peer: {value / leanest:.3f}{beyond}")


def main() -> int:
    """Run one comparison, or each in its own process."""
    parser = argparse.ArgumentParser(description="Compare the cost of counting with other libraries.", epilog=NOTE)
    parser.add_argument("--rounds", type=int, default=1000, help="turns of each alternative (default: 1000)")
    parser.add_argument("--calls", type=int, default=50, help="calls or requests per turn (default: 50)")
    parser.add_argument("--only", choices=COMPARISONS, help="run one comparison only")
    arguments = parser.parse_args()
    if arguments.only is None:
        print(NOTE, flush=True)
        command = [sys.executable, __file__, "--rounds", str(arguments.rounds), "--calls", str(arguments.calls)]
        failed = [subprocess.run([*command, "--only", name], check=False).returncode for name in COMPARISONS]
        return int(any(failed))
    comparison = COMPARISONS[arguments.only]
    print(f"\n{arguments.only}: {comparison.alternatives.__doc__}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop(MULTIPROCESS, None)
        if comparison.multiprocess:
            os.environ[MULTIPROCESS] = folder
        alternatives = comparison.alternatives(Path(folder, "dumps"))
        times = measure(alternatives, arguments.rounds, arguments.calls)
        verify(alternatives, WARM_UP + arguments.rounds * arguments.calls)
        report(times, alternatives, comparison.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
