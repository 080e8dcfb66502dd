"""The command line: what it prints, refuses and leaves behind."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from analytics_assets.cli import main
from analytics_assets.local.postgres import embedded_postgres
from analytics_assets.settings import VARIABLES, Settings
from analytics_assets_tests.support.host import Host


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
    assert "canary" not in result.output


def test_only_looking_changes_no_setting(data_dir: Path) -> None:
    def enforced(period: str, *command: str) -> tuple[Any, str]:
        env = {"ANALYTICS_DATA_DIR": str(data_dir), "ANALYTICS_RETENTION_DAYS": period}
        result = CliRunner().invoke(main, command, env=env)
        with embedded_postgres(data_dir) as server:
            engine = sa.create_engine(server.set(database="analytics"))
            with engine.connect() as connection:
                settings = connection.exec_driver_sql("select * from analytics.settings").one()
            engine.dispose()
        return settings, result.output

    before, _ = enforced("180", "init-db")
    for command in (["retention", "--dry-run"], ["retention"], ["sources"]):
        after, output = enforced("1", *command)
        assert after == before
        if "retention" in command:
            assert "differ from what the database enforces: run `analytics-assets init-db`" in output
    after, _ = enforced("1", "init-db")
    assert (after.retention_days, after.kept_since) == (1, after.kept_since)
    assert after.kept_since is not None


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
