"""What every retention target keeps, and what the ledger says about its removal."""

from datetime import date
from typing import Any

import sqlalchemy as sa

from analytics_assets.contract import TABLES
from analytics_assets_tests.support.pipeline import ALL, Pipeline

TARGETS = [
    "daily counts",
    "collected days",
    "published days",
    "published carries",
    "friction",
    "counter dumps",
    "pages",
    "partition records",
    "check evaluations",
    "run logs",
    "runs",
    "ticks",
]


def collected(pipeline: Pipeline) -> set[date]:
    """The days that are there, which every target agrees on."""
    names = [name for (name,) in pipeline.sql("select relname from pg_class where relispartition and relkind = 'r'")]
    found = {date.fromisoformat(name[-8:]) for name in names}
    assert sorted(names) == sorted(f"{table}_{day:%Y%m%d}" for table in TABLES for day in found)
    noted = {day for (day,) in pipeline.sql("select distinct event_date from analytics.collected_days")}
    dumped = {date.fromisoformat(folder.name) for folder in pipeline.settings.dump_dir.iterdir()}
    assert found == noted == dumped
    for asset in ALL:
        assert pipeline.materialized(asset) == found
    return found


def dagster(pipeline: Pipeline, query: str, **parameters: object) -> list[Any]:
    """Rows of a query on Dagster's database."""
    assert pipeline.settings.dagster_url
    engine = sa.create_engine(pipeline.settings.dagster_url)
    with engine.begin() as connection:
        result = connection.execute(sa.text(query), parameters)
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


def ledger(pipeline: Pipeline) -> dict[str, tuple[int, int, date | None]]:
    """Target -> days, rows and oldest day that is left, of the newest run."""
    rows = pipeline.sql(
        "select target, sum(days)::int, sum(rows)::int, (array_agg(oldest_remaining order by id desc))[1]"
        " from analytics.retention_ledger"
        " where run_id = (select run_id from analytics.retention_ledger order by id desc limit 1) group by target"
    )
    return {target: (days, number, oldest) for target, days, number, oldest in rows}
