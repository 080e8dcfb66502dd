"""Two web servers with disks of their own, a storage between, and the pipeline: it stores what the clients sent."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner

from analytics_assets.cli import main
from analytics_assets.operations import Level
from analytics_assets.remote import Entry, RemoteError, RemoteFolder
from analytics_assets.retention.sweep import Report, list_own_targets, preview
from analytics_assets.retention.targets import Amount
from analytics_assets.ship import sum_counts
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import read_window
from analytics_assets_tests.support.pipeline import Pipeline, checks, everything_said, lines_of
from analytics_assets_tests.support.processes import COMMAND, wait_until
from analytics_assets_tests.support.s3 import CuttingProxy, be_away, environment

WEB_SERVER = """
import sys
from analytics_assets.telemetry import Telemetry

clock = [0.0]
telemetry = Telemetry(sys.argv[1], source="web", time_zone=sys.argv[2], clock=lambda: clock[0])
for request in sys.stdin:
    event_id, clock[0] = request.split()[0], float(request.split()[1])
    telemetry.count("directory_page_viewed", event_id=int(event_id))
    telemetry.count_response("GET", "/events/{event_id}", 200)
    print(telemetry.dropped == {}, flush=True)
"""
"""A web server: a request is a line with the event and what its clock says. It answers when it has counted."""

Sent = Counter[tuple[date, str]]


@dataclass
class WebServer:
    """A machine: a web server, and what ships its dumps."""

    disk: Path
    zone: str
    slow: float
    """Seconds that its clock is behind."""
    url: str
    ship_environment: dict[str, str]
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)
    shippers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self) -> None:
        command = [sys.executable, "-c", WEB_SERVER, str(self.disk), self.zone]
        self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def start_to_ship(self) -> None:
        command = [*COMMAND, "ship", self.url, "--from", str(self.disk), "--every", "1", "--time-zone", self.zone]
        env = os.environ | self.ship_environment
        self.shippers.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def request(self, event_id: int, at: datetime, sent: Sent) -> None:
        """A client's request. It has been counted when this returns."""
        process, seconds = self.processes[-1], at.timestamp() - self.slow
        requests, answers = process.stdin, process.stdout
        assert requests
        assert answers
        requests.write(f"{event_id} {seconds}\n")
        requests.flush()
        assert answers.readline() == "True\n"
        sent[datetime.fromtimestamp(seconds, ZoneInfo(self.zone)).date(), str(event_id)] += 1

    def local(self) -> int:
        return sum(sum_counts(path.read_bytes()) for path in self.disk.glob("*/*.ndjson"))

    def stop(self) -> None:
        for shipper in self.shippers:
            shipper.kill()
            shipper.wait()
        for process in self.processes:
            process.kill()
            process.communicate()


@contextmanager
def web_servers(folder: Path, zone: str, url: str, ports: list[int], slow: float) -> Iterator[list[WebServer]]:
    with ExitStack() as stack:
        servers = []
        for number, port in enumerate(ports):
            where = environment(port) | {"AWS_MAX_ATTEMPTS": "1"}
            server = WebServer(folder / f"disk {number}", zone, number * slow, url, where)
            stack.callback(server.stop)
            server.start()
            servers.append(server)
        yield servers


def test_the_pipeline_stores_what_the_clients_of_two_machines_sent(
    pipeline: Pipeline, s3_port: int, s3_url: str, tmp_path: Path
) -> None:
    """The network cuts connections, a clock is 90 s slow around midnight, and everything of a machine is killed."""
    zone = pipeline.settings.time_zone
    yesterday = pipeline.settings.today() - timedelta(days=1)
    midnight = datetime.combine(yesterday, time.min, ZoneInfo(zone))
    sent: Sent = Counter()
    proxy, target = CuttingProxy(s3_port, share=0.3), RemoteFolder(s3_url)
    with proxy.running() as port, web_servers(tmp_path, zone, s3_url, [port, port], 90) as servers:
        for server in servers:
            server.start_to_ship()

        def send(number: int) -> None:
            for count in range(number):
                for server in servers:
                    server.request(7 + count % 3, midnight + timedelta(seconds=count * 240 / number - 60), sent)

        def at_the_target() -> int:
            days = [name for name, entry in target.list().items() if not entry.is_file]
            return sum(sum_counts(target.read(f"{day}/{name}")) for day in days for name in target.list(day))

        send(100)
        wait_until(lambda: at_the_target() > 0)
        # A machine goes down while it ships, and comes up again with its disk.
        send(20)
        servers[0].shippers[-1].kill()
        servers[0].processes[-1].kill()
        before = at_the_target()
        for count in range(30):
            servers[1].request(8, midnight + timedelta(seconds=count), sent)
        servers[0].start()
        servers[0].start_to_ship()
        send(50)
        servers[1].shippers[-1].kill()
        servers[1].start_to_ship()
        wait_until(lambda: at_the_target() == sum(server.local() for server in servers))
        assert at_the_target() > before
        for server in servers:
            server.shippers[-1].terminate()
            server.shippers[-1].wait()
        assert proxy.cut > 0
    assert 2 * sent.total() == sum(server.local() for server in servers)  # a view, and a response
    assert {day for day, _ in sent} == {yesterday, yesterday - timedelta(days=1)}

    there = Pipeline(replace(pipeline.settings, dump_url=s3_url), pipeline.instance)
    result = there.run(["directory_page_views", "endpoint_error_rates"], yesterday - timedelta(days=1), yesterday)
    assert result.success
    for day in (yesterday - timedelta(days=1), yesterday):
        views = {event_id: count for (_, event_id, _), count in there.stored("directory_page_views", day).items()}
        assert views == {event_id: count for (of, event_id), count in sent.items() if of == day}
        assert sum(there.stored("endpoint_error_rates", day).values()) == sum(views.values())
    for asset in ("directory_page_views", "endpoint_error_rates"):
        assert all(check.passed for check in checks(there, result, asset).values())
    assert s3_url not in everything_said(pipeline.instance)


on_servers = pytest.mark.parametrize("url", ["s3", "sftp"], indirect=True)


def kept(store: Store) -> Report:
    (found,) = (target for target in list_own_targets(store) if target.name == "counter dumps")
    return preview([found], read_window(store).first)[0]


@on_servers
def test_retention_looks_there(pipeline: Pipeline, url: str) -> None:
    settings, target = replace(pipeline.settings, dump_url=url), RemoteFolder(url)
    there, today = Pipeline(settings, pipeline.instance), settings.today()
    expired = [today - timedelta(days=settings.retention_days + days) for days in (1, 30)]
    with open_store(settings) as store:
        assert kept(store) == Report("counter dumps")
        for day in (*expired, today):
            for name in ("a" * 32, "b" * 32):
                target.write(f"{day}/{name}.ndjson", b"x")
        target.write("stray", b"of today")
        assert kept(store) == Report("counter dumps", Amount(2, 4), expired[-1])
        assert there.retain().success
        assert list(target.list()) == [str(today), "stray"]
        assert kept(store) == Report("counter dumps", oldest=today)
        (removed,) = there.sql(
            "select sum(days), sum(rows), max(oldest_remaining) from analytics.retention_ledger"
            " where target = 'counter dumps'"
        )
        assert removed == (2, 4, today)
        target.write("canary/x", b"x")
        assert "has a folder that is not a day" in kept(store).problem
        assert not there.retain().success
        away = replace(store, settings=replace(settings, dump_url="sftp://canary@127.0.0.1:9/dumps"))
        assert "canary" not in kept(away).problem
        assert kept(away).problem


@on_servers
def test_status_looks_there(pipeline: Pipeline, url: str) -> None:
    settings, target = replace(pipeline.settings, dump_url=url), RemoteFolder(url)
    today = settings.today()

    def dumps() -> dict[str, tuple[Level, str]]:
        lines = lines_of(settings, pipeline.instance).values()
        return {line.name: (line.level, line.words) for line in lines if line.group == "dumps"}

    assert dumps()["dumps of today"] == (Level.OK, "none yet, and no folder")
    for name in ("a" * 32, "b" * 32):
        target.write(f"{today}/{name}.ndjson", b"x")
    assert dumps()["dumps of today"] == (Level.OK, "2 files")
    assert dumps()["telemetry"][0] is Level.OK
    target.write(f"{today}/{'c' * 32}.drops", f'{{"event_date":"{today}","reason":"refused","count":3}}\n'.encode())
    level, words = dumps()["telemetry"]
    assert level is Level.WARNING
    assert f"{today}: refused" in words
    target.write("canary/x", b"x")
    level, words = dumps()["dumps of today"]
    assert level is Level.RED
    assert "has a folder that is not a day" in words
    assert "canary" not in words


def test_the_commands_look_there(pipeline: Pipeline, s3_url: str, tmp_path: Path) -> None:
    """`sources` parses what is there, `repair-dumps` refuses a URL, and no message has a password."""
    day, env = pipeline.settings.today(), {**pipeline.settings.environment(), "ANALYTICS_DUMP_DIR": s3_url}
    line = f'{{"event_date":"{day}","event_name":"directory_searched","event_id":"7","count":1}}\n'
    RemoteFolder(s3_url).write(f"{day}/{'a' * 32}.ndjson", line.encode())
    assert f"counter dumps: ok (parsed: {day})" in CliRunner(env=env).invoke(main, ["sources"]).output
    RemoteFolder(s3_url).write(f"{day}/{'b' * 32}.ndjson", b"canary")
    said = CliRunner(env=env).invoke(main, ["sources"]).output
    assert f"{day}/{'b' * 32}.ndjson line 1: (row) is not a line of JSON" in said
    refused = CliRunner(env=env).invoke(main, ["repair-dumps"])
    assert (refused.exit_code, "is repaired where it is written" in refused.output) == (1, True)
    env["ANALYTICS_DUMP_DIR"] = "sftp://user:canary@host/dumps"
    for command in ("sources", "repair-dumps", "status"):
        refused = CliRunner(env=env).invoke(main, [command])
        assert "ANALYTICS_DUMP_DIR must not hold a password" in refused.output
        assert "canary" not in refused.output


def test_a_storage_that_is_away_for_a_minute_is_tried_again(
    pipeline: Pipeline, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Pipeline(replace(pipeline.settings, dump_url=s3_url), pipeline.instance)
    yesterday = there.settings.today() - timedelta(days=1)
    line = f'{{"event_date":"{yesterday}","event_name":"directory_searched","event_id":"7","count":3}}\n'
    RemoteFolder(s3_url).write(f"{yesterday}/{'a' * 32}.ndjson", line.encode())
    listed, away = RemoteFolder.list, [True, True]

    def sometimes(self: RemoteFolder, folder: str = "") -> dict[str, Entry]:
        if away and away.pop():
            raise RemoteError("it cannot be reached")
        return listed(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "list", sometimes)
        assert there.run(["directory_searches"], yesterday).success
    assert list(there.stored("directory_searches", yesterday).values()) == [3]
    be_away(monkeypatch)
    assert not there.run(["directory_searches"], yesterday).success
    said = everything_said(pipeline.instance)
    assert "(ANALYTICS_DUMP_DIR) it cannot be reached or used: EndpointConnectionError" in said
    assert "127.0.0.1:9" not in said
    assert list(there.stored("directory_searches", yesterday).values()) == [3]
