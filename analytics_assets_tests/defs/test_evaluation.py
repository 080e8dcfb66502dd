"""The checks of a metric are evaluated while its source is counted again."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import date, timedelta
from threading import Barrier, Event

import dagster as dg
import pytest

from analytics_assets.contract import metric
from analytics_assets.database import DatabaseError, UnreachableError
from analytics_assets.days import span
from analytics_assets.defs import evaluation
from analytics_assets.defs.evaluation import AT_SOURCE, CHECK_NAMES, evaluate
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, Reader
from analytics_assets.store import open_store
from analytics_assets_tests.support.processes import PATIENCE

SIGNUPS = metric("event_signups")


def evaluate_beside(
    settings: Settings,
    days: list[date],
    monkeypatch: pytest.MonkeyPatch,
    *,
    total: Callable[[date], int],
    begin: Callable[[], None],
) -> list[dg.AssetCheckResult]:
    """Evaluate all checks: `total` is what the source has of a day, `begin` is called before the first check."""
    check_stored = evaluation._check_stored

    def check(*arguments: object) -> dg.AssetCheckResult:
        begin()
        return check_stored(*arguments)  # type: ignore[arg-type]  # passed on as they come

    reader = Reader(count=lambda _: Counted([], []), total=total)
    monkeypatch.setattr(evaluation, "open_reader", lambda *_: nullcontext(reader))
    monkeypatch.setattr(evaluation, "_check_stored", check)
    with open_store(settings) as store:
        return evaluate(store, SIGNUPS, days, run_id="")


def test_the_source_is_counted_while_the_other_checks_are_evaluated(
    settings: Settings, yesterday: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Barrier(2, timeout=PATIENCE)

    def total(_: date) -> int:
        both.wait()
        return 0

    def begin() -> None:
        both.wait()

    results = evaluate_beside(settings, [yesterday], monkeypatch, total=total, begin=begin)
    assert [result.check_name for result in results] == [name for name in CHECK_NAMES if name != AT_SOURCE]


def test_a_check_that_cannot_be_evaluated_ends_the_counting_with_the_day_it_is_at(
    settings: Settings, yesterday: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, made, counted = Barrier(2, timeout=PATIENCE), list[Event](), list[date]()

    def make() -> Event:
        made.append(Event())
        return made[-1]

    def total(day: date) -> int:
        counted.append(day)
        both.wait()
        assert made[0].wait(PATIENCE)
        return 0

    def begin() -> None:
        both.wait()
        raise UnreachableError("the check")

    monkeypatch.setattr(evaluation, "Event", make)
    days = span(yesterday - timedelta(days=9), yesterday)
    with pytest.raises(UnreachableError, match="the check"):
        evaluate_beside(settings, days, monkeypatch, total=total, begin=begin)
    assert counted == days[:1]


@pytest.mark.parametrize("fails", [True, False])
def test_the_error_of_another_check_comes_before_that_of_the_source(
    settings: Settings, yesterday: date, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def total(_: date) -> int:
        raise DatabaseError("the source")

    def begin() -> None:
        if fails:
            raise DatabaseError("the check")

    with pytest.raises(DatabaseError, match="the check" if fails else "the source") as raised:
        evaluate_beside(settings, [yesterday], monkeypatch, total=total, begin=begin)
    assert raised.value.__context__ is None
