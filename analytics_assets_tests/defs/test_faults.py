"""Runs that are killed, that collide, that lose their database, and that are done twice."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.days import span
from analytics_assets.defs.retries import RETRIES
from analytics_assets.local.postgres import embedded_postgres, ensure_database, find_postmaster
from analytics_assets.settings import Settings
from analytics_assets_tests.support.activity import EVENTS_PER_DAY, RESPONSES_PER_DAY, fill
from analytics_assets_tests.support.database import set_up
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import ALL, Pipeline
from analytics_assets_tests.support.processes import SPAWN, wait_until


def run(settings: Settings, assets: Sequence[str], first: date, last: date) -> bool:
    """Materialize in this process."""
    with Pipeline.open(settings) as pipeline:
        return pipeline.run(assets, first, last).success


@pytest.fixture
def superuser(settings: Settings) -> Iterator[sa.Connection]:
    """The analytics database as its superuser sees it, in a transaction that a test may end."""
    with _superuser(settings) as connection:
        yield connection


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(len(ALL), mp_context=SPAWN) as pool:
        yield pool


def test_killed_in_the_middle_of_a_replace(
    pipeline: Pipeline, host: Host, yesterday: date, superuser: sa.Connection
) -> None:
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 3), event_id="1")
    assert pipeline.run(["event_signups"], yesterday).success
    collected = pipeline.sql("select * from analytics.collected_days")
    host.sql("truncate signups")
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 5), event_id="2")

    # The note in collected_days is the last thing a replace writes: whoever waits for it has deleted and inserted.
    superuser.execute(sa.text("select from analytics.collected_days for update"))
    with _process(pipeline.settings, ["event_signups"], yesterday, yesterday) as process:
        wait_until(lambda: _waiting(superuser) == 1, process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    superuser.rollback()

    # The dead client's backend finds the lock free, and nobody to commit for.
    wait_until(lambda: not _clients(superuser))
    assert pipeline.stored("event_signups", yesterday) == {("event_signup", "1", "web"): 3}
    assert pipeline.sql("select * from analytics.collected_days") == collected

    assert pipeline.run(["event_signups"], yesterday).success
    assert pipeline.stored("event_signups", yesterday) == {("event_signup", "2", "web"): 5}


def test_killed_in_the_middle_of_a_chunk(
    pipeline: Pipeline, host: Host, yesterday: date, superuser: sa.Connection
) -> None:
    days = span(yesterday - timedelta(days=4), yesterday)
    for day in days:
        host.occur("signups", moments(day, pipeline.settings.time_zone, 3), event_id="1")
    assert pipeline.run(["event_signups"], days[0], days[-2]).success
    collected = pipeline.sql("select * from analytics.collected_days order by 2")
    host.sql("update signups set event_id = '2'")

    superuser.execute(sa.text("select from analytics.collected_days for update"))
    with _process(pipeline.settings, ["event_signups"], days[0], days[-1]) as process:
        wait_until(lambda: _waiting(superuser) == 1, process)
        process.kill()
        process.join()
    superuser.rollback()
    wait_until(lambda: not _clients(superuser))
    for day in days[:-1]:
        assert pipeline.stored("event_signups", day) == {("event_signup", "1", "web"): 3}
    assert pipeline.stored("event_signups", days[-1]) == {}
    assert pipeline.sql("select * from analytics.collected_days order by 2") == collected

    assert pipeline.run(["event_signups"], days[0], days[-1]).success
    for day in days:
        assert pipeline.stored("event_signups", day) == {("event_signup", "2", "web"): 3}


def test_one_day_of_one_metric_twice_at_once(
    pipeline: Pipeline, host: Host, yesterday: date, superuser: sa.Connection, processes: ProcessPoolExecutor
) -> None:
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 5))
    for _ in range(3):  # into an empty day, then over what stands there
        superuser.execute(sa.text("lock table analytics.collected_days in share mode"))
        runs = [processes.submit(run, pipeline.settings, ["event_signups"], yesterday, yesterday) for _ in range(2)]
        wait_until(lambda: _waiting(superuser) == 2)
        superuser.rollback()
        assert [each.result() for each in runs] == [True, True]
        assert pipeline.stored("event_signups", yesterday) == {("event_signup", "1", "web"): 5}
        assert pipeline.sql("select asset, event_date, rows from analytics.collected_days") == [
            ("event_signups", yesterday, 1)
        ]


def test_one_new_day_of_all_metrics_at_once(
    pipeline: Pipeline, host: Host, yesterday: date, superuser: sa.Connection, processes: ProcessPoolExecutor
) -> None:
    days = span(yesterday - timedelta(days=2), yesterday)
    fill(host, pipeline.settings, days)
    for day in days:
        # Reading and inserting go on, attaching a partition waits: all six are on their way to make the same one.
        for table in ("daily_event_counts", "daily_response_counts"):
            superuser.execute(sa.text(f"lock table analytics.{table} in share update exclusive mode"))
        runs = [processes.submit(run, pipeline.settings, [asset], day, day) for asset in ALL]
        wait_until(lambda: _waiting(superuser) == len(ALL))
        superuser.rollback()
        assert [each.result() for each in runs] == [True] * len(ALL)
    assert pipeline.sql("select event_date, sum(count) from analytics.daily_event_counts group by 1 order by 1") == [
        (day, EVENTS_PER_DAY) for day in days
    ]
    assert pipeline.sql("select event_date, sum(count) from analytics.daily_response_counts group by 1 order by 1") == [
        (day, RESPONSES_PER_DAY) for day in days
    ]


def test_a_run_goes_on_when_postgresql_has_restarted(data_dir: Path, make_dagster_database: Callable[[], str]) -> None:
    with embedded_postgres(data_dir) as url, Host.create(ensure_database(url, "host")) as host:
        settings = replace(
            set_up(ensure_database(url, "analytics"), host.reader_url, data_dir), dagster_url=make_dagster_database()
        )
        days = span(settings.today() - timedelta(days=20), settings.today() - timedelta(days=1))
        for day in days:
            host.occur("signups", moments(day, settings.time_zone, day.day))
        with _superuser(settings) as superuser:
            # The run stops at the note of this day, which somebody else is about to write.
            superuser.execute(
                sa.text("insert into analytics.collected_days values ('event_signups', :day, 0, now())"),
                {"day": days[10]},
            )
            with _process(settings, ["event_signups"], days[0], days[-1]) as process:
                wait_until(lambda: _waiting(superuser) == 1, process)
                postmaster = find_postmaster(data_dir / "postgres")
                assert postmaster
                postmaster.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown: as a crash, without clean-up
                postmaster.wait()
                with embedded_postgres(data_dir):
                    process.join()
                assert process.exitcode == 0
            superuser.invalidate()

        with _superuser(settings) as superuser:
            stored = superuser.execute(sa.text("select event_date, count from analytics.daily_event_counts order by 1"))
            assert [tuple(row) for row in stored] == [(day, day.day) for day in days]


def test_a_database_out_of_reach_is_tried_again_a_few_times(
    pipeline: Pipeline, yesterday: date, tmp_path: Path
) -> None:
    nowhere = f"postgresql+psycopg2://someone@/nowhere?host={tmp_path}"
    for settings in (
        replace(pipeline.settings, source_url=nowhere),
        replace(pipeline.settings, database_url=nowhere),
    ):
        result = replace(pipeline, settings=settings).run(["event_signups"], yesterday)
        assert not result.success
        assert retries(result) == RETRIES


def test_what_the_guard_refuses_is_not_tried_again(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 1), source="canary")
    result = pipeline.run(["event_signups"], yesterday)
    assert not result.success
    assert retries(result) == 0


def retries(result: dg.ExecuteInProcessResult) -> int:
    """How often the asset's step was tried again."""
    restarted = [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_RESTARTED]
    return sum(event.step_key == "event_signups" for event in restarted)


def test_the_same_backfill_twice(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=6), yesterday)
    fill(host, pipeline.settings, days)

    def everything() -> list[object]:
        return [
            pipeline.sql("select * from analytics.daily_event_counts order by 1, 2, 3, 4"),
            pipeline.sql("select * from analytics.daily_response_counts order by 1, 2, 3"),
            pipeline.sql("select asset, event_date, rows from analytics.collected_days order by 1, 2"),
            [pipeline.materialized(asset) for asset in ALL],
        ]

    assert pipeline.run(ALL, days[0], days[-1]).success
    once = everything()
    assert pipeline.run(ALL, days[0], days[-1]).success
    assert everything() == once
    assert once[-1] == [set(days)] * len(ALL)


@contextmanager
def _superuser(settings: Settings) -> Iterator[sa.Connection]:
    assert settings.database_url
    engine = sa.create_engine(sa.make_url(settings.database_url).set(username="postgres"))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def _process(settings: Settings, assets: Sequence[str], first: date, last: date) -> Iterator[BaseProcess]:
    """A run in a process of its own, which ends with 0 when it succeeds, else with 1."""
    process = SPAWN.Process(target=_run_and_exit, args=(settings, assets, first, last))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _run_and_exit(settings: Settings, assets: Sequence[str], first: date, last: date) -> None:
    raise SystemExit(not run(settings, assets, first, last))


def _waiting(superuser: sa.Connection) -> int:
    """How many connections of the pipeline wait for a lock."""
    return sum(event == "Lock" for event in _clients(superuser))


def _clients(superuser: sa.Connection) -> Sequence[str | None]:
    """What each connection of the pipeline waits for."""
    # Within a transaction the statistics are read once, unless told otherwise.
    superuser.execute(sa.text("select pg_stat_clear_snapshot()"))
    return superuser.scalars(
        sa.text(
            "select wait_event_type from pg_stat_activity"
            " where datname = current_database() and usename = 'analytics_writer'"
        )
    ).all()
