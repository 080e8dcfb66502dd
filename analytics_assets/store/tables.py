"""The tables of schemas `analytics` and `published`, derived from the contract.

Column types, checks and the unique key follow from the fields. A test compares them with what the migrations create.
`setup.apply_contract` puts the checks and the dictionary's comments in place, so these need no migration.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.sql.type_api import TypeEngine

from analytics_assets.contract import (
    COUNT,
    ENDPOINT,
    FRICTION_KINDS,
    METRICS,
    PUBLISHED_BASE,
    PUBLISHED_SCHEMA,
    SCHEMA,
    TABLES,
    Field,
    Published,
    published_names,
    vocabulary,
)
from analytics_assets.database import full_match

METADATA: Final = sa.MetaData(schema=SCHEMA)

_TYPES: Final[dict[str, type[TypeEngine[object]]]] = {"date": sa.Date, "text": sa.Text, "integer": sa.BigInteger}  # type: ignore[dict-item]


def _column_rules(column: sa.ColumnElement[Any], field: Field, names: tuple[str, ...]) -> list[sa.ColumnElement[bool]]:
    rules: list[sa.ColumnElement[bool]] = []
    if field.name == "event_name":
        rules.append(column.in_(names))
    if field.choices is not None:
        rules.append(column.in_(field.choices))
    if field.pattern is not None:
        rules.append(column.regexp_match(full_match(field.pattern)))
    if field.max_length is not None:
        rules.append(sa.func.char_length(column) <= field.max_length)
    if field.minimum is not None and field.maximum is not None:
        rules.append(column.between(field.minimum, field.maximum))
    return rules


def obeys(column: sa.ColumnElement[Any], field: Field, names: tuple[str, ...]) -> sa.ColumnElement[bool]:
    """Return the condition that a stored value obeys the rule of its field, as `guard.obeys` does; never null."""
    rules = _column_rules(column, field, names) or [column.is_not(None)]
    return sa.func.coalesce(sa.and_(*rules), sa.literal(field.optional))


def _make_table(name: str, fields: tuple[Field, ...]) -> sa.Table:
    columns = {f.name: sa.Column(f.name, _TYPES[f.type], nullable=f.optional) for f in fields}
    checks = [
        sa.CheckConstraint(sa.and_(*rules), name=f"{name}_{field.name}")
        for field in fields
        if (rules := _column_rules(columns[field.name], field, vocabulary(name)))
    ]
    key = [f.name for f in fields if f is not COUNT]
    return sa.Table(
        name,
        METADATA,
        *columns.values(),
        *checks,
        sa.UniqueConstraint(*key, name=f"{name}_key", postgresql_nulls_not_distinct=True),
        postgresql_partition_by="RANGE (event_date)",
    )


COUNTS: Final = {name: _make_table(name, fields) for name, fields in TABLES.items()}

COLLECTED_DAYS: Final = sa.Table(
    "collected_days",
    METADATA,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("event_date", sa.Date, primary_key=True),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("collected_at", sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint(sa.column("asset", sa.Text).in_([m.asset for m in METRICS]), name="collected_days_asset"),
    sa.CheckConstraint(sa.column("rows", sa.BigInteger) >= 0, name="collected_days_rows"),
)

COLLECTED_SINCE: Final = sa.Table(
    "collected_since",
    METADATA,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("first_day", sa.Date, nullable=False),
)

RETENTION_LEDGER: Final = sa.Table(
    "retention_ledger",
    METADATA,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("removed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("cutoff", sa.Date, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("days", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("oldest_remaining", sa.Date),
    sa.CheckConstraint(sa.column("days", sa.BigInteger) >= 0, name="retention_ledger_days"),
    sa.CheckConstraint(sa.column("rows", sa.BigInteger) >= 0, name="retention_ledger_rows"),
    sa.CheckConstraint(sa.func.char_length(sa.column("target", sa.Text)) <= 40, name="retention_ledger_target"),
    sa.CheckConstraint(sa.func.char_length(sa.column("run_id", sa.Text)) <= 40, name="retention_ledger_run_id"),
)

DAILY_NAMES: Final = published_names(Published.BY_DAY_AND_EVENT)
WEEKLY_NAMES: Final = published_names(Published.BY_WEEK)


def _only(table: str, names: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(sa.column("event_name", sa.Text).in_(names), name=f"{table}_event_name")


def _published_counts(name: str, names: tuple[str, ...], *key: sa.Column[object]) -> sa.Table:
    count = sa.column("count", sa.BigInteger)
    return sa.Table(
        name,
        METADATA,
        *key,
        sa.Column("count", sa.BigInteger, nullable=False),
        _only(name, names),
        # Not valid: what was published in multiples of an earlier base is never changed.
        sa.CheckConstraint(
            sa.and_(count > 0, sa.func.mod(count, PUBLISHED_BASE) == 0), name=f"{name}_count", postgresql_not_valid=True
        ),
        schema=PUBLISHED_SCHEMA,
    )


# The README promises at least five possible values for each day, whatever the base is.
_BASE_RULE: Final = sa.column("base", sa.Integer) >= 5


def _published_states(name: str, names: tuple[str, ...], start: str) -> sa.Table:
    return sa.Table(
        name,
        METADATA,
        sa.Column(start, sa.Date, primary_key=True),
        sa.Column("event_name", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("filled", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("base", sa.Integer, nullable=False),
        _only(name, names),
        sa.CheckConstraint(sa.column("state", sa.Text).in_(("published", "not_collected")), name=f"{name}_state"),
        sa.CheckConstraint(_BASE_RULE, name=f"{name}_base"),
        schema=PUBLISHED_SCHEMA,
    )


DAILY_COUNTS: Final = _published_counts(
    "daily_counts",
    DAILY_NAMES,
    sa.Column("event_date", sa.Date, primary_key=True),
    sa.Column("event_name", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True),
)
WEEKLY_COUNTS: Final = _published_counts(
    "weekly_counts",
    WEEKLY_NAMES,
    sa.Column("week_start", sa.Date, primary_key=True),
    sa.Column("event_name", sa.Text, primary_key=True),
)
DAYS: Final = _published_states("days", DAILY_NAMES, "event_date")
WEEKS: Final = _published_states("weeks", WEEKLY_NAMES, "week_start")

PUBLICATIONS: Final = sa.Table(
    "publications",
    METADATA,
    sa.Column("event_name", sa.Text, primary_key=True),
    sa.Column("event_date", sa.Date, primary_key=True),
    sa.Column("filled", sa.Boolean, primary_key=True),
    sa.Column("base", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("published_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    _only("publications", DAILY_NAMES + WEEKLY_NAMES),
    sa.CheckConstraint(_BASE_RULE, name="publications_base"),
    sa.CheckConstraint(
        sa.column("fingerprint", sa.Text).regexp_match("^[0-9a-f]{32}$"), name="publications_fingerprint"
    ),
)

PUBLISHED_CARRIES: Final = sa.Table(
    "published_carries",
    METADATA,
    sa.Column("event_name", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("carry", sa.Integer, nullable=False),
    sa.Column("base", sa.Integer, nullable=False),
    sa.Column("event_date", sa.Date, nullable=False),
    _only("published_carries", DAILY_NAMES + WEEKLY_NAMES),
    sa.CheckConstraint(
        sa.and_(sa.column("carry", sa.Integer) >= 0, sa.column("carry", sa.Integer) < sa.column("base", sa.Integer)),
        name="published_carries_carry",
    ),
    sa.CheckConstraint(_BASE_RULE, name="published_carries_base"),
)

EVERY_NAME: Final = tuple(name for m in METRICS for name in m.event_names)

FRICTION: Final = sa.Table(
    "friction",
    METADATA,
    sa.Column("event_date", sa.Date, primary_key=True),
    sa.Column("event_name", sa.Text, primary_key=True),
    sa.Column("series", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("score", sa.Double, nullable=False),
    _only("friction", EVERY_NAME),
    sa.CheckConstraint(sa.column("kind", sa.Text).in_(FRICTION_KINDS), name="friction_kind"),
    # An event id is shorter.
    sa.CheckConstraint(
        sa.func.char_length(sa.column("series", sa.Text)) <= ENDPOINT.max_length, name="friction_series"
    ),
)

NAMES_OF: Final = {
    DAILY_COUNTS: DAILY_NAMES,
    DAYS: DAILY_NAMES,
    WEEKLY_COUNTS: WEEKLY_NAMES,
    WEEKS: WEEKLY_NAMES,
    PUBLICATIONS: DAILY_NAMES + WEEKLY_NAMES,
    PUBLISHED_CARRIES: DAILY_NAMES + WEEKLY_NAMES,
    FRICTION: EVERY_NAME,
}
"""Table beside the counts -> the only event names in it."""
