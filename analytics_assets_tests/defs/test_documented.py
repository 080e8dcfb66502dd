"""The check `documented` fires for whatever has no entry in the dictionary; nothing without one can be stored."""

from dataclasses import replace
from datetime import date, timedelta
from functools import partial

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.contract import CORE_FIELDS, METRICS, metric
from analytics_assets.database import DatabaseError
from analytics_assets.defs.evaluation import DOCUMENTED
from analytics_assets.guard import row_violations
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.inspection import find_undocumented, find_undocumented_elsewhere
from analytics_assets.store.setup import init_db
from analytics_assets.telemetry import Telemetry, TelemetryError
from analytics_assets_tests.support.database import admin_url, as_superuser, drop_check, event, insert
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import (
    ALL,
    EVENT_FED,
    LEDGER,
    Pipeline,
    checks,
    everything_said,
    gate,
    replace_day,
    run_check,
)

RESPONSE_FED = [m.asset for m in METRICS if m.table == "daily_response_counts"]
ONE_OF_EACH = ["event_signups", "directory_searches", "endpoint_error_rates"]
"""A metric fed by a view, one by dumps into the same table, and one of the other table."""


def assert_found(pipeline: Pipeline, asset: str, *texts: str) -> None:
    evaluation = run_check(pipeline, asset, DOCUMENTED)
    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.ERROR
    assert all(f"- {text}\n" in (evaluation.description or "") for text in texts), evaluation.description
    assert "declare it in contract.py" in (evaluation.description or "")
    assert "canary" not in everything_said(pipeline.instance)


@pytest.mark.parametrize("asset", ALL)
def test_what_is_set_up_is_documented(pipeline: Pipeline, yesterday: date, asset: str) -> None:
    assert run_check(pipeline, asset, DOCUMENTED).passed
    assert checks(pipeline, pipeline.run([asset], yesterday), asset)[DOCUMENTED].passed


def test_what_is_set_up_beside_the_counts_is_documented(pipeline: Pipeline) -> None:
    evaluation = run_check(pipeline, LEDGER, DOCUMENTED)
    assert evaluation.passed
    assert evaluation.metadata["source views seen"].value is True


# --- structure


@pytest.mark.parametrize(
    ("table", "finders", "others"),
    [("daily_event_counts", EVENT_FED, RESPONSE_FED), ("daily_response_counts", RESPONSE_FED, EVENT_FED)],
)
def test_a_column_is_found_by_the_metrics_of_its_table(
    pipeline: Pipeline, table: str, finders: list[str], others: list[str]
) -> None:
    as_superuser(pipeline.settings, f"alter table analytics.{table} add column email text")
    for asset in finders:
        assert_found(pipeline, asset, f"analytics.{table}.email is not in the dictionary")
    for asset in others:
        assert run_check(pipeline, asset, DOCUMENTED).passed
    assert run_check(pipeline, LEDGER, DOCUMENTED).passed


@pytest.mark.parametrize(
    ("statement", "where", "found"),
    [
        ("create table analytics.notes (id int)", "notes", "is not in the dictionary"),
        ("create table analytics.notes (id int)", "notes.id", "is not in the dictionary"),
        ("create view analytics.notes as select 1 as id", "notes", "is not in the dictionary"),
        ("create materialized view analytics.notes as select 1 as id", "notes", "is not in the dictionary"),
        ("alter table analytics.collected_days add email text", "collected_days.email", "is not in the dictionary"),
        ("drop view analytics.daily_error_rates", "daily_error_rates", "is in the dictionary, but not in the database"),
        ("drop table analytics.alembic_version", "alembic_version", "is in the dictionary, but not in the database"),
    ],
)
def test_what_belongs_to_no_metric_is_found_once(pipeline: Pipeline, statement: str, where: str, found: str) -> None:
    as_superuser(pipeline.settings, statement)
    assert_found(pipeline, LEDGER, f"analytics.{where} {found}")
    for asset in ONE_OF_EACH:
        assert run_check(pipeline, asset, DOCUMENTED).passed


def test_a_partition_stands_for_its_parent_until_it_is_detached(pipeline: Pipeline, yesterday: date) -> None:
    assert pipeline.run(["event_signups"], yesterday).success
    partition = f"daily_event_counts_{yesterday:%Y%m%d}"
    as_superuser(pipeline.settings, f"alter table analytics.daily_event_counts detach partition analytics.{partition}")
    assert_found(pipeline, LEDGER, f"analytics.{partition} is not in the dictionary")


def test_a_database_without_our_tables_is_not_a_documented_one(pipeline: Pipeline) -> None:
    as_superuser(pipeline.settings, "drop schema analytics cascade")
    for check in (find_undocumented_elsewhere, partial(find_undocumented, metric=metric("event_signups"))):
        with (
            open_store(pipeline.settings) as store,
            pytest.raises(DatabaseError, match="comparing the database with the dictionary"),
        ):
            check(store)
    with pytest.raises(DatabaseError):
        run_check(pipeline, "event_signups", DOCUMENTED)


# --- comments


@pytest.mark.parametrize(
    ("statement", "where", "asset"),
    [
        ("comment on table analytics.daily_event_counts is 'canary'", "daily_event_counts", "event_signups"),
        ("comment on column analytics.daily_event_counts.source is null", "daily_event_counts.source", "event_signups"),
        ("comment on view analytics.daily_error_rates is null", "daily_error_rates", LEDGER),
        ("comment on column analytics.settings.time_zone is 'canary'", "settings.time_zone", LEDGER),
    ],
)
def test_a_comment_that_is_not_the_dictionarys_is_found(
    pipeline: Pipeline, statement: str, where: str, asset: str
) -> None:
    as_superuser(pipeline.settings, statement)
    assert_found(pipeline, asset, f"analytics.{where} lacks the dictionary's comment")
    init_db(admin_url(pipeline.settings), pipeline.settings)
    assert run_check(pipeline, asset, DOCUMENTED).passed


# --- vocabulary


def test_a_stored_name_is_counted_and_not_shown(pipeline: Pipeline, yesterday: date) -> None:
    assert pipeline.run(["event_signups"], yesterday).success
    as_superuser(
        pipeline.settings,
        drop_check("daily_event_counts", "event_name"),
        *(
            insert("daily_event_counts", **event(yesterday, event_name=name))
            for name in ("canary_viewed", "canary_clicked", "event_signup")
        ),
    )
    where = "analytics.daily_event_counts.event_name"
    for asset in EVENT_FED:
        assert_found(
            pipeline,
            asset,
            f"{where} has a value that is not in the dictionary (2 rows)",
            f"{where} may hold any value: its constraint is missing",
        )
    for asset in RESPONSE_FED:
        assert run_check(pipeline, asset, DOCUMENTED).passed


def test_a_stored_asset_is_counted_and_not_shown(pipeline: Pipeline, yesterday: date) -> None:
    as_superuser(
        pipeline.settings,
        "alter table analytics.collected_days drop constraint collected_days_asset",
        f"insert into analytics.collected_days values ('canary', '{yesterday}', 0, now())",  # noqa: S608
    )
    assert_found(pipeline, LEDGER, "analytics.collected_days.asset has a value that is not in the dictionary (1 rows)")


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("event_name in ('event_signup', 'canary_viewed', 'canary''s')", "values that are not in the dictionary (2)"),
        ("event_name in ('event_signup', 'canary_viewed')", "values that are not in the dictionary (1)"),
        ("event_name ~ '^canary'", "values that are not in the dictionary (1)"),
        ("event_name <> ''", "values that are not in the dictionary (1)"),
        ("length(event_name) > 3", "any value: its constraint is missing"),
    ],
)
def test_a_constraint_that_allows_more_is_found_before_anything_is_stored(
    pipeline: Pipeline, rule: str, found: str
) -> None:
    name = "daily_event_counts_event_name"
    as_superuser(
        pipeline.settings,
        drop_check("daily_event_counts", "event_name"),
        f"alter table analytics.daily_event_counts add constraint {name} check ({rule})",
    )
    for asset in EVENT_FED:
        assert_found(pipeline, asset, f"analytics.daily_event_counts.event_name may hold {found}")


# --- source views


@pytest.mark.parametrize(
    "statement",
    [
        "create view analytics_source.attendees as select email from signups",
        "create table analytics_source.attendees (email text)",
        "create materialized view analytics_source.attendees as select email from signups",
    ],
)
def test_a_source_view_of_no_metric_is_found_once_it_can_be_read(
    pipeline: Pipeline, host: Host, statement: str
) -> None:
    host.sql(statement)
    assert run_check(pipeline, LEDGER, DOCUMENTED).passed
    host.sql("grant select on analytics_source.attendees to analytics_source_reader")
    assert_found(pipeline, LEDGER, "analytics_source.attendees is the origin of no metric")


def test_a_login_that_may_see_nothing_is_the_business_of_the_gate(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    host.sql("revoke usage on schema analytics_source from analytics_source_reader")
    assert run_check(pipeline, LEDGER, DOCUMENTED).passed
    assert not gate(pipeline, pipeline.run(["event_signups"], yesterday), "event_signups").passed


@pytest.mark.parametrize("url", [None, "postgresql+psycopg2://someone:canary@/nowhere?host=/nowhere"])
def test_a_source_out_of_reach_is_not_looked_at(settings: Settings, url: str | None) -> None:
    with Pipeline.open(replace(settings, source_url=url)) as pipeline:
        evaluation = run_check(pipeline, LEDGER, DOCUMENTED)
        assert evaluation.passed
        assert evaluation.metadata["source views seen"].value is False
        as_superuser(settings, "create table analytics.notes (id int)")
        assert_found(pipeline, LEDGER, "analytics.notes is not in the dictionary")


# --- a run that fails


def test_a_run_in_which_a_day_fails_has_the_result_too(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    before = yesterday - timedelta(days=1)
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 2), event_id="canary")
    as_superuser(pipeline.settings, "alter table analytics.daily_event_counts add column email text")
    result = pipeline.run(["event_signups"], before, yesterday)
    assert not result.success
    red = checks(pipeline, result, "event_signups")[DOCUMENTED]
    assert not red.passed
    assert "analytics.daily_event_counts.email is not in the dictionary" in (red.description or "")


# --- nothing undocumented can be stored


def test_telemetry_counts_no_undocumented_name(settings: Settings) -> None:
    with Telemetry(settings.dump_dir) as telemetry:
        telemetry.count("canary_viewed", event_id=7)
        assert telemetry.dropped == {"refused": 1}
    assert not any(path.is_file() for path in settings.dump_dir.rglob("*.ndjson"))
    with Telemetry(settings.dump_dir, strict=True) as telemetry, pytest.raises(TelemetryError):
        telemetry.count("canary_viewed", event_id=7)


@pytest.mark.parametrize("change", [{"event_name": "canary_viewed"}, {"email": "canary@example.org"}])
def test_the_guard_refuses_an_undocumented_name(yesterday: date, change: dict[str, object]) -> None:
    (violation,) = row_violations(event(yesterday) | change, CORE_FIELDS, ["event_signup"])
    assert "canary" not in str(violation)


@pytest.mark.parametrize("user", ["analytics_writer", "postgres"])
def test_the_database_refuses_an_undocumented_name(pipeline: Pipeline, yesterday: date, user: str) -> None:
    assert pipeline.run(["event_signups"], yesterday).success
    noted: dict[str, object] = {"asset": "event_signups", "event_date": yesterday, "rows": 0, "collected_at": "now"}
    refused = {
        insert("daily_event_counts", **event(yesterday, event_name="canary_viewed")): "daily_event_counts_event_name",
        insert("daily_event_counts", **event(yesterday, email="canary@example.org")): 'column "email" of relation',
        insert("collected_days", **noted | {"asset": "canary_views"}): "collected_days_asset",
        insert("notes", **noted): r'relation "analytics\.notes" does not exist',
    }
    engine = sa.create_engine(sa.make_url(admin_url(pipeline.settings)).set(username=user))
    for statement, refusal in refused.items():
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match=refusal):
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_the_store_writes_no_undocumented_name_and_does_not_show_it(settings: Settings, yesterday: date) -> None:
    with (
        open_store(settings) as store,
        pytest.raises(DatabaseError, match="constraint daily_event_counts_event_name") as refusal,
    ):
        replace_day(store, metric("event_signups"), yesterday, [event(yesterday, event_name="canary_viewed")])
    assert "canary" not in str(refusal.value)
