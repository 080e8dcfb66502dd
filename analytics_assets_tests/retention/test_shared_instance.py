"""Dagster's storage with other code locations in it: their records and files are theirs, however old they are."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.contract import ABOUT
from analytics_assets.database import NotStartedError
from analytics_assets.defs.checks import NO_EXPIRED_DAYS
from analytics_assets.defs.evaluation import DOCUMENTED, as_event, make_result
from analytics_assets.defs.jobs import retention_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets.retention.dagster_records import CheckEvaluations, PartitionRecords, Records, open_dagster_storage
from analytics_assets.retention.sweep import MANUAL, Report, apply_retention
from analytics_assets.settings import Settings
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import as_superuser
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, LEDGER, Pipeline, run_check
from analytics_assets_tests.support.retention import dagster

MONTHS = dg.MonthlyPartitionsDefinition(start_date="2020-01-01")
TABLES = (
    "runs",
    "run_tags",
    "event_logs",
    "asset_keys",
    "asset_event_tags",
    "asset_check_executions",
    "bulk_actions",
    "backfill_tags",
    "job_ticks",
    "asset_daemon_asset_evaluations",
)


@dg.asset(partitions_def=MONTHS, check_specs=[dg.AssetCheckSpec("whole", asset="invoices")])
def invoices() -> Iterator[Any]:
    """Somebody else's asset: its months have keys like days, and the default IO manager pickles it."""
    yield dg.AssetCheckResult(passed=True, check_name="whole", description="of 2019-12-31", metadata={"a": 1})
    yield dg.Output([1, 2, 3], tags={"dagster/x": "y"})


@dg.op
def number() -> int:
    return 7


@dg.op
def show(context: dg.OpExecutionContext, number: int) -> None:
    context.log.info(f"{number}")


@dg.job(name=retention_job.name)
def of_the_same_name() -> None:
    """Somebody else's job, which happens to be called like ours."""
    show(number())


@pytest.fixture
def shared(pipeline: Pipeline) -> Pipeline:
    return replace(pipeline, settings=replace(pipeline.settings, owns_dagster=False))


def leave_records(instance: dg.DagsterInstance) -> None:
    """What another code location writes: runs, partitions, checks, pickles, logs, backfills, ticks."""
    pickling = {"io_manager": dg.FilesystemIOManager()}
    other = dg.Definitions(assets=[invoices], jobs=[of_the_same_name], resources=pickling)
    job = other.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance, partition_key="2020-02-01").success
    assert other.resolve_job_def(retention_job.name).execute_in_process(instance=instance).success
    storage = Path(instance.storage_directory())
    assert (storage / "invoices" / "2020-02-01").is_file()
    runs = instance.get_runs()
    assert (storage / runs[0].run_id / "number" / "result").is_file()
    for run in runs:
        log = storage / run.run_id / "compute_logs" / "x.out"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("theirs")
    (storage / "exports").mkdir()
    (storage / "exports" / "2020-02-01").write_text("theirs")


def add_bookkeeping(pipeline: Pipeline) -> None:
    """A backfill, a tick and an evaluation of theirs, as rows: a daemon would write them."""
    dagster(
        pipeline,
        "insert into bulk_actions (key, status, timestamp, body)"
        """ values ('theirs', 'COMPLETED', now(), '{"asset_selection": [{"path": ["invoices"]}]}')""",
    )
    dagster(pipeline, "insert into backfill_tags (backfill_id, key, value) values ('theirs', 'x', 'x')")
    dagster(
        pipeline,
        "insert into jobs (job_origin_id, selector_id, status, job_type, job_body)"
        """ values ('theirs', 'theirs', 'RUNNING', 'SENSOR', '{"location_name": "others", "n": "retention_sensor"}')""",
    )
    dagster(
        pipeline,
        "insert into job_ticks (selector_id, status, timestamp, tick_body)"
        """ values ('theirs', 'SKIPPED', now(), '{"instigator_name": "retention_sensor"}')""",
    )
    dagster(
        pipeline,
        "insert into asset_daemon_asset_evaluations (evaluation_id, asset_key) values (1, '[\"invoices\"]')",
    )
    leave_orphan(pipeline, "invoices")


def leave_orphan(pipeline: Pipeline, step: str) -> None:
    """Write an event as a step does whose run was removed meanwhile."""
    dagster(
        pipeline,
        "insert into event_logs (run_id, event, timestamp, step_key) values ('gone', '{}', now(), :step)",
        step=step,
    )


def age(pipeline: Pipeline) -> None:
    """Make everything two years old, as if time had passed."""
    for table, columns in {
        "runs": ("create_timestamp",),
        "event_logs": ("timestamp",),
        "asset_check_executions": ("create_timestamp",),
        "bulk_actions": ("timestamp",),
        "job_ticks": ("timestamp",),
        "asset_daemon_asset_evaluations": ("create_timestamp",),
    }.items():
        for column in columns:
            dagster(pipeline, f"update {table} set {column} = {column} - interval '730 days'")  # noqa: S608  # constants
    long_ago = (datetime.now(UTC) - timedelta(days=730)).timestamp()
    for path in Path(pipeline.instance.storage_directory()).rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago,) * 2)


def state(pipeline: Pipeline) -> tuple[dict[str, list[Any]], list[Path]]:
    """Everything of theirs: rows and files."""
    rows = {table: sorted(map(str, dagster(pipeline, f"table {table}"))) for table in TABLES}
    return rows, sorted(path for path in Path(pipeline.instance.storage_directory()).rglob("*"))


def sweep(pipeline: Pipeline) -> dict[str, Report]:
    _, reports = apply_retention(pipeline.settings, pipeline.instance, MANUAL)
    assert not [report for report in reports if report.problem]
    return {report.target: report for report in reports}


def test_what_others_keep_in_the_same_storage_is_not_touched(shared: Pipeline) -> None:
    leave_records(shared.instance)
    add_bookkeeping(shared)
    age(shared)
    before = state(shared)
    assert all(rows for table, rows in before[0].items() if table not in {"run_tags", "asset_event_tags"})
    reports = sweep(shared)
    assert state(shared) == before
    assert {name: report.expired.rows for name, report in reports.items() if report.expired.rows} == {}
    assert {report.oldest for report in reports.values()} == {None}, "nor is it a red check"


def test_ours_go_and_theirs_stay(shared: Pipeline, host: Host, yesterday: date) -> None:
    leave_records(shared.instance)
    add_bookkeeping(shared)
    theirs = state(shared)
    fill(host, shared.settings, [yesterday])
    assert shared.run(ALL, yesterday).success
    assert shared.retain().success
    run = shared.instance.get_runs()[0]
    log = Path(shared.instance.storage_directory()) / run.run_id / "compute_logs" / "ours.out"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("x")
    # As the daemon launches it, with the module that was loaded, and no asset of ours in it.
    dagster(
        shared,
        """update runs set run_body = replace(run_body, '"pipeline_code_origin": null',
           '"pipeline_code_origin": {"code_pointer": {"module": "analytics_assets.definitions"}}')
           where run_id = :id""",
        id=run.run_id,
    )
    dagster(
        shared,
        "insert into jobs (job_origin_id, selector_id, status, job_type, job_body) values ('ours', 'ours', 'RUNNING',"
        """ 'SENSOR', '{"location_name": "analytics_assets"}')""",
    )
    dagster(
        shared,
        "insert into job_ticks (selector_id, status, timestamp, tick_body) values ('ours', 'SKIPPED', now(), '{}')",
    )
    dagster(
        shared,
        "insert into asset_daemon_asset_evaluations (evaluation_id, asset_key) values (2, '[\"event_signups\"]')",
    )
    dagster(
        shared,
        "insert into bulk_actions (key, status, timestamp, body)"
        """ values ('ours', 'COMPLETED', now(), '{"asset_selection": [{"path": ["event_signups"]}]}')""",
    )
    leave_orphan(shared, "event_signups")
    age(shared)
    set_clock(shared.settings, noon_of(shared.settings, yesterday + timedelta(days=181)))
    reports = sweep(shared)
    assert {name for name, report in reports.items() if report.expired.rows} >= {
        "partition records",
        "run logs",
        "runs",
        "ticks",
    }
    dagster(shared, "delete from jobs where selector_id = 'ours'")
    rows, files = state(shared)
    # The row of an asset stays, emptied; so compare what is theirs.
    del rows["asset_keys"], theirs[0]["asset_keys"]
    assert {table: len(found) for table, found in rows.items()} == {t: len(found) for t, found in theirs[0].items()}
    assert files == theirs[1]
    assert run_check(shared, LEDGER, NO_EXPIRED_DAYS).passed


def test_a_run_stays_while_its_logs_cannot_be_removed(shared: Pipeline, yesterday: date) -> None:
    """Without the run, nobody could tell whose they are."""
    assert shared.run(["event_signups"], yesterday).success
    (run,) = shared.instance.get_runs()
    logs = Path(shared.instance.storage_directory()) / run.run_id / "compute_logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "x.out").write_text("x")
    dagster(shared, "update runs set create_timestamp = create_timestamp - interval '730 days'")
    reports = sweep(shared)  # the log is young
    assert reports["runs"].expired.rows == 0
    age(shared)
    sweep(shared)
    assert not logs.exists()
    sweep(shared)
    assert dagster(shared, "table runs") == []


def test_alone_everything_old_goes(pipeline: Pipeline) -> None:
    assert pipeline.settings.owns_dagster
    leave_records(pipeline.instance)
    add_bookkeeping(pipeline)
    age(pipeline)
    sweep(pipeline)
    rows, files = state(pipeline)
    assert not any(found for table, found in rows.items() if table != "asset_keys")
    assert files == []


@pytest.mark.parametrize(
    ("environment", "owns"),
    [
        ({}, True),
        ({"DAGSTER_POSTGRES_URL": "postgresql://x"}, False),
        ({"DAGSTER_POSTGRES_URL": "postgresql://x", "ANALYTICS_OWNS_DAGSTER": "yes"}, True),
        ({"ANALYTICS_OWNS_DAGSTER": "no"}, False),
    ],
)
def test_only_the_embedded_storage_is_ours_alone_unless_said(environment: dict[str, str], owns: bool) -> None:
    settings = Settings.from_env(environment)
    assert settings.owns_dagster is owns
    assert Settings.from_env(settings.environment()).owns_dagster is owns, "for the processes that are started"


# --- a date in a name is no day


def test_a_finding_that_names_a_table_with_a_date_stays_until_it_is_old_itself(pipeline: Pipeline) -> None:
    as_superuser(pipeline.settings, 'create table analytics."archive_2019-12-31" (x int)')
    assert not run_check(pipeline, LEDGER, DOCUMENTED).passed
    assert sweep(pipeline)["check evaluations"].expired.rows == 0
    assert run_check(pipeline, LEDGER, NO_EXPIRED_DAYS).passed
    assert dagster(pipeline, "select from event_logs where event like '%archive_2019-12-31 is not in the dictionary%'")


@pytest.mark.parametrize(
    "text", ["archive_2019-12-31", '"about": {"text": "2019-12-31"}', "2019-12-31", "GET /2019-12-31/{id}"]
)
def test_no_text_dates_a_finding(pipeline: Pipeline, yesterday: date, text: str) -> None:
    result = make_result(DOCUMENTED, [text], text)
    pipeline.instance.report_runless_asset_event(as_event(dg.AssetKey("event_signups"), result))
    assert sweep(pipeline)["check evaluations"].oldest is None


def test_a_finding_is_dated_by_the_oldest_day_that_it_is_about(pipeline: Pipeline, yesterday: date) -> None:
    days = [yesterday, yesterday - timedelta(days=3)]
    result = make_result(DOCUMENTED, ["x"], "y", about=days)
    pipeline.instance.report_runless_asset_event(as_event(dg.AssetKey("event_signups"), result))
    assert sweep(pipeline)["check evaluations"].oldest == days[1]
    set_clock(pipeline.settings, noon_of(pipeline.settings, days[1] + timedelta(days=181)))
    assert sweep(pipeline)["check evaluations"].expired == (1, 1)


def test_a_result_of_an_earlier_version_may_be_about_any_day_of_its_run(pipeline: Pipeline, yesterday: date) -> None:
    run = pipeline.instance.create_run_for_job(
        pipeline.definitions().resolve_job_def(retention_job.name),
        tags=range_tags(yesterday - timedelta(days=5), yesterday),
    )
    for metadata, oldest in (
        ({ABOUT: dg.MetadataValue.text("no single day")}, yesterday),
        ({"findings": dg.MetadataValue.int(1)}, yesterday - timedelta(days=5)),
    ):
        evaluation = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("event_signups"), check_name="x", passed=False, metadata=metadata
        )
        pipeline.instance.report_dagster_event(
            dg.DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
                job_name=run.job_name,
                event_specific_data=evaluation,
            ),
            run.run_id,
        )
        assert sweep(pipeline)["check evaluations"].oldest == oldest


def test_a_database_without_dagsters_tables_is_named_as_such(
    settings: Settings, make_database: Callable[[str], sa.URL], tmp_path: Path
) -> None:
    url = make_database("dagster").render_as_string(hide_password=False)
    with open_dagster_storage(url, tmp_path) as storage:
        for target in (PartitionRecords(Records(storage, settings)), CheckEvaluations(Records(storage, settings))):
            with pytest.raises(NotStartedError, match="never been started"):
                target.oldest()
