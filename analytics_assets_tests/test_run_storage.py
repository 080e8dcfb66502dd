"""The run storage keeps one connection, and does not need it to stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.run_storage import RunStorage
from analytics_assets_tests.support.pipeline import Pipeline


@pytest.fixture
def storage(make_dagster_database: Callable[[], str]) -> Iterator[RunStorage]:
    """The run storage on a database of its own."""
    made = RunStorage(make_dagster_database())
    yield made
    made.dispose()


def log_ins(storage: RunStorage) -> list[object]:
    """Note each connection that is made from now on."""
    made: list[object] = []
    sa.event.listen(storage._engine, "connect", lambda connection, _: made.append(connection))
    return made


def test_statements_share_a_connection(storage: RunStorage) -> None:
    made = log_ins(storage)
    for number in range(3):
        storage.add_run(dg.DagsterRun(job_name="job", run_id=f"00000000-0000-0000-0000-{number:012}"))
        assert storage.get_runs_count() == number + 1
    assert len(made) == 1


def test_a_connection_that_the_server_has_ended_is_replaced(storage: RunStorage, server: sa.URL) -> None:
    made = log_ins(storage)
    assert storage.get_runs_count() == 0
    end = sa.text("select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity where datname = :database")
    with sa.create_engine(server, poolclass=sa.NullPool).connect() as connection:
        assert connection.scalar(end, {"database": storage._engine.url.database}) == 1
    assert storage.get_runs_count() == 0
    assert len(made) == 2


def test_dagster_yaml_names_it(pipeline: Pipeline) -> None:
    assert type(pipeline.instance.run_storage) is RunStorage
