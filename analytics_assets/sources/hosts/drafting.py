"""What `sources.draft` needs to know about a kind of host database: its tables, and some words of its SQL."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogColumn:
    """A column of a table that may be the host application's."""

    table: Hashable
    """Whatever identifies the table."""
    table_sql: str
    table_name: str
    protected: bool
    """Whether the table has row level security."""
    name: str
    sql: str
    type: str
    nullable: bool
    leads_to: Hashable | None
    """The table that its foreign key leads to."""
    key_sql: str | None
    """The column there."""


@dataclass(frozen=True)
class Drafting:
    """Types and expressions."""

    naive: str
    """The type of a moment that has no time zone."""
    from_naive: str
    """An expression of a source view for such a column, `{}`, in a zone that is not known."""
    naive_name: str
    """The name of the expression in the view."""
    naive_hint: str
    booleans: tuple[str, ...]
    payloads: tuple[str, ...]
    no_source: str
    """Null, as a text."""
