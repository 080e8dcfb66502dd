"""Check rows against the contract.

Pure functions that return violations; nothing is read, written or logged here. A violation names the field and the
rule, never the value. Standard library only, because the web application loads this module too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

from analytics_assets.contract import EVENT_NAME, Field

Row = Mapping[str, Any]
"""Field name -> value."""


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One broken rule of a row, without the value."""

    field: str
    """Name of a contract field, or `(row)` when the rule concerns the whole row."""
    rule: str

    def __str__(self) -> str:
        return f"{self.field} {self.rule}"


UNKNOWN_FIELD = Violation("(row)", "has a field that the contract does not allow")
NOT_AN_OBJECT = Violation("(row)", "must be one JSON object")


@lru_cache(maxsize=32)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


def _is_iso_date(value: str) -> bool:
    if not _compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch(value):
        return False
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True


def obeys(field: Field, value: object) -> bool:
    """Whether a value obeys the rule of its field. `None` means absent.

    The type must match: True and 3.0 are not counts, and an id is text.
    """
    if value is None:
        return field.optional
    if field.type == "date":
        return type(value) is date or (isinstance(value, str) and _is_iso_date(value))
    if field.type == "integer":
        return type(value) is int and (field.minimum or 0) <= value <= (field.maximum or value)
    if not isinstance(value, str) or len(value) > (field.max_length or len(value)):
        return False
    if field.choices is not None:
        return value in field.choices
    return field.pattern is None or _compile(field.pattern).fullmatch(value) is not None


def row_violations(row: Row, fields: Sequence[Field], event_names: Iterable[str]) -> list[Violation]:
    """All violations of `fields` and of the vocabulary `event_names` in a row (field name -> value).

    An unknown field name may itself be personal data, so it is reported as `(row)`.
    """
    known = {field.name for field in fields}
    violations = [UNKNOWN_FIELD] if row.keys() - known else []
    for field in fields:
        value = row.get(field.name)
        allowed = value in tuple(event_names) if field is EVENT_NAME else obeys(field, value)
        if not allowed:
            violations.append(Violation(field.name, field.rule))
    return violations


def count_violations(rows: Sequence[Row], fields: Sequence[Field], event_names: Iterable[str]) -> Counter[Violation]:
    """How many rows break each rule: what `row_violations` finds in them, in a fraction of its time.

    Each distinct value is checked once. The rows have hashable values, and these fields and no others.
    """
    found: Counter[Violation] = Counter()
    for field in fields:
        values = list(map(itemgetter(field.name), rows))
        allowed = tuple(event_names).__contains__ if field is EVENT_NAME else partial(obeys, field)
        types = set(map(type, values))
        for type_ in types:  # one by one, because True and 1.0 equal 1
            of_type = values if len(types) == 1 else [value for value in values if type(value) is type_]
            if refused := {value for value in set(of_type) if not allowed(value)}:
                found[Violation(field.name, field.rule)] += sum(value in refused for value in of_type)
    return found
