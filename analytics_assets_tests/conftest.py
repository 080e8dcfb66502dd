"""Fixtures: a real PostgreSQL for the session; for each test that asks, databases of its own and a pipeline on them."""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from analytics_assets.settings import VARIABLES, Settings

# A worker of pytest-xdist inherits the zone that the session has chosen.
_ZONE = os.environ.get("ANALYTICS_TIMEZONE") if "PYTEST_XDIST_WORKER" in os.environ else None
for name in VARIABLES:
    os.environ.pop(name, None)
# A zone in which it is about noon, so that no day ends while a test runs.
os.environ["ANALYTICS_TIMEZONE"] = _ZONE or f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"

# E402: what is imported here reads the environment.
from analytics_assets.defs import retries  # noqa: E402
from analytics_assets.local.postgres import embedded_postgres, ensure_database  # noqa: E402
from analytics_assets.local.server import dagster_instance  # noqa: E402
from analytics_assets.store.grants import RIGHTS  # noqa: E402
from analytics_assets.store.setup import init_db  # noqa: E402
from analytics_assets_tests.support import s3, sftp  # noqa: E402
from analytics_assets_tests.support.database import pipeline_settings  # noqa: E402
from analytics_assets_tests.support.host import Host  # noqa: E402
from analytics_assets_tests.support.pipeline import Pipeline  # noqa: E402
from analytics_assets_tests.support.postgres import (  # noqa: E402
    ServerWatch,
    copy_database,
    dropped_afterwards,
    trade_safety_for_speed,
)

_NUMBERS = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a PostgreSQL server, and put the long modules first.

    Other modules that need programs or long-lived processes have the mark themselves.
    """
    for item in items:
        if "make_server_folder" in getattr(item, "fixturenames", ()):
            item.add_marker("server")
    # A long module that begins last would leave the other workers idle.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def _no_wait_before_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose database is out of reach is tried again at once, in the test's own process."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0)


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """A server of S3."""
    with s3.s3_server() as started:
        yield started.port


@pytest.fixture
def s3_url(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a folder in a bucket of the test's own. The environment has what its library reads."""
    s3.forget_sessions()
    for name, value in s3.environment(s3_port).items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_NUMBERS)}"
    s3.make_bucket(s3_port, bucket)
    return f"s3://{bucket}/dumps"


@pytest.fixture(scope="session")
def sftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sftp.SftpServer]:
    """A server of SFTP."""
    with sftp.sftp_server(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture
def sftp_url(sftp_server: sftp.SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a folder there, of the test's own. The home folder has the keys."""
    monkeypatch.setenv("HOME", str(sftp_server.home))
    (tmp_path / "sftp").mkdir()
    return sftp_server.url(tmp_path / "sftp")


@pytest.fixture(params=["s3", "file", "sftp"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty folder on a storage of each kind."""
    if request.param == "file":
        (tmp_path / "share").mkdir()
        return f"file://{tmp_path}/share"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(scope="session")
def make_server_folder() -> Iterator[Callable[[], Path]]:
    """Make a folder in which a PostgreSQL server can be started; all of them go when the session ends.

    They are not below pytest's own folders: a second pytest of the same user takes those from everybody else (mode
    0700), and a server that was started by root, and so runs as another user, panics at its next file.
    """
    with tempfile.TemporaryDirectory(prefix="analytics-tests-", ignore_cleanup_errors=True) as parent:
        yield lambda: Path(tempfile.mkdtemp(dir=parent))


@pytest.fixture
def data_dir(make_server_folder: Callable[[], Path]) -> Path:
    """A data folder for a test that starts a server of its own."""
    return make_server_folder()


@pytest.fixture(scope="session")
def server(make_server_folder: Callable[[], Path], request: pytest.FixtureRequest) -> Iterator[sa.URL]:
    """Superuser's URL of a PostgreSQL that lives as long as the session."""
    with embedded_postgres(make_server_folder()) as url:
        trade_safety_for_speed(url)
        request.config.pluginmanager.register(ServerWatch(url))
        yield url


@pytest.fixture(scope="session")
def make_database(server: sa.URL) -> Callable[[str], sa.URL]:
    """Make an empty database whose name starts as given."""
    return lambda prefix: ensure_database(server, f"{prefix}_{next(_NUMBERS)}")


@pytest.fixture(scope="session")
def make_analytics_database(server: sa.URL, make_database: Callable[[str], sa.URL]) -> Callable[[], sa.URL]:
    """Make an analytics database that is set up and empty. Copying one is faster than setting it up."""
    template = make_database("template")
    init_db(template.render_as_string(hide_password=False), Settings.from_env())

    def make() -> sa.URL:
        url = copy_database(template, f"analytics_{next(_NUMBERS)}")
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql(RIGHTS)  # those on the database itself are not copied
        engine.dispose()
        return url

    return make


@pytest.fixture(scope="session")
def make_dagster_database(
    make_database: Callable[[str], sa.URL], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], str]:
    """Make a database with Dagster's empty tables, and return its URL. Copying one is faster than making them."""
    template = make_database("template")
    folder = {"ANALYTICS_DATA_DIR": str(tmp_path_factory.mktemp("template"))}
    url = template.render_as_string(hide_password=False)
    with dagster_instance(replace(Settings.from_env(folder), dagster_url=url)):
        pass
    return lambda: copy_database(template, f"dagster_{next(_NUMBERS)}").render_as_string(hide_password=False)


@pytest.fixture
def host(make_database: Callable[[str], sa.URL]) -> Iterator[Host]:
    """An empty host application with correct source views."""
    url = make_database("host")
    with dropped_afterwards(url), Host.create(url) as made:
        yield made


@pytest.fixture
def settings(
    make_analytics_database: Callable[[], sa.URL],
    make_dagster_database: Callable[[], str],
    host: Host,
    tmp_path: Path,
) -> Iterator[Settings]:
    """Settings of a pipeline that is set up and has collected nothing."""
    url, dagster_url = make_analytics_database(), make_dagster_database()
    with dropped_afterwards(url), dropped_afterwards(dagster_url):
        yield replace(pipeline_settings(url, host.reader_url, tmp_path), dagster_url=dagster_url)


@pytest.fixture
def pipeline(settings: Settings) -> Iterator[Pipeline]:
    """The pipeline, with its runs in this process."""
    with Pipeline.open(settings) as opened:
        yield opened


@pytest.fixture
def yesterday(settings: Settings) -> date:
    """The last full day."""
    return settings.today() - timedelta(days=1)
