"""Settings from the environment: defaults, and refusals that name the variable and never its value."""

from pathlib import Path

import pytest

from analytics_assets.settings import VARIABLES, Settings, SettingsError

URL = "postgresql+psycopg2://writer:secret@db.example:5433/counts"


def test_defaults() -> None:
    settings = Settings.from_env({})
    assert (settings.database_url, settings.source_url, settings.dagster_url) == (None, None, None)
    assert (settings.time_zone, settings.retention_days) == ("UTC", 180)
    assert settings.data_dir == Path.cwd() / ".analytics"
    assert settings.dump_dir == settings.data_dir / "dumps"


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env(dict.fromkeys(VARIABLES, "")) == Settings.from_env({})


def test_everything_can_be_set(tmp_path: Path) -> None:
    settings = Settings.from_env(
        {
            "ANALYTICS_DATABASE_URL": URL,
            "ANALYTICS_SOURCE_URL": f"{URL}_host",
            "DAGSTER_POSTGRES_URL": f"{URL}_dagster",
            "ANALYTICS_DATA_DIR": str(tmp_path),
            "ANALYTICS_DUMP_DIR": "relative",
            "ANALYTICS_TIMEZONE": "Europe/Berlin",
            "ANALYTICS_RETENTION_DAYS": "30",
            "ANALYTICS_OWNS_DAGSTER": "yes",
            "ANALYTICS_EXECUTOR": "redis://:secret@broker.example:6379/0",
            "ANALYTICS_ALERT_URL": "mailto://someone:secret@mail.example",
        }
    )
    assert settings == Settings(
        database_url=URL,
        source_url=f"{URL}_host",
        dagster_url=f"{URL}_dagster",
        data_dir=tmp_path,
        dump_dir=Path.cwd() / "relative",
        publish_dir=tmp_path / "pages",
        time_zone="Europe/Berlin",
        retention_days=30,
        owns_dagster=True,
        executor="redis://:secret@broker.example:6379/0",
        alert_url="mailto://someone:secret@mail.example",
    )
    assert "secret" not in repr(settings)
    assert Settings.from_env(settings.environment()) == settings
    assert set(settings.environment()) == set(VARIABLES)


def test_the_source_is_in_the_same_database_unless_set() -> None:
    assert Settings.from_env({"ANALYTICS_DATABASE_URL": URL}).source_url == URL


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_the_driver_is_named(scheme: str) -> None:
    given = f"{scheme}://writer:p%40ss@db.example:5433/counts?sslmode=require"
    expected = "postgresql+psycopg2://writer:p%40ss@db.example:5433/counts?sslmode=require"
    assert Settings.from_env({"DAGSTER_POSTGRES_URL": given}).dagster_url == expected


@pytest.mark.parametrize(
    "variable", [name for name in VARIABLES if name.endswith("_URL") and name != "ANALYTICS_ALERT_URL"]
)
@pytest.mark.parametrize(
    "value",
    [
        "canary",
        "://canary",
        "db.example/canary",
        "mysql+mysqldb://writer:canary@db.example/counts",
        "mysql://writer:secret@db.example:canary/counts",
        "sqlite:///canary.db",
        "postgresql+asyncpg://writer:canary@db.example/counts",
        "postgresql://writer:secret@db.example:canary/counts",
        "postgresql://writer:sec@ret:canary@db.example/counts",
        "postgresql://writer:canary@db.example/counts?port=canary",
        "postgresql://writer:canary@/counts?host=one&host=two&port=1",
    ],
)
def test_a_bad_url_is_refused_without_its_password(variable: str, value: str) -> None:
    refuses(variable, value)


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"])
def test_only_the_hosts_database_may_be_mysql(scheme: str) -> None:
    given = f"{scheme}://reader:p%40ss@db.example:3307/analytics_source?ssl_ca=/ca.pem"
    expected = "mysql+pymysql://reader:p%40ss@db.example:3307/analytics_source?ssl_ca=%2Fca.pem"
    assert Settings.from_env({"ANALYTICS_SOURCE_URL": given}).source_url == expected
    for variable in ("ANALYTICS_DATABASE_URL", "DAGSTER_POSTGRES_URL"):
        refuses(variable, f"{scheme}://writer:canary@db.example/counts")


@pytest.mark.parametrize("value", ["canary", "canary@example.org", "://canary", "mailto://canary json://canary"])
def test_a_bad_alert_url_is_refused_without_its_password(value: str) -> None:
    refuses("ANALYTICS_ALERT_URL", value)


@pytest.mark.parametrize("value", ["in_process", "runs"])
def test_without_a_broker_steps_run_in_the_process_of_their_run(value: str) -> None:
    assert Settings.from_env({}).executor == "in_process"
    assert Settings.from_env({"ANALYTICS_EXECUTOR": value}).broker_url is None


@pytest.mark.parametrize("value", ["redis://broker", "rediss://:secret@broker.example:6379/0"])
def test_a_broker_is_a_redis(value: str) -> None:
    assert Settings.from_env({"ANALYTICS_EXECUTOR": value}).broker_url == value


@pytest.mark.parametrize(
    "value",
    [
        "canary",
        "redis://",
        "amqp://canary@broker",
        "redis://broker:canary/0",
        "redis://broker/0 canary",
        "redis://[canary",
    ],
)
def test_another_executor_is_refused_without_its_password(value: str) -> None:
    refuses("ANALYTICS_EXECUTOR", value)


@pytest.mark.parametrize("value", ["canary/Berlin", "/canary", "../canary", "America", "Europe/canary\n"])
def test_a_bad_time_zone_is_refused(value: str) -> None:
    refuses("ANALYTICS_TIMEZONE", value)


@pytest.mark.parametrize("value", ["0", "-1", "3651", "1.5", "canary", " 180", "\uff11\uff18\uff10", "²", "1_0", "1e2"])
def test_a_bad_retention_period_is_refused(value: str) -> None:
    refuses("ANALYTICS_RETENTION_DAYS", value)


@pytest.mark.parametrize("value", ["1", "3650"])
def test_the_ends_of_the_retention_period_are_allowed(value: str) -> None:
    assert Settings.from_env({"ANALYTICS_RETENTION_DAYS": value}).retention_days == int(value)


def refuses(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable) as refusal:
        Settings.from_env({variable: value})
    assert "canary" not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize("dump_dir", ["/srv/analytics", "/srv", "/"])
def test_a_dump_folder_above_other_data_is_refused_because_what_is_old_in_it_is_removed(dump_dir: str) -> None:
    with pytest.raises(SettingsError, match="ANALYTICS_DUMP_DIR must be a folder for the dumps alone"):
        Settings.from_env({"ANALYTICS_DATA_DIR": "/srv/analytics", "ANALYTICS_DUMP_DIR": dump_dir})


def test_the_dumps_may_be_behind_a_url(tmp_path: Path) -> None:
    settings = Settings.from_env({"ANALYTICS_DATA_DIR": str(tmp_path), "ANALYTICS_DUMP_DIR": "sftp://user@host/dumps"})
    assert (settings.dump_url, settings.dump_dir) == ("sftp://user@host/dumps", tmp_path / "dumps")
    assert Settings.from_env(settings.environment()) == settings
    assert "user@host" not in repr(settings)
    assert Settings.from_env({}).dump_url is None


@pytest.mark.parametrize("url", ["sftp://user:canary@host/dumps", "s3:///canary", "az://dumps/x?sig=canary"])
def test_a_url_of_dumps_that_cannot_be_used_is_refused_without_it(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^ANALYTICS_DUMP_DIR ") as refusal:
        Settings.from_env({"ANALYTICS_DUMP_DIR": url})
    assert "canary" not in str(refusal.value)
