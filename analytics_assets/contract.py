"""The contract: what may be counted, and for how long.

A privacy reviewer reads this page. It holds data: the fields, the vocabulary, the metrics, the targets. Assets, tables,
constraints, checks, telemetry, pages and the data dictionary are derived from it. No input, output or database code
belongs here. Only the standard library is imported, because the web application loads this module too.

A day is a calendar day in one configured time zone (UTC unless set). No finer time is kept.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Final

RETENTION_DAYS: Final = 180
"""Day D is kept on day T while D >= T - RETENTION_DAYS (the plan says "up to 180 days"). A setting may change it."""

LOOKBACK_DAYS: Final = 2
"""Days before yesterday that the daily job collects again, for rows that arrive late."""

PUBLISHED_BASE: Final = 5
"""Published numbers are multiples of this. A new base, never below 5, holds from the next published day on."""


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
PUBLISHED_SCHEMA: Final = "published"
"""The schema of the numbers that people outside the core team see."""

TABLES: Final = {"daily_event_counts": CORE_FIELDS, "daily_response_counts": RESPONSE_FIELDS}
"""The two tables of counts -> their columns, in order."""


@dataclass(frozen=True)
class Relation:
    """A table or view that is not one of TABLES."""

    purpose: str
    columns: tuple[Column, ...]


_PUBLISHED_DAY: Final = Column("event_date", "date", "day, YYYY-MM-DD", "The day.")
_PUBLISHED_WEEK: Final = Column("week_start", "date", "day, YYYY-MM-DD", "The Monday of the week.")
_PUBLISHED_NAME: Final = Column("event_name", "text", "name", "What happened.")
_PUBLISHED_EVENT: Final = Column("event_id", "text", "identifier", "The event of the directory, never a person.")
_PUBLISHED_METHOD: Final = (
    Column(
        "filled",
        "boolean",
        "true or false",
        "True when it was published after its turn, by itself: its numbers may be up to four further below the count.",
    ),
    Column("base", "integer", "occurrences", "Its numbers are multiples of this."),
)

FRICTION_KINDS: Final = ("spike", "drop", "error spike", "drop-off")
"""What friction can be: `docs/friction.md` defines each."""

OTHER_RELATIONS: Final = {
    f"{SCHEMA}.collected_days": Relation(
        "Which day of which metric was collected. It tells a day with zero from a day that was not collected.",
        (
            Column("asset", "text", "name", "The metric."),
            Column("event_date", "date", "day, YYYY-MM-DD", "The day that was collected."),
            Column("rows", "integer", "rows", "Rows stored. 0 says that nothing happened on that day."),
            Column("collected_at", "timestamp", "instant", "When the pipeline began to count the day."),
        ),
    ),
    f"{SCHEMA}.collected_since": Relation(
        "Since which day each metric is collected. A kept day after it that was not collected is missing, also when the"
        " first day itself has expired.",
        (
            Column("asset", "text", "name", "The metric."),
            Column("first_day", "date", "day, YYYY-MM-DD", "The first day that was ever collected."),
        ),
    ),
    f"{SCHEMA}.settings": Relation(
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
            Column(
                "cutoff",
                "date",
                "day, YYYY-MM-DD",
                "The first day that was kept when the settings changed, or when a person confirmed it.",
            ),
            Column("cutoff_at", "timestamp", "instant", "When that was, by the database's clock."),
        ),
    ),
    f"{SCHEMA}.retention_ledger": Relation(
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
    f"{SCHEMA}.daily_error_rates": Relation(
        "View of daily_response_counts with the error rate of each endpoint and day beside every status code.",
        (
            *RESPONSE_FIELDS,
            Column("requests", "number", "responses per day", "All responses of the endpoint on that day."),
            Column("error_rate", "number", "share, 0 to 1", "Responses with status 400 or above, divided by requests."),
        ),
    ),
    f"{SCHEMA}.alembic_version": Relation(
        "Which migration the schema is at.", (Column("version_num", "text", "name", "The migration."),)
    ),
    f"{SCHEMA}.publications": Relation(
        "Which day or week was published, with a fingerprint of its numbers: whatever changes them later is found.",
        (
            Column("event_name", "text", "name", "What happened."),
            Column("event_date", "date", "day, YYYY-MM-DD", "The day, or the Monday of the week."),
            Column("filled", "boolean", "true or false", "True when it was published by itself, after its turn."),
            Column("base", "integer", "occurrences", "Its numbers are multiples of this."),
            Column("fingerprint", "text", "MD5", "Of its state and its numbers."),
            Column("published_at", "timestamp", "instant", "When it was published."),
        ),
    ),
    f"{SCHEMA}.published_carries": Relation(
        "What was counted of a series and is not published yet. Whoever knows it knows too much, so it stays here.",
        (
            Column("event_name", "text", "name", "What happened."),
            Column("event_id", "text", "identifier", "The event of the directory; `all` for a series over all events."),
            Column("carry", "integer", "occurrences", "From 0 to 4, or one less than another base."),
            Column("base", "integer", "occurrences", "What the series is published in multiples of."),
            Column(
                "event_date", "date", "day, YYYY-MM-DD", "The last day that added to it, or the Monday of the week."
            ),
        ),
    ),
    f"{SCHEMA}.friction": Relation(
        "Friction: days on which a count departs from what its own history lets expect, for the core team. A reason to"
        " look, not a fault.",
        (
            Column("event_date", "date", "day, YYYY-MM-DD", "The day, or the last day of the week or four weeks."),
            Column("event_name", "text", "name", "What happened; of a drop-off, the later step of the funnel."),
            Column("series", "text", "identifier", "The event of the directory, or the endpoint."),
            Column(
                "kind",
                "text",
                "name",
                "`spike` and `error spike`: more than expected. `drop`: less. `drop-off`: less per step before.",
            ),
            Column("score", "number", "standard deviations", "How far from the expectation, to rank by."),
        ),
    ),
    f"{PUBLISHED_SCHEMA}.daily_counts": Relation(
        "Steps of running totals in fives, per day and event. A day, week or sum may be up to four above or below the"
        " count; a day without a row had less than five or was not collected: see `published.daily`.",
        (
            _PUBLISHED_DAY,
            _PUBLISHED_NAME,
            _PUBLISHED_EVENT,
            Column("count", "integer", "occurrences per day", "A multiple of five, above 0. Counts may be summed."),
        ),
    ),
    f"{PUBLISHED_SCHEMA}.days": Relation(
        "Which day of what is published per day, or could not be.",
        (
            _PUBLISHED_DAY,
            _PUBLISHED_NAME,
            Column("state", "text", "name", "`published`, or `not_collected`: nothing is known about that day."),
            *_PUBLISHED_METHOD,
        ),
    ),
    f"{PUBLISHED_SCHEMA}.daily": Relation(
        "View of every published day of every event with a number, to be drawn as it is.",
        (
            _PUBLISHED_DAY,
            _PUBLISHED_NAME,
            _PUBLISHED_EVENT,
            Column(
                "count",
                "integer",
                "occurrences per day",
                "A multiple of five. 0 with state `below`, absent with state `not_collected`. Counts may be summed.",
            ),
            Column(
                "state", "text", "name", "`value`, `below` (shown as <5) or `not_collected`: nothing is known about it."
            ),
        ),
    ),
    f"{PUBLISHED_SCHEMA}.weekly_counts": Relation(
        "Steps of running totals in fives, per closed ISO week over all events. A week without a row had less than five"
        " or was not collected: see `published.weeks`.",
        (
            _PUBLISHED_WEEK,
            _PUBLISHED_NAME,
            Column("count", "integer", "occurrences per week", "A multiple of five, above 0. Counts may be summed."),
        ),
    ),
    f"{PUBLISHED_SCHEMA}.weeks": Relation(
        "Which week of what is published per week, or could not be.",
        (
            _PUBLISHED_WEEK,
            _PUBLISHED_NAME,
            Column("state", "text", "name", "`published`, or `not_collected`: a day of that week was not collected."),
            *_PUBLISHED_METHOD,
        ),
    ),
}
"""Every other relation of the two schemas. Check `documented` reports any that is neither here nor in TABLES."""

PAGES: Final = {
    "core_pages": "The core team's pages: exact numbers of every metric, event and endpoint, as static HTML.",
    "published_pages": "The pages for everybody else, as static HTML, CSV and JSON: sums of published days, an overview"
    " and a folder for each event.",
}
"""The assets that write pages -> their purpose."""

ABOUT: Final = "about"
"""Metadata of every check result: the oldest day that its findings are about, or NO_DAY. Retention dates it by that."""

NO_DAY: Final = "no single day"

PUBLISHED_PATH: Final = ("published_counts",)
"""The path of the asset key of everything in schema `published`."""

FRICTION_PATH: Final = ("product_friction",)
"""The path of the asset key of `analytics.friction`."""

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


class Published(Enum):
    """What of a metric people outside the core team see, always as running totals in fives."""

    BY_DAY_AND_EVENT = "per day and event"
    BY_WEEK = "per closed ISO week, over all events"
    NEVER = "never"


def _refuse_unclear(declared: str, question: str, owner: str) -> None:
    if not re.fullmatch(r"\w.*\w.*\?", question):
        raise ContractError(f"{declared}: state the question it answers, ending in a question mark")
    if not re.fullmatch(r"team:[a-z][a-z-]*", owner):
        raise ContractError(f"{declared}: the owner is a team, written team:name")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: one Dagster asset. Every attribute is required.

    Raises:
        ContractError: a text is blank, a name is not lower_snake_case, the owner is not written `team:name`, no table
            has these fields, the event names do not fit the origin, or what is published has no event.
    """

    asset: str
    question: str
    """The question it answers, in one sentence."""
    owner: str
    """The team that answers for it, as `team:name`."""
    event_names: tuple[str, ...]
    fields: tuple[Field, ...]
    origin: SourceView | CounterDumps
    published: Published
    """What of it leaves the core team. The sources are always summed."""
    since: date
    """The day it was agreed on."""

    def __post_init__(self) -> None:
        _refuse_unclear(f"metric {self.asset!r}", self.question, self.owner)
        for name in (self.asset, *self.event_names):
            if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
                raise ContractError(f"metric {self.asset!r}: {name!r} is not lower_snake_case")
        if self.fields not in TABLES.values():
            raise ContractError(f"metric {self.asset!r}: no table of the contract has these fields")
        if not isinstance(self.origin, SourceView | CounterDumps):
            raise ContractError(f"metric {self.asset!r}: say where it comes from, a source view or the counter dumps")
        if not isinstance(self.published, Published):
            raise ContractError(f"metric {self.asset!r}: say what of it is published")
        if self.published is not Published.NEVER and self.fields != CORE_FIELDS:
            raise ContractError(f"metric {self.asset!r}: only counts of events can be published")
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

REFUSED: Final = "refused"
CAPPED: Final = "capped"
IO: Final = "io"
REMOVED: Final = "removed"
BUSY: Final = "busy"
FAILED: Final = "failed"
DROP_REASONS: Final = {
    REFUSED: "The contract does not allow the count.",
    CAPPED: "The event name already has as many keys as one process may count per day.",
    IO: "The dump could not be written.",
    REMOVED: "The dump was removed together with its counts.",
    BUSY: "Another thread wrote for longer than a request may wait.",
    FAILED: "Any other error.",
}
"""Why telemetry drops a count -> what that means."""

DROP_REASON: Final = Field(
    name="reason",
    type="text",
    meaning="Why telemetry did not count.",
    unit="name",
    example=REFUSED,
    rule=f"must be one of {', '.join(DROP_REASONS)}",
    choices=tuple(DROP_REASONS),
)
DROPPED: Final = Field(
    name=COUNT.name,
    type=COUNT.type,
    meaning="How many occurrences were not counted on that day.",
    unit=COUNT.unit,
    example="3",
    rule=COUNT.rule,
    minimum=COUNT.minimum,
    maximum=COUNT.maximum,
)
DROP_FIELDS: Final = (EVENT_DATE, DROP_REASON, DROPPED)
"""Fields of a line in a drop file. It names no event, endpoint or other value of what was dropped."""

DROP_FILE_PATTERN: Final = r"[0-9a-f]{32}\.drops"
"""The name of a drop file. It is in the folder of its day, beside the counter dumps, and expires with them."""

_PHASE_1 = date(2026, 11, 24)

METRICS: Final = (
    Metric(
        asset="event_signups",
        question="How many sign-ups does each event have?",
        owner="team:core",
        event_names=("event_signup",),
        fields=CORE_FIELDS,
        origin=SourceView("signups"),
        published=Published.BY_DAY_AND_EVENT,
        since=_PHASE_1,
    ),
    Metric(
        asset="directory_page_views",
        question="How often is the attendee directory of each event looked at?",
        owner="team:core",
        event_names=("directory_page_viewed",),
        fields=CORE_FIELDS,
        origin=CounterDumps(),
        published=Published.BY_DAY_AND_EVENT,
        since=_PHASE_1,
    ),
    Metric(
        asset="directory_searches",
        question="How often is the attendee directory of each event searched, whatever was searched for?",
        owner="team:core",
        event_names=("directory_searched",),
        fields=CORE_FIELDS,
        origin=CounterDumps(),
        published=Published.BY_DAY_AND_EVENT,
        since=_PHASE_1,
    ),
    Metric(
        asset="profile_visibility_toggles",
        question="How often do attendees switch the visibility of their profile at each event?",
        owner="team:core",
        event_names=("profile_visibility_toggled",),
        fields=CORE_FIELDS,
        origin=SourceView("profile_visibility_changes"),
        published=Published.BY_WEEK,
        since=_PHASE_1,
    ),
    Metric(
        asset="consent_changes",
        question="How often is consent given, and how often withdrawn, at each event?",
        owner="team:core",
        event_names=("consent_turned_on", "consent_turned_off"),
        fields=CORE_FIELDS,
        origin=SourceView("consent_changes", switch=True),
        published=Published.BY_WEEK,
        since=_PHASE_1,
    ),
    Metric(
        asset="endpoint_error_rates",
        question="Which share of the responses of each endpoint are errors, by status code?",
        owner="team:engineering",
        event_names=("http_response",),
        fields=RESPONSE_FIELDS,
        origin=CounterDumps(),
        published=Published.NEVER,
        since=_PHASE_1,
    ),
)


ORIGINS: Final = tuple(dict.fromkeys(metric.origin for metric in METRICS))
"""What the metrics are counted from, each once."""
SOURCE_VIEWS: Final = tuple(origin for origin in ORIGINS if isinstance(origin, SourceView))

ASSET_PATHS: Final = frozenset(
    {
        *((metric.asset,) for metric in METRICS),
        *(origin.path for origin in ORIGINS),
        *((asset,) for asset in PAGES),
        PUBLISHED_PATH,
        FRICTION_PATH,
        LEDGER_PATH,
    }
)
"""The path of every asset key."""


def metric(asset: str) -> Metric:
    """Return the metric of an asset. Raises KeyError for a name that is not in the contract."""
    return {m.asset: m for m in METRICS}[asset]


def vocabulary(table: str) -> tuple[str, ...]:
    """Return every event name whose counts `table` keeps."""
    return tuple(name for m in METRICS if m.table == table for name in m.event_names)


class Direction(Enum):
    """On which side of its threshold a target is met."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A success metric: one count per another, over all events, with the threshold that says success.

    It is shown to the core team. Every attribute is required.

    Raises:
        ContractError: the name is not written `... per ...`, the question or the owner is not as a metric's, a count is
            not one of events, both are the same, the window is not whole weeks inside the retention period, or the
            threshold or the direction is none.
    """

    name: str
    """Both counts in words, as `Views per sign-up`. Counts are not people, so it never says who."""
    question: str
    """The question it answers, in one sentence."""
    owner: str
    """The team that answers for it, as `team:name`."""
    numerator: str
    """Event name of the count above the line."""
    denominator: str
    """Event name of the count below the line."""
    window_days: int
    """How many days are summed, up to the newest collected day. Whole weeks, so that no weekday weighs more."""
    threshold: float
    direction: Direction
    since: date
    """The day it was agreed on."""

    def __post_init__(self) -> None:
        declared = f"target {self.name!r}"
        if not re.fullmatch(r"\w.* per \w.*", self.name):
            raise ContractError(f"{declared}: name both counts, as in `Views per sign-up`")
        _refuse_unclear(declared, self.question, self.owner)
        of_events = {name for table in TABLES if "event_id" in _names(table) for name in vocabulary(table)}
        if not {self.numerator, self.denominator} <= of_events or self.numerator == self.denominator:
            raise ContractError(f"{declared}: numerator and denominator are two event names of counts of events")
        if self.window_days not in range(7, RETENTION_DAYS // 2 + 1, 7):
            raise ContractError(
                f"{declared}: the window is whole weeks, at most half of the {RETENTION_DAYS} days kept"
            )
        if isinstance(self.threshold, bool) or not (0 < self.threshold < math.inf):
            raise ContractError(f"{declared}: the threshold is a number above 0")
        if not isinstance(self.direction, Direction):
            raise ContractError(f"{declared}: say whether it is met from the threshold on, or up to it")

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio meets it. The threshold itself does."""
        return ratio >= self.threshold if self.direction is Direction.AT_LEAST else ratio <= self.threshold


def _names(table: str) -> set[str]:
    return {field.name for field in TABLES[table]}


TARGETS: Final = (
    Target(
        name="Views per sign-up",
        question="Is the directory looked at more than once for each sign-up?",
        owner="team:core",
        numerator="directory_page_viewed",
        denominator="event_signup",
        window_days=28,
        threshold=3,
        direction=Direction.AT_LEAST,
        since=_PHASE_1,
    ),
    Target(
        name="Searches per view",
        question="Is the directory searched, not only opened?",
        owner="team:core",
        numerator="directory_searched",
        denominator="directory_page_viewed",
        window_days=28,
        threshold=0.25,
        direction=Direction.AT_LEAST,
        since=_PHASE_1,
    ),
    Target(
        name="Consents withdrawn per consent given",
        question="Is consent withdrawn rarely, compared with how often it is given?",
        owner="team:core",
        numerator="consent_turned_off",
        denominator="consent_turned_on",
        window_days=28,
        threshold=0.1,
        direction=Direction.AT_MOST,
        since=_PHASE_1,
    ),
)
"""The success metrics of Phase 1. May be empty."""


FUNNEL: Final = ("directory_page_viewed", "directory_searched", "event_signup")
"""The event names that lead from looking to signing up, in order."""


def published_names(published: Published) -> tuple[str, ...]:
    """Return every event name that is published in this way."""
    return tuple(name for m in METRICS if m.published is published for name in m.event_names)
