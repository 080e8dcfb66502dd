"""What the database holds, against the contract and the data dictionary; nothing is changed here.

Findings name relations, columns and rules. Stored values outside the contract are only counted, because they may be
anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import sqlalchemy as sa
from alembic.script import ScriptDirectory

from analytics_assets.contract import EVENT_NAME, METRICS, SCHEMA, TABLES, Metric, vocabulary
from analytics_assets.dictionary import database_comments
from analytics_assets.guard import Violation
from analytics_assets.settings import Settings
from analytics_assets.store import Store
from analytics_assets.store.comments import Name, read_comments
from analytics_assets.store.counts import on_days
from analytics_assets.store.tables import COLLECTED_DAYS, COUNTS, NAMES_OF, obeys


def read_server_version(store: Store) -> str:
    """Return the version of PostgreSQL. Raises DatabaseError when the database cannot be reached."""
    with store.transaction("connecting to the analytics database") as connection:
        return str(connection.scalar(sa.text("show server_version"))).split()[0]


def read_revision(store: Store) -> tuple[str, str]:
    """Return the revision of the schema, and what to do about it: nothing, where it is this package's.

    Raises DatabaseError.
    """
    with store.transaction("reading the revision of the schema (run `analytics-assets init-db`)") as connection:
        revision = str(connection.scalar(sa.text(f"select version_num from {SCHEMA}.alembic_version")))  # noqa: S608
    scripts = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    known = [script.revision for script in scripts.walk_revisions()]
    if revision == known[0]:
        return revision, ""
    if revision in known:
        return revision, f"revision {revision} is older than this package: run `analytics-assets init-db`"
    return revision, "its revision is newer than this package: install the version that made it"


def find_column_violations(store: Store, metric: Metric) -> list[Violation]:
    """Compare the live table's columns with the contract. A column's name is structure, so it is shown."""
    query = sa.text(
        "select attname as name, format_type(atttypid, atttypmod) as type from pg_attribute"
        " where attrelid = cast(:table as regclass) and attnum > 0 and not attisdropped"
    )
    with store.transaction("reading the columns") as connection:
        live = {row.name: row.type for row in connection.execute(query, {"table": f"{SCHEMA}.{metric.table}"})}
    expected = {column.name: str(column.type).lower() for column in COUNTS[metric.table].columns}
    return [
        *(Violation(name, "is a column that the contract does not allow") for name in live.keys() - expected.keys()),
        *(Violation(name, "is a column that the table lacks") for name in expected.keys() - live.keys()),
        *(
            Violation(name, f"is a column of the wrong type: {expected[name]} is expected")
            for name in live.keys() & expected.keys()
            if live[name] != expected[name]
        ),
    ]


def count_row_violations(store: Store, metric: Metric, days: Sequence[date]) -> dict[date, Counter[Violation]]:
    """Let the database evaluate the contract's rules on the stored rows of `days`: how many rows break each.

    It finds what `guard.row_violations` would find, and days without a finding are left out. A name outside the whole
    vocabulary belongs to no metric, so every metric of the table reports it.
    """
    table = COUNTS[metric.table]
    of_days = on_days(table, days)
    if EVENT_NAME.name in table.c:
        name = table.c.event_name
        stray = name.is_(None) | name.not_in(vocabulary(metric.table))
        of_days &= stray | name.in_(metric.event_names)
    broken = [sa.func.count().filter(~obeys(table.c[field.name], field, metric.event_names)) for field in metric.fields]
    # PostgreSQL evaluates equal aggregates once.
    query = (
        sa.select(table.c.event_date, *broken)
        .where(of_days)
        .group_by(table.c.event_date)
        .having(sum(broken, sa.literal(0)) > 0)
    )
    with store.transaction("checking what is stored") as connection:
        found = connection.execute(query).all()
    return {
        day: Counter({Violation(f.name, f.rule): rows for f, rows in zip(metric.fields, numbers, strict=True) if rows})
        for day, *numbers in found
    }


def find_undocumented(store: Store, metric: Metric) -> list[str]:
    """List where the metric's table and the dictionary differ: columns, comments, vocabulary."""
    table = f"{SCHEMA}.{metric.table}"
    with store.transaction("comparing the database with the dictionary") as connection:
        found = _name_differences(connection, store.settings, lambda relation: relation == table)
        if EVENT_NAME in metric.fields:
            found += _undocumented_values(connection, Name(table, "event_name"), vocabulary(metric.table))
    return found


def find_undocumented_elsewhere(store: Store) -> list[str]:
    """List where schemas `analytics`, without the tables of counts, and `published` differ from the dictionary."""
    counts = {f"{SCHEMA}.{table}" for table in TABLES}
    with store.transaction("comparing the database with the dictionary") as connection:
        found = _name_differences(connection, store.settings, lambda relation: relation not in counts)
        assets = [metric.asset for metric in METRICS]
        found += _undocumented_values(connection, Name(str(COLLECTED_DAYS), "asset"), assets)
        for table, names in NAMES_OF.items():
            found += _undocumented_values(connection, Name(str(table), "event_name"), names)
        return found


def _name_differences(connection: sa.Connection, settings: Settings, concerns: Callable[[str], bool]) -> list[str]:
    entries = {Name(*name): entry for name, entry in database_comments(settings).items()}
    live = read_comments(connection)
    found = []
    for name in sorted((name for name in entries.keys() | live.keys() if concerns(name.relation)), key=str):
        if name not in entries:
            found.append(f"{name} is not in the dictionary")
        elif name not in live:
            found.append(f"{name} is in the dictionary, but not in the database")
        elif live[name] != entries[name]:
            found.append(f"{name} lacks the dictionary's comment")
    return found


def _undocumented_values(connection: sa.Connection, name: Name, values: Sequence[str]) -> list[str]:
    """Count the stored rows, and the values that the constraint allows, that are not among `values`."""
    column: sa.ColumnClause[str] = sa.column(name.column or "")
    schema, _, relation = name.relation.partition(".")
    stored = sa.table(relation, column, schema=schema)
    # Where the constraint holds, PostgreSQL concludes from it that there is no such row, and reads none.
    rows = connection.scalar(sa.select(sa.func.count()).select_from(stored).where(column.not_in(values)))
    rule = connection.scalar(
        sa.text(
            "select pg_get_expr(conbin, conrelid) from pg_constraint"
            " where conrelid = cast(:table as regclass) and conname = :name"
        ),
        {"table": name.relation, "name": f"{relation}_{name.column}"},
    )
    allowed = set(re.findall(r"'((?:[^']|'')*)'", rule or ""))
    found = [f"{name} has a value that is not in the dictionary ({rows} rows)"] if rows else []
    if not allowed:
        found.append(f"{name} may hold any value: its constraint is missing")
    elif unknown := len(allowed - set(values)):
        found.append(f"{name} may hold values that are not in the dictionary ({unknown})")
    return found
