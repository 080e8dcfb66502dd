"""`up` as a real process: what it shows, how it ends, and that nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import psutil
import pytest
import requests
import sqlalchemy as sa

from analytics_assets.contract import METRICS
from analytics_assets.demo.run import run
from analytics_assets.demo.webserver import Webserver
from analytics_assets.local.processes import ServerError, stop
from analytics_assets.local.server import alone, dagster_dev, dagster_home, dagster_instance, wait_until_ready
from analytics_assets.settings import Settings
from analytics_assets_tests.support.database import admin_url
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.processes import (
    COMMAND,
    PATIENCE,
    environment,
    free_port,
    left_running,
    running,
    wait_until,
)


def shown_assets(port: int) -> set[str]:
    query = "{ assetNodes { assetKey { path } } }"
    answer = requests.post(f"http://127.0.0.1:{port}/graphql", json={"query": query}, timeout=60).json()
    return {node["assetKey"]["path"][-1] for node in answer["data"]["assetNodes"]}


IN_A_FINALIZER = """
import os, signal, time
from analytics_assets.local.server import exit_on_sigterm

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(30)  # the signal ends it
        print("not interrupted")

exit_on_sigterm()
try:
    Finalized()
    time.sleep(60)
    print("went on")
finally:
    print("cleaned up")
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", -signal.SIGINT)])
def test_a_signal_that_arrives_inside_a_finalizer_is_not_lost(name: str, code: int) -> None:
    # Python ignores what is raised there; a demonstration once ran on after SIGTERM for that reason.
    command = [sys.executable, "-c", IN_A_FINALIZER.format(name=name)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout == "cleaned up\n"
    assert ended.returncode == code


ODD_MACHINE = {"LC_ALL": "xx_YY.UTF-8", "PGPORT": "1", "http_proxy": "http://127.0.0.1:9"}
"""A locale that does not exist, a port of another PostgreSQL, and a proxy where nobody listens."""
SHORT, TOO_LONG_FOR_A_SOCKET = "t", "temporary" * 12


@pytest.mark.parametrize(
    ("number", "folder", "machine", "temporary"),
    [(signal.SIGINT, "data", {}, SHORT), (signal.SIGTERM, "a b&c", ODD_MACHINE, TOO_LONG_FOR_A_SOCKET)],
)
def test_up_serves_the_assets_and_leaves_nothing_behind(
    data_dir: Path, number: signal.Signals, folder: str, machine: dict[str, str], temporary: str
) -> None:
    port = free_port()
    (data_dir / temporary).mkdir()
    env = environment(data_dir / folder) | machine | {"TMPDIR": str(data_dir / temporary)}
    with running([*COMMAND, "up", "--port", str(port)], env) as process:
        wait_until_ready(process, port)
        assert {metric.asset for metric in METRICS} < shown_assets(port)
        process.send_signal(number)
        process.wait(timeout=PATIENCE)
        assert left_running(data_dir / folder) == []
    assert list((data_dir / temporary).iterdir()) == []
    assert not (data_dir / folder / "postgres/postmaster.pid").exists()


def test_up_fails_when_its_daemon_is_killed(data_dir: Path) -> None:
    port = free_port()
    with running([*COMMAND, "up", "--port", str(port)], environment(data_dir)) as process:
        wait_until_ready(process, port)
        second = subprocess.run(
            [*COMMAND, "up", "--port", str(free_port())],
            env=environment(data_dir),
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert "another `up` or `demo` is running on this data folder" in second.stderr
        assert process.poll() is None
        for member in psutil.Process(process.pid).children(recursive=True):
            if "dagster._daemon" in " ".join(member.cmdline()):
                member.kill()
        assert process.wait(timeout=PATIENCE) == 1
    assert left_running(data_dir) == []


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
generation = int(sys.argv[1])
if generation < 2:
    subprocess.Popen([sys.executable, __file__, str(generation + 1)])
if generation == 1:
    sys.exit()  # its child loses its parent, and is still of the same session
print("ready", flush=True)
time.sleep(600)
"""


def test_what_does_not_leave_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    program = tmp_path / "stubborn.py"
    program.write_text(STUBBORN)
    command = [sys.executable, str(program), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        assert len(left_running(tmp_path)) == 2
        stop(process)
    assert left_running(tmp_path) == []


STARTED = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])


def test_runs_whose_processes_were_killed_give_their_places_back(
    settings: Settings, host: Host, yesterday: date, make_server_folder: Callable[[], Path]
) -> None:
    """And a backfill never holds up other runs, and what runs when `up` is stopped is canceled."""
    host.occur("signups", moments(yesterday, settings.time_zone, 3))
    port, sockets = free_port(), make_server_folder()
    env = environment(settings.data_dir) | settings.environment() | {"TMPDIR": str(sockets)}
    webserver = Webserver(f"http://127.0.0.1:{port}")
    command = [*COMMAND, "up", "--port", str(port)]
    with dagster_instance(settings) as instance:

        def statuses() -> list[str]:
            return sorted(run.status.value for run in instance.get_runs())

        def has_its_processes(run: dg.DagsterRun) -> bool:
            return bool(instance.all_logs(run.run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED))

        with running(command, env) as process:
            wait_until_ready(process, port)
            with locked(host.url, "signups"), locked(sa.make_url(admin_url(settings)), "analytics.publications"):
                for day in (yesterday, yesterday - timedelta(days=1)):
                    webserver.launch_backfill(["event_signups"], [day])
                wait_until(lambda: statuses() == ["QUEUED", "STARTED"])
                webserver.launch_run(["published_counts"], [])
                wait_until(lambda: statuses() == ["QUEUED", "STARTED", "STARTED"])
                # A run that has only just started is about to start processes of its own.
                wait_until(lambda: all(map(has_its_processes, instance.get_runs(STARTED))))
                for member in psutil.Process(process.pid).children(recursive=True):
                    member.kill()
                process.kill()
                process.wait()
            assert statuses() == ["QUEUED", "STARTED", "STARTED"]

        with running(command, env) as process:
            wait_until_ready(process, port)
            wait_until(lambda: statuses() == ["FAILURE", "FAILURE", "SUCCESS"])
            with locked(sa.make_url(admin_url(settings)), "analytics.publications"):
                stopped = webserver.launch_run(["published_counts"], [])
                wait_until(lambda: statuses().count("STARTED") == 1)
                process.send_signal(signal.SIGINT)
                process.wait(timeout=PATIENCE)
            assert left_running(settings.data_dir) == []
            canceled = instance.get_run_by_id(stopped)
            assert canceled
            assert canceled.status == dg.DagsterRunStatus.CANCELED
        assert len(list(sockets.iterdir())) == 1, "that of the killed `up`"


@contextmanager
def locked(database: sa.URL, table: str) -> Iterator[None]:
    """Let everybody wait who reads or writes a table."""
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"lock table {table} in access exclusive mode")
        yield
    engine.dispose()


def test_plain_dagster_dev_works_when_the_urls_are_set(
    settings: Settings, make_database: Callable[[str], sa.URL]
) -> None:
    port = free_port()
    dagster_url = make_database("dagster").render_as_string(hide_password=False)
    urls = settings.environment() | {"DAGSTER_POSTGRES_URL": dagster_url}
    env = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"} | urls
    command = [sys.executable, "-m", "dagster", "dev", "--port", str(port)]
    with running(command, env) as process:
        wait_until_ready(process, port)
        assert {metric.asset for metric in METRICS} < shown_assets(port)


def test_a_taken_port_is_refused_with_the_way_out(tmp_path: Path) -> None:
    settings = Settings.from_env({"ANALYTICS_DATA_DIR": str(tmp_path)})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(ServerError, match="choose another with --port"),
            dagster_dev(settings, taken.getsockname()[1]),
        ):
            pass
        with pytest.raises(ServerError, match="choose another with --app-port"):
            run(settings, free_port(), taken.getsockname()[1], once=True)
        assert list(tmp_path.iterdir()) == []


def test_a_second_demonstration_in_a_data_folder_is_refused(tmp_path: Path) -> None:
    settings = Settings.from_env({"ANALYTICS_DATA_DIR": str(tmp_path)})
    with (
        alone(replace(settings, data_dir=tmp_path / "demo")),
        pytest.raises(ServerError, match="stop it, or name another folder in ANALYTICS_DATA_DIR"),
    ):
        run(settings, free_port(), free_port(), once=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "dagster"]


def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings.from_env({"ANALYTICS_DATA_DIR": str(tmp_path / "file")})
    with pytest.raises(ServerError, match=r"the data folder \(ANALYTICS_DATA_DIR\) cannot be used"), alone(settings):
        pass


def test_a_dagster_yaml_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "dagster" / "dagster.yaml"
    own.parent.mkdir()
    own.write_text("telemetry: {enabled: false}")
    settings = Settings.from_env({"ANALYTICS_DATA_DIR": str(tmp_path)})
    with pytest.raises(ServerError, match=r"dagster\.yaml .* is not the project's: move it away"):
        dagster_home(settings)
    assert own.read_text() == "telemetry: {enabled: false}"
