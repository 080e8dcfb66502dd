"""The asset `published_counts` in the daily job, its checks with a planted fault each, and the command."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import date, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from analytics_assets.cli import main
from analytics_assets.contract import LOOKBACK_DAYS, METRICS, PUBLISHED_PATH, Published
from analytics_assets.days import span
from analytics_assets.defs.checks import NOT_RECOVERABLE, ONLY_FIVES
from analytics_assets.defs.jobs import daily_metrics_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets.settings import Settings
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.database import as_superuser
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import Pipeline, checks, everything_said, failures, run_check

ASSET = PUBLISHED_PATH[0]


@pytest.fixture
def every_day(settings: Settings) -> list[date]:
    """Enough days for a closed week, up to yesterday."""
    return span(settings.today() - timedelta(days=17), settings.today() - timedelta(days=1))


def run_daily_job(pipeline: Pipeline, first: date, last: date) -> dg.ExecuteInProcessResult:
    job = pipeline.definitions().resolve_job_def(daily_metrics_job.name)
    return job.execute_in_process(instance=pipeline.instance, tags=range_tags(first, last), raise_on_error=False)


def run_published(pipeline: Pipeline) -> dg.ExecuteInProcessResult:
    """Materialize the asset by itself."""
    job = pipeline.definitions().resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=pipeline.instance, asset_selection=[dg.AssetKey(ASSET)], raise_on_error=False
    )


@pytest.fixture
def published(pipeline: Pipeline, host: Host, every_day: list[date]) -> Pipeline:
    """A pipeline that has published everything that is closed."""
    fill(host, pipeline.settings, every_day)
    assert run_daily_job(pipeline, every_day[0], every_day[-1]).success
    return pipeline


def test_the_dumps_of_closed_days_are_merged_and_count_the_same(
    pipeline: Pipeline, host: Host, every_day: list[date], capfd: pytest.CaptureFixture[str]
) -> None:
    days, folder = every_day[-LOOKBACK_DAYS - 2 :], pipeline.settings.dump_dir
    for _ in range(2):
        fill(host, pipeline.settings, days)
    (folder / str(days[0]) / f"{'f' * 32}.ndjson").write_bytes(b"canary")
    for path in folder.glob("*/*.ndjson"):
        os.utime(path, (path.stat().st_mtime - 90_000,) * 2)
    failed = run_daily_job(pipeline, days[0], days[-1])
    assert not failed.success
    assert run_published(pipeline).success
    assert [len(list((folder / str(day)).glob("*.ndjson"))) for day in days] == [3, 1, 2, 2]
    assert "dumps of closed days are not merged: (row) is not a line of JSON" in capfd.readouterr().err

    (folder / str(days[0]) / f"{'f' * 32}.ndjson").unlink()
    result = run_daily_job(pipeline, days[0], days[-1])
    assert result.success
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(ASSET)]
    assert event.materialization.metadata["dumps merged"].value == 2
    assert [len(list((folder / str(day)).glob("*.ndjson"))) for day in days] == [1, 1, 2, 2]
    assert run_daily_job(pipeline, days[0], days[-1]).success
    for day in days:
        assert sum(pipeline.stored("directory_page_views", day).values()) == 18


def test_the_daily_job_publishes_what_is_closed_after_it_has_collected(
    pipeline: Pipeline, host: Host, every_day: list[date]
) -> None:
    fill(host, pipeline.settings, every_day)
    result = run_daily_job(pipeline, every_day[0], every_day[-1])
    assert result.success
    found = checks(pipeline, result, ASSET)
    assert {name: evaluation.passed for name, evaluation in found.items()} == {
        ONLY_FIVES: True,
        NOT_RECOVERABLE: True,
    }
    closed = every_day[: -LOOKBACK_DAYS - 1 + 1]
    assert closed[-1] == every_day[-1] - timedelta(days=LOOKBACK_DAYS)
    per_day = sum(len(m.event_names) for m in METRICS if m.published is Published.BY_DAY_AND_EVENT)
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(ASSET)]
    metadata = event.materialization.metadata
    assert metadata["days published"].value == per_day * len(closed)
    assert metadata["days not collected"].value == metadata["weeks not collected"].value == 0
    assert int(str(metadata["weeks published"].value)) > 0
    # Five sign-ups and nine views per day, two searches: 5 * floor(running total / 5).
    totals = pipeline.sql("select event_name, sum(count), max(event_date) from published.daily group by 1 order by 1")
    assert totals == [
        ("directory_page_viewed", 9 * len(closed) // 5 * 5, closed[-1]),
        ("directory_searched", 2 * len(closed) // 5 * 5, closed[-1]),
        ("event_signup", 5 * len(closed), closed[-1]),
    ]
    again = run_daily_job(pipeline, every_day[-3], every_day[-1])
    assert again.success
    (event,) = [e for e in again.get_asset_materialization_events() if e.asset_key == dg.AssetKey(ASSET)]
    assert {entry.value for entry in event.materialization.metadata.values()} == {0}


def test_it_comes_after_the_metrics_that_it_publishes(pipeline: Pipeline) -> None:
    node = pipeline.definitions().resolve_asset_graph().get(dg.AssetKey(ASSET))
    assert node.group_name == "publication"
    assert {key.to_user_string() for key in node.parent_keys} == {
        m.asset for m in METRICS if m.published is not Published.NEVER
    }


def test_nothing_is_published_while_a_metric_fails(pipeline: Pipeline, host: Host, every_day: list[date]) -> None:
    fill(host, pipeline.settings, every_day)
    host.sql(
        "alter table signups add phone text; drop view analytics_source.signups;"
        " create view analytics_source.signups as select event_id, occurred_at, source, phone from signups"
    )
    result = run_daily_job(pipeline, every_day[0], every_day[-1])
    assert set(failures(result)) == {"event_signups"}
    assert pipeline.sql("select * from published.days") == []


# --- the checks: a planted fault each

CHANGED = "that are not as they were published"
FAULTS: dict[str, tuple[str, str]] = {
    "a number that was changed": (
        "update published.daily_counts set count = count + 5 where {series}",
        f"published.daily_counts: 1 days {CHANGED}",
    ),
    "a day that was removed": (
        "delete from published.days where {series}",
        f"published.daily_counts: 1 days {CHANGED}",
    ),
    "a number that was removed": (
        "delete from published.daily_counts where {series}",
        f"published.daily_counts: 1 days {CHANGED}",
    ),
    "numbers that swapped their events": (
        "insert into published.daily_counts values ('{day}', 'event_signup', '999', 5)",
        f"published.daily_counts: 1 days {CHANGED}",
    ),
    "a state that was changed": (
        "update published.days set state = 'not_collected' where {series}",
        "published.daily_counts: 1 counts of days that were not published",
    ),
    "a day that is said to be filled": (
        "update published.days set filled = true where {series}",
        f"published.daily_counts: 1 days {CHANGED}",
    ),
    "a number of a day that is not closed": (
        "insert into published.daily_counts values ('{yesterday}', 'event_signup', '1', 5)",
        "published.daily_counts: 1 counts of days that were not published",
    ),
    "a note that was lost": (
        "delete from analytics.publications where {series}",
        f"published.daily_counts: 1 days {CHANGED}",
    ),
    "a week that was changed": (
        "update published.weekly_counts set count = count + 5 where event_name = 'consent_turned_on'",
        "published.weekly_counts: {weeks} weeks that are not as they were published",
    ),
    "an exact number": (
        "alter table published.daily_counts drop constraint if exists daily_counts_count;"
        " update published.daily_counts set count = 7 where {series}",
        "published.daily_counts: 1 counts that are not a multiple of the base, or not above 0",
    ),
    "a true zero": (
        "alter table published.daily_counts drop constraint if exists daily_counts_count;"
        " update published.daily_counts set count = 0 where {series}",
        "published.daily_counts: 1 counts that are not a multiple of the base, or not above 0",
    ),
    "a carry of the future": (
        "update analytics.published_carries set event_date = '2100-01-01' where event_name = 'event_signup'",
        "analytics.published_carries: 1 carries out of range",
    ),
    "a carry out of range": (
        "alter table analytics.published_carries drop constraint published_carries_carry;"
        " update analytics.published_carries set carry = 5 where event_name = 'event_signup'",
        "analytics.published_carries: 1 carries out of range",
    ),
}


def format_fault(pipeline: Pipeline, text: str, every_day: list[date]) -> str:
    ((weeks,),) = pipeline.sql("select count(*) from published.weekly_counts where event_name = 'consent_turned_on'")
    series = f"event_name = 'event_signup' and event_date = '{every_day[3]}'"
    return text.format(series=series, day=every_day[3], yesterday=every_day[-1], weeks=weeks)


def test_every_change_of_what_is_published_is_found(published: Pipeline, every_day: list[date]) -> None:
    engine = sa.create_engine(str(published.settings.database_url).replace("analytics_writer", "postgres"))
    assert run_check(published, ASSET, ONLY_FIVES).passed
    with engine.connect() as keeper:
        for fault, (statement, finding) in FAULTS.items():
            expected = format_fault(published, finding, every_day)
            keeper.exec_driver_sql("create schema saved")
            for table in SAVED:
                keeper.exec_driver_sql(f"create table saved.{table.partition('.')[2]} as table {table}")
            keeper.commit()
            as_superuser(published.settings, format_fault(published, statement, every_day))
            evaluation = run_check(published, ASSET, ONLY_FIVES)
            assert not evaluation.passed, fault
            assert evaluation.severity is dg.AssetCheckSeverity.ERROR
            assert f"- {expected}\n" in str(evaluation.description), fault
            for table in SAVED:
                keeper.exec_driver_sql(f"delete from {table}")  # noqa: S608
                keeper.exec_driver_sql(f"insert into {table} table saved.{table.partition('.')[2]}")
            keeper.exec_driver_sql("drop schema saved cascade")
            keeper.commit()
            assert run_check(published, ASSET, ONLY_FIVES).passed, fault
    engine.dispose()


SAVED = (
    "published.daily_counts",
    "published.days",
    "published.weekly_counts",
    "published.weeks",
    "analytics.publications",
    "analytics.published_carries",
)


@pytest.mark.parametrize(
    ("table", "condition", "finding"),
    [
        ("daily_counts", "event_date = '{day}'", "published.daily_counts: a series of event_signup with 1 days"),
        ("weekly_counts", "true", "published.weekly_counts: a series of consent_turned_on with {weeks} weeks"),
    ],
)
def test_a_day_that_can_be_worked_out_is_found(
    published: Pipeline, every_day: list[date], table: str, condition: str, finding: str
) -> None:
    assert run_check(published, ASSET, NOT_RECOVERABLE).passed
    name = "event_signup" if table == "daily_counts" else "consent_turned_on"
    as_superuser(
        published.settings,
        f"alter table published.{table} drop constraint {table}_count",
        format_fault(
            published,
            f"update published.{table} set count = count + 1 where event_name = '{name}' and {condition}",  # noqa: S608
            every_day,
        ),
    )
    evaluation = run_check(published, ASSET, NOT_RECOVERABLE)
    assert not evaluation.passed
    assert format_fault(published, finding, every_day) in str(evaluation.description)
    assert "published_reader nologin" in str(evaluation.description)
    assert "canary" not in everything_said(published.instance)


# --- the command


@pytest.fixture
def command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["publish", *arguments])
        return result.exit_code, result.output

    return run


def test_the_command_says_when_it_cannot_write_pages(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analytics_assets.publication.pages.publish.INSTALLED", False)
    code, said = command()
    assert code == 0
    assert said.startswith(
        "No page is written: that needs the extra \"pages\": pip install 'analytics-assets[pages]'\n"
    )


def test_the_command_says_on_a_terminal_what_takes_its_time(settings: Settings) -> None:
    said = "Nothing to publish: no closed day has been collected.\n"
    piped = CliRunner().invoke(main, ["publish"], env=settings.environment())
    assert (piped.stdout, piped.stderr) == (said, "")
    environment = settings.environment() | {"TTY_COMPATIBLE": "1"}  # Rich takes stderr for a terminal
    done = CliRunner().invoke(main, ["publish"], env=environment)
    assert done.stdout == said
    for step in ("Publishing the closed days", "Writing the published pages", "Writing the core team's pages"):
        assert step in done.stderr


def test_the_command_publishes_fills_and_says_what_it_did(
    pipeline: Pipeline, host: Host, every_day: list[date], command: Callable[..., tuple[int, str]]
) -> None:
    first, gap, last = every_day[-5:-2]
    assert command() == (0, "Nothing to publish: no closed day has been collected.\n")
    fill(host, pipeline.settings, [first, gap, last])
    for day in (first, last):
        assert pipeline.run(["event_signups"], day).success
    assert command() == (0, f"event_signup: {first} to {last}: 2 day(s) published, 1 not collected\n")
    assert command() == (0, "Nothing to publish: every closed day is published.\n")
    code, said = command("--fill", str(gap))
    assert code == 1
    assert said.startswith(f"Error: nothing of {gap} can be filled: ")
    assert pipeline.run(["event_signups"], gap).success
    assert command("--fill", str(gap)) == (0, f"event_signup: {gap} to {gap}: 1 day(s) published\n")
    code, said = command("--fill", str(every_day[-1]))
    assert (code, said) == (1, f"Error: {every_day[-1]} is not closed: the last closed day is {last}\n")
    for no_day in ("canary", "2026-13-01", "20261122"):
        code, said = command("--fill", no_day)
        assert code == 2
        assert said.endswith("Error: Invalid value for '--fill': must be a date written YYYY-MM-DD\n")


def test_the_command_waits_for_a_day_that_a_queued_run_is_about_to_collect(
    pipeline: Pipeline, host: Host, every_day: list[date], command: Callable[..., tuple[int, str]]
) -> None:
    first, gap, last = every_day[-5:-2]
    fill(host, pipeline.settings, [first, gap, last])
    for day in (first, last):
        assert pipeline.run(["event_signups"], day).success
    queued = pipeline.instance.create_run_for_job(
        pipeline.definitions().resolve_job_def(daily_metrics_job.name),
        status=dg.DagsterRunStatus.NOT_STARTED,
        tags=range_tags(gap, gap),
        asset_selection=frozenset([dg.AssetKey("event_signups")]),
    )
    wait = f"event_signup: waits for {gap}: a run is about to collect it, or fewer than 3 have failed to\n"
    assert command() == (0, f"event_signup: {first} to {first}: 1 day(s) published\n{wait}")
    assert command() == (0, wait)
    pipeline.instance.delete_run(queued.run_id)
    assert command() == (0, f"event_signup: {gap} to {last}: 1 day(s) published, 1 not collected\n")


def test_without_dagsters_records_the_command_waits_for_every_missing_day_and_says_so(
    pipeline: Pipeline,
    host: Host,
    every_day: list[date],
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, gap, last = every_day[-5:-2]
    fill(host, pipeline.settings, [first, gap, last])
    for day in (first, last):
        assert pipeline.run(["event_signups"], day).success
    published = f"event_signup: {first} to {first}: 1 day(s) published\n"
    folder = pipeline.settings.data_dir
    for url, reason in (
        (f"postgresql+psycopg2://canary:canary@/nowhere?host={folder}", "cannot be reached"),
        ("", "DAGSTER_POSTGRES_URL is not set"),
    ):
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
        code, said = command()
        assert code == 0
        assert said.startswith("Dagster's records cannot be read: ")
        assert reason in said.partition("\n")[0]
        assert "every series stops before its first one.\n" in said
        assert said.endswith(f"{published}event_signup: waits for {gap}: it is missing\n")
        assert "canary" not in said
        assert (pipeline.settings.publish_dir / "overview/index.html").exists()
        assert not (pipeline.settings.publish_dir / "core").exists()
        assert "The core team's pages are not written: " in said
        published = ""
    assert list(folder.glob("postgres")) == [], "no server was made"
    # To fill a day waits for nothing.
    code, said = command("--fill", str(gap))
    assert code == 1
    assert "every series stops" not in said
