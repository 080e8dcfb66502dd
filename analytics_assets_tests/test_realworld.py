"""The pipeline on a real application's database: pretalx, every retained day, counted right and nothing leaked."""

import csv
import os
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from analytics_assets.cli import main
from analytics_assets.contract import LOOKBACK_DAYS, METRICS, Published, SourceView, published_names
from analytics_assets.days import span
from analytics_assets.defs.evaluation import CHECK_NAMES, NO_FRICTION, open_reader
from analytics_assets.local.postgres import PROGRAMS
from analytics_assets.local.server import dagster_home
from analytics_assets.publication import fives
from analytics_assets.publication.audit import find_recoverable
from analytics_assets.publication.findings import refresh_friction
from analytics_assets.publication.pages.core import Health
from analytics_assets.publication.pages.publish import find_untrue_pages, write_core_pages, write_published_pages
from analytics_assets.publication.publish import publish_closed
from analytics_assets.store import open_store
from analytics_assets.store.published import find_altered
from analytics_assets_tests.support.attacker import Attacker, between, figure, running_totals
from analytics_assets_tests.support.database import pipeline_settings
from analytics_assets_tests.support.pipeline import ALL, Pipeline, everything_said

VIEW_METRICS = [m for m in METRICS if isinstance(m.origin, SourceView)]
REALWORLD = Path(__file__).parents[2] / "shared" / "realworld"
LAST_DAY = date(2026, 11, 22)
"""The last day of the data, in UTC."""

# psql and pg_dump come with the embedded server, for a machine without PostgreSQL.
ENVIRONMENT = os.environ | {"PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}

pytestmark = pytest.mark.skipif(not REALWORLD.is_dir(), reason=f"needs a real application's database in {REALWORLD}")


@dataclass(frozen=True)
class Backfilled:
    """What a backfill of every retained day left behind."""

    pretalx: sa.URL
    pipeline: Pipeline
    days: list[date]
    shift: timedelta
    output: str
    """What the run printed."""
    server_log: bytes
    """What PostgreSQL logged meanwhile."""


@pytest.fixture(scope="module")
def backfilled(
    make_database: Callable[[str], sa.URL],
    make_analytics_database: Callable[[], sa.URL],
    make_dagster_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Backfilled]:
    pretalx = make_database("pretalx")
    settings = pipeline_settings(
        make_analytics_database(), _text(pretalx.set(username="pretalx_reader")), tmp_path_factory.mktemp("realworld")
    )
    settings = replace(settings, dagster_url=make_dagster_database())
    yesterday = settings.today() - timedelta(days=1)
    days = span(settings.today() - timedelta(days=settings.retention_days), yesterday)
    log = Path(_psql(pretalx, "show data_directory").strip()) / "log"
    logged_before = log.stat().st_size

    _command("bash", REALWORLD / "load_pretalx.sh", _libpq(pretalx))
    _psql(pretalx, _shifted_views(yesterday - LAST_DAY, settings.time_zone))
    _psql(
        pretalx,
        "create role pretalx_reader login;"
        " grant usage on schema analytics_source to pretalx_reader;"
        " grant select on all tables in schema analytics_source to pretalx_reader;",
    )
    home = dagster_home(settings)
    materialize = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "analytics_assets.definitions"]
    run = subprocess.run(
        [*materialize, "--select", ",".join(ALL), "--partition-range", f"{days[0]}...{days[-1]}"],
        # As `analytics-assets up` starts it; the batches make it several times faster.
        env=os.environ | settings.environment() | {"DAGSTER_HOME": str(home), "DAGSTER_EVENT_BATCH_SIZE": "1000"},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DAGSTER_POSTGRES_URL", settings.dagster_url or "")
        with dg.DagsterInstance.from_config(str(home)) as instance:
            pipeline = Pipeline(settings, instance)
            logged = log.read_bytes()[logged_before:]
            yield Backfilled(pretalx, pipeline, days, yesterday - LAST_DAY, run.stdout, logged)


def read_expected(backfilled: Backfilled) -> Counter[tuple[date, str, str]]:
    """Day, event name and event -> what independent SQL has counted on the retained days."""
    expected: Counter[tuple[date, str, str]] = Counter()
    with (REALWORLD / "expected_daily_counts.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            day = date.fromisoformat(row["event_date"]) + backfilled.shift
            if day in backfilled.days:
                expected[day, row["event_name"], row["event_id"]] += int(row["count"])
    return expected


def test_every_cell_is_what_independent_sql_has_counted(backfilled: Backfilled) -> None:
    expected = read_expected(backfilled)
    stored = backfilled.pipeline.sql(
        "select event_date, event_name, event_id, sum(count) from analytics.daily_event_counts group by 1, 2, 3"
    )
    assert {row[:3]: row[3] for row in stored} == expected
    assert {day for day, _, _ in expected} == set(backfilled.days)
    assert backfilled.pipeline.sql("select * from analytics.daily_response_counts") == []


def test_every_day_is_collected_and_every_check_passes(backfilled: Backfilled) -> None:
    collected = backfilled.pipeline.sql("select asset, event_date from analytics.collected_days")
    assert set(collected) == {(asset, day) for asset in ALL for day in backfilled.days}
    # Real communities have unusual days.
    names = [name for name in CHECK_NAMES if name != NO_FRICTION]
    keys = [dg.AssetCheckKey(dg.AssetKey(asset), name) for asset in ALL for name in names]
    executions = backfilled.pipeline.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    assert {key: execution.status for key, execution in executions.items()} == dict.fromkeys(
        keys, AssetCheckExecutionRecordStatus.SUCCEEDED
    )
    for asset in ALL:
        assert backfilled.pipeline.materialized(asset) == set(backfilled.days)


def test_what_is_published_are_the_running_totals_of_independent_sql(backfilled: Backfilled) -> None:
    with open_store(backfilled.pipeline.settings) as store:
        publish_closed(store)
        assert find_altered(store) == []
        assert find_recoverable(store) == []
    expected = read_expected(backfilled)
    closed = backfilled.days[: len(backfilled.days) - LOOKBACK_DAYS]
    steps: dict[tuple[Any, ...], int] = {}
    weekly: dict[tuple[Any, ...], int] = {}
    carries: dict[tuple[Any, ...], int] = {}
    for series in {(name, event) for _, name, event in expected if name in published_names(Published.BY_DAY_AND_EVENT)}:
        of_days, carries[series] = fives.publish_days(expected[day, *series] for day in closed)
        steps |= {(day, *series): step for day, step in zip(closed, of_days, strict=True) if step}
    sql = backfilled.pipeline.sql
    assert {tuple(key): count for *key, count in sql("select * from published.daily_counts")} == steps
    for name in published_names(Published.BY_WEEK):
        totals = Counter(dict.fromkeys(closed, 0))
        for (day, of_name, _), count in expected.items():
            if of_name == name and day in totals:
                totals[day] += count
        weeks = fives.closed_weeks(totals)
        of_weeks, carries[name, "all"] = fives.publish_days(weeks.values())
        weekly |= {(week, name): step for week, step in zip(weeks, of_weeks, strict=True) if step}
    assert {tuple(key): count for *key, count in sql("select * from published.weekly_counts")} == weekly
    kept = {
        tuple(key): carry for *key, carry in sql("select event_name, event_id, carry from analytics.published_carries")
    }
    assert kept == {series: carry for series, carry in carries.items() if carry or series in kept}
    assert len(steps) > 100
    assert weekly


def write_pages(backfilled: Backfilled) -> Path:
    """Publish, write every page, and return their folder."""
    settings = backfilled.pipeline.settings
    with open_store(settings) as store:
        publish_closed(store)
        refresh_friction(store)
        write_core_pages(store, Health())
        write_published_pages(store)
        assert find_untrue_pages(store) == []
    return settings.publish_dir


def test_the_pages_tell_an_attacker_nothing_that_is_not_published(backfilled: Backfilled) -> None:
    folder = write_pages(backfilled)
    expected = read_expected(backfilled)
    closed = backfilled.days[: len(backfilled.days) - LOOKBACK_DAYS]
    position = {day: number for number, day in enumerate(closed)}
    name = "event_signup"
    counts = {
        event: [expected[day, name, event] for day in closed]
        for event in sorted({e for _, n, e in expected if n == name})
    }
    steps = {event: fives.publish_days(of_event)[0] for event, of_event in counts.items()}
    every_cell = {event: [(event, number) for number in range(len(closed))] for event in counts}
    statements = [s for event in counts for s in running_totals(every_cell[event], steps[event])]
    read = 0
    for event in counts:
        page = folder / f"events/{event}/index.html"
        if not any(steps[event]):
            assert not page.exists()
            continue
        for first, last, text in SUMS.findall(page.read_text()):
            window = slice(position[date.fromisoformat(first)], position[date.fromisoformat(last or first)] + 1)
            shown = 0 if text == "&lt;5" else int(text.replace(",", ""))
            statements += figure(every_cell[event][window], shown, sum(step or 0 for step in steps[event][window]))
            read += 1
    overview = (folder / "overview/index.html").read_text()
    ((first, last, low, high),) = BOUND.findall(overview)
    window = slice(position[date.fromisoformat(first)], position[date.fromisoformat(last)] + 1)
    with_numbers = [event for event in counts if any(steps[event])]
    in_window = [cell for event in with_numbers for cell in every_cell[event][window]]
    statements.append(between(in_window, int(low.replace(",", "")), int(high.replace(",", ""))))
    attacker = Attacker(statements)
    for event in with_numbers[::4]:
        left = fives.possible_values(steps[event])
        some = range(0, len(closed), 12)
        assert {n: attacker.possible((event, n)) for n in some} == {n: left[n] for n in some}
    assert read > 1000


SUMS = re.compile(r'data-of="sum event_signup (\d{4}-\d\d-\d\d)(?:/(\d{4}-\d\d-\d\d))?">((?:&lt;)?[\d,]+)')
"""First day, last day and text of each number of sign-ups that a published page shows."""
BOUND = re.compile(
    r'data-of="least event_signup (\S+)/(\S+);most [^"]*">At least ([\d,]+), at most ([\d,]+), over the events'
)


def test_the_login_reads_nothing_but_the_views(backfilled: Backfilled) -> None:
    for metric in VIEW_METRICS:
        with open_reader(metric, backfilled.pipeline.settings) as source:
            assert source.warnings == []


def test_no_personal_value_is_left_anywhere(backfilled: Backfilled, tmp_path: Path) -> None:
    settings, instance = backfilled.pipeline.settings, backfilled.pipeline.instance
    pages = write_pages(backfilled)
    assert settings.database_url
    assert settings.dagster_url
    analytics = sa.make_url(settings.database_url).set(username="postgres")
    dumps = [_dump(analytics, tmp_path), _dump(sa.make_url(settings.dagster_url), tmp_path)]
    # Dagster compresses its snapshots, which hides their text from a search of the dump.
    snapshots = sa.create_engine(settings.dagster_url)
    with snapshots.connect() as connection:
        for number, body in enumerate(connection.scalars(sa.text("select snapshot_body from snapshots"))):
            dumps.append(tmp_path / f"snapshot_{number}")
            dumps[-1].write_bytes(zlib.decompress(body))
    snapshots.dispose()
    left = [path for path in settings.data_dir.rglob("*") if path.is_file()]
    (tmp_path / "said").write_text(backfilled.output + everything_said(instance))
    (tmp_path / "server_log").write_bytes(backfilled.server_log)
    searched = [*dumps, *left, tmp_path / "said", tmp_path / "server_log"]

    assert _with_canary(searched) == []
    # The search reads what it is meant to read, and finds a canary where there is one.
    assert b"COPY analytics.daily_event_counts_" in dumps[0].read_bytes()
    assert b"COPY public.event_logs" in dumps[1].read_bytes()
    assert any(path.suffix == ".err" for path in left)
    assert len([path for path in left if path.is_relative_to(pages)]) > 50
    assert "RUN_SUCCESS" in backfilled.output
    pretalx = _dump(backfilled.pretalx, tmp_path)
    assert _with_canary([*searched, pretalx]) == [pretalx]


def test_the_draft_for_sign_ups_is_right_and_the_others_say_what_is_not_known(
    make_database: Callable[[str], sa.URL], tmp_path: Path
) -> None:
    pretalx = make_database("draft")
    _command("bash", REALWORLD / "load_pretalx.sh", _libpq(pretalx))
    environment = {"ANALYTICS_SOURCE_URL": _text(pretalx), "ANALYTICS_DUMP_DIR": str(tmp_path)}
    drafted = CliRunner().invoke(main, ["sources", "--draft"], env=environment)
    assert drafted.exit_code == 0, drafted.output
    assert "canary" not in drafted.output
    assert "from public.submission_submission t;" in drafted.output
    assert "-- not known: which values of action_type mean it" in drafted.output
    assert "-- not known: which column says whether it was turned on or off" in drafted.output
    assert "only the present state, not the changes: do_not_record in public.submission_submission" in drafted.output

    _psql(pretalx, drafted.output)
    checked = CliRunner().invoke(main, ["sources"], env=environment).output.splitlines()
    assert "event_signups: ok" in checked
    assert {"profile_visibility_toggles: refused", "consent_changes: refused"} < set(checked)
    counted = _psql(
        pretalx,
        "select (occurred_at at time zone 'UTC')::date, event_id, count(*) from analytics_source.signups"
        " where occurred_at is not null group by 1, 2",
    )
    with (REALWORLD / "expected_daily_counts.csv").open(newline="") as file:
        expected = {
            f"{row['event_date']}|{row['event_id']}|{row['count']}"
            for row in csv.DictReader(file)
            if row["event_name"] == "event_signup"
        }
    assert expected
    assert expected <= set(counted.splitlines())


def _with_canary(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if b"canary" in path.read_bytes().lower()]


def _shifted_views(shift: timedelta, time_zone: str) -> str:
    """The source views, so that the data's last day is yesterday, in the pipeline's zone.

    The expected counts are of UTC days, but the tests run in a zone in which it is about noon. So the wall clock that
    UTC shows is read again as that zone's: a UTC day of the data is exactly a local day.
    """
    text, replaced = re.subn(
        r"([a-z.]+) as occurred_at",
        rf"(\1 at time zone 'UTC' + interval '{shift.days} days') at time zone '{time_zone}' as occurred_at",
        (REALWORLD / "source_views.sql").read_text(),
    )
    assert replaced == len(VIEW_METRICS)
    return text


def _text(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


def _libpq(url: sa.URL) -> str:
    return _text(url.set(drivername="postgresql"))


def _psql(url: sa.URL, sql: str) -> str:
    return _command("psql", _libpq(url), "-qAt", "-v", "ON_ERROR_STOP=1", "-c", sql)


def _dump(url: sa.URL, folder: Path) -> Path:
    path = folder / f"{url.database}.sql"
    _command("pg_dump", _libpq(url), "-f", path)
    return path


def _command(*arguments: str | Path) -> str:
    return subprocess.run(arguments, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
