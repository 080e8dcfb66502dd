"""The command line: what it prints, refuses and leaves behind."""

import re
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from analytics_assets.cli import main
from analytics_assets.database import place
from analytics_assets.days import bounds
from analytics_assets.local.postgres import embedded_postgres, has_database
from analytics_assets.settings import VARIABLES, Settings
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import admin_url, as_superuser
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, Pipeline
from analytics_assets_tests.support.processes import free_port


def invoke(*arguments: str, settings: Settings | None = None) -> Result:
    return CliRunner().invoke(main, arguments, env=settings.environment() if settings else None)


@pytest.fixture
def complete(settings: Settings) -> Settings:
    """Settings with every URL set, so that no command starts a server."""
    assert settings.database_url
    return Settings.from_env(settings.environment() | {"DAGSTER_POSTGRES_URL": settings.database_url})


def test_help_names_every_command_and_setting() -> None:
    text = invoke("--help").output
    for name in (*main.commands, *VARIABLES):
        assert name in text


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.split("Options:")[0].splitlines()) > 3


def test_sources_finds_nothing_wrong_with_correct_views(complete: Settings) -> None:
    result = invoke("sources", settings=complete)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"Source views: {place(complete.source_url)}",
        "event_signups: ok",
        "profile_visibility_toggles: ok",
        "consent_changes: ok",
        "counter dumps: ok",
    ]


def test_sources_says_what_is_wrong(complete: Settings, host: Host) -> None:
    host.sql(
        "create or replace view analytics_source.signups as select event_id, occurred_at, source, email from signups"
    )
    host.sql("drop view analytics_source.consent_changes")
    host.sql("grant select on signups to analytics_source_reader; grant usage on schema public to public")
    complete.dump_dir.rmdir()
    result = invoke("sources", settings=complete)
    assert result.exit_code == 1
    assert "view analytics_source.signups: email is an unexpected column; remove it from the view" in result.output
    assert (
        "view analytics_source.consent_changes: (view) is missing or is not a view; create it with the columns"
        in result.output
    )
    assert (
        "warning: the login of ANALYTICS_SOURCE_URL can read more than the source views: public.signups"
        in result.output
    )
    assert "counter dumps: refused\n  dump folder: (folder) does not exist" in result.output
    assert "Error: 3 problem(s)" in result.output


def test_a_dump_folder_that_is_a_file_is_said_to_be_one(complete: Settings) -> None:
    complete.dump_dir.rmdir()
    complete.dump_dir.touch()
    assert "dump folder: (folder) is a file: set ANALYTICS_DUMP_DIR" in invoke("sources", settings=complete).output


@pytest.mark.parametrize("command", ["up", "demo", "serve"])
def test_a_port_that_cannot_be_is_refused(command: str) -> None:
    refused = invoke(command, "--port", "99999")
    assert refused.exit_code == 2
    assert "'--port'" in refused.output


def test_sources_says_what_collecting_would_say_of_the_newest_dumps(complete: Settings) -> None:
    today = complete.today()
    days = [today - timedelta(days=n) for n in (9, 3, 0, -1)]
    good = '{"event_date":"%s","event_name":"directory_searched","event_id":"7","count":          17}\n'
    for day in days:
        (complete.dump_dir / str(day)).mkdir()
        (complete.dump_dir / str(day) / f"{'a' * 32}.ndjson").write_text(good % day)
    clean = invoke("sources", settings=complete)
    assert clean.exit_code == 0
    assert f"counter dumps: ok (parsed: {days[1]}, {days[2]})" in clean.output.splitlines()

    (complete.dump_dir / str(days[0]) / f"{'b' * 32}.ndjson").write_text("canary")  # neither newest nor finished last
    assert invoke("sources", settings=complete).exit_code == 0
    for number, day in enumerate(days[1:3], 1):
        (complete.dump_dir / str(day) / f"{'b' * 32}.ndjson").write_text("\0\0canary\n" * 30)
        damaged = invoke("sources", settings=complete)
        assert damaged.exit_code == 1
        assert f"counter dumps: refused (parsed: {days[1]}, {days[2]})" in damaged.output
        assert f"  {days[1]}/{'b' * 32}.ndjson line 1: (row) is not a line of JSON" in damaged.output
        assert f"  and {30 * number - 20} more" in damaged.output
        assert f"Error: {30 * number} problem(s)" in damaged.output
        assert "canary" not in damaged.output


def test_init_db_sets_up_a_server_by_url_and_keeps_what_is_there(make_database: Callable[[str], sa.URL]) -> None:
    url = make_database("by_url")
    admin = url.render_as_string(hide_password=False)
    assert invoke("init-db", "--admin-url", admin).exit_code == 0
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into analytics.collected_days values ('event_signups', analytics.today() - 1, 3, now())"
        )
    again = invoke("init-db", "--admin-url", admin)
    assert "Schema analytics is up to date" in again.output
    with engine.begin() as connection:
        assert connection.exec_driver_sql("select rows from analytics.collected_days").scalar() == 3
    engine.dispose()


def test_init_db_with_the_service_account_is_refused_with_the_reason(
    settings: Settings, make_database: Callable[[str], sa.URL]
) -> None:
    url = make_database("refused").set(username="analytics_writer").render_as_string(hide_password=False)
    result = invoke("init-db", "--admin-url", url)
    assert result.exit_code == 1
    assert "a login that may create roles: --admin-url): InsufficientPrivilege" in result.output


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ANALYTICS_DATABASE_URL", "mysql://user:canary@host/db"),
        ("ANALYTICS_SOURCE_URL", "canary"),
        ("ANALYTICS_TIMEZONE", "canary/Nowhere"),
        ("ANALYTICS_RETENTION_DAYS", "-canary"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not(variable: str, value: str) -> None:
    result = CliRunner().invoke(main, ["sources"], env={variable: value})
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {variable} ")
    assert "canary" not in result.output


def test_a_server_that_is_not_there_is_an_error_without_a_traceback(complete: Settings, tmp_path: Path) -> None:
    url = f"postgresql://someone:canary@/nowhere?host={tmp_path}"
    environment = complete.environment() | {"ANALYTICS_SOURCE_URL": url}
    result = CliRunner().invoke(main, ["sources"], env=environment)
    assert result.exit_code == 1
    assert "the database cannot be reached" in result.output
    assert "counter dumps: ok" in result.output, "they are checked all the same"
    assert "canary" not in result.output


LOOKING = [["retention"], ["retention", "--dry-run"], ["sources"], ["publish"]]


@pytest.mark.parametrize("command", [*LOOKING, ["grants"], ["dictionary"]], ids=" ".join)
def test_in_an_empty_folder_nothing_is_made(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell has it that was not given the environment."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, command, env={"DAGSTER_HOME": None})
    assert list(tmp_path.iterdir()) == []
    if command in LOOKING:
        assert result.exit_code == 1
        assert "no database there: ANALYTICS_DATABASE_URL is not set" in result.output
        assert ("ANALYTICS_SOURCE_URL is not set" in result.output) == (command == ["sources"])
    else:
        assert result.exit_code == 0


@pytest.fixture
def embedded(data_dir: Path) -> Callable[..., Result]:
    """Runs a command on an embedded PostgreSQL of its own, with a retention period."""

    def run(period: int, *command: str) -> Result:
        env = {"ANALYTICS_DATA_DIR": str(data_dir), "ANALYTICS_RETENTION_DAYS": str(period)}
        return CliRunner().invoke(main, command, env=env)

    return run


def test_publish_does_without_a_database_of_dagster_and_retention_does_not(
    data_dir: Path, embedded: Callable[..., Result]
) -> None:
    elsewhere = {"ANALYTICS_DATA_DIR": str(data_dir), "DAGSTER_POSTGRES_URL": "postgresql+psycopg2://nowhere/dagster"}
    assert CliRunner().invoke(main, ["init-db"], env=elsewhere).exit_code == 0
    with embedded_postgres(data_dir) as server:
        for command in ["retention"], ["retention", "--dry-run"]:
            result = embedded(180, *command)
            assert result.exit_code == 1
            assert result.output.startswith("Error: no database there: DAGSTER_POSTGRES_URL is not set")
        result = embedded(180, "publish")
        assert result.exit_code == 0
        assert result.output.startswith("Dagster's records cannot be read: DAGSTER_POSTGRES_URL is not set")
        assert result.output.endswith("Nothing to publish: no closed day has been collected.\n")
        assert not has_database(server, "dagster")


def test_only_looking_changes_nothing(data_dir: Path, embedded: Callable[..., Result]) -> None:
    (data_dir / "postgres").mkdir()
    for command in LOOKING:
        assert "no database there" in embedded(180, *command).output, "a folder without a database is none"
    (data_dir / "postgres").rmdir()
    assert embedded(180, "init-db").exit_code == 0
    with embedded_postgres(data_dir) as server:  # so that it is not started for every look

        def state() -> tuple[Any, ...]:
            engine = sa.create_engine(server.set(database="analytics"))
            with engine.connect() as connection:
                settings = connection.exec_driver_sql("select * from analytics.settings").one()
                databases = connection.exec_driver_sql("select datname from pg_database order by 1").all()
            engine.dispose()
            return (settings, databases, sorted(path.name for path in data_dir.iterdir()))

        before = state()
        for command in LOOKING:
            output = embedded(1, *command).output
            assert state() == before
            if command != ["sources"]:
                assert "differ from what the database enforces: run `analytics-assets init-db`" in output
        looked = embedded(180, "retention", "--dry-run")
        assert f"Counts: analytics on {data_dir}" in looked.output.replace("\n", "")
        assert state() == before

        # A shorter period is refused by whatever would set it, and says what goes.
        engine = sa.create_engine(server.set(database="analytics"))
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "select analytics.create_days(analytics.today() - n) from generate_series(1, 5) n"
            )
        engine.dispose()
        before = state()
        for command in (["init-db"], ["up", "--port", str(free_port())]):
            refused = embedded(3, *command)
            assert refused.exit_code == 1
            assert "The database keeps 180 days" in refused.output
            assert "- daily counts: 2 days since" in refused.output
            assert "`analytics-assets init-db --shorten-retention`" in refused.output
            assert state() == before
        meant = embedded(3, "init-db", "--shorten-retention")
        assert meant.exit_code == 0, meant.output
        assert meant.output.index("- daily counts: 2 days since") < meant.output.index("retention: 3 days")
        assert embedded(3, "init-db").exit_code == 0, "once"


def test_shortening_by_url_says_per_target_what_goes(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    days = [yesterday - timedelta(days=20), yesterday]
    fill(host, settings, days)
    for day in days:
        assert pipeline.run(["event_signups", "directory_searches"], day).success
    command = ["init-db", "--admin-url", admin_url(settings)]
    env = settings.environment() | {"ANALYTICS_RETENTION_DAYS": "10"}
    refused = CliRunner().invoke(main, command, env=env)
    assert refused.exit_code == 1
    first = settings.today() - timedelta(days=10)
    assert f"every day before {first} expires" in refused.output
    for target in ("daily counts", "collected days", "counter dumps", "partition records"):
        assert f"- {target}: 1 days since {days[0]}" in refused.output
    # Those of the first run, and what the second one says of the days between that are missing.
    assert f"- check evaluations: 2 days since {days[0]}" in refused.output
    assert pipeline.retain().success, "nothing has changed"
    assert pipeline.materialized("event_signups") == pipeline.materialized("directory_searches") == set(days)

    env |= {"ANALYTICS_DUMP_DIR": str(settings.data_dir / "elsewhere"), "DAGSTER_POSTGRES_URL": ""}
    assert (
        "- not looked at from here, and removed too: the counter dumps (ANALYTICS_DUMP_DIR names no folder) and"
        " Dagster's records (DAGSTER_POSTGRES_URL is not set)" in CliRunner().invoke(main, command, env=env).output
    )
    # Silence about a lost variable would be the worst, even when no stored day is that old yet.
    env = settings.environment() | {"ANALYTICS_RETENTION_DAYS": "179"}
    assert "- nothing that is stored yet" in CliRunner().invoke(main, command, env=env).output
    # A zone that is behind ends no day.
    env = settings.environment() | {"ANALYTICS_TIMEZONE": "Etc/GMT+12"}
    assert CliRunner().invoke(main, command, env=env).exit_code == 0


def test_another_zone_is_refused_when_a_stored_day_would_end(pipeline: Pipeline, host: Host) -> None:
    settings = pipeline.settings
    first = settings.today() - timedelta(days=180)
    command = ["init-db", "--admin-url", admin_url(settings)]
    east = settings.environment() | {"ANALYTICS_TIMEZONE": "Pacific/Kiritimati"}
    # Tomorrow there, and still today here: both hold for hours, whatever zone the session has.
    today_begins = bounds(settings.today(), settings.time_zone)[0]
    tomorrow_begins_there = bounds(settings.today() + timedelta(days=1), "Pacific/Kiritimati")[0]
    set_clock(settings, max(today_begins, tomorrow_begins_there) + timedelta(minutes=30))
    fill(host, settings, [first])
    assert pipeline.run(ALL, first).success
    refused = CliRunner().invoke(main, command, env=east)
    assert refused.exit_code == 1
    assert f"({first} to {first})" in refused.output
    assert CliRunner().invoke(main, [*command, "--shorten-retention"], env=east).exit_code == 0


def test_up_compares_the_settings_with_a_database_that_a_url_names(complete: Settings) -> None:
    as_superuser(complete, "update analytics.settings set time_zone = 'CET'")
    for time_zone, said in (
        (complete.time_zone, "differ from what the database enforces"),
        ("CET", "ANALYTICS_TIMEZONE: the database's server reads this name differently"),
    ):
        env = complete.environment() | {"ANALYTICS_TIMEZONE": time_zone}
        result = CliRunner().invoke(main, ["up", "--port", str(free_port())], env=env)
        assert result.exit_code == 1
        assert said in result.output


def test_a_cutoff_is_confirmed_on_the_command_line(settings: Settings) -> None:
    today = settings.today()
    old = settings.dump_dir / str(today)
    old.mkdir()
    set_clock(settings, noon_of(settings, today + timedelta(days=365)), time_has_passed=False)
    cutoff = today + timedelta(days=185)
    env = settings.environment()
    refused = CliRunner().invoke(main, ["retention"], env=env)
    assert refused.exit_code == 1
    assert f"--confirm-cutoff {cutoff}" in refused.output
    looked = CliRunner().invoke(main, ["retention", "--dry-run"], env=env)
    assert looked.exit_code == 0
    assert f"warning: the cut-off is {cutoff}" in looked.output
    other = CliRunner().invoke(main, ["retention", "--confirm-cutoff", str(today)], env=env)
    assert other.exit_code == 1
    assert f"the date is not the cut-off, which is {cutoff}" in other.output
    both = CliRunner().invoke(main, ["retention", "--dry-run", "--confirm-cutoff", str(cutoff)], env=env)
    assert both.exit_code == 2
    assert old.exists()
    terminal = env | {"TTY_COMPATIBLE": "1"}  # Rich takes stderr for a terminal
    confirmed = CliRunner().invoke(main, ["retention", "--confirm-cutoff", str(cutoff)], env=terminal)
    assert "Removing expired days" in confirmed.stderr
    assert confirmed.exit_code == 0, confirmed.output
    assert not old.exists()
    assert CliRunner().invoke(main, ["retention"], env=env).exit_code == 0, "confirmed once"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://canary:canary@db.example.org:5432/events", "events on db.example.org"),
        ("postgresql://canary:canary@/events?host=/run/postgresql", "events on /run/postgresql"),
        ("postgresql:///events", "events on this machine"),
        ("postgresql://canary@db.example.org", "the login's default on db.example.org"),
        # An @ or / of the password that is not encoded: nobody knows what the rest is.
        ("postgresql://user:word@canary@host/events", "(its name or host has an @)"),
        ("postgresql://user:word@x/canary@host/events", "(its name or host has an @)"),
    ],
)
def test_which_database_is_shown_without_login_and_password(url: str, shown: str) -> None:
    assert place(url) == shown


def test_retention_removes_what_a_restore_has_brought_back(settings: Settings) -> None:
    long_ago = settings.dump_dir / "2020-01-01"
    long_ago.mkdir()
    (long_ago / f"{'0' * 32}.ndjson").write_text("canary")
    env = settings.environment()
    shown = CliRunner().invoke(main, ["retention", "--dry-run"], env=env)
    assert (shown.exit_code, long_ago.exists()) == (0, True), shown.output
    assert re.search(r"counter dumps +│ 1 +│ 1 +│ 2020-01-01", shown.output)
    removed = CliRunner().invoke(main, ["retention"], env=env)
    assert (removed.exit_code, long_ago.exists()) == (0, False), removed.output
    assert "canary" not in shown.output + removed.output

    (settings.dump_dir / "canary").mkdir()
    refused = CliRunner().invoke(main, ["retention"], env=env)
    assert refused.exit_code == 1
    assert "Error: removing failed for 1 retention target(s)" in refused.output
    assert "canary" not in refused.output
