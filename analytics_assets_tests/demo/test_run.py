"""The demonstration as a real process: what it shows, what it prints meanwhile, and how it ends."""

import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import pytest
import sqlalchemy as sa

from analytics_assets.contract import METRICS, RETENTION_DAYS, TARGETS
from analytics_assets.defs.evaluation import CHECK_NAMES
from analytics_assets.demo.run import PAGES_TO_SEE
from analytics_assets.local.postgres import embedded_postgres
from analytics_assets.local.server import wait_until_ready
from analytics_assets_tests.support.processes import (
    COMMAND,
    PATIENCE,
    environment,
    free_port,
    left_running,
    running,
)

pytestmark = pytest.mark.long

ALL_PASSED = f"({len(CHECK_NAMES)} passed|{len(CHECK_NAMES) - 1} passed, planted friction found)"


def demo(env: Mapping[str, str], *ports: int) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "demo", "--once", *port_options(*ports)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def port_options(port: int, app_port: int) -> list[str]:
    return ["--port", str(port), "--app-port", str(app_port)]


def test_demo_shows_every_retained_day_green(data_dir: Path) -> None:
    first = demo(environment(data_dir), free_port(), free_port())
    assert first.returncode == 0, first.stdout + first.stderr
    assert "today's clicks appear tomorrow" in first.stdout
    for metric in METRICS:
        assert re.search(rf"{metric.asset} +│ 180 of 180 │ +[1-9][\d,]* │ +[1-9][\d,]* │ {ALL_PASSED}", first.stdout)
    assert (
        "The pipeline's login can read only the source views. No expired day is left. Everything is documented."
        in first.stdout
    )
    assert "planted friction found" in first.stdout, "any 90 days have an outage and signups that open"
    assert "From what is published, no day can be worked out." in first.stdout
    pages = [Path(unquote(path)) for path in re.findall(r"file://(\S+)", first.stdout)]
    assert [str(page.relative_to(data_dir.resolve() / "demo/pages")) for page in pages] == [*PAGES_TO_SEE.values()]
    core = pages[0].read_text(encoding="utf-8")
    assert core.count('<strong class="good">Met</strong>') + core.count(
        '<strong class="bad-text">Not met</strong>'
    ) == (len(TARGETS))
    assert left_running(data_dir) == []
    log = (data_dir / "demo/dagster.log").read_text(encoding="utf-8")
    assert log.count("Submitted run") == 1

    *filled, today = sorted((data_dir / "demo/dumps").iterdir())
    assert len(filled) == RETENTION_DAYS, "what has expired is removed before anything is shown"
    (dump,) = today.iterdir()
    clicks = dump.read_text()
    assert '"endpoint":"GET /broken","status_code":500,"count":            ' in clicks
    assert clicks.count("directory_page_viewed") == 2
    assert "canary" not in clicks


def test_demo_goes_on_where_it_was_left(data_dir: Path) -> None:
    days = 4
    env, ports = environment(data_dir, days), (free_port(), free_port())
    first = demo(env, *ports)
    assert first.returncode == 0, first.stdout + first.stderr
    *filled, today = sorted((data_dir / "demo/dumps").iterdir())
    (dump,) = today.iterdir()
    clicks = dump.read_text()

    second = demo(env, *ports)
    assert second.returncode == 0, second.stdout + second.stderr
    assert _table(second.stdout) == _table(first.stdout)
    log = (data_dir / "demo/demo_app.log").read_text(encoding="utf-8")
    assert "this page fails on purpose" in log
    assert "canary" not in log
    assert "Submitted run" not in (data_dir / "demo/dagster.log").read_text(encoding="utf-8")
    assert dump.read_text() == clicks
    assert len([*today.iterdir()]) == 2, "each run of the application has a dump of its own"

    for number in (signal.SIGINT, signal.SIGTERM):
        with running([*COMMAND, "demo", *port_options(*ports)], env) as open_ended:
            wait_until_ready(open_ended, ports[0])
            wait_until_ready(open_ended, ports[1], path="/events/1/directory")
            open_ended.send_signal(number)
            assert open_ended.wait(timeout=PATIENCE) == (0 if number == signal.SIGINT else 128 + number)
        assert left_running(data_dir) == []

    # Dagster forgets what it has recorded and a dump goes bad: all is collected again, and one metric is not green.
    with embedded_postgres(data_dir / "demo") as server:
        _drop_database(server.render_as_string(hide_password=False), "dagster")
    folder = filled[-1]
    broken = (
        f'{{"event_date":"{folder.name}","event_name":"directory_searched","event_id":"1","count":1,"email":"x"}}\n'
    )
    (folder / f"{'0' * 32}.ndjson").write_text(broken)
    third = demo(env, *ports)
    assert third.returncode == 1
    assert "only_allowlisted_fields_at_source: FAILED" in third.stdout
    assert re.search(rf"directory_searches +│ {days - 1} of {days}", third.stdout)
    assert re.search(rf"directory_page_views +│ {days} of {days} .* {ALL_PASSED}", third.stdout)
    assert "not everything is green" in third.stderr
    assert left_running(data_dir) == []


def _table(text: str) -> list[str]:
    return [line for line in text.splitlines() if "│" in line]


def _drop_database(url: str, name: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"drop database {name}")
    engine.dispose()


def test_without_a_terminal_each_step_is_a_line_at_once(data_dir: Path) -> None:
    command = [*COMMAND, "demo", "--once", *port_options(free_port(), free_port())]
    with subprocess.Popen(command, env=environment(data_dir, 4), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        process.terminate()
        rest = process.stdout.read()
    assert re.fullmatch(r" +\d+ s  PostgreSQL \.\.\.\n", first)
    assert "Stored counts" not in rest, "the line came before the end"
    assert process.returncode == 128 + signal.SIGTERM
    assert left_running(data_dir) == []
