"""Several days in one transaction: few statements, no deadlock, and a day that fails costs no other."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta

import pytest
import sqlalchemy as sa

from analytics_assets.contract import Metric, metric
from analytics_assets.database import DatabaseError, UnreachableError
from analytics_assets.days import span
from analytics_assets.guard import Row
from analytics_assets.settings import Settings
from analytics_assets.store import Store, counts, open_store
from analytics_assets.store.counts import Stored, read_collected_days, read_window, replace_days
from analytics_assets_tests.support.database import as_superuser, event

SIGNUPS = metric("event_signups")
ONE = Stored(rows=1, total=1)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with open_store(settings) as opened:
        yield opened


def test_more_days_take_no_more_statements(store: Store, yesterday: date) -> None:
    def statements(days: list[date]) -> int:
        sent: list[str] = []

        def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
            sent.append(statement)

        sa.event.listen(store.engine, "before_cursor_execute", note)
        assert replace_days(store, SIGNUPS, {day: [event(day)] for day in days}) == dict.fromkeys(days, ONE)
        sa.event.remove(store.engine, "before_cursor_execute", note)
        return len(sent)

    days = span(yesterday - timedelta(days=29), yesterday)
    assert statements(days[1:]) == statements(days[:1])


def test_two_runs_that_make_the_same_new_days_at_once(settings: Settings, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=29), yesterday)

    def replace(metric_name: str, own: list[date]) -> bool:
        name = metric(metric_name).event_names[0]
        with open_store(settings) as store:
            rows = {day: [event(day, event_name=name)] for day in own}
            return replace_days(store, metric(metric_name), rows) == dict.fromkeys(own, ONE)

    with ThreadPoolExecutor(4) as threads:
        assert all(
            threads.map(
                replace,
                ["event_signups", "directory_page_views"] * 2,
                [days[:20], days[10:], days[10:], list(reversed(days[:20]))],
            )
        )


def test_a_day_that_has_expired_meanwhile_costs_no_other_of_its_chunk(store: Store, yesterday: date) -> None:
    expired = read_window(store).first - timedelta(days=1)
    outcomes = replace_days(store, SIGNUPS, {day: [event(day)] for day in (expired, yesterday)})
    assert outcomes[yesterday] == ONE
    assert isinstance(outcomes[expired], DatabaseError)
    assert "inside the retention period" in str(outcomes[expired])


def test_days_that_were_stored_before_the_database_was_lost_are_known(
    store: Store, yesterday: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = span(yesterday - timedelta(days=2), yesterday)
    rows = {day: [event(day)] for day in days} | {days[1]: [event(days[1], source="canary")]}
    really = counts._replace

    def lose(
        store: Store, asset: Metric, some: Mapping[date, Sequence[Row]], begun: datetime | None, **allowed: bool
    ) -> object:
        if list(some) == [days[1]]:
            raise UnreachableError("out of reach")
        return really(store, asset, some, begun, **allowed)

    monkeypatch.setattr(counts, "_replace", lose)
    outcomes = replace_days(store, SIGNUPS, rows)
    assert outcomes[days[0]] == ONE
    assert isinstance(outcomes[days[1]], UnreachableError)
    assert isinstance(outcomes[days[2]], UnreachableError)
    assert read_collected_days(store, read_window(store))["event_signups"] == {days[0]}


@pytest.mark.parametrize(
    "older",
    [
        "drop function analytics.create_days",
        "alter table analytics.collected_days drop column collected_at",
        "drop table analytics.collected_days",
    ],
)
def test_a_schema_of_another_version_is_called_so(store: Store, yesterday: date, older: str) -> None:
    as_superuser(store.settings, older)
    outcome = replace_days(store, SIGNUPS, {yesterday: [event(yesterday)]})[yesterday]
    assert str(outcome).endswith("so the schema is not of this version of the package: run `analytics-assets init-db`")
