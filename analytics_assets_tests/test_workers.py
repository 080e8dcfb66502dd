"""Several workers count what one machine counts, whatever is killed. They share databases, broker and dumps."""

from __future__ import annotations

import secrets
import ssl
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import sqlalchemy as sa

from analytics_assets.days import span
from analytics_assets.defs.checks import SAY_ONLY_WHAT_IS_PUBLISHED
from analytics_assets.defs.jobs import daily_metrics_job, retention_job
from analytics_assets.defs.pages import CORE, PUBLISHED
from analytics_assets.defs.partitions import CHUNK_DAYS, chunks
from analytics_assets.operations.runs import days_of_run
from analytics_assets.remote import RemoteFolder
from analytics_assets.settings import PAGES_QUEUE, Settings, SettingsError
from analytics_assets.ship import Fate, Shipper
from analytics_assets.workers import make_worker, run_worker
from analytics_assets_tests.support import namespaces, s3
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.cluster import Cluster
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.namespaces import Network
from analytics_assets_tests.support.pipeline import ALL, Pipeline
from analytics_assets_tests.support.pooler import Pooler
from analytics_assets_tests.support.pooler import pooler as open_pooler
from analytics_assets_tests.support.processes import LOOPBACK, PATIENCE, wait_until

pytestmark = [pytest.mark.server, pytest.mark.long]

MakeOther = Callable[[], Settings]


MACHINES = ("one", "two")
LONG = 8 * PATIENCE
"""Seconds for what a dozen processes do, each of which needs several seconds of a core to start."""


@pytest.fixture(scope="module", params=[namespaces.kind()])
def network() -> Iterator[Network]:
    """The machines of the workers."""
    with namespaces.namespaces(*MACHINES) if namespaces.available() else nullcontext(Network()) as opened:
        yield opened


@pytest.fixture(scope="module")
def pooler(server: sa.URL, network: Network) -> Iterator[Pooler]:
    """The address of PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"pool_mode": "session", "default_pool_size": 80, "max_client_conn": 300}
        with open_pooler(server, Path(folder), options, network.address) as opened:
            yield opened


@pytest.fixture(scope="module")
def storage(network: Network) -> Iterator[s3.Server]:
    """The storage of the dumps."""
    with s3.s3_server(network.address) as started:
        yield started


@pytest.fixture
def shared(
    settings: Settings, pooler: Pooler, storage: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """The settings of a pipeline whose databases and dumps every machine reaches."""
    for name, value in s3.environment(storage.port, storage.address).items():
        monkeypatch.setenv(name, value)
    s3.forget_sessions()
    bucket = secrets.token_hex()[:63]
    s3.make_bucket(storage.port, bucket, storage.address)
    return replace(
        settings,
        database_url=pooler.url(settings.database_url),
        source_url=pooler.url(settings.source_url),
        dagster_url=pooler.url(settings.dagster_url),
        dump_url=f"s3://{bucket}/dumps",
    )


@pytest.fixture
def cluster(shared: Settings, network: Network, tmp_path: Path) -> Iterator[Cluster]:
    """A main machine. Nothing has been started yet."""
    with Cluster.open(shared, network, tmp_path / "cluster") as opened:
        yield opened


@pytest.fixture
def other(
    settings: Settings,
    make_analytics_database: Callable[[], sa.URL],
    make_dagster_database: Callable[[], str],
    tmp_path: Path,
) -> Settings:
    """Settings of a second, empty pipeline on the same host and the folder that the dumps were shipped from."""
    url = make_analytics_database().set(username="analytics_writer").render_as_string(hide_password=False)
    return replace(settings, database_url=url, dagster_url=make_dagster_database(), data_dir=tmp_path / "single")


def cells(pipeline: Pipeline) -> dict[str, list[Any]]:
    """Every stored count, every collected day, and what Dagster has of the days."""
    found: dict[str, list[Any]] = {
        table: pipeline.sql(f"select * from analytics.{table} order by {order}")  # noqa: S608  # our own names
        for table, order in {
            "daily_event_counts": "event_date, event_name, event_id, source",
            "daily_response_counts": "event_date, endpoint, status_code",
        }.items()
    }
    found["collected"] = pipeline.sql('select asset, event_date, "rows" from analytics.collected_days order by 1, 2')
    return found | {asset: sorted(pipeline.materialized(asset)) for asset in ALL}


def on_one_machine(other: Settings, days: Sequence[date]) -> dict[str, list[Any]]:
    """The cells when one process collects the days."""
    with Pipeline.open(other) as single:
        assert single.run(ALL, days[0], days[-1]).success
        return cells(single)


def step_starts(cluster: Cluster) -> Counter[tuple[str, str | None]]:
    """How often each step of each run was started."""
    instance = cluster.pipeline.instance
    return Counter(
        (run.run_id, entry.step_key)
        for run in cluster.runs()
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
    )


def fill_and_ship(host: Host, settings: Settings, days: Sequence[date]) -> None:
    """Let people use the application, and ship the dumps that this makes."""
    fill(host, settings, days)
    # Otherwise days that expire tomorrow are not shipped.
    shipper = Shipper(settings.dump_dir, RemoteFolder(str(settings.dump_url)), settings.retention_days + 2)
    shipped = shipper.ship(settings.today())
    assert (shipped.problems, dict(shipped.fates)) == ([], {Fate.SHIPPED: len(days)})


REACH = """
import socket, sys
for place in sys.argv[1:]:
    try:
        socket.create_connection(place.split(" ")).close()
        print(place)
    except OSError:
        pass
"""
LISTEN = (
    "import socket, sys; s = socket.create_server((sys.argv[1], 0)); print(s.getsockname()[1], flush=True); input()"
)


def test_a_machine_of_a_worker_reaches_what_is_shared_and_nothing_else(
    network: Network, pooler: Pooler, storage: s3.Server
) -> None:
    def listening(address: str, *enter: str) -> subprocess.Popen[str]:
        command = [*enter, sys.executable, "-c", LISTEN, address]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    shared = [f"{network.address} {port}" for port in (pooler.port, storage.port)]
    neighbour = network.address_of("two")
    with listening(LOOPBACK) as here, listening(neighbour, *network.enter("two")) as there:
        assert here.stdout
        assert there.stdout
        others = [f"{LOOPBACK} {here.stdout.readline().strip()}", f"{neighbour} {there.stdout.readline().strip()}"]
        command = [*network.enter("one"), sys.executable, "-c", REACH, *shared, *others]
        reached = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        here.communicate("\n")
        there.communicate("\n")
    assert reached == (shared if network.machines else shared + others)


def test_two_workers_store_what_one_machine_stores_and_keep_nothing(
    cluster: Cluster, other: Settings, storage: s3.Server, host: Host
) -> None:
    today = cluster.settings.today()
    days = span(today - timedelta(days=cluster.settings.retention_days), today - timedelta(days=1))
    fill_and_ship(host, cluster.settings, days)
    cluster.broker.start()
    cluster.backfill(days)
    cluster.start_daemon()
    workers = [cluster.start_worker(machine) for machine in MACHINES]
    with storage.frozen():
        # No worker gets further than reading dumps until the other one has started.
        expected = on_one_machine(other, days)
        wait_until(lambda: all(worker.given for worker in workers), seconds=LONG)
    wait_until(lambda: cluster.collected(days), seconds=LONG, pause=1)
    assert cells(cluster.pipeline) == expected
    assert len(expected["collected"]) == len(days) * len(ALL)
    runs = cluster.runs()
    assert sorted(day for run in runs for day in days_of_run(run.tags)) == days, "every day in one run"
    assert max(len(days_of_run(run.tags)) for run in runs) == CHUNK_DAYS
    assert set(step_starts(cluster).values()) == {1}
    assert all(worker.done for worker in workers)
    assert [worker.kept for worker in workers] == [[], []]
    assert not list(cluster.settings.data_dir.rglob("*compute_logs*"))


def test_a_killed_worker_and_a_killed_broker_cost_a_retry_not_a_number(
    cluster: Cluster, other: Settings, storage: s3.Server, host: Host
) -> None:
    today = cluster.settings.today()
    days = span(today - timedelta(days=8), today - timedelta(days=1))
    fill_and_ship(host, cluster.settings, days)
    killed, left = (cluster.start_worker(machine, lost_after=10) for machine in MACHINES)
    cluster.backfill(days)
    cluster.start_daemon()
    with storage.frozen():
        # Nobody gets further than reading dumps.
        cluster.broker.start()  # the last one of all
        expected = on_one_machine(other, days)
        wait_until(lambda: bool(killed.copies and left.copies), seconds=LONG)
        before = left.given
        for child in psutil.Process(left.process.pid).children():
            child.kill()  # the process of its step
        wait_until(lambda: left.given > before)
        killed.kill()
        cluster.broker.kill()
        cluster.broker.start()
    assert killed.copies, "this is what has to go"
    again = cluster.start_worker(MACHINES[0], lost_after=10)
    wait_until(lambda: cluster.collected(days), seconds=LONG, pause=1)
    assert cells(cluster.pipeline) == expected
    assert len(expected["collected"]) == len(days) * len(ALL)
    assert max(step_starts(cluster).values()) > 1
    wait_until(lambda: again.kept == left.kept == [])


def test_a_backfill_is_one_run_on_one_machine_and_several_with_workers(settings: Settings) -> None:
    assert chunks(settings) == dg.BackfillPolicy.single_run()
    for executor in ("runs", "redis://broker"):
        assert chunks(replace(settings, executor=executor)) == dg.BackfillPolicy.multi_run(CHUNK_DAYS)


def test_retention_stays_on_the_machine_that_has_the_files(settings: Settings) -> None:
    definitions = Pipeline(replace(settings, executor="redis://broker"), dg.DagsterInstance.ephemeral()).definitions()
    assert definitions.resolve_job_def(retention_job.name).executor_def is dg.in_process_executor
    assert definitions.resolve_implicit_global_asset_job_def().executor_def.name == "celery"


def test_only_steps_about_pages_wait_for_the_machine_that_has_them(settings: Settings) -> None:
    definitions = Pipeline(settings, dg.DagsterInstance.ephemeral()).definitions()
    nodes = definitions.resolve_job_def(daily_metrics_job.name).graph.nodes
    queued = {node.name for node in nodes if node.definition.tags.get("dagster-celery/queue") == PAGES_QUEUE}
    assert queued == {CORE, PUBLISHED, f"{PUBLISHED}_{SAY_ONLY_WHAT_IS_PUBLISHED}"}


@pytest.mark.parametrize("missing", ["executor", "database_url", "dagster_url"])
def test_a_worker_without_what_is_shared_is_refused(settings: Settings, missing: str) -> None:
    names = {
        "executor": "ANALYTICS_EXECUTOR",
        "database_url": "ANALYTICS_DATABASE_URL",
        "dagster_url": "DAGSTER_POSTGRES_URL",
    }
    changed = {"executor": "runs"} if missing == "executor" else {"executor": "redis://broker", missing: None}
    lacking = replace(settings, **changed)
    with pytest.raises(SettingsError, match=f"^{names[missing]} is not set"):
        run_worker(lacking)


def test_a_worker_with_a_dump_folder_of_its_own_is_refused(settings: Settings) -> None:
    own = replace(settings, executor="redis://broker", dump_dir=settings.data_dir / "dumps")
    with pytest.raises(SettingsError, match=r"^ANALYTICS_DUMP_DIR is not set"):
        run_worker(own)


@pytest.mark.parametrize(
    ("url", "verified"),
    [("rediss://broker:6380/0", True), ("rediss://broker:6380/0?ssl_cert_reqs=none", False), ("redis://broker", False)],
)
def test_certificates_of_a_broker_with_tls_are_verified(url: str, verified: bool) -> None:
    parameters = make_worker(url).backend.connparams
    assert (parameters.get("ssl_cert_reqs") is ssl.CERT_REQUIRED) == verified
