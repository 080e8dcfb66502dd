"""Several workers count what one machine counts, whatever is killed. They share databases, broker and dumps."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable, Sequence
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
from analytics_assets.settings import PAGES_QUEUE, Settings, SettingsError
from analytics_assets.workers import make_worker, run_worker
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.cluster import Cluster
from analytics_assets_tests.support.database import admin_url
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, Pipeline
from analytics_assets_tests.support.processes import PATIENCE, wait_until

pytestmark = pytest.mark.server

MakeOther = Callable[[], Settings]


@pytest.fixture
def other(
    settings: Settings,
    make_analytics_database: Callable[[], sa.URL],
    make_dagster_database: Callable[[], str],
    tmp_path: Path,
) -> Settings:
    """Settings of a second, empty pipeline on the same host and dumps."""
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


def files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_two_workers_store_what_one_machine_stores_and_keep_nothing(
    settings: Settings, other: Settings, host: Host, tmp_path: Path
) -> None:
    today = settings.today()
    days = span(today - timedelta(days=settings.retention_days), today - timedelta(days=1))
    fill(host, settings, days)
    with Cluster.open(settings, tmp_path / "cluster") as cluster:
        cluster.broker.start()
        cluster.backfill(days)
        cluster.start_daemon()
        workers = [cluster.start_worker(name) for name in ("one", "two")]
        wait_until(lambda: cluster.collected(days), seconds=3 * PATIENCE)
        found = cells(cluster.pipeline)
        runs = cluster.runs()
        assert sorted(day for run in runs for day in days_of_run(run.tags)) == days, "every day in one run"
        assert max(len(days_of_run(run.tags)) for run in runs) == CHUNK_DAYS
        assert set(step_starts(cluster).values()) == {1}
        assert all(worker.done for worker in workers)
        assert [files(worker.folder) for worker in workers] == [[], []]
        assert not any("compute_logs" in name for name in files(cluster.settings.data_dir))
    assert found == on_one_machine(other, days)
    assert len(found["collected"]) == len(days) * len(ALL)


def test_a_killed_worker_and_a_killed_broker_cost_a_retry_not_a_number(
    settings: Settings, other: Settings, host: Host, tmp_path: Path
) -> None:
    today = settings.today()
    days = span(today - timedelta(days=8), today - timedelta(days=1))
    fill(host, settings, days)
    engine = sa.create_engine(admin_url(settings))
    with Cluster.open(settings, tmp_path / "cluster") as cluster:
        killed, left = (cluster.start_worker(name, lost_after=20) for name in ("killed", "left"))
        cluster.backfill(days)
        cluster.start_daemon()
        with engine.begin() as connection:
            # Nobody gets further than counting, until both are at work.
            connection.exec_driver_sql("lock table analytics.collected_days in share row exclusive mode")
            cluster.broker.start()  # the last one of all
            wait_until(lambda: killed.given > killed.done and left.given > left.done)
            wait_until(lambda: step_starts(cluster).total() >= 2)
            before = left.given
            for child in psutil.Process(left.process.pid).children():
                child.kill()  # the process of its step
            wait_until(lambda: left.given > before)
            killed.kill()
            cluster.broker.kill()
            cluster.broker.start()
        engine.dispose()
        wait_until(lambda: cluster.collected(days), seconds=3 * PATIENCE)
        assert max(step_starts(cluster).values()) > 1
        assert files(left.folder) == []
        found = cells(cluster.pipeline)
    assert found == on_one_machine(other, days)
    assert len(found["collected"]) == len(days) * len(ALL)


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
