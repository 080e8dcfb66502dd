"""The dictionary is the same in the database, in the UI and on its page, and has an entry for each asset."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets import contract
from analytics_assets.contract import ASSET_PATHS, METRICS, OTHER_RELATIONS, TABLES, TARGETS, ContractError
from analytics_assets.definitions import build_definitions
from analytics_assets.dictionary import asset_descriptions, column_text, database_comments, markdown
from analytics_assets.settings import Settings
from analytics_assets.store.setup import init_db
from analytics_assets_tests.support.database import admin_url
from analytics_assets_tests.support.pipeline import ALL

LIVE_TYPES = {
    "date": {"date"},
    "text": {"text", "character varying(32)"},
    "integer": {"bigint", "integer"},
    "number": {"numeric", "double precision"},
    "timestamp": {"timestamp with time zone"},
    "boolean": {"boolean"},
}


def live(settings: Settings, query: str) -> list[tuple[object, ...]]:
    engine = sa.create_engine(admin_url(settings))
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.exec_driver_sql(query)]
    engine.dispose()
    return rows


def comments(settings: Settings) -> dict[tuple[object, object], object]:
    relations = (
        "pg_class c where relnamespace in ('analytics'::regnamespace, 'published'::regnamespace)"
        " and relkind ~ '[rpv]' and not relispartition"
    )
    relation = "relnamespace::regnamespace || '.' || relname"
    return {
        (relation, column): text
        for relation, column, text in live(
            settings,
            f"select {relation}, null, obj_description(oid, 'pg_class') from {relations} union all"  # noqa: S608
            f" select {relation}, attname, col_description(attrelid, attnum) from pg_attribute, {relations}"
            " and attrelid = c.oid and attnum > 0 and not attisdropped",
        )
    }


# --- the database


def test_the_comments_of_the_database_are_the_dictionarys(settings: Settings) -> None:
    assert comments(settings) == database_comments(settings)
    other = replace(settings, retention_days=5, time_zone="Asia/Tokyo")
    init_db(admin_url(settings), other)
    assert comments(settings) == database_comments(other)
    said = str(comments(settings)["analytics.daily_event_counts", None])
    assert said.count("- time zone of the days: Asia/Tokyo\n") == said.count("?\n") == 5
    assert said.count("- retention: 5 days (day D is kept on day T while D >= T - 5 days)\n") == 5
    assert "180" not in said


def test_a_second_set_up_writes_no_comment(settings: Settings) -> None:
    query = "select xmin::text, objoid, objsubid, description from pg_description where classoid = 'pg_class'::regclass"
    before = live(settings, f"{query} order by 2, 3")
    init_db(admin_url(settings), settings)
    assert live(settings, f"{query} order by 2, 3") == before


def test_the_documented_types_are_the_live_ones(settings: Settings) -> None:
    types_of = {
        (relation, column): kind
        for relation, column, kind in live(
            settings,
            "select relnamespace::regnamespace || '.' || relname, attname, format_type(atttypid, atttypmod)"
            " from pg_attribute join pg_class c on attrelid = c.oid"
            " where relnamespace in ('analytics'::regnamespace, 'published'::regnamespace) and attnum > 0",
        )
    }
    entries = {f"analytics.{table}": fields for table, fields in TABLES.items()} | {
        relation: entry.columns for relation, entry in OTHER_RELATIONS.items()
    }
    for relation, columns in entries.items():
        for column in columns:
            assert types_of[relation, column.name] in LIVE_TYPES[column.type], f"{relation}.{column.name}"


# --- the UI


def test_every_asset_is_described_by_its_entry_on_the_configured_settings(settings: Settings) -> None:
    configured = replace(settings, retention_days=5, time_zone="Asia/Tokyo")
    specs = {tuple(spec.key.path): spec for spec in build_definitions(configured).resolve_all_asset_specs()}
    assert {path: spec.description for path, spec in specs.items()} == asset_descriptions(configured)
    assert specs.keys() == ASSET_PATHS
    for declared in METRICS:
        said = str(specs[declared.asset,].description)
        assert said.startswith(declared.question)
        assert "- time zone of the days: Asia/Tokyo\n- retention: 5 days" in said
        columns = specs[declared.asset,].metadata["dagster/column_schema"].columns
        assert {c.name: c.description for c in columns} == {f.name: column_text(f) for f in declared.fields}


def test_the_code_of_an_asset_is_its_entry_in_the_contract() -> None:
    specs = {tuple(spec.key.path): spec for spec in build_definitions(Settings.from_env()).resolve_all_asset_specs()}
    lines = Path(contract.__file__).read_text(encoding="utf-8").splitlines()
    for asset in ALL:
        (reference,) = specs[asset,].metadata["dagster/code_references"].code_references
        assert Path(reference.file_path) == Path(contract.__file__)
        start = reference.line_number - 1
        assert [line.strip() for line in lines[start : start + 2]] == ["Metric(", f'asset="{asset}",']


# --- the page


def test_the_page_has_every_metric_and_every_column() -> None:
    page = markdown()
    for declared in METRICS:
        entry = page.split(f"### `{declared.asset}`\n")[1].split("\n#")[0]
        for text in (declared.question, declared.owner.removeprefix("team:"), *declared.event_names, declared.since):
            assert str(text) in entry
        assert "UTC, unless `ANALYTICS_TIMEZONE` says otherwise" in entry
        assert "180 days" in entry
        assert "unless `ANALYTICS_RETENTION_DAYS` says otherwise" in entry
    entries = {f"analytics.{table}": fields for table, fields in TABLES.items()} | {
        relation: entry.columns for relation, entry in OTHER_RELATIONS.items()
    }
    for relation, columns in entries.items():
        section = page.split(f"## `{relation}`\n")[1].split("\n#")[0]
        for column in columns:
            assert f"| `{column.name}` | {column.type}" in section
            assert f"| {column.unit} | {column.meaning} |" in section


def test_the_page_has_every_target() -> None:
    for target in TARGETS:
        entry = markdown().split(f"### {target.name}\n")[1].split("\n#")[0]
        assert entry.startswith(f"\n{target.question}\n")
        assert f"`{target.numerator}` per `{target.denominator}`, over the last 28 days" in entry
        assert f"{target.direction.value} {target.threshold}\n" in entry
        assert str(target.since) in entry


# --- no asset without an entry


def test_definitions_with_an_asset_that_is_not_in_the_contract_are_not_built(settings: Settings) -> None:
    @dg.asset(group_name="daily_counts")
    def page_prints() -> None: ...

    with pytest.raises(ContractError, match="asset 'page_prints' is not in the contract: declare it there first"):
        build_definitions(settings, assets=[page_prints], asset_checks=[], jobs=[], schedules=[], sensors=[])
