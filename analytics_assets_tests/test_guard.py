"""Rows against the contract: every rule fires under its field, a valid row passes, and no value is repeated."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_assets.contract import (
    CORE_FIELDS,
    COUNT,
    ENDPOINT,
    EVENT_DATE,
    EVENT_ID,
    EVENT_NAME,
    MAX_COUNT,
    RESPONSE_FIELDS,
    SOURCE,
    STATUS_CODE,
    Field,
)
from analytics_assets.guard import UNKNOWN_FIELD, count_violations, obeys, row_violations

NAMES = ("consent_turned_on", "consent_turned_off")
CANARY = "canary"
ANY_UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"

quick = settings(deadline=None, max_examples=60, derandomize=True)
texts = st.text(max_size=12)

VALID: dict[Field, list[object]] = {
    EVENT_DATE: ["2026-11-22", "2024-02-29", "0001-01-01", date(2026, 11, 22)],
    EVENT_ID: ["0", "7", "9" * 19, ANY_UUID],
    SOURCE: ["web", "admin", None],
    COUNT: [1, MAX_COUNT],
    ENDPOINT: [
        "GET /",
        "POST /events/{event_id}/sign-up",
        "(other) /v1.2/~a_b",
        "DELETE /7eleven/a/",
        "(unmatched)",
        "(overflow)",
        "GET /" + "z" * 195,
    ],
    STATUS_CODE: [100, 200, 404, 599],
}
NEVER: list[object] = [True, False, 1.0, 1.5, float("nan"), [], {}, [1], {"a": 1}, b"1", object()]
REFUSED: dict[Field, list[object]] = {
    EVENT_DATE: [
        *NEVER, None, 20261122, "", "2026-02-29", "2026-13-01", "20261122", "2026-W48-1", "2026-11-22\n",
        " 2026-11-22", "2026-11-22T00:00:00", "22.11.2026", "\uff12\uff10\uff12\uff16-11-22",
        "0000-01-01", datetime(2026, 11, 22, tzinfo=UTC),
    ],
    EVENT_ID: [
        *NEVER, None, 7, "", "07", "-7", "+7", "7.0", "1e3", "7\n", "\n7", " 7", "\u0667", "\uff17", "9" * 20, "None",
        "someone@example.org", ANY_UUID.upper(), ANY_UUID.replace("-", ""), f"{{{ANY_UUID}}}", f"{ANY_UUID}\n",
    ],
    SOURCE: [*NEVER, 1, "", "Web", "web\n", "web ", "mobile", "null"],
    COUNT: [*NEVER, None, 0, -1, MAX_COUNT + 1, 10**30, -(10**30), "1", "\uff11", float("inf"), 3.0],
    ENDPOINT: [
        *NEVER, None, 1, "", "GET", "GET ", "GET events", "/events", "get /events", "BREW /pot", "GET  /events",
        "GET /events/17", "GET /17/events", "GET /17", "GET /events?page=2", "GET /events/a%20b", "GET /a=b",
        "GET /a b", "GET /someone@example.org", "GET /events\n", "\nGET /events", "GET /événements", "GET /{",
        "GET /{7}", "GET /}", "(other)", "(unmatched) /events", "GET /(unmatched)", "GET /" + "z" * 196,
        "GET /u/0b5c2c0e-6f5e-4d39-9a43-0d7a1c7c9f11", "GET /reset/" + "0a" * 16 + "/done", "GET /a\x00",
    ],
    STATUS_CODE: [*NEVER, None, 0, 99, 600, -404, 10**30, "404", 404.0],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in VALID.items() for v in values])
def test_allowed(field: Field, value: object) -> None:
    assert obeys(field, value)


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in REFUSED.items() for v in values])
def test_refused(field: Field, value: object) -> None:
    assert not obeys(field, value)


def unlike_an_id(text: str) -> bool:
    """Another reading of the id's rule than its pattern."""
    if text.isascii() and text.isdecimal():
        return str(int(text)) != text or len(text) > 19
    try:
        return str(UUID(text)) != text
    except ValueError:
        return True


GENERATED: dict[Field, st.SearchStrategy[object]] = {
    EVENT_DATE: st.dates() | st.dates().map(date.isoformat),
    EVENT_NAME: st.sampled_from(NAMES),
    EVENT_ID: st.integers(0, 10**19 - 1).map(str) | st.uuids().map(str),
    SOURCE: st.sampled_from(["web", "admin", None]),
    COUNT: st.integers(1, MAX_COUNT),
    ENDPOINT: st.builds(
        "{} /{}".format,
        st.sampled_from(["GET", "PATCH", "(other)"]),
        st.lists(st.sampled_from(["events", "{event_id}", "v2", "a.b", "-", ""]), max_size=9).map("/".join),
    ),
    STATUS_CODE: st.integers(100, 599),
}
_no_number = st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.integers()) | st.integers().map(str)
_no_text = st.booleans() | st.integers() | st.floats() | st.lists(st.text()) | st.binary()
_no_route = ["\n", " ", "?q=1", "/5", "/5/x", "@x", "%41", "é", "/\u0663", "/{", "#", "\x00", "/" + "x" * 200]
BROKEN: dict[Field, st.SearchStrategy[object]] = {
    EVENT_DATE: st.none() | _no_text | st.text(max_size=9) | st.dates().map("{}\n".format) | st.datetimes(),
    EVENT_ID: st.none() | _no_text | st.text().filter(unlike_an_id) | st.integers(max_value=-1).map(str),
    SOURCE: _no_text | st.text().filter(lambda text: text not in {"web", "admin"}),
    COUNT: _no_number | st.integers(max_value=0) | st.integers(min_value=MAX_COUNT + 1),
    ENDPOINT: st.none()
    | _no_text
    | st.builds("{}{}".format, GENERATED[ENDPOINT], st.sampled_from(_no_route))
    | st.text(max_size=3),
    STATUS_CODE: _no_number | st.integers(max_value=99) | st.integers(min_value=600),
    EVENT_NAME: st.none() | _no_text | st.text() | st.sampled_from(["event_signup", "consent_turned_on\n"]),
}


def valid_rows(fields: tuple[Field, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({field.name: GENERATED[field] for field in fields})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=3,
)
KNOWN = sorted({field.name for field in (*CORE_FIELDS, *RESPONSE_FIELDS)})
field_names = st.sampled_from(KNOWN)


@pytest.mark.parametrize("fields", [CORE_FIELDS, RESPONSE_FIELDS])
@quick
@given(data=st.data())
def test_a_valid_row_has_no_violation(fields: tuple[Field, ...], data: st.DataObject) -> None:
    assert row_violations(data.draw(valid_rows(fields)), fields, NAMES) == []


@pytest.mark.parametrize(
    ("fields", "broken"), [(fields, field) for fields in (CORE_FIELDS, RESPONSE_FIELDS) for field in fields]
)
@quick
@given(data=st.data())
def test_a_broken_field_is_found_alone(fields: tuple[Field, ...], broken: Field, data: st.DataObject) -> None:
    row = data.draw(valid_rows(fields)) | {broken.name: data.draw(BROKEN[broken])}
    assert [violation.field for violation in row_violations(row, fields, NAMES)] == [broken.name]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts


@pytest.mark.parametrize("fields", [CORE_FIELDS, RESPONSE_FIELDS])
@quick
@given(data=st.data())
def test_many_rows_at_once_break_what_they_break_one_by_one(fields: tuple[Field, ...], data: st.DataObject) -> None:
    # 1, True and 1.0 are equal, and only the first is a count.
    of_field = {f.name: GENERATED[f] | st.sampled_from([1, True, 1.0, "7", "7\n", None]) | scalars for f in fields}
    rows = data.draw(st.lists(st.fixed_dictionaries(of_field), max_size=20))
    one_by_one = Counter(violation for row in rows for violation in row_violations(row, fields, NAMES))
    assert count_violations(rows, fields, NAMES) == one_by_one


@quick
@given(row=valid_rows(RESPONSE_FIELDS), field=st.text().filter(lambda name: name not in KNOWN), value=json_values)
def test_a_field_too_many_is_found_whatever_it_is_called(row: dict[str, Any], field: str, value: object) -> None:
    assert row_violations({**row, field: value}, RESPONSE_FIELDS, NAMES) == [UNKNOWN_FIELD]


@pytest.mark.parametrize("missing", CORE_FIELDS, ids=lambda field: field.name)
def test_only_the_source_may_be_absent(missing: Field) -> None:
    row = {"event_date": "2026-11-22", "event_name": NAMES[0], "event_id": "7", "source": "web", "count": 1}
    del row[missing.name]
    assert [v.field for v in row_violations(row, CORE_FIELDS, NAMES)] == ([] if missing is SOURCE else [missing.name])


@settings(quick, max_examples=200)
@given(row=st.dictionaries(field_names | texts, json_values, max_size=6))
def test_no_row_is_too_strange(row: Mapping[str, Any]) -> None:
    for violation in row_violations(row, CORE_FIELDS, NAMES):
        assert violation.field in {"(row)", *(field.name for field in CORE_FIELDS)}


marked = texts.map(lambda text: f"{CANARY}{text}")
marked_values = marked | st.lists(marked, max_size=2) | st.dictionaries(marked, marked, max_size=2)


@quick
@given(row=st.dictionaries(field_names | marked, marked_values, min_size=1, max_size=6))
def test_no_value_and_no_foreign_name_is_repeated(row: Mapping[str, Any]) -> None:
    for fields in (CORE_FIELDS, RESPONSE_FIELDS):
        violations = row_violations(row, fields, NAMES)
        assert violations
        assert CANARY not in repr(violations) + "".join(map(str, violations))
