"""What the statements of every kind of host database share."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from analytics_assets.guard import Violation

Query: TypeAlias = sa.Select[*tuple[Any, ...]] | sa.CompoundSelect[*tuple[Any, ...]]

FIRST: Final = sa.literal_column("1", sa.Integer).label("number")
"""The number of a day by itself."""

TURNED_ON_RULE: Final = Violation("turned_on", "must be true or false")


def happened(table: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition on the rows of some days.

    A half-open range on the bare column lets the database use the host's index.
    """
    return (table.c.occurred_at >= sa.bindparam("start")) & (table.c.occurred_at < sa.bindparam("end"))
