"""What can be declared in the contract, and that everything declared there hangs together."""

import re
from collections import Counter
from datetime import date
from typing import Any

import pytest

from analytics_assets.contract import (
    CORE_FIELDS,
    EVENT_ID,
    METRICS,
    RESPONSE_FIELDS,
    TABLES,
    TARGETS,
    ContractError,
    CounterDumps,
    Direction,
    Field,
    Metric,
    Published,
    SourceView,
    Target,
    metric,
    vocabulary,
)
from analytics_assets.guard import obeys

COMPLETE: dict[str, Any] = {
    "asset": "page_prints",
    "question": "How often is a page printed?",
    "owner": "team:core",
    "event_names": ("page_printed",),
    "fields": CORE_FIELDS,
    "origin": CounterDumps(),
    "published": Published.NEVER,
    "since": date(2026, 11, 24),
}
TARGET: dict[str, Any] = {
    "name": "Views per sign-up",
    "question": "Is the directory looked at?",
    "owner": "team:core",
    "numerator": "directory_page_viewed",
    "denominator": "event_signup",
    "window_days": 28,
    "threshold": 3,
    "direction": Direction.AT_LEAST,
    "since": date(2026, 11, 24),
}
FIELDS = sorted({field.name: field for fields in TABLES.values() for field in fields}.items())


def test_a_complete_metric_can_be_declared() -> None:
    assert Metric(**COMPLETE).table == "daily_event_counts"


@pytest.mark.parametrize("attribute", COMPLETE)
def test_nothing_can_be_left_out(attribute: str) -> None:
    with pytest.raises(TypeError, match=attribute):
        Metric(**{name: value for name, value in COMPLETE.items() if name != attribute})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("question", ""),
        ("question", "  "),
        ("question", "Printed pages"),
        ("owner", ""),
        ("owner", "core"),
        ("owner", "team:"),
        ("owner", "somebody@example.org"),
        ("asset", ""),
        ("asset", "PagePrints"),
        ("asset", "page prints"),
        ("event_names", ()),
        ("event_names", ("",)),
        ("event_names", ("Page-Printed",)),
        ("event_names", ("page_printed\n",)),
        ("event_names", ("page_printed", "page_copied")),
        ("fields", ()),
        ("fields", CORE_FIELDS[:-1]),
        ("fields", (*CORE_FIELDS, EVENT_ID)),
        ("origin", SourceView("prints", switch=True)),
        ("origin", None),
        ("published", None),
        ("published", "per day and event"),
    ],
)
def test_nothing_can_be_left_blank_or_made_up(attribute: str, value: object) -> None:
    with pytest.raises(ContractError):
        Metric(**COMPLETE | {attribute: value})


def test_only_counts_of_events_can_be_published() -> None:
    responses = COMPLETE | {"fields": RESPONSE_FIELDS}
    assert Metric(**responses).published is Published.NEVER
    for published in (Published.BY_DAY_AND_EVENT, Published.BY_WEEK):
        with pytest.raises(ContractError, match="only counts of events can be published"):
            Metric(**responses | {"published": published})


def test_what_is_published_of_each_metric() -> None:
    """A privacy reviewer has agreed to this. Changing it takes another review."""
    assert {declared.asset: declared.published for declared in METRICS} == {
        "event_signups": Published.BY_DAY_AND_EVENT,
        "directory_page_views": Published.BY_DAY_AND_EVENT,
        "directory_searches": Published.BY_DAY_AND_EVENT,
        "profile_visibility_toggles": Published.BY_WEEK,
        "consent_changes": Published.BY_WEEK,
        "endpoint_error_rates": Published.NEVER,
    }


@pytest.mark.parametrize("attribute", TARGET)
def test_nothing_of_a_target_can_be_left_out(attribute: str) -> None:
    assert Target(**TARGET).owner == "team:core"
    with pytest.raises(TypeError, match=attribute):
        Target(**{name: value for name, value in TARGET.items() if name != attribute})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", ""),
        ("name", "views_per_signup"),
        ("name", "People who look"),
        ("name", "per sign-up"),
        ("question", "Views of the directory"),
        ("owner", "core"),
        ("numerator", "page_printed"),
        ("numerator", "event_signup"),
        ("numerator", "http_response"),
        ("denominator", ""),
        ("denominator", "directory_page_viewed"),
        ("window_days", 0),
        ("window_days", 30),
        ("window_days", 91),
        ("threshold", 0),
        ("threshold", -1),
        ("threshold", float("inf")),
        ("threshold", float("nan")),
        ("threshold", True),
        ("direction", "at least"),
        ("direction", None),
    ],
)
def test_a_target_is_one_count_of_events_per_another(attribute: str, value: object) -> None:
    with pytest.raises(ContractError, match="target '"):
        Target(**TARGET | {attribute: value})


@pytest.mark.parametrize(
    ("direction", "met"), [(Direction.AT_LEAST, [False, True, True]), (Direction.AT_MOST, [True, True, False])]
)
def test_a_target_is_met_from_its_threshold_on_or_up_to_it(direction: Direction, met: list[bool]) -> None:
    target = Target(**TARGET | {"direction": direction})
    assert [target.is_met(ratio) for ratio in (2.99, 3, 3.01)] == met


def test_phase_1_has_three_targets() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS) == 3
    assert {target.window_days for target in TARGETS} == {28}


def test_an_event_name_and_an_asset_belong_to_one_metric() -> None:
    names = Counter(name for declared in METRICS for name in declared.event_names)
    assets = Counter(declared.asset for declared in METRICS)
    assert set(names.values()) == set(assets.values()) == {1}


def test_a_table_without_event_name_keeps_one_metric() -> None:
    metrics = Counter(declared.table for declared in METRICS)
    assert all(n == 1 or "event_name" in {f.name for f in TABLES[table]} for table, n in metrics.items())


def test_the_vocabulary_of_the_tables_is_that_of_the_metrics() -> None:
    assert set(TABLES) == {declared.table for declared in METRICS}
    assert sorted(n for table in TABLES for n in vocabulary(table)) == sorted(n for m in METRICS for n in m.event_names)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_field_has_a_rule_its_example_obeys(name: str, field: Field) -> None:
    assert field.rule.startswith("must be ")
    assert all((name, field.meaning, field.unit, field.example))
    assert obeys(field, int(field.example) if field.type == "integer" else field.example)


@pytest.mark.parametrize("field", [field for _, field in FIELDS if field.type != "date"], ids=lambda field: field.name)
def test_a_field_is_bounded(field: Field) -> None:
    """Free text has no place: a field is a vocabulary, a pattern, or a range."""
    if field.type == "integer":
        assert field.minimum is not None
        assert field.maximum is not None
    else:
        assert field.pattern or field.choices or field.name == "event_name"


@pytest.mark.parametrize("declared", METRICS, ids=lambda declared: declared.asset)
def test_a_line_of_a_dump_names_its_event_and_its_day(declared: Metric) -> None:
    names = [field.name for field in declared.dump_fields]
    assert names[:2] == ["event_date", "event_name"]
    assert len(names) == len(set(names))
    assert set(declared.fields) <= set(declared.dump_fields)


def test_no_field_is_about_a_person() -> None:
    assert {field.name for field in (*CORE_FIELDS, *RESPONSE_FIELDS)} == {
        "event_date", "event_name", "event_id", "source", "count", "endpoint", "status_code",
    }  # fmt: skip


def test_an_unknown_metric_is_none() -> None:
    with pytest.raises(KeyError):
        metric("page_prints")


def test_patterns_use_what_both_engines_read_alike() -> None:
    r"""Classes like \d, and flags, mean different things in Python and PostgreSQL."""
    patterns = [field.pattern for _, field in FIELDS if field.pattern]
    assert patterns
    assert not [pattern for pattern in patterns if re.search(r"\\[a-zA-Z]|\(\?[a-z<]", pattern)]
