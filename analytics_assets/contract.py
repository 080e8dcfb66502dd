"""The contract: what may be counted, and for how long.

A privacy reviewer reads this page. It holds data: the fields, the vocabulary, the metrics. Assets, tables, constraints,
checks, telemetry and the data dictionary are derived from it. No input, output or database code belongs here. Only the
standard library is imported, because the web application loads this module too.

A day is a calendar day in one configured time zone (UTC unless set). No finer time is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Final

RETENTION_DAYS: Final = 180
"""Day D is kept on day T while D >= T - RETENTION_DAYS (the plan says "up to 180 days"). A setting may change it."""


class ContractError(ValueError):
    """A declaration that the contract does not accept."""


@dataclass(frozen=True)
class Column:
    """One documented column of a table or view."""

    name: str
    type: str
    """`date`, `text` or `integer`; outside the counts also `timestamp`, `boolean` or `number`."""
    unit: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Field(Column):
    """One field of a stored row.

    Python and PostgreSQL both enforce the patterns, so a pattern uses only what both read alike.
    """

    example: str
    rule: str
    """The rule in words, for error messages. They never show the value."""
    pattern: str | None = None
    """For text: a regular expression that the whole value must match."""
    max_length: int | None = None
    """For text: in characters."""
    choices: tuple[str, ...] | None = None
    """For text: the only values."""
    minimum: int | None = None
    maximum: int | None = None
    optional: bool = False


ID_PATTERN: Final = r"0|[1-9][0-9]{0,18}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
UNMATCHED: Final = "(unmatched)"
"""The endpoint of a response that no route produced."""
OTHER: Final = "(other)"
"""Replaces a request method that is not in METHODS."""
OVERFLOW: Final = "(overflow)"
"""The endpoint of every response past the cap on endpoints per process and day."""

# A segment of digits only, or one that looks like a UUID or token, comes from a requested path. A route template has
# none. `@`, `%`, `?`, `=` and blanks never occur, so neither an address nor a query fits. This pattern cannot tell a
# person's name from a literal segment: against names, telemetry reads the routing table and never the path.
_SEGMENT = r"(?!(?:[0-9]+|[0-9A-Fa-f-]{20,})(?:/|$))(?:[A-Za-z0-9._~-]|\{[A-Za-z_][A-Za-z0-9_]*\})*"
ENDPOINT_PATTERN: Final = rf"(?:{'|'.join(METHODS)}|\(other\)) (?:/{_SEGMENT})+|\(unmatched\)|\(overflow\)"

MAX_COUNT: Final = 10**12 - 1
"""The largest count. A counter dump has twelve digits for the number."""

EVENT_DATE: Final = Field(
    name="event_date",
    type="date",
    meaning="The calendar day on which it happened, in the configured time zone.",
    unit="day, YYYY-MM-DD",
    example="2026-11-22",
    rule="must be a date written YYYY-MM-DD",
)
EVENT_NAME: Final = Field(
    name="event_name",
    type="text",
    meaning="What happened, one name of the controlled vocabulary.",
    unit="name",
    example="event_signup",
    rule="must be in the controlled vocabulary",
)
EVENT_ID: Final = Field(
    name="event_id",
    type="text",
    meaning="The event of the directory (a meetup, a conference), never a person.",
    unit="identifier",
    example="42",
    rule="must be an integer without sign or leading zeros, or a lower-case UUID",
    pattern=ID_PATTERN,
)
SOURCE: Final = Field(
    name="source",
    type="text",
    meaning="Which side of the application it came from; absent when that is not known.",
    unit="name",
    example="web",
    rule="must be web, admin or absent",
    choices=("web", "admin"),
    optional=True,
)
COUNT: Final = Field(
    name="count",
    type="integer",
    meaning="How many times it happened on that day.",
    unit="occurrences per day",
    example="17",
    rule=f"must be a whole number from 1 to {MAX_COUNT}",
    minimum=1,
    maximum=MAX_COUNT,
)
ENDPOINT: Final = Field(
    name="endpoint",
    type="text",
    meaning="Request method and route template as the application declares them, never the requested path.",
    unit="route template",
    example="GET /events/{event_id}",
    rule="must be a method and a route template of at most 200 characters, (unmatched) or (overflow)",
    pattern=ENDPOINT_PATTERN,
    max_length=200,
)
STATUS_CODE: Final = Field(
    name="status_code",
    type="integer",
    meaning="HTTP status code of the response.",
    unit="code",
    example="404",
    rule="must be a whole number from 100 to 599",
    minimum=100,
    maximum=599,
)

CORE_FIELDS: Final = (EVENT_DATE, EVENT_NAME, EVENT_ID, SOURCE, COUNT)
RESPONSE_FIELDS: Final = (EVENT_DATE, ENDPOINT, STATUS_CODE, COUNT)

SCHEMA: Final = "analytics"
"""The schema of the pipeline's own tables."""
SOURCE_SCHEMA: Final = "analytics_source"
"""The schema of the views in the host application's database."""

TABLES: Final = {"daily_event_counts": CORE_FIELDS, "daily_response_counts": RESPONSE_FIELDS}
"""The two tables of counts -> their columns, in order."""


@dataclass(frozen=True)
class Relation:
    """A table or view of schema `analytics` that keeps no counts of its own."""

    purpose: str
    columns: tuple[Column, ...]


OTHER_RELATIONS: Final = {
    "collected_days": Relation(
        "Which day of which metric was collected. It tells a day with zero from a day that was not collected.",
        (
            Column("asset", "text", "name", "The metric."),
            Column("event_date", "date", "day, YYYY-MM-DD", "The day that was collected."),
            Column("rows", "integer", "rows", "Rows stored. 0 says that nothing happened on that day."),
            Column("collected_at", "timestamp", "instant", "When the pipeline stored the day."),
        ),
    ),
    "settings": Relation(
        "The two settings that the database enforces, and the floor of the days that are kept, in one row.",
        (
            Column("only_row", "boolean", "true", "Always true, so that there is no second row."),
            Column("retention_days", "integer", "days", "How many days are kept."),
            Column("time_zone", "text", "IANA name", "The time zone whose calendar days are counted."),
            Column(
                "kept_since",
                "date",
                "day, YYYY-MM-DD",
                "Days before this one are never kept, even after the period is made longer. Absent until it changed.",
            ),
        ),
    ),
    "retention_ledger": Relation(
        "What retention has removed, one entry per step: how much, never what was in it.",
        (
            Column("id", "integer", "number", "The number of the entry."),
            Column("removed_at", "timestamp", "instant", "When it was written, by the database's clock."),
            Column("run_id", "text", "identifier", "The Dagster run that removed, or `command line`."),
            Column("cutoff", "date", "day, YYYY-MM-DD", "The first day that was kept. Older days were removed."),
            Column("target", "text", "name", "The retention target: a table, folder or record that keeps days."),
            Column("days", "integer", "days", "Days removed."),
            Column("rows", "integer", "rows", "Rows removed, or files where the target is a folder."),
            Column("oldest_remaining", "date", "day, YYYY-MM-DD", "The oldest day left. Absent when none is left."),
        ),
    ),
    "daily_error_rates": Relation(
        "View of daily_response_counts with the error rate of each endpoint and day beside every status code.",
        (
            *RESPONSE_FIELDS,
            Column("requests", "number", "responses per day", "All responses of the endpoint on that day."),
            Column("error_rate", "number", "share, 0 to 1", "Responses with status 400 or above, divided by requests."),
        ),
    ),
    "alembic_version": Relation(
        "Which migration the schema is at.", (Column("version_num", "text", "name", "The migration."),)
    ),
}
"""The other relations of schema `analytics`. Check `documented` reports any that is neither here nor in TABLES."""

LEDGER_PATH: Final = (SCHEMA, "retention_ledger")
"""The path of the ledger's asset key. What concerns the whole database is checked there, once per run."""

OCCURRED_AT: Final = Column(
    "occurred_at", "timestamp", "instant", "When it happened. It decides the day and never leaves the host's database."
)
TURNED_ON: Final = Column("turned_on", "boolean", "true or false", "Whether it was turned on or off.")


@dataclass(frozen=True)
class SourceView:
    """A view of schema `analytics_source`, written by the host application's operator: one row per occurrence."""

    name: str
    switch: bool = False
    """True: a boolean column `turned_on` decides between the metric's two event names (on first, off second)."""

    @property
    def path(self) -> tuple[str, ...]:
        """The path of its asset key."""
        return (SOURCE_SCHEMA, self.name)

    @property
    def fields(self) -> tuple[Column, ...]:
        """What the view shows of each occurrence."""
        return (EVENT_ID, OCCURRED_AT, SOURCE, *((TURNED_ON,) if self.switch else ()))

    @property
    def columns(self) -> tuple[str, ...]:
        """Exactly the columns the view has, in any order."""
        return tuple(column.name for column in self.fields)


@dataclass(frozen=True)
class CounterDumps:
    """Counter dumps written inside the web application: `<event_date>/<128 random bits in hex>.ndjson`."""

    path = ("counter_dumps",)
    """The path of its asset key."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: one Dagster asset. Every attribute is required.

    Raises:
        ContractError: a text is blank, a name is not lower_snake_case, the owner is not written `team:name`, no table
            has these fields, or the event names do not fit the origin.
    """

    asset: str
    question: str
    """The question it answers, in one sentence."""
    owner: str
    """The team that answers for it, as `team:name`."""
    event_names: tuple[str, ...]
    fields: tuple[Field, ...]
    origin: SourceView | CounterDumps
    since: date
    """The day it was agreed on."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w.*\w.*\?", self.question):
            raise ContractError(f"metric {self.asset!r}: state the question it answers, ending in a question mark")
        if not re.fullmatch(r"team:[a-z][a-z-]*", self.owner):
            raise ContractError(f"metric {self.asset!r}: the owner is a team, written team:name")
        for name in (self.asset, *self.event_names):
            if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
                raise ContractError(f"metric {self.asset!r}: {name!r} is not lower_snake_case")
        if self.fields not in TABLES.values():
            raise ContractError(f"metric {self.asset!r}: no table of the contract has these fields")
        if not isinstance(self.origin, SourceView | CounterDumps):
            raise ContractError(f"metric {self.asset!r}: say where it comes from, a source view or the counter dumps")
        expected = 2 if isinstance(self.origin, SourceView) and self.origin.switch else 1
        if len(self.event_names) != expected:
            raise ContractError(f"metric {self.asset!r}: its origin yields {expected} event name(s)")

    @property
    def table(self) -> str:
        """Name of the table that keeps its counts."""
        return next(name for name, fields in TABLES.items() if fields == self.fields)

    @property
    def dump_fields(self) -> tuple[Field, ...]:
        """Fields of its lines in a counter dump: those of the table, and always the event name."""
        return tuple(dict.fromkeys((EVENT_DATE, EVENT_NAME, *self.fields)))


DUMP_FILE_PATTERN: Final = r"[0-9a-f]{32}\.ndjson"
"""The name of a counter dump. It is random, so that it says nothing about host, process or time."""

_PHASE_1 = date(2026, 11, 24)

METRICS: Final = (
    Metric(
        asset="event_signups",
        question="How many people sign up for each event?",
        owner="team:core",
        event_names=("event_signup",),
        fields=CORE_FIELDS,
        origin=SourceView("signups"),
        since=_PHASE_1,
    ),
    Metric(
        asset="directory_page_views",
        question="How often is the attendee directory of each event looked at?",
        owner="team:core",
        event_names=("directory_page_viewed",),
        fields=CORE_FIELDS,
        origin=CounterDumps(),
        since=_PHASE_1,
    ),
    Metric(
        asset="directory_searches",
        question="How often is the attendee directory of each event searched, whatever was searched for?",
        owner="team:core",
        event_names=("directory_searched",),
        fields=CORE_FIELDS,
        origin=CounterDumps(),
        since=_PHASE_1,
    ),
    Metric(
        asset="profile_visibility_toggles",
        question="How often do attendees switch the visibility of their profile at each event?",
        owner="team:core",
        event_names=("profile_visibility_toggled",),
        fields=CORE_FIELDS,
        origin=SourceView("profile_visibility_changes"),
        since=_PHASE_1,
    ),
    Metric(
        asset="consent_changes",
        question="How often is consent given, and how often withdrawn, at each event?",
        owner="team:core",
        event_names=("consent_turned_on", "consent_turned_off"),
        fields=CORE_FIELDS,
        origin=SourceView("consent_changes", switch=True),
        since=_PHASE_1,
    ),
    Metric(
        asset="endpoint_error_rates",
        question="Which share of the responses of each endpoint are errors, by status code?",
        owner="team:engineering",
        event_names=("http_response",),
        fields=RESPONSE_FIELDS,
        origin=CounterDumps(),
        since=_PHASE_1,
    ),
)


ORIGINS: Final = tuple(dict.fromkeys(metric.origin for metric in METRICS))
"""What the metrics are counted from, each once."""
SOURCE_VIEWS: Final = tuple(origin for origin in ORIGINS if isinstance(origin, SourceView))


def metric(asset: str) -> Metric:
    """Return the metric of an asset. Raises KeyError for a name that is not in the contract."""
    return {m.asset: m for m in METRICS}[asset]


def vocabulary(table: str) -> tuple[str, ...]:
    """Return every event name whose counts `table` keeps."""
    return tuple(name for m in METRICS if m.table == table for name in m.event_names)
