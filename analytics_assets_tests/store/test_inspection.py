"""What is stored against the contract: the database finds what the guard in Python would find."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from analytics_assets.contract import (
    COUNT,
    ENDPOINT,
    EVENT_ID,
    METRICS,
    SOURCE,
    STATUS_CODE,
    TABLES,
    Metric,
    vocabulary,
)
from analytics_assets.database import copy_rows, engine
from analytics_assets.guard import row_violations
from analytics_assets.store import Store
from analytics_assets.store.inspection import count_row_violations
from analytics_assets.store.tables import COUNTS
from analytics_assets_tests.support.database import admin_url, as_superuser, pipeline_settings
from analytics_assets_tests.support.texts import TEXTS

Row = dict[str, Any]
NAMES = [name for table in TABLES for name in vocabulary(table)]


@pytest.fixture(scope="module")
def unguarded(
    make_analytics_database: Callable[[], sa.URL], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """A store whose tables of counts take anything on the last two days."""
    url = make_analytics_database()
    made = pipeline_settings(url, url.render_as_string(hide_password=False), tmp_path_factory.mktemp("unguarded"))
    for days in (1, 2):
        as_superuser(made, f"select analytics.create_days('{made.today() - timedelta(days=days)}')")
    for table in COUNTS.values():
        checks = [c for c in table.constraints if isinstance(c, sa.CheckConstraint | sa.UniqueConstraint)]
        optional = [c.name for c in table.columns if not c.nullable and c.name != "event_date"]
        as_superuser(
            made,
            *(f"alter table {table.fullname} drop constraint {check.name}" for check in checks),
            *(f"alter table {table.fullname} alter column {name} drop not null" for name in optional),
        )
    with engine(admin_url(made), "ANALYTICS_DATABASE_URL") as database:
        yield Store(database, made)


_numbers = st.none() | st.integers(-3, 700) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([10**12 - 1, 10**12])
VALUES: dict[str, st.SearchStrategy[object]] = {
    "event_name": st.none() | st.sampled_from([*NAMES, f"{NAMES[0]}\n", "", NAMES[0].upper()]) | TEXTS[SOURCE],
    "event_id": st.none() | st.sampled_from(["7", "0"]) | TEXTS[EVENT_ID],
    "source": st.none() | TEXTS[SOURCE],
    "endpoint": st.none() | st.sampled_from(["GET /", "(unmatched)"]) | TEXTS[ENDPOINT],
    "status_code": _numbers,
    "count": _numbers,
}
assert VALUES.keys() == {field.name for fields in TABLES.values() for field in fields} - {"event_date"}
assert {COUNT.type, STATUS_CODE.type} == {"integer"}


def expected(metric: Metric, rows: list[Row]) -> dict[date, Counter[Any]]:
    """What the guard finds in the metric's rows, and in those of no metric, by day."""
    found: dict[date, Counter[Any]] = {}
    for row in rows:
        name = row.get("event_name", metric.event_names[0])
        if name in metric.event_names or name not in vocabulary(metric.table):
            found.setdefault(row["event_date"], Counter()).update(
                row_violations(row, metric.fields, metric.event_names)
            )
    return {day: violations for day, violations in found.items() if violations}


@pytest.mark.parametrize("table", TABLES)
@hypothesis_settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_the_database_finds_what_the_guard_finds(unguarded: Store, table: str, data: st.DataObject) -> None:
    days = [unguarded.settings.today() - timedelta(days=number) for number in (1, 2)]
    values = {c.name: VALUES.get(c.name, st.sampled_from(days)) for c in COUNTS[table].columns}
    rows: list[Row] = data.draw(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=30))
    with unguarded.transaction("filling the table") as connection:
        connection.execute(sa.delete(COUNTS[table]))
        copy_rows(connection, COUNTS[table], rows)
    for metric in METRICS:
        if metric.table == table:
            assert count_row_violations(unguarded, metric, days) == expected(metric, rows)
            of_one = [row for row in rows if row["event_date"] == days[0]]
            assert count_row_violations(unguarded, metric, days[:1]) == expected(metric, of_one)
            assert count_row_violations(unguarded, metric, []) == {}
