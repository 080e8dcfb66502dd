"""Each retention target: an expired day is found, removed and read back; a failure at one does not stop the others."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_postgres.event_log import PostgresEventLogStorage

from analytics_assets.contract import ABOUT
from analytics_assets.database import DatabaseError, UnreachableError
from analytics_assets.defs.checks import NO_EXPIRED_DAYS, check_expired_days
from analytics_assets.defs.jobs import retention_job
from analytics_assets.local.server import dagster_instance
from analytics_assets.publication.pages.html import Page
from analytics_assets.publication.pages.writing import write_pages
from analytics_assets.retention.event_log import EventLogStorage
from analytics_assets.retention.sweep import EXEMPT, MANUAL, apply_retention, preview, registry, sweep
from analytics_assets.retention.targets import Amount, Files, Pages, RetentionTarget
from analytics_assets.settings import Settings
from analytics_assets.sources.counter_dumps import FOREIGN_FOLDER, find_folder_problem
from analytics_assets.store import open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.expiry import list_partitioned_days, summarize_collected
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import as_superuser
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, LEDGER, Pipeline, checks, failures, run_check
from analytics_assets_tests.support.processes import SPAWN
from analytics_assets_tests.support.retention import TARGETS, collected, dagster, ledger

Put = Callable[[Pipeline, datetime], None]


def old_partition(pipeline: Pipeline, noon: datetime) -> None:
    for table in ("daily_event_counts", "daily_response_counts"):
        as_superuser(
            pipeline.settings,
            f"create table analytics.{table}_{noon:%Y%m%d} partition of analytics.{table}"
            f" for values from ('{noon.date()}') to ('{noon.date() + timedelta(days=1)}')",
        )


def old_note(pipeline: Pipeline, noon: datetime) -> None:
    past_the_trigger(
        pipeline,
        f"insert into analytics.collected_days values ('event_signups', '{noon.date()}', 1, now())",  # noqa: S608
    )


def old_published_day(pipeline: Pipeline, noon: datetime) -> None:
    day = noon.date()
    past_the_trigger(
        pipeline,
        f"insert into published.daily_counts values ('{day}', 'event_signup', '7', 5)",  # noqa: S608
        f"insert into published.days values ('{day}', 'event_signup', 'published', false, 5)",  # noqa: S608
    )


def old_published_week(pipeline: Pipeline, noon: datetime) -> None:
    day = noon.date()
    past_the_trigger(
        pipeline,
        f"insert into published.weekly_counts values ('{day}', 'consent_turned_on', 5)",  # noqa: S608
        f"insert into published.weeks values ('{day}', 'consent_turned_on', 'published', false, 5)",  # noqa: S608
    )


def old_publication(pipeline: Pipeline, noon: datetime) -> None:
    past_the_trigger(
        pipeline,
        f"insert into analytics.publications values ('event_signup', '{noon.date()}', false, 5, md5('x'))",  # noqa: S608
    )


def old_carry(pipeline: Pipeline, noon: datetime) -> None:
    past_the_trigger(
        pipeline,
        f"insert into analytics.published_carries values ('event_signup', '7', 4, 5, '{noon.date()}')",  # noqa: S608
    )


def old_finding(pipeline: Pipeline, noon: datetime) -> None:
    past_the_trigger(
        pipeline,
        f"insert into analytics.friction values ('{noon.date()}', 'event_signup', '7', 'spike', 4.5)",  # noqa: S608
    )


def past_the_trigger(pipeline: Pipeline, *statements: str) -> None:
    """Insert what the database refuses as expired."""
    as_superuser(pipeline.settings, "set session_replication_role = replica", *statements)


def old_dumps(pipeline: Pipeline, noon: datetime) -> None:
    folder = pipeline.settings.dump_dir / str(noon.date())
    (folder / "not a dump").mkdir(parents=True)
    (folder / "stray").write_text("canary")
    (folder / "link").symlink_to(pipeline.settings.data_dir)


def old_stray_file(pipeline: Pipeline, noon: datetime) -> None:
    _age(pipeline.settings.dump_dir / "canary.csv", noon)


def old_stray_link(pipeline: Pipeline, noon: datetime) -> None:
    link = pipeline.settings.dump_dir / "canary"
    link.symlink_to(pipeline.settings.data_dir)
    os.utime(link, (noon.timestamp(),) * 2, follow_symlinks=False)


def old_page(pipeline: Pipeline, noon: datetime) -> None:
    folder = pipeline.settings.publish_dir
    page = Page("events/7/data.csv", f"event_date\n{noon.date()}\n{noon.date() + timedelta(days=9)}\n".encode())
    kept = Page("events/8/data.csv", f"event_date\n{noon.date() + timedelta(days=9)}\n".encode())
    write_pages(folder, ["events"], [page, kept])


def old_empty_folder(pipeline: Pipeline, noon: datetime) -> None:
    folder = Path(pipeline.instance.storage_directory()) / "empty" / "2026-13-45"
    folder.mkdir(parents=True)
    os.utime(folder, (noon.timestamp(),) * 2)


def old_materialization(pipeline: Pipeline, noon: datetime) -> None:
    # What somebody has reported by hand, of an asset that the contract does not even know any more.
    event = dg.AssetMaterialization("retired_metric", partition=str(noon.date()))
    pipeline.instance.report_runless_asset_event(event)


def old_planned_check(pipeline: Pipeline, noon: datetime) -> None:
    dagster(
        pipeline,
        "insert into asset_check_executions (asset_key, check_name, partition, run_id, execution_status)"
        " values ('[\"event_signups\"]', 'x', :day, 'x', 'PLANNED')",
        day=str(noon.date()),
    )


def old_evaluation(pipeline: Pipeline, noon: datetime) -> None:
    pipeline.instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("event_signups"),
            check_name="only_allowlisted_fields_stored",
            passed=False,
            metadata={ABOUT: dg.MetadataValue.text(str(noon.date()))},
            description=f"- {noon.date()}: event_id must be an integer (3 rows)\n- {datetime.now(UTC).date()}: too",
        )
    )


def old_run(pipeline: Pipeline, noon: datetime) -> None:
    run = pipeline.instance.create_run_for_job(pipeline.definitions().resolve_job_def(retention_job.name))
    dagster(pipeline, "update runs set create_timestamp = :noon where run_id = :id", noon=noon, id=run.run_id)


def old_backfill(pipeline: Pipeline, noon: datetime) -> None:
    dagster(
        pipeline,
        "insert into bulk_actions (key, status, timestamp, body) values ('old', 'COMPLETED', :noon, '{}')",
        noon=noon,
    )
    dagster(pipeline, "insert into backfill_tags (backfill_id, key, value) values ('old', 'x', 'x')")


def old_event(pipeline: Pipeline, noon: datetime) -> None:
    utc = noon.astimezone(UTC).replace(tzinfo=None)
    dagster(pipeline, "insert into event_logs (run_id, event, timestamp) values ('x', '{}', :utc)", utc=utc)


def old_log(pipeline: Pipeline, noon: datetime) -> None:
    _age(Path(pipeline.instance.storage_directory()) / "a-run" / "compute_logs" / "x.out", noon)


def old_tick(pipeline: Pipeline, noon: datetime) -> None:
    dagster(pipeline, "insert into job_ticks (status, timestamp, tick_body) values ('SKIPPED', :noon, '{}')", noon=noon)


def old_automation(pipeline: Pipeline, noon: datetime) -> None:
    dagster(
        pipeline,
        "insert into asset_daemon_asset_evaluations (evaluation_id, asset_key, create_timestamp)"
        " values (1, 'x', :noon)",
        noon=noon,
    )


def _age(path: Path, moment: datetime) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("canary")
    os.utime(path, (moment.timestamp(),) * 2)


EXPIRED: list[tuple[Put, str]] = [
    (old_partition, "daily counts"),
    (old_note, "collected days"),
    (old_published_day, "published days"),
    (old_published_week, "published days"),
    (old_publication, "published days"),
    (old_carry, "published carries"),
    (old_finding, "friction"),
    (old_dumps, "counter dumps"),
    (old_stray_file, "counter dumps"),
    (old_stray_link, "counter dumps"),
    (old_page, "pages"),
    (old_materialization, "partition records"),
    (old_planned_check, "partition records"),
    (old_evaluation, "check evaluations"),
    (old_log, "run logs"),
    (old_empty_folder, "run logs"),
    (old_run, "runs"),
    (old_backfill, "runs"),
    (old_event, "runs"),
    (old_tick, "ticks"),
    (old_automation, "ticks"),
]


def test_every_target_is_made_to_hold_an_old_day() -> None:
    assert list(dict.fromkeys(target for _, target in EXPIRED)) == TARGETS


@pytest.mark.parametrize(("put", "target"), EXPIRED, ids=[put.__name__ for put, _ in EXPIRED])
def test_what_is_older_is_found_removed_and_read_back(pipeline: Pipeline, put: Put, target: str) -> None:
    settings = pipeline.settings
    last_kept = noon_of(settings, settings.today() - timedelta(days=180))
    with open_store(settings) as store:

        def check() -> dg.AssetCheckResult:
            return check_expired_days(store, pipeline.instance)

        put(pipeline, last_kept - timedelta(days=3))
        failed = check()
        assert not failed.passed
        assert f"- {target}: the oldest day is 3 days older than the first one that is kept" in (
            failed.description or ""
        )
        assert "`retention_sensor` removes" in (failed.description or "")

        _, before = apply_retention(settings, pipeline.instance, MANUAL, dry_run=True)
        would = {report.target: report.expired for report in before}
        assert would[target].days == 1
        assert not check().passed, "only looked"
        _, after = apply_retention(settings, pipeline.instance, MANUAL)
        assert {report.target: report.expired for report in after} == would
        assert [report.problem for report in after] == [""] * len(TARGETS)
        assert check().passed
        assert dagster(pipeline, "select * from backfill_tags") == []
        assert settings.data_dir.is_dir(), "links are not followed"


@pytest.mark.parametrize("put", [old_stray_file, old_run, old_event, old_log, old_tick, old_backfill])
def test_what_is_of_the_last_day_that_is_kept_stays(pipeline: Pipeline, put: Put) -> None:
    settings = pipeline.settings
    first = settings.today() - timedelta(days=180)
    midnight = noon_of(settings, first) - timedelta(hours=12)
    put(pipeline, midnight)
    (target,) = {target for each, target in EXPIRED if each is put}
    _, reports = apply_retention(settings, pipeline.instance, MANUAL)
    assert {report.target: (report.expired, report.oldest) for report in reports}[target] == (Amount(0, 0), first)


@pytest.mark.parametrize("put", [old_stray_file, old_log])
def test_a_file_of_the_last_moment_before_goes(pipeline: Pipeline, put: Put) -> None:
    settings = pipeline.settings
    first = settings.today() - timedelta(days=180)
    put(pipeline, noon_of(settings, first) - timedelta(hours=12, microseconds=1))
    (target,) = {target for each, target in EXPIRED if each is put}
    _, reports = apply_retention(settings, pipeline.instance, MANUAL)
    assert {report.target: report.expired for report in reports}[target] == Amount(1, 1)


def test_a_dump_folder_that_is_not_one_keeps_everything_and_is_named(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    long_ago = noon_of(settings, settings.today() - timedelta(days=400))
    old_dumps(pipeline, long_ago)
    _age(settings.dump_dir / "canary" / "base" / "2619", long_ago)
    before = sorted(settings.dump_dir.rglob("*"))
    _, reports = apply_retention(settings, pipeline.instance, MANUAL)
    assert {report.target: report.problem for report in reports if report.problem} == {
        "counter dumps": "dump folder: (folder) has a folder that is not a day: move that away, or name the right"
        " folder in ANALYTICS_DUMP_DIR"
    }
    assert sorted(settings.dump_dir.rglob("*")) == before


@pytest.mark.parametrize("name", ["canary", "2026-13-45", "2026-01-01.old"])
def test_a_folder_that_is_no_day_gets_the_same_words_from_collecting_and_from_retention(
    pipeline: Pipeline, yesterday: date, name: str
) -> None:
    (pipeline.settings.dump_dir / name).mkdir()
    _, reports = apply_retention(pipeline.settings, pipeline.instance, MANUAL)
    (problem,) = (report.problem for report in reports if report.problem)
    assert problem == str(FOREIGN_FOLDER)
    assert problem in failures(pipeline.run(["directory_searches"], yesterday))["directory_searches"]
    assert "canary" not in problem


@pytest.mark.parametrize("name", ["lost+found", ".snapshot", ".zfs"])
def test_the_folders_of_a_file_system_are_neither_read_nor_removed(
    pipeline: Pipeline, host: Host, yesterday: date, name: str
) -> None:
    settings = pipeline.settings
    kept = settings.dump_dir / name / "2020-01-01" / "dump.ndjson"
    _age(kept, noon_of(settings, settings.today() - timedelta(days=400)))
    (settings.dump_dir / name).chmod(0o000)
    with without_root():
        assert find_folder_problem(settings.dump_dir) is None
    fill(host, settings, [yesterday])
    assert pipeline.run(["directory_searches"], yesterday).success
    _, reports = apply_retention(settings, pipeline.instance, MANUAL)
    assert not any(report.problem or report.expired.days for report in reports)
    (settings.dump_dir / name).chmod(0o755)
    assert kept.exists()


def test_a_date_in_the_name_of_an_endpoint_is_no_day_of_a_page(pipeline: Pipeline) -> None:
    def page(day: date) -> Page:
        shown = f"<time datetime='{day}'>x</time> GET /archive/2019-12-31/ datetime=&#39;2019-12-31&#39;"
        return Page("core/index.html", shown.encode())

    target = Pages(pipeline.settings.publish_dir)
    write_pages(target.folder, ["core"], [page(pipeline.settings.today())])
    assert target.oldest() == pipeline.settings.today()
    write_pages(target.folder, ["core"], [page(date(2019, 12, 30))])
    assert target.oldest() == date(2019, 12, 30)


def test_a_partition_of_something_else_than_a_day_is_found(pipeline: Pipeline) -> None:
    as_superuser(pipeline.settings, "create table analytics.rest partition of analytics.daily_response_counts default")
    _, reports = apply_retention(pipeline.settings, pipeline.instance, MANUAL)
    assert reports[0].problem.startswith("a table of counts has a partition that is not one day")
    assert not run_check(pipeline, LEDGER, NO_EXPIRED_DAYS).passed


def test_dagsters_database_out_of_reach_does_not_keep_the_others(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dagster tries each log-in six times, which takes eleven seconds otherwise.
    monkeypatch.setattr("dagster_postgres.utils.calculate_delay", lambda **_: 0)
    settings = pipeline.settings
    old_dumps(pipeline, noon_of(settings, settings.today() - timedelta(days=190)))
    storage = pipeline.instance.event_log_storage
    assert isinstance(storage, EventLogStorage)
    away = sa.make_url(str(settings.dagster_url)).set(database="no_such_database").render_as_string(hide_password=False)
    with dagster_instance(settings) as instance:
        broken = EventLogStorage(away, should_autocreate_tables=False)
        instance._event_storage = broken
        _, reports = apply_retention(settings, instance, MANUAL)
        broken.dispose()
    problems = {report.target: report.problem for report in reports if report.problem}
    assert problems.keys() == {"partition records", "check evaluations", "runs", "ticks"}
    cause = "the database of DAGSTER_POSTGRES_URL cannot be reached: the server has no database of the name in the URL"
    assert all(cause in problem for problem in problems.values())
    assert list(settings.dump_dir.iterdir()) == []
    with (
        pytest.raises(UnreachableError, match="cannot be reached: the server has no database of the name"),
        dagster_instance(replace(settings, dagster_url=away)),
    ):
        pass


def test_an_expired_day_that_is_asked_for_leaves_no_record(pipeline: Pipeline, yesterday: date) -> None:
    set_clock(pipeline.settings, noon_of(pipeline.settings, yesterday + timedelta(days=180)))
    for days in ([yesterday - timedelta(days=2)], [yesterday - timedelta(days=2), yesterday]):
        assert "expired" in failures(pipeline.run(["event_signups"], days[0], days[-1]))["event_signups"]
        assert run_check(pipeline, LEDGER, NO_EXPIRED_DAYS).passed


def test_what_a_wipe_records_goes_with_the_days_that_it_names(pipeline: Pipeline, yesterday: date) -> None:
    assert pipeline.run(["event_signups"], yesterday).success
    pipeline.instance.wipe_asset_partitions(dg.AssetKey("event_signups"), [str(yesterday)])
    assert pipeline.materialized("event_signups") == set()
    wiped = "select * from event_logs where dagster_event_type = 'ASSET_WIPED'"
    assert len(dagster(pipeline, wiped)) == 1
    set_clock(pipeline.settings, noon_of(pipeline.settings, yesterday + timedelta(days=181)))
    assert pipeline.retain().success
    assert dagster(pipeline, wiped) == []


def test_an_evaluation_goes_with_the_last_day_of_its_run(pipeline: Pipeline, yesterday: date) -> None:
    days = [yesterday - timedelta(days=1), yesterday]
    runs = [pipeline.run(["event_signups"], day) for day in days]
    set_clock(pipeline.settings, noon_of(pipeline.settings, days[1] + timedelta(days=180)))
    assert pipeline.retain().success
    gone, kept = (checks(pipeline, run, "event_signups") for run in runs)
    assert not gone
    assert kept
    executions = dagster(pipeline, "select distinct run_id from asset_check_executions")
    assert executions == [(runs[1].run_id,)]


# --- trouble


class Broken:
    """A target that cannot be reached."""

    name = "broken"
    covers = ()

    def __init__(self, error: Exception) -> None:
        self.error = error

    def oldest(self) -> date | None:
        raise self.error

    def expired(self, before: date) -> Amount:
        raise self.error

    def remove(self, before: date) -> Iterator[Amount]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DatabaseError("reading: UndefinedTable (SQLSTATE 42P01)"), "reading: UndefinedTable (SQLSTATE 42P01)"),
        (PermissionError(13, "no", "canary"), "a file or folder cannot be read or removed: PermissionError"),
    ],
)
def test_a_failure_at_one_target_does_not_stop_the_others(pipeline: Pipeline, error: Exception, text: str) -> None:
    settings = pipeline.settings
    old_dumps(pipeline, noon_of(settings, settings.today() - timedelta(days=190)))
    with open_store(settings) as store:
        targets: list[RetentionTarget] = [Broken(error), *registry(store, pipeline.instance)]
        broken, *others = sweep(targets, read_window(store).first, store, MANUAL)
    assert broken.problem == text
    assert [report.problem for report in others] == [""] * len(TARGETS)
    assert list(settings.dump_dir.iterdir()) == []
    assert sorted(ledger(pipeline)) == sorted(TARGETS), "what was not done is not claimed"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that `without_root` can enter, in place of pytest's own, which are closed to other users (mode 0700)."""
    with TemporaryDirectory(prefix="analytics-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def without_root() -> Iterator[None]:
    """What root may do, nobody may."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        os.setegid(65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)


def test_a_folder_that_may_not_be_emptied_is_reported_without_its_path(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    old_dumps(pipeline, noon_of(settings, settings.today() - timedelta(days=190)))
    old_note(pipeline, noon_of(settings, settings.today() - timedelta(days=190)))
    settings.dump_dir.chmod(0o555)
    for folder in settings.dump_dir.iterdir():
        folder.chmod(0o555)
    with open_store(settings) as store:
        targets = registry(store, pipeline.instance)
        preview(targets, date(2000, 1, 1))  # connects while it may
        with without_root():
            reports = sweep(targets, read_window(store).first, store, MANUAL)
    problems = {report.target: report.problem for report in reports if report.problem}
    assert problems == {"counter dumps": "a file or folder cannot be read or removed: PermissionError"}
    assert ledger(pipeline)["collected days"][:2] == (1, 1)
    settings.dump_dir.chmod(0o755)


def test_the_group_of_the_dumps_is_enough_to_remove_them(tmp_path: Path) -> None:
    dump_dir = tmp_path / "dumps"
    dump_dir.mkdir()
    if os.geteuid() == 0:
        os.chown(dump_dir, -1, 65534)
    dump_dir.chmod(0o2770)
    with Telemetry(dump_dir, clock=datetime(2026, 1, 2, tzinfo=UTC).timestamp) as telemetry:
        telemetry.count("directory_searched", event_id=7)
    files = Files("counter dumps", (), dump_dir, "UTC")
    with without_root():
        assert list(files.remove(date(2026, 1, 2))) == []
        assert list(files.remove(date(2026, 1, 3))) == [Amount(1, 1)]
    assert list(dump_dir.iterdir()) == []


def test_a_run_that_leaves_something_fails_and_says_where(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    day = settings.today() - timedelta(days=190)
    # Of another name than the pipeline's own, so that the function which drops partitions does not find it.
    as_superuser(
        settings,
        "create table analytics.somebody_elses partition of analytics.daily_event_counts"
        f" for values from ('{day}') to ('{day + timedelta(days=1)}')",
    )
    result = pipeline.retain()
    assert not result.success
    assert len([event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"]) == 3
    failure = failures(result)["remove_expired_days"]
    assert "not every expired day was removed" in failure
    assert "- daily counts: an expired day is still there" in failure
    assert not run_check(pipeline, LEDGER, NO_EXPIRED_DAYS).passed


def test_whoever_keeps_a_table_open_makes_the_drop_fail_and_is_not_in_the_way_of_others(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    for put in (old_partition, old_note):
        put(pipeline, noon_of(settings, settings.today() - timedelta(days=190)))
    as_superuser(settings, "alter function analytics.drop_day set lock_timeout = '100ms'")
    assert settings.database_url
    engine = sa.create_engine(settings.database_url)
    with engine.connect() as reader:
        reader.execute(sa.text("select count(*) from analytics.daily_event_counts"))
        _, reports = apply_retention(settings, pipeline.instance, MANUAL)
        assert reports[0].problem == "dropping the partition of a day: LockNotAvailable (SQLSTATE 55P03)"
        assert {report.target: report.problem for report in reports[1:] if report.problem} == {
            "collected days": "an expired day is still there"  # it says how much there is to drop
        }
    engine.dispose()
    _, reports = apply_retention(settings, pipeline.instance, MANUAL)
    assert reports[0].expired == (1, 1)


def _apply(settings: Settings) -> None:
    with dagster_instance(settings) as instance:
        apply_retention(settings, instance, MANUAL)


def test_killed_during_removal_and_finished_by_the_next_run(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    days = [yesterday - timedelta(days=n) for n in range(4, -1, -1)]
    fill(host, settings, days)
    assert pipeline.run(ALL, days[0], days[-1]).success
    set_clock(settings, noon_of(settings, days[-1] + timedelta(days=180)))
    as_superuser(settings, "alter function analytics.drop_day set lock_timeout = 0")
    assert settings.database_url
    engine = sa.create_engine(sa.make_url(settings.database_url).set(username="postgres"))
    with engine.connect() as connection:
        # Dropping goes in the order of days, and cannot get past the third.
        connection.execute(sa.text(f"lock table analytics.daily_event_counts_{days[2]:%Y%m%d} in access share mode"))
        process = SPAWN.Process(target=_apply, args=(settings,))
        process.start()
        _until(lambda: _waiting(engine), process)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    _until(lambda: not _waiting(engine), None)
    engine.dispose()
    with open_store(settings) as store:
        assert list_partitioned_days(store) == days[2:]
        assert summarize_collected(store, date.min)[2] == days[0]

    assert pipeline.retain().success
    assert collected(pipeline) == {days[-1]}
    assert ledger(pipeline)["daily counts"][:2] == (2, 14)
    assert ledger(pipeline)["collected days"][:2] == (4, 24)
    by_hand = "select days, rows, oldest_remaining from analytics.retention_ledger where run_id = 'command line'"
    assert pipeline.sql(f"{by_hand} order by id") == [(1, 7, days[1]), (1, 7, days[2])], "what was done before the kill"


def _waiting(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        query = (
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and usename = 'analytics_writer' and wait_event_type = 'Lock'"
        )
        return bool(connection.scalar(sa.text(query)))


def _until(condition: Callable[[], bool], process: multiprocessing.process.BaseProcess | None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_event_log_that_cannot_forget_is_named_with_the_way_out(settings: Settings) -> None:
    with dg.DagsterInstance.ephemeral() as instance, open_store(settings) as store:
        result = check_expired_days(store, instance)
    assert not result.passed
    assert "Dagster's event log cannot forget days: start Dagster with the project's dagster.yaml" in (
        result.description or ""
    )


def test_what_has_expired_leaves_the_stock_event_log_too(
    pipeline: Pipeline, yesterday: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's Helm chart writes a `dagster.yaml` of its own."""
    stock = PostgresEventLogStorage(str(pipeline.settings.dagster_url), should_autocreate_tables=False)
    stock.register_instance(pipeline.instance)
    monkeypatch.setattr(pipeline.instance, "_event_storage", stock)
    assert pipeline.run(["event_signups"], yesterday - timedelta(days=1), yesterday).success
    set_clock(pipeline.settings, noon_of(pipeline.settings, yesterday + timedelta(days=180)))
    assert "expired" in failures(pipeline.run(["event_signups"], yesterday - timedelta(days=2)))["event_signups"]
    assert not run_check(pipeline, LEDGER, NO_EXPIRED_DAYS).passed
    assert pipeline.retain().success
    assert pipeline.materialized("event_signups") == {yesterday}
    assert run_check(pipeline, LEDGER, NO_EXPIRED_DAYS).passed


def test_a_folder_that_does_not_exist_keeps_nothing(tmp_path: Path) -> None:
    files = Files("x", (), tmp_path / "missing", "UTC")
    assert files.oldest() is None
    assert list(files.remove(date.max)) == []


# --- what is registered


def live_places(pipeline: Pipeline) -> set[str]:
    """Relations of our schemas and of Dagster's database, and parts of the data folder."""
    relations = (
        "select relname from pg_class c where relnamespace = cast(:schema as regnamespace)"
        " and relkind in ('r', 'p', 'v', 'm', 'f') and not relispartition"
    )
    ours = {
        f"{schema}.{name}"
        for schema in ("analytics", "published")
        for (name,) in pipeline.sql(relations, schema=schema)
    }
    dagsters = {f"dagster.{name}" for (name,) in dagster(pipeline, relations, schema="public")}
    folder = pipeline.settings.data_dir
    parts = {path for path in folder.iterdir() if path.name != "dagster"} | set((folder / "dagster").iterdir())
    return ours | dagsters | {f"data/{path.relative_to(folder)}" for path in parts}


def registered(pipeline: Pipeline) -> set[str]:
    with open_store(pipeline.settings) as store:
        targets = registry(store, pipeline.instance)
    return {name for target in targets for name in target.covers} | EXEMPT.keys()


def test_everything_that_keeps_days_is_registered(pipeline: Pipeline, yesterday: date) -> None:
    assert pipeline.run(ALL, yesterday).success
    there = live_places(pipeline)
    assert there <= registered(pipeline)
    in_databases = {name for name in registered(pipeline) if not name.startswith("data/")}
    assert in_databases <= there, "what is registered exists"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (
            lambda p: as_superuser(p.settings, "create table analytics.weekly_counts (week date)"),
            "analytics.weekly_counts",
        ),
        (lambda p: as_superuser(p.settings, "create table published.years (year date)"), "published.years"),
        (lambda p: as_superuser(p.settings, "create view analytics.v as select 1 as x"), "analytics.v"),
        (lambda p: dagster(p, "create table exports (day date)"), "dagster.exports"),
        (lambda p: (p.settings.data_dir / "exports").mkdir(), "data/exports"),
        (lambda p: (p.settings.data_dir / "dagster/cache").mkdir(), "data/dagster/cache"),
    ],
)
def test_something_new_that_nobody_has_registered_is_found(
    pipeline: Pipeline, make: Callable[[Pipeline], Any], name: str
) -> None:
    make(pipeline)
    assert live_places(pipeline) - registered(pipeline) == {name}
