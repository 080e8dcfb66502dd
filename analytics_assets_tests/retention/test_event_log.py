"""The event log stores what a run will materialize together, and says the same as the stock one, event by event."""

import logging
from collections.abc import Callable, Iterator
from datetime import date, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationPlanned
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent
from dagster_postgres.event_log import PostgresEventLogStorage

from analytics_assets.defs.evaluation import CHECK_NAMES
from analytics_assets.retention.event_log import EXECUTIONS, KEYS, EventLogStorage
from analytics_assets_tests.support.pipeline import Pipeline

TIME = 1_795_000_000.0
DAYS = [str(date(2026, 11, 1) + timedelta(days=number)) for number in range(20)]


def entry(event: DagsterEvent, number: int) -> dg.EventLogEntry:
    return dg.EventLogEntry(  # type: ignore[no-untyped-call]  # Dagster's class has no annotations
        error_info=None,
        level=logging.DEBUG,
        user_message="",
        run_id="run",
        timestamp=TIME + number,
        dagster_event=event,
    )


def planned() -> Iterator[DagsterEvent]:
    """What Dagster plans for a run of two assets, and for a check of the second."""
    for asset in (dg.AssetKey("one"), dg.AssetKey("two")):
        for day in DAYS:
            data = AssetMaterializationPlannedData(asset, partition=day, partitions_subset=None)
            yield DagsterEvent.build_asset_materialization_planned_event("job", asset.to_string(), data)
    yield DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value,
        job_name="job",
        event_specific_data=AssetCheckEvaluationPlanned(
            asset_key=dg.AssetKey("two"), check_name="check", partitions_subset=None
        ),
        step_key="check",
    )


EVENTS = [entry(event, number) for number, event in enumerate(planned())]


@pytest.fixture
def storages(make_database: Callable[[str], sa.URL]) -> Iterator[tuple[EventLogStorage, PostgresEventLogStorage]]:
    url, stock_url = (
        make_database(name).render_as_string(hide_password=False) for name in ("event_log", "stock_event_log")
    )
    ours, stock = EventLogStorage(url), PostgresEventLogStorage(stock_url)
    yield ours, stock
    ours.dispose()
    stock.dispose()


def stored(storage: PostgresEventLogStorage) -> list[list[tuple[object, ...]]]:
    """The rows of events, assets and checks, without their numbers and the times of their creation."""
    queries = (
        sa.text("select run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition from event_logs"),
        sa.select(KEYS.c.asset_key, KEYS.c.last_run_id, KEYS.c.last_materialization_timestamp),
        sa.select(EXECUTIONS.c.asset_key, EXECUTIONS.c.check_name, EXECUTIONS.c.execution_status),
    )
    with storage._connect() as connection:
        return [sorted(map(tuple, connection.execute(query)), key=str) for query in queries]


def test_a_plan_is_stored_as_the_stock_storage_does(
    storages: tuple[EventLogStorage, PostgresEventLogStorage],
) -> None:
    for storage in storages:
        storage.store_event_batch(EVENTS)
    ours, stock = map(stored, storages)
    assert [len(rows) for rows in ours] == [2 * len(DAYS) + 1, 2, 1]
    assert ours == stock


def test_a_plan_takes_one_statement(storages: tuple[EventLogStorage, PostgresEventLogStorage]) -> None:
    inserted = []
    ours, _ = storages

    @sa.event.listens_for(ours._engine, "before_cursor_execute")
    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.lower().startswith("insert into event_logs"):
            inserted.append(statement)

    ours.store_event_batch(EVENTS)
    assert len(inserted) == 1


def test_a_check_of_ours_is_planned_once_per_run_and_ended_by_its_evaluation(
    pipeline: Pipeline, yesterday: date
) -> None:
    """Dagster plans it once per day, and no evaluation would end these plans."""
    assert pipeline.run(["event_signups"], yesterday - timedelta(days=2), yesterday).success
    storage = pipeline.instance.event_log_storage
    assert isinstance(storage, EventLogStorage)
    with storage.index_connection() as connection:
        executions = connection.execute(
            sa.select(EXECUTIONS.c.check_name, EXECUTIONS.c.partition, EXECUTIONS.c.execution_status)
        ).all()
    assert sorted(name for name, _, _ in executions) == sorted(CHECK_NAMES)
    assert {(partition, status) for _, partition, status in executions} == {(None, "SUCCEEDED")}


def test_a_check_of_another_code_location_is_planned_for_each_of_its_partitions(
    storages: tuple[EventLogStorage, PostgresEventLogStorage],
) -> None:
    partitions = dg.StaticPartitionsDefinition(["a", "b"]).subset_with_all_partitions()
    check = AssetCheckEvaluationPlanned(
        asset_key=dg.AssetKey("two"), check_name="check", partitions_subset=partitions.to_serializable_subset()
    )
    event = DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value,
        job_name="job",
        event_specific_data=check,
        step_key="check",
    )
    for storage in storages:
        storage.store_event_batch([entry(event, 0)])
    ours, stock = map(stored, storages)
    assert len(ours[2]) == 2
    assert ours == stock


def test_a_connection_that_the_server_has_just_ended_costs_no_event(
    storages: tuple[EventLogStorage, PostgresEventLogStorage],
) -> None:
    ours, stock = storages
    for event in EVENTS[:3]:
        ours.store_event(event)
        with stock._connect() as connection:
            ended = sa.text(
                "select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity where datname = :database"
            )
            assert connection.scalar(ended, {"database": ours._engine.url.database})
    ours.store_event(EVENTS[3])
    assert len(stored(ours)[0]) == 4
