"""Running the real definitions in this process, and reading what they stored and said."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.scheduler.instigation import SensorInstigatorData

from analytics_assets.contract import METRICS, Metric, metric
from analytics_assets.database import DatabaseError
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.checks import LEDGER_KEY
from analytics_assets.defs.evaluation import AT_SOURCE
from analytics_assets.defs.jobs import RetentionConfig, remove_expired_days, retention_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets.defs.schedules import make_daily_schedule
from analytics_assets.guard import Row
from analytics_assets.local.server import dagster_instance
from analytics_assets.operations import Line
from analytics_assets.operations.status import read_status
from analytics_assets.settings import Settings
from analytics_assets.store import Store
from analytics_assets.store.counts import Stored, replace_days
from analytics_assets.store.tables import COLLECTED_DAYS

ALL = [m.asset for m in METRICS]
LEDGER = LEDGER_KEY.to_user_string()
EVENT_FED = [m.asset for m in METRICS if m.table == "daily_event_counts"]


def replace_day(store: Store, metric: Metric, day: date, rows: Sequence[Row], **allowed: bool) -> None:
    """Replace one day. Raises the error that says why it is unchanged."""
    outcome = replace_days(store, metric, {day: rows}, **allowed)[day]
    if not isinstance(outcome, Stored):
        raise outcome


@dataclass
class Pipeline:
    """The definitions on some settings, with an instance to run them on."""

    settings: Settings
    instance: dg.DagsterInstance

    @classmethod
    @contextmanager
    def open(cls, settings: Settings) -> Iterator[Pipeline]:
        with dagster_instance(settings) as instance:
            yield cls(settings, instance)

    def definitions(self) -> dg.Definitions:
        """The real ones, on these settings. They are built once, as a code location does until it reloads."""
        return self._definitions

    @cached_property
    def _definitions(self) -> dg.Definitions:
        return build_definitions(self.settings)

    def run(
        self, assets: Sequence[str], first: date, last: date | None = None, **config: bool
    ) -> dg.ExecuteInProcessResult:
        """Materialize the assets for a range of days, with their checks, in one run that may fail.

        `config` is the run config of each asset, such as `allow_empty=True`.
        """
        job = self.definitions().resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in assets],
            tags=range_tags(first, last or first),
            run_config={"ops": {name: {"config": config} for name in assets}},
            raise_on_error=False,
        )

    def retain(self, *, dry_run: bool = False) -> dg.ExecuteInProcessResult:
        """Run the retention job, which may fail."""
        return (
            self.definitions()
            .resolve_job_def(retention_job.name)
            .execute_in_process(
                instance=self.instance,
                run_config=dg.RunConfig(
                    {remove_expired_days.name: RetentionConfig(dry_run=dry_run, seconds_to_retry=0)}
                ),
                raise_on_error=False,
            )
        )

    def sql(self, text: str, **parameters: object) -> list[Any]:
        """Rows of a query on the analytics database, as the service account."""
        assert self.settings.database_url
        engine = sa.create_engine(self.settings.database_url)
        with engine.begin() as connection:
            result = connection.execute(sa.text(text), parameters)
            rows = [tuple(row) for row in result] if result.returns_rows else []
        engine.dispose()
        return rows

    def stored(self, asset: str, day: date) -> dict[tuple[Any, ...], int]:
        """What an asset has on a day: key without date -> count."""
        declared = metric(asset)
        keys = [field.name for field in declared.fields if field.name not in {"event_date", "count"}]
        names = list(declared.event_names)
        condition = " and event_name = any(:names)" if "event_name" in keys else ""
        parameters = {"day": day} | ({"names": names} if condition else {})
        found = self.sql(
            f"select {', '.join(keys)}, count from analytics.{declared.table} where event_date = :day{condition}",  # noqa: S608
            **parameters,
        )
        return {row[:-1]: row[-1] for row in found}

    def materialized(self, asset: str) -> set[date]:
        """The days that Dagster records as materialized."""
        keys = self.instance.get_materialized_partitions(dg.AssetKey(asset))
        return {date.fromisoformat(key) for key in keys}


def note_collected(pipeline: Pipeline, assets: Sequence[str], days: Sequence[date]) -> None:
    """Note days as collected by an earlier run that Dagster does not remember."""
    rows = [{"asset": asset, "event_date": day, "rows": 0} for asset in assets for day in days]
    engine = sa.create_engine(str(pipeline.settings.database_url))
    with engine.begin() as connection:
        connection.execute(sa.insert(COLLECTED_DAYS).values(collected_at=sa.func.now()), rows)
    engine.dispose()


def checks(pipeline: Pipeline, result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dg.AssetCheckEvaluation]:
    """Check name -> evaluation, of one asset in a run, as Dagster has recorded it."""
    events = pipeline.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.get_dagster_event().asset_check_evaluation_data for entry in events]
    return {e.check_name: e for e in found if e.asset_key == dg.AssetKey(asset)}


def gate(pipeline: Pipeline, result: dg.ExecuteInProcessResult, asset: str) -> dg.AssetCheckEvaluation:
    """The evaluation of the gate."""
    return checks(pipeline, result, asset)[AT_SOURCE]


def run_check(pipeline: Pipeline, asset: str, name: str) -> dg.AssetCheckEvaluation:
    """Execute one check by itself, as the UI does: no partition, no materialization."""
    key = dg.AssetCheckKey(dg.AssetKey(asset.split("/")), name)
    (evaluation,) = run_checks(pipeline, dg.AssetSelection.checks(key)).get_asset_check_evaluations()
    return evaluation


def run_checks(
    pipeline: Pipeline, selection: dg.AssetSelection, *, raise_on_error: bool = True
) -> dg.ExecuteInProcessResult:
    """Execute checks, and nothing else."""
    definitions = build_definitions(pipeline.settings, jobs=[dg.define_asset_job("checks", selection)])
    job = definitions.resolve_job_def("checks")
    result = job.execute_in_process(instance=pipeline.instance, raise_on_error=raise_on_error)
    assert not result.get_asset_materialization_events()
    return result


def tick(settings: Settings, moment: datetime) -> list[dg.RunRequest]:
    """What the daily schedule requests at a moment."""
    with dg.build_schedule_context(scheduled_execution_time=moment, resources={"settings": settings}) as context:
        return list(make_daily_schedule(settings.time_zone).evaluate_tick(context).run_requests or [])


def failures(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Step -> text of its failure, with everything Dagster keeps of it (the causes too)."""
    return {
        event.step_key or "": (event.step_failure_data.error.to_string() if event.step_failure_data.error else "")
        + str(event.step_failure_data.user_failure_data)
        for event in result.all_events
        if event.is_step_failure
    }


def everything_said(instance: dg.DagsterInstance) -> str:
    """Every event and log line of every run, as Dagster stores them."""
    return "\n".join(
        dg.serialize_value(record.event_log_entry)
        for run in instance.get_runs()
        for record in instance.get_records_for_run(run.run_id).records
    )


def hurry(instance: dg.DagsterInstance, sensor: str) -> None:
    """Let the daemon evaluate a sensor within seconds, as if its interval had passed since its last tick.

    Nothing is changed before its first tick, and while it is evaluated.
    """
    for state in instance.all_instigator_state():
        data = state.instigator_data
        if state.instigator_name != sensor or not isinstance(data, SensorInstigatorData):
            continue
        ended, started, interval = data.last_tick_success_timestamp, data.last_tick_start_timestamp, data.min_interval
        if ended and started and interval and time.time() < started + interval:
            earlier = data._replace(
                last_tick_timestamp=started - interval, last_tick_start_timestamp=started - interval
            )
            instance.update_instigator_state(state.with_data(earlier))


def lines_of(settings: Settings, instance: dg.DagsterInstance | DatabaseError) -> dict[str, Line]:
    """Key -> line of `analytics-assets status`."""
    lines = read_status(settings, instance, build_definitions(settings).get_repository_def())
    found = {line.key: line for line in lines}
    assert len(found) == len(lines)
    return found
