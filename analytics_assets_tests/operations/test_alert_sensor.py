"""The alert sensor, with real receivers; and once with the real daemon, beside `up` and `status`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest

from analytics_assets.days import span
from analytics_assets.definitions import build_definitions
from analytics_assets.defs import sensors
from analytics_assets.defs.jobs import daily_metrics_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets.defs.sensors import alert_sensor
from analytics_assets.local.processes import stop
from analytics_assets.local.server import ROOT, wait_until_ready
from analytics_assets.operations.alerts import Outbox
from analytics_assets.operations.runs import DAILY_JOB
from analytics_assets.settings import Settings
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.database import as_superuser
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, Pipeline, hurry, note_collected
from analytics_assets_tests.support.processes import PATIENCE, free_port, wait_until
from analytics_assets_tests.support.receivers import mail_server, mail_url, text_of, webhook, webhook_url


def tick(pipeline: Pipeline, cursor: str | None, url: str | None, database_url: str | None = None) -> str | None:
    """One evaluation of the sensor, which is not its first one. Returns the cursor that it leaves."""
    return evaluate(pipeline, cursor or Outbox().dump(), url, database_url)


def evaluate(pipeline: Pipeline, cursor: str | None, url: str | None, database_url: str | None = None) -> str | None:
    settings = replace(pipeline.settings, alert_url=url, database_url=database_url or pipeline.settings.database_url)
    context = dg.build_sensor_context(
        instance=pipeline.instance,
        resources={"settings": settings},
        cursor=cursor,
        repository_def=build_definitions(settings).get_repository_def(),
    )
    assert isinstance(alert_sensor(context), dg.SkipReason)
    return context.cursor


def ticks(pipeline: Pipeline, cursor: str | None, url: str | None, database_url: str | None = None) -> str | None:
    """Two evaluations: one that notices, one that sends."""
    return tick(pipeline, tick(pipeline, cursor, url, database_url), url, database_url)


def test_the_first_evaluation_waits_until_the_daemon_has_started_the_others(pipeline: Pipeline) -> None:
    cursor = evaluate(pipeline, None, None)
    assert Outbox.load(cursor) == Outbox()
    assert Outbox.load(evaluate(pipeline, cursor, None)).waiting


def test_a_missing_day_is_told_once_and_so_is_its_collection(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=2), yesterday)
    fill(host, pipeline.settings, days)
    assert pipeline.run(ALL, days[0]).success
    assert pipeline.run(ALL, days[2]).success
    port = free_port()
    about = "analytics {}: days: event_signups".format
    with webhook(port) as taken:
        cursor = ticks(pipeline, None, webhook_url(port))
        (message,) = [each["message"] for each in taken if each["title"] == about("red")]
        assert message.startswith(f"2 days; missing: {days[1]}\nSince: ")
        number = len(taken)
        cursor = ticks(pipeline, cursor, webhook_url(port))
        assert len(taken) == number, "nothing has changed"

        assert pipeline.run(ALL, days[1]).success
        cursor = ticks(pipeline, cursor, webhook_url(port))
        assert [each["title"] for each in taken[number:]] == [f"analytics ok: days: {asset}" for asset in ALL]
        assert about("ok") in str(taken[number:])
    assert "canary" not in str(cursor)


def test_a_job_that_fails_on_other_days_is_told_again(pipeline: Pipeline, yesterday: date) -> None:
    def fail(day: date) -> None:
        job = pipeline.definitions().resolve_job_def(daily_metrics_job.name)
        pipeline.instance.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE, tags=range_tags(day, day))

    port = free_port()
    cursor = None
    before = yesterday - timedelta(days=1)
    with webhook(port) as taken:
        for day in (before, before, yesterday):
            fail(day)
            cursor = ticks(pipeline, cursor, webhook_url(port))
    told = [message["message"] for message in taken if message["title"] == f"analytics red: runs: {DAILY_JOB}"]
    assert len(told) == 2, "the same days are told once"
    assert str(before) in told[0]
    assert f"({yesterday}); " in told[1]


def test_a_receiver_that_is_down_loses_no_message_and_stops_nothing(pipeline: Pipeline, yesterday: date) -> None:
    note_collected(pipeline, ALL, [yesterday])
    port = free_port()
    cursor = None
    dumps, away = pipeline.settings.dump_dir, pipeline.settings.data_dir / "away"
    for _ in range(2):
        dumps.rename(away)
        cursor = tick(pipeline, cursor, mail_url(port))
        away.rename(dumps)
        cursor = tick(pipeline, cursor, mail_url(port))
    outbox = Outbox.load(cursor)
    assert outbox.refused_since is not None
    with mail_server(port) as taken:
        cursor = tick(pipeline, cursor, mail_url(port))
        assert [mail["subject"] for mail in taken] == [message.title for message in outbox.waiting]
        assert [line for mail in taken for line in text_of(mail).splitlines() if line.startswith("Message: ")] == [
            f"Message: {number + 1}" for number in range(len(taken))
        ]
        about_dumps = [mail["subject"] for mail in taken if "dumps" in mail["subject"]]
        assert about_dumps == [
            f"analytics {level}: dumps: dumps of today" for level in ("red", "warning", "red", "warning")
        ]
        tick(pipeline, cursor, mail_url(port))
        assert len(taken) == len(outbox.waiting), "nothing twice"
    assert Outbox.load(cursor).refused_since is None


def test_a_database_that_is_away_is_told_and_so_is_its_return(pipeline: Pipeline, tmp_path: Path) -> None:
    port = free_port()
    away = f"postgresql+psycopg2://canary:canary@/nowhere?host={tmp_path}"
    with webhook(port) as taken:
        cursor = ticks(pipeline, None, webhook_url(port))
        number = len(taken)
        cursor = ticks(pipeline, cursor, webhook_url(port), database_url=away)
        cursor = ticks(pipeline, cursor, webhook_url(port))
    about = "analytics {}: databases: analytics database".format
    assert [message["title"] for message in taken[number:]] == [about("red"), about("ok")]
    assert "canary" not in f"{taken} {cursor}"


def test_what_is_red_when_the_database_goes_away_is_not_told_as_ok(pipeline: Pipeline, tmp_path: Path) -> None:
    as_superuser(pipeline.settings, "update analytics.alembic_version set version_num = '0001'")
    port = free_port()
    away = f"postgresql+psycopg2://canary:canary@/nowhere?host={tmp_path}"
    with webhook(port) as taken:
        cursor = ticks(pipeline, None, webhook_url(port))
        assert "analytics red: databases: schema" in [message["title"] for message in taken]
        number = len(taken)
        cursor = ticks(pipeline, cursor, webhook_url(port), database_url=away)
        ticks(pipeline, cursor, webhook_url(port))
    about = "analytics {}: databases: analytics database".format
    assert [message["title"] for message in taken[number:]] == [about("red"), about("ok")]


def test_without_a_receiver_a_message_is_a_line_in_the_log(
    pipeline: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    cursor = ticks(pipeline, None, None)
    logged = capfd.readouterr().err
    assert logged.count("analytics red: services: daemon: has never run; Since: ") == 1
    ticks(pipeline, cursor, None)
    assert "analytics" not in capfd.readouterr().err


def test_a_receiver_that_cannot_be_used_is_said_without_its_url_and_loses_nothing(
    pipeline: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    cursor = ticks(pipeline, None, "canary://canary:canary@127.0.0.1/")
    waiting = Outbox.load(cursor).waiting
    assert waiting
    logged = capfd.readouterr()
    assert "ANALYTICS_ALERT_URL is not one URL that Apprise knows" in logged.err
    assert "canary" not in logged.err + logged.out + str(cursor)
    port = free_port()
    with webhook(port) as taken:
        tick(pipeline, cursor, webhook_url(port))
    assert [message["title"] for message in taken] == [message.title for message in waiting]


def test_a_look_that_fails_is_told_and_repeats_no_message(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("canary")

    port = free_port()
    with webhook(port) as taken:
        cursor = tick(pipeline, None, webhook_url(port))
        with monkeypatch.context() as broken:
            broken.setattr(sensors, "read_status", fail)
            cursor = tick(pipeline, ticks(pipeline, cursor, webhook_url(port)), webhook_url(port))
        titles = [message["title"] for message in taken]
        assert len(titles) == len(set(titles))
        assert titles[-1] == "analytics red: services: cannot be read"
        assert "RuntimeError" in taken[-1]["message"]
        ticks(pipeline, cursor, webhook_url(port))
        assert [message["title"] for message in taken[len(titles) :]] == ["analytics ok: services: cannot be read"]
    assert "canary" not in str(taken)


def test_a_tick_that_is_killed_while_it_looks_sends_nothing_twice_and_loses_nothing(
    pipeline: Pipeline, yesterday: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_collected(pipeline, ALL, [yesterday])

    def kill(*_: object) -> None:
        raise SystemExit

    port = free_port()
    url = webhook_url(port)
    cursor = tick(pipeline, None, url)
    numbers = [message.number for message in Outbox.load(cursor).waiting]
    assert numbers
    dumps = pipeline.settings.dump_dir
    with webhook(port) as taken:
        with monkeypatch.context() as broken:
            broken.setattr(sensors, "read_status", kill)
            cursor = tick(pipeline, cursor, url)
            assert len(taken) == len(numbers)
            with pytest.raises(SystemExit):
                tick(pipeline, cursor, url)
        assert len(taken) == len(numbers), "nothing twice"
        dumps.rename(pipeline.settings.data_dir / "away")
        ticks(pipeline, cursor, url)
    assert [message["title"] for message in taken[len(numbers) :]] == ["analytics red: dumps: dumps of today"]


def test_a_receiver_that_is_down_does_not_stop_the_looking(pipeline: Pipeline, yesterday: date) -> None:
    note_collected(pipeline, ALL, [yesterday])
    url = webhook_url(free_port())
    cursor = tick(pipeline, None, url)
    pipeline.settings.dump_dir.rename(pipeline.settings.data_dir / "away")
    before, after = Outbox.load(cursor).waiting, Outbox.load(tick(pipeline, cursor, url)).waiting
    assert [message.title for message in after[len(before) :]] == ["analytics red: dumps: dumps of today"]


# --- the real daemon


@contextmanager
def up(settings: Settings, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`analytics-assets up` as a process; its output goes to a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "analytics_assets", "up", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | settings.environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            wait_until_ready(process, port)
            yield process
        finally:
            stop(process)


def read_command(settings: Settings) -> tuple[int, dict[str, str]]:
    """Exit status of `status --json`, and key -> level of what it prints."""
    command = [sys.executable, "-m", "analytics_assets", "status", "--json"]
    environment = os.environ | settings.environment()
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    return ended.returncode, {f"{line['group']}: {line['name']}": line["level"] for line in json.loads(ended.stdout)}


@pytest.mark.server
def test_a_healthy_installation_is_all_ok_and_a_change_is_told(
    pipeline: Pipeline, host: Host, yesterday: date, tmp_path: Path
) -> None:
    port = free_port()
    settings = replace(pipeline.settings, alert_url=webhook_url(port))
    days = span(yesterday - timedelta(days=2), yesterday + timedelta(days=1))
    fill(host, settings, days)
    job = build_definitions(settings).resolve_job_def(daily_metrics_job.name)
    assert job.execute_in_process(instance=pipeline.instance, tags=range_tags(days[0], yesterday)).success
    log = tmp_path / "up.log"

    def told() -> bool:
        hurry(pipeline.instance, alert_sensor.name)
        return "analytics red: dumps: dumps of today" in [each["title"] for each in taken]

    with webhook(port) as taken, up(settings, free_port(), log):
        first = " ".join(log.read_text().split())
        assert "Before this start:" in first
        assert "red services: daemon has never run" not in first, "before the first start that is no fault"

        wait_until(lambda: read_command(settings)[0] == 0)
        assert set(read_command(settings)[1].values()) == {"ok"}

        settings.dump_dir.rename(settings.data_dir / "away")
        assert read_command(settings)[0] == 2
        wait_until(told, seconds=2 * PATIENCE)
        assert sum("dumps" in each["title"] for each in taken) == 1
    assert "canary" not in log.read_text()
