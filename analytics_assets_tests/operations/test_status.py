"""What `status` says of an installation, and that it changes nothing."""

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from analytics_assets.cli import main
from analytics_assets.contract import METRICS
from analytics_assets.database import DatabaseError
from analytics_assets.days import span
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.evaluation import MATCHES
from analytics_assets.defs.jobs import daily_metrics_job, retention_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets.local import status as local_status
from analytics_assets.local.processes import ServerError
from analytics_assets.local.status import look, look_before_start
from analytics_assets.operations import UNREADABLE, Level, Line
from analytics_assets.operations.alerts import Message, Outbox
from analytics_assets.operations.status import DAILY_SCHEDULE, exit_code
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.clock import clock_at, noon_of
from analytics_assets_tests.support.database import as_superuser
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import ALL, LEDGER, Pipeline, lines_of, note_collected, run_check
from analytics_assets_tests.support.retention import TARGETS

OK, WARNING, RED = Level.OK, Level.WARNING, Level.RED


NOT_LOOKED_AT = DatabaseError("not looked at")


def status(pipeline: Pipeline) -> dict[str, Line]:
    return lines_of(pipeline.settings, pipeline.instance)


def not_ok(lines: dict[str, Line], *groups: str) -> dict[str, Level]:
    """Key -> level, of what is not ok in some groups."""
    return {key: line.level for key, line in lines.items() if line.group in groups and line.level is not OK}


def command(settings: Settings, *options: str) -> Result:
    return CliRunner().invoke(main, ["status", *options], env=settings.environment() | {"DAGSTER_HOME": ""})


# --- databases


def test_an_installation_that_is_set_up_names_its_databases_and_no_login(pipeline: Pipeline) -> None:
    lines = status(pipeline)
    assert not_ok(lines, "databases") == {}
    assert pipeline.settings.database_url
    database = sa.make_url(pipeline.settings.database_url).database
    assert lines["databases: analytics database"].words.startswith(f"{database} on /")
    assert lines["databases: schema"].words.startswith("revision 00")
    assert "analytics_writer" not in str(lines)


def test_a_part_of_a_password_that_looks_like_a_host_is_not_shown(settings: Settings) -> None:
    for url in (
        "postgresql+psycopg2://user:sec@canary@127.0.0.1/events",
        "postgresql+psycopg2://user@127.0.0.1/c@nary",
    ):
        lines = lines_of(replace(settings, database_url=url), NOT_LOOKED_AT)
        assert "its name or host has an @" in lines["databases: analytics database"].words
        assert not re.search("canary|c@nary", str(lines))


def test_a_database_that_is_away_is_red_and_the_rest_is_still_looked_at(pipeline: Pipeline, tmp_path: Path) -> None:
    url = f"postgresql+psycopg2://canary:canary@/nowhere?host={tmp_path}"
    lines = lines_of(replace(pipeline.settings, database_url=url), pipeline.instance)
    assert not_ok(lines, "databases", "dumps") == {
        "databases: analytics database": RED,
        "databases: schema": RED,
        "dumps: dumps of today": RED,
        "dumps: late dumps": RED,
    }
    assert "cannot be reached" in lines["databases: analytics database"].words
    assert unread(lines) == dict.fromkeys(
        [
            "databases: schema",
            "dumps: dumps of today",
            "dumps: late dumps",
            *(f"{group}: {UNREADABLE}" for group in ("days", "retention", "publication")),
        ],
        "databases: analytics database",
    )
    assert {"services: daemon", "runs: daily run", "alerts: receiver"} <= set(lines)
    pipeline.settings.dump_dir.rename(pipeline.settings.data_dir / "away")
    lines = lines_of(replace(pipeline.settings, database_url=url), pipeline.instance)
    assert {"dumps: dumps of today", "dumps: telemetry"} <= set(unread(lines)), "nobody knows whether that is a fault"
    assert "canary" not in str(lines)


def unread(lines: dict[str, Line]) -> dict[str, str]:
    """Key of each line that cannot be read because of another one -> the key of that one."""
    found = {key: line.because_of for key, line in lines.items() if line.because_of}
    for key, cause in found.items():
        assert lines[key].level is lines[cause].level is RED
        assert lines[key].words == f"cannot be read: see {cause}"
        assert lines[cause].because_of is None
    return found


def test_without_a_url_what_the_database_would_say_is_red(settings: Settings) -> None:
    found = unread(lines_of(replace(settings, database_url=None), NOT_LOOKED_AT))
    assert found["databases: schema"] == "databases: analytics database"
    assert found["days: cannot be read"] == "databases: analytics database"


def test_dagsters_database_that_is_away_is_red_and_the_rest_is_still_looked_at(
    settings: Settings, tmp_path: Path
) -> None:
    url = f"postgresql+psycopg2://canary:canary@/nowhere?host={tmp_path}"
    repository = build_definitions(settings).get_repository_def()
    lines = {line.key: line for line in look(replace(settings, dagster_url=url), repository)}
    assert not_ok(lines, "databases", "days") == {"databases: Dagster's database": RED}
    assert "days: event_signups" in lines
    assert unread(lines) == dict.fromkeys(
        [f"{group}: {UNREADABLE}" for group in ("services", "runs", "checks", "retention")],
        "databases: Dagster's database",
    )
    assert "canary" not in str(lines)
    with_url = replace(settings, dagster_url=url, alert_url="json://127.0.0.1/")
    waiting = {line.key: line for line in look(with_url, repository)}
    assert unread(waiting)["alerts: receiver"] == "databases: Dagster's database", "it keeps the messages that wait"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("drop schema analytics cascade", "not set up: run `analytics-assets init-db`"),
        ("update analytics.settings set retention_days = 7", "differ from what the database enforces"),
        ("update analytics.alembic_version set version_num = '0001'", "0001 is older than this package"),
        ("update analytics.alembic_version set version_num = '9999'", "newer than this package"),
        ("revoke select on analytics.alembic_version from analytics_writer", "run `analytics-assets init-db`"),
    ],
)
def test_a_schema_that_is_not_this_packages_is_red(pipeline: Pipeline, statement: str, words: str) -> None:
    as_superuser(pipeline.settings, statement)
    lines = status(pipeline)
    assert not_ok(lines, "databases") == {"databases: schema": RED}
    assert words in lines["databases: schema"].words
    assert set(unread(lines).values()) <= {"databases: schema"}
    assert {line.group for line in lines.values()} >= {"days", "retention", "publication"}


# --- days


def test_the_days_of_each_metric_and_its_gaps(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=4), yesterday)
    fill(host, pipeline.settings, days)
    assert {line.words for line in status(pipeline).values() if line.group == "days"} == {"0 days"}
    assert pipeline.run(ALL[:-1], days[0], days[0]).success
    assert pipeline.run(ALL[:-1], days[2], days[3]).success
    lines = status(pipeline)
    expected: dict[str, Level] = {f"days: {asset}": RED for asset in ALL[:-1]} | {f"days: {ALL[-1]}": WARNING}
    assert not_ok(lines, "days") == expected
    assert lines["days: event_signups"].words == f"3 days; missing: {days[1]}, {days[4]}"
    assert lines["days: event_signups"].facts == (str(days[1]), str(days[4]))
    assert pipeline.run(ALL, days[0], days[-1]).success
    assert {line.words for line in status(pipeline).values() if line.group == "days"} == {"5 days"}


# --- runs


def test_a_failed_run_is_red_until_a_later_one_has_made_good(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=3), yesterday)
    fill(host, pipeline.settings, days)
    by_hand = "runs: launched by hand"
    pipeline.settings.dump_dir.rename(pipeline.settings.data_dir / "away")
    failed = pipeline.run(ALL, days[0], days[1])
    (pipeline.settings.data_dir / "away").rename(pipeline.settings.dump_dir)
    assert not failed.success
    red = status(pipeline)[by_hand]
    (fact,) = red.facts
    assert fact == f"{days[0]} to {days[1]}; {', '.join(sorted(ALL))}"
    assert (red.level, red.words) == (RED, f"run {failed.run_id[:8]} failed ({fact})")
    assert red.since is not None

    assert pipeline.run(ALL, days[2], days[3]).success
    assert status(pipeline)[by_hand].level is RED, "other days"
    assert pipeline.run(ALL[:1], days[0], days[1]).success
    assert status(pipeline)[by_hand].level is RED, "other assets"
    assert pipeline.run(ALL, days[1], days[2]).success
    assert status(pipeline)[by_hand].level is RED, "one of two days"
    assert pipeline.run(ALL[1:], days[0]).success
    assert status(pipeline)[by_hand].level is OK, "two runs have done it together"


def test_a_failed_run_is_made_good_by_days_that_are_settled_and_a_later_run(
    pipeline: Pipeline, yesterday: date
) -> None:
    line = f"runs: {daily_metrics_job.name}"
    days = span(yesterday - timedelta(days=9), yesterday)
    with clock_at(pipeline.settings, noon_of(pipeline.settings, yesterday + timedelta(days=1))):
        note_collected(pipeline, ALL, days[4:])
        note_run(pipeline, days[4:6])
        assert status(pipeline)[line].level is RED, "no later run has succeeded"
        note_run(pipeline, days[7:], DagsterRunStatus.SUCCESS)
        assert status(pipeline)[line].level is OK, "the days are collected, and will not be collected again"

        note_run(pipeline, days[3:5])
        note_run(pipeline, days[8:], DagsterRunStatus.SUCCESS)
        assert status(pipeline)[line].facts == (f"{days[3]} to {days[4]}",), "one is not collected"
        note_collected(pipeline, ALL, days[3:4])
        assert status(pipeline)[line].level is OK

        note_run(pipeline, days[7:])
        note_run(pipeline, days[8:], DagsterRunStatus.SUCCESS)
        assert status(pipeline)[line].facts == (f"{days[7]} to {days[9]}",), "the next night collects it again"

        expired = pipeline.settings.retention_days + 1
        note_run(pipeline, [yesterday - timedelta(days=expired)])
        note_run(pipeline, days[7:], DagsterRunStatus.SUCCESS)
        assert status(pipeline)[line].level is OK, "an expired day is not kept"


def test_without_the_database_nobody_knows_which_failed_runs_are_made_good(
    pipeline: Pipeline, yesterday: date, tmp_path: Path
) -> None:
    note_run(pipeline, [yesterday])
    url = f"postgresql+psycopg2://canary:canary@/nowhere?host={tmp_path}"
    found = unread(lines_of(replace(pipeline.settings, database_url=url), pipeline.instance))
    assert found[f"runs: {daily_metrics_job.name}"] == "databases: analytics database"
    assert f"runs: {retention_job.name}" not in found


def note_run(
    pipeline: Pipeline,
    days: list[date],
    status: DagsterRunStatus = DagsterRunStatus.FAILURE,
    assets: Sequence[str] = (),
) -> dg.DagsterRun:
    """Note a run of the daily job, for some or all of its assets, in Dagster's records; it is not executed."""
    selection = [dg.AssetKey(asset.split("/")) for asset in assets]
    return pipeline.instance.create_run_for_job(
        pipeline.definitions().resolve_job_def(daily_metrics_job.name),
        status=status,
        tags=range_tags(days[0], days[-1]),
        asset_selection=frozenset(selection) if selection else None,
    )


def test_runs_that_fail_on_other_days_are_facts_of_their_own(pipeline: Pipeline, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=9), yesterday)
    first = note_run(pipeline, days[7:])
    again = note_run(pipeline, days[7:])
    line = status(pipeline)[f"runs: {daily_metrics_job.name}"]
    assert line.words == f"run {again.run_id[:8]} failed ({days[7]} to {days[9]})", f"not {first.run_id}"
    note_run(pipeline, days[2:3], assets=ALL[:1])
    line = status(pipeline)[f"runs: {daily_metrics_job.name}"]
    assert line.facts == (f"{days[2]}; {ALL[0]}", f"{days[7]} to {days[9]}"), "newest first"
    for day in days[3:7]:
        note_run(pipeline, [day])
    line = status(pipeline)[f"runs: {daily_metrics_job.name}"]
    assert line.words.endswith("; and 1 more")
    assert len(line.facts) == 6


def test_a_failed_retention_run_is_red_until_one_succeeds(pipeline: Pipeline) -> None:
    (pipeline.settings.dump_dir / "canary").mkdir()
    assert not pipeline.retain().success
    lines = status(pipeline)
    assert not_ok(lines, "runs", "retention") == {
        "runs: daily run": WARNING,
        f"runs: {retention_job.name}": RED,
        "retention: counter dumps": RED,
    }
    assert "canary" not in str(lines)
    (pipeline.settings.dump_dir / "canary").rmdir()
    assert pipeline.retain(dry_run=True).success
    assert status(pipeline)[f"runs: {retention_job.name}"].level is RED, "it only looked"
    by_default = pipeline.definitions().resolve_job_def(retention_job.name)
    assert by_default.execute_in_process(instance=pipeline.instance).success
    assert status(pipeline)[f"runs: {retention_job.name}"].level is RED, "so does a launch by hand"
    assert pipeline.retain().success
    assert not_ok(status(pipeline), "runs", "retention") == {"runs: daily run": WARNING}


def test_runs_of_other_code_locations_do_not_count(pipeline: Pipeline) -> None:
    @dg.asset
    def of_somebody_else() -> None:
        raise RuntimeError

    other = dg.Definitions([of_somebody_else]).resolve_implicit_global_asset_job_def()
    assert not other.execute_in_process(instance=pipeline.instance, raise_on_error=False).success
    assert not_ok(status(pipeline), "runs") == {"runs: daily run": WARNING}


def ended_daily_run(pipeline: Pipeline, hours_ago: float) -> None:
    """Note a run of the daily job that ended some hours ago."""
    run = pipeline.instance.create_run_for_job(
        build_definitions(pipeline.settings).resolve_job_def(daily_metrics_job.name), status=DagsterRunStatus.SUCCESS
    )
    engine = sa.create_engine(str(pipeline.settings.dagster_url))
    with engine.begin() as connection:
        connection.execute(
            sa.text("update runs set start_time = :ended - 1, end_time = :ended where run_id = :run_id"),
            {"ended": time.time() - hours_ago * 3600, "run_id": run.run_id},
        )
    engine.dispose()


def test_no_daily_run_for_26_hours_is_red(pipeline: Pipeline) -> None:
    line = status(pipeline)["runs: daily run"]
    assert (line.level, line.words) == (WARNING, "none yet")
    ended_daily_run(pipeline, 27)
    line = status(pipeline)["runs: daily run"]
    assert (line.level, line.words) == (RED, "none for 26 hours")
    assert line.since is not None
    assert datetime.now(UTC) - line.since > timedelta(hours=26)
    ended_daily_run(pipeline, 25)
    assert status(pipeline)["runs: daily run"].level is OK


# --- checks


def test_a_check_that_warns_or_fails_has_a_line_since_it_began(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    fill(host, pipeline.settings, [yesterday])
    assert pipeline.run(ALL, yesterday).success
    assert not_ok(status(pipeline), "checks") == {}

    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 1), event_id="late")
    as_superuser(pipeline.settings, "create table analytics.canary ()")
    before = datetime.now(UTC)
    ends = []
    for _ in range(2):
        assert not run_check(pipeline, "event_signups", MATCHES).passed
        assert not run_check(pipeline, LEDGER, "documented").passed
        ends.append(datetime.now(UTC))
    lines = status(pipeline)
    late, undocumented = f"checks: {MATCHES} of event_signups", f"checks: documented of {LEDGER}"
    assert not_ok(lines, "checks") == {late: WARNING, undocumented: RED}
    for key in (late, undocumented):
        since = lines[key].since
        assert since is not None
        assert before <= since <= ends[0], "the first of the two"
    assert "canary" not in str(lines)


# --- retention, publication, dumps


def test_an_expired_day_that_is_still_there_is_red(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    fill(host, settings, [yesterday])
    assert pipeline.run(ALL, yesterday).success
    lines = status(pipeline)
    assert [line.name for line in lines.values() if line.group == "retention"] == TARGETS
    assert not_ok(lines, "retention") == {}
    assert lines["retention: daily counts"].words == str(yesterday)
    with clock_at(settings, noon_of(settings, yesterday + timedelta(days=settings.retention_days + 1))):
        red = not_ok(status(pipeline), "retention")
        assert {"retention: daily counts", "retention: counter dumps", "retention: partition records"} <= set(red)
        assert set(red.values()) == {RED}


def test_a_closed_day_that_is_not_published_warns(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    assert status(pipeline)["publication: published through"].words == "nothing yet"
    days = span(yesterday - timedelta(days=3), yesterday)
    fill(host, settings, days)
    job = build_definitions(settings).resolve_job_def(daily_metrics_job.name)
    assert job.execute_in_process(instance=pipeline.instance, tags=range_tags(days[0], days[-1])).success
    line = status(pipeline)["publication: published through"]
    assert (line.level, line.words) == (OK, str(days[1]))
    with clock_at(settings, noon_of(settings, yesterday + timedelta(days=2))):
        line = status(pipeline)["publication: published through"]
        assert (line.level, line.words) == (WARNING, f"{days[1]}; {days[2]} is closed and not published")


def test_the_dumps_of_today(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    def line() -> tuple[Level, str]:
        found = status(pipeline)["dumps: dumps of today"]
        return found.level, found.words

    note_collected(pipeline, ["directory_searches"], [yesterday])
    assert line() == (WARNING, "0 files, and none of yesterday")
    fill(host, pipeline.settings, [yesterday])
    assert line() == (OK, "0 files")
    fill(host, pipeline.settings, [yesterday + timedelta(days=1)])
    assert line() == (OK, "1 file")
    pipeline.settings.dump_dir.rename(pipeline.settings.data_dir / "away")
    level, words = line()
    assert level is RED
    assert "does not exist: set ANALYTICS_DUMP_DIR" in words
    assert unread(status(pipeline)) == dict.fromkeys(["dumps: telemetry", "dumps: late dumps"], "dumps: dumps of today")


def test_before_the_first_day_is_collected_from_dumps_their_absence_is_no_fault(
    pipeline: Pipeline, yesterday: date
) -> None:
    dumps, away = pipeline.settings.dump_dir, pipeline.settings.data_dir / "away"
    note_collected(pipeline, ["event_signups"], [yesterday])  # from a view
    assert status(pipeline)["dumps: dumps of today"].words == "none yet"
    dumps.rename(away)
    lines = status(pipeline)
    assert not_ok(lines, "dumps", "retention") == {}
    assert lines["dumps: dumps of today"].words == "none yet, and no folder"
    away.rename(dumps)
    (dumps / "canary").mkdir()
    assert status(pipeline)["dumps: dumps of today"].level is RED, "a wrong folder is a fault at once"


def test_before_the_first_start_nothing_is_red_because_it_never_ran(settings: Settings, make_database: object) -> None:
    assert callable(make_database)
    empty = make_database("empty").render_as_string(hide_password=False)
    for fresh in (settings, replace(settings, dagster_url=empty)):
        repository = build_definitions(fresh).get_repository_def()
        assert exit_code(look(fresh, repository)) == 2
        lines = look_before_start(fresh, repository)
        assert {line.level for line in lines} == {OK}
        assert {line.group for line in lines} >= {"databases", "days", "publication", "dumps", "alerts"}
    as_superuser(settings, "update analytics.alembic_version set version_num = '0001'")
    assert exit_code(look_before_start(settings, build_definitions(settings).get_repository_def())) == 2


def test_dropped_counts_warn_with_day_and_reason_and_without_their_number(pipeline: Pipeline, yesterday: date) -> None:
    assert status(pipeline)["dumps: telemetry"].level is OK
    zone, folder = pipeline.settings.time_zone, pipeline.settings.dump_dir
    noon = moments(yesterday, zone, 2)[1]
    with Telemetry(folder, time_zone=zone, clock=noon.timestamp) as telemetry:
        for _ in range(4321):
            telemetry.count("canary")
    line = status(pipeline)["dumps: telemetry"]
    assert line.level is WARNING
    (fact,) = line.facts
    assert fact.startswith(f"{yesterday}: ")
    assert fact in line.words
    assert "canary" not in line.words
    assert "4321" not in line.words


# --- services


def beat(pipeline: Pipeline, seconds_ago: float) -> None:
    """A heartbeat of every daemon that is needed."""
    for name in pipeline.instance.get_required_daemon_types():
        heartbeat = DaemonHeartbeat(time.time() - seconds_ago, name, "daemon", [])
        pipeline.instance.add_daemon_heartbeat(heartbeat)


def test_a_daemon_that_is_silent_is_red_after_five_minutes(pipeline: Pipeline) -> None:
    assert status(pipeline)["services: daemon"].words == "has never run"
    beat(pipeline, 200)
    assert status(pipeline)["services: daemon"].level is OK
    beat(pipeline, 400)
    line = status(pipeline)["services: daemon"]
    assert line.level is RED
    assert "sensor" in line.words
    assert line.since is not None
    assert datetime.now(UTC) - line.since > timedelta(seconds=400)


def test_what_was_never_started_warns(pipeline: Pipeline) -> None:
    assert not_ok(status(pipeline), "services") == {
        "services: daemon": RED,
        "services: code location": WARNING,
        f"services: {DAILY_SCHEDULE}": WARNING,
        "services: retention_sensor": WARNING,
        "services: publication_sensor": WARNING,
        "services: alert_sensor": WARNING,
    }


def note_sensor(
    pipeline: Pipeline,
    name: str,
    *,
    minutes_ago: float = 1,
    ticked: TickStatus = TickStatus.SKIPPED,
    status: InstigatorStatus = InstigatorStatus.RUNNING,
    location: str = "analytics_assets",
    cursor: str | None = None,
) -> None:
    """Note a sensor in Dagster's records as the daemon does, with one evaluation."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name="analytics_assets.definitions")
    code_location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name=location)
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(code_location, "__repository__"), name)
    state = InstigatorState(origin, InstigatorType.SENSOR, status, SensorInstigatorData(cursor=cursor))
    pipeline.instance.add_instigator_state(state)
    pipeline.instance.create_tick(
        TickData(
            instigator_origin_id=state.instigator_origin_id,
            instigator_name=name,
            instigator_type=InstigatorType.SENSOR,
            status=ticked,
            timestamp=time.time() - minutes_ago * 60,
            selector_id=state.selector_id,
            error=SerializableErrorInfo("canary", [], None) if ticked is TickStatus.FAILURE else None,
        )
    )


def test_a_sensor_that_runs_is_ok_and_so_is_the_code_location(pipeline: Pipeline) -> None:
    note_sensor(pipeline, "retention_sensor", minutes_ago=10)
    lines = status(pipeline)
    assert lines["services: retention_sensor"].level is OK
    assert lines["services: code location"].level is OK


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": InstigatorStatus.STOPPED}, "stopped"),
        ({"ticked": TickStatus.FAILURE}, "its last evaluation failed"),
    ],
)
def test_a_sensor_that_is_stopped_or_fails_is_red(pipeline: Pipeline, change: dict[str, Any], words: str) -> None:
    note_sensor(pipeline, "retention_sensor", **change)
    line = status(pipeline)["services: retention_sensor"]
    assert line.level is RED
    assert words in line.words


def test_sensors_that_are_not_evaluated_any_more_mean_that_the_code_location_is_gone(pipeline: Pipeline) -> None:
    for name in ("retention_sensor", "alert_sensor"):
        note_sensor(pipeline, name, minutes_ago=20)
    line = status(pipeline)["services: code location"]
    assert (line.level, line.words) == (RED, "no sensor is evaluated any more")
    assert line.since is not None
    assert datetime.now(UTC) - line.since > timedelta(minutes=20)


def test_an_earlier_name_of_the_code_location_does_not_count(pipeline: Pipeline) -> None:
    note_sensor(pipeline, "retention_sensor")
    note_sensor(pipeline, "retention_sensor", location="earlier", minutes_ago=9_999, status=InstigatorStatus.STOPPED)
    assert status(pipeline)["services: retention_sensor"].level is OK


# --- the receiver


@pytest.mark.parametrize(("minutes", "level"), [(5, OK), (20, RED)])
def test_a_receiver_that_takes_no_message_is_red_after_a_quarter_of_an_hour(
    pipeline: Pipeline, minutes: int, level: Level
) -> None:
    message = Message(1, RED, "title", "body")
    outbox = Outbox(
        waiting=(message,), number=1, refused_since=datetime.now(UTC) - timedelta(minutes=minutes), to_log=False
    )
    note_sensor(pipeline, "alert_sensor", cursor=outbox.dump())
    lines = lines_of(replace(pipeline.settings, alert_url="json://canary:canary@127.0.0.1/"), pipeline.instance)
    assert lines["alerts: receiver"].level is level
    assert ("takes no message; 1 wait" in lines["alerts: receiver"].words) == (level is RED)


def test_the_receiver_is_named_without_its_url(pipeline: Pipeline) -> None:
    assert status(pipeline)["alerts: receiver"].words.startswith("the log")
    for url, level in (("json://canary:canary@127.0.0.1/", OK), ("canary://canary:canary@127.0.0.1/", RED)):
        lines = lines_of(replace(pipeline.settings, alert_url=url), pipeline.instance)
        assert lines["alerts: receiver"].level is level
        assert "canary" not in str(lines)


# --- the command


def everything(settings: Settings) -> tuple[list[str], dict[str, int]]:
    """Every file below the data folder, and the number of rows of every table of both databases."""
    rows: dict[str, int] = {}
    for url in (settings.database_url, settings.dagster_url):
        engine = sa.create_engine(sa.make_url(str(url)).set(username="postgres"))
        with engine.connect() as connection:
            tables = connection.exec_driver_sql(
                "select oid::regclass::text from pg_class where relkind in ('r', 'p')"
                " and relnamespace::regnamespace::text !~ '^pg_|information_schema'"
            ).scalars()
            for table in tables.all():
                rows[f"{url}.{table}"] = connection.exec_driver_sql(f"select count(*) from {table}").scalar_one()  # noqa: S608
        engine.dispose()
    return sorted(map(str, settings.data_dir.rglob("*"))), rows


def test_looking_writes_nothing_and_creates_nothing(settings: Settings, make_database: object, tmp_path: Path) -> None:
    assert callable(make_database)
    empty = make_database("empty").render_as_string(hide_password=False)
    for looked_at in (settings, replace(settings, dagster_url=empty)):
        before = everything(looked_at)
        result = command(looked_at)
        assert result.exit_code == 2, result.output
        assert everything(looked_at) == before
    assert "Dagster has never been started on this database" in " ".join(result.output.split())


def test_looking_at_nothing_creates_nothing(tmp_path: Path) -> None:
    env = {"ANALYTICS_DATA_DIR": str(tmp_path / "data"), "DAGSTER_HOME": str(tmp_path / "home")}
    result = CliRunner().invoke(main, ["status", "--json"], env=env)
    assert result.exit_code == 2
    lines = {f"{line['group']}: {line['name']}": line for line in json.loads(result.output)}
    assert lines["databases: analytics database"]["level"] == "red"
    assert "ANALYTICS_DATABASE_URL is not set" in lines["databases: analytics database"]["words"]
    assert list(tmp_path.iterdir()) == []


def test_json_and_the_screen_say_the_same(settings: Settings) -> None:
    shown, printed = command(settings), command(settings, "--json")
    assert shown.exit_code == printed.exit_code == 2
    lines = json.loads(printed.output)
    assert list(lines[0]) == ["group", "name", "level", "words", "since", "facts", "because_of", "not_yet"]
    screen = " ".join(shown.output.split())
    for line in lines:
        if line["level"] != "ok":
            assert f"{line['level']} {line['group']}: {line['name']}" in screen
        elif line["group"] != "checks":
            assert f"{line['name']}: {line['words']}" in screen


def test_a_wrong_setting_is_exit_status_2(settings: Settings) -> None:
    result = CliRunner().invoke(main, ["status"], env=settings.environment() | {"ANALYTICS_TIMEZONE": "canary"})
    assert result.exit_code == 2
    assert "Error: ANALYTICS_TIMEZONE" in result.output
    assert "canary" not in result.output


def test_a_state_that_cannot_be_determined_is_exit_status_2(settings: Settings, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("canary: true")
    result = command(settings, "--dagster-home", str(home))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: the installation cannot be looked at: Dagster")
    assert "canary" not in result.output


@pytest.mark.parametrize("error", [SettingsError("why"), DatabaseError("why"), ServerError("why")], ids=repr)
def test_every_error_of_the_package_is_exit_status_2(
    settings: Settings, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Settings) -> None:
        raise error

    monkeypatch.setattr(local_status, "running_databases", fail)
    result = command(settings)
    assert (result.exit_code, result.output) == (2, "Error: why\n")


@pytest.mark.parametrize(("levels", "code"), [([], 0), ([OK], 0), ([OK, WARNING], 1), ([WARNING, RED, OK], 2)])
def test_the_exit_status_is_that_of_the_worst_line(levels: list[Level], code: int) -> None:
    assert exit_code(Line("days", "x", level, "") for level in levels) == code


def test_every_group_has_its_heading_on_the_page_of_operations(pipeline: Pipeline) -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    for line in status(pipeline).values():
        assert f"\n## {line.group}\n" in page
        assert line.name != UNREADABLE
    assert {line.name for line in status(pipeline).values() if line.group == "days"} == {m.asset for m in METRICS}
