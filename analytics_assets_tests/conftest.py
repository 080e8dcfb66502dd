"""Fixtures: a real PostgreSQL for the session; for each test that asks, databases of its own and a pipeline on them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from analytics_assets.settings import VARIABLES, Settings

for name in VARIABLES:
    os.environ.pop(name, None)
# A zone in which it is about noon, so that no day ends while a test runs.
os.environ["ANALYTICS_TIMEZONE"] = f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"

from analytics_assets.local.postgres import embedded_postgres, ensure_database  # noqa: E402
from analytics_assets.local.server import dagster_instance  # noqa: E402
from analytics_assets_tests.support.database import set_up  # noqa: E402
from analytics_assets_tests.support.host import Host  # noqa: E402
from analytics_assets_tests.support.pipeline import Pipeline  # noqa: E402

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """Superuser's URL of a PostgreSQL that lives as long as the session."""
    with embedded_postgres(tmp_path_factory.mktemp("embedded")) as url:
        yield url


@pytest.fixture(scope="session")
def make_database(server: sa.URL) -> Callable[[str], sa.URL]:
    """Make an empty database whose name starts as given."""
    return lambda prefix: ensure_database(server, f"{prefix}_{next(_NUMBERS)}")


@pytest.fixture(scope="session")
def make_dagster_database(
    server: sa.URL, make_database: Callable[[str], sa.URL], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], str]:
    """Make a database with Dagster's empty tables, and return its URL. Copying one is faster than making them."""
    template = make_database("template")
    folder = {"ANALYTICS_DATA_DIR": str(tmp_path_factory.mktemp("template"))}
    url = template.render_as_string(hide_password=False)
    with dagster_instance(replace(Settings.from_env(folder), dagster_url=url)):
        pass

    def make() -> str:
        name = f"dagster_{next(_NUMBERS)}"
        engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"create database {name} template {template.database}")
        engine.dispose()
        return server.set(database=name).render_as_string(hide_password=False)

    return make


@pytest.fixture
def host(make_database: Callable[[str], sa.URL]) -> Iterator[Host]:
    """An empty host application with correct source views."""
    with Host.create(make_database("host")) as made:
        yield made


@pytest.fixture
def settings(
    make_database: Callable[[str], sa.URL], make_dagster_database: Callable[[], str], host: Host, tmp_path: Path
) -> Settings:
    """Settings of a pipeline that is set up and has collected nothing."""
    made = set_up(make_database("analytics"), host.reader_url, tmp_path)
    return replace(made, dagster_url=make_dagster_database())


@pytest.fixture
def pipeline(settings: Settings) -> Iterator[Pipeline]:
    """The pipeline, with its runs in this process."""
    with Pipeline.open(settings) as opened:
        yield opened


@pytest.fixture
def yesterday(settings: Settings) -> date:
    """The last full day."""
    return settings.today() - timedelta(days=1)
