"""A draft of the source views, from the names and types in the catalog of a host application's database.

No row is read, so the draft cannot know what a row means. It says why it proposes a table, and what is unclear. What it
cannot know is a comment instead of SQL. The operator of the host application reviews, corrects and runs it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from analytics_assets.contract import METRICS, SOURCE_SCHEMA, SourceView
from analytics_assets.sources.hosts import HostDatabase
from analytics_assets.sources.hosts.drafting import CatalogColumn

_NAMES: Final = {
    "signups": (
        *("signup", "registration", "rsvp", "attendance", "attendee", "participation", "participant"),
        *("enrolment", "enrollment", "booking", "reservation", "ticket", "submission", "application"),
    ),
    "profile_visibility_changes": ("visibility", "visible"),
    "consent_changes": ("consent", "gdpr", "optin"),
}
"""View -> how a table is named that could feed it, the likeliest first."""
_STATES: Final = {"profile_visibility_changes": "visib|public|hidden|private", "consent_changes": "consent|opt_|_not_"}
"""View -> how a boolean column is named that holds the present state only."""

# What the names of tables and columns contain.
_EVENTS: Final = "(event|meetup|conference|workshop)"
_CHANGES: Final = "change|log|history|audit|toggle|switch|revision"
_LOGS: Final = "(log|history|audit|activity|revision|version)(entry|entries|s)?$"
_ACTION: Final = "action|verb|activity|event_?type|kind|operation"
_HAPPENED: Final = ("occurred", "happened", "signed_?up", "registered", "joined", "booked", "submitted")
_CREATED: Final = ("created", "creation", "inserted", "added", "timestamp", "logged", "recorded")
_SOFT_DELETED: Final = "delet|remov|cancel|archiv|trash|active$|^state$|status$"
_SIDE: Final = "source|channel|origin|admin|staff|orga|_by(_id)?$"
_ON: Final = "given|granted|accepted|consented|agreed|enabled|turned_on|opted_?in|visible"
_OFF: Final = "withdrawn|revoked|declined|disabled|turned_off|opted_?out|hidden|(^|_)not_"

_UNKNOWN: Final = "..."


@dataclass
class _Table:
    sql: str
    words: str
    """The name in lower case, without separators."""
    protected: bool
    columns: list[CatalogColumn] = field(default_factory=list)

    def find(self, pattern: str, *types: str) -> list[CatalogColumn]:
        """Return the columns whose name contains the pattern, of one of the types if any are given."""
        found = [column for column in self.columns if re.search(pattern, column.name, re.IGNORECASE)]
        return [column for column in found if not types or column.type in types]


_Tables = dict[Hashable, _Table]
"""By what the catalog identifies them by."""


@dataclass
class _Proposal:
    """The draft of one view."""

    table: str
    because: str
    select: dict[str, str]
    """Column of the view -> expression."""
    names: dict[str, str] = field(default_factory=dict)
    """Column of the view -> its name there, if it is another."""
    joins: str = ""
    unclear: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """What only a person can tell, and the view cannot do without."""

    def text(self, view: SourceView) -> str:
        columns = ",\n    ".join(
            f"{self.select.get(name, _UNKNOWN)} as {self.names.get(name, name)}" for name in view.columns
        )
        sql = f"create view {SOURCE_SCHEMA}.{view.name} as\nselect\n    {columns}\nfrom {self.table} t{self.joins};"
        comments = [self.because, *(f"unclear: {text}" for text in self.unclear)]
        if self.unknown:
            comments += [*(f"not known: {text}" for text in self.unknown), "To be completed, so it is not SQL yet:"]
            comments += sql.splitlines()
        return _comment(comments) + ("" if self.unknown else f"\n{sql}")


def draft(host: HostDatabase, connection: sa.Connection) -> str:
    """Return SQL that creates the source views, to be reviewed. Comments say why, and what is unclear or not known."""
    tables = _read_tables(host, connection)
    views = []
    for metric in METRICS:
        if isinstance(view := metric.origin, SourceView):
            title = _comment([f"{view.name}: {metric.question}"])
            views.append(f"{title}\n{_propose(host, view, tables).text(view)}")
    return "\n\n".join(
        [
            _comment(["A draft of the source views, from names and types alone. No row was read: review every line."]),
            f"create schema if not exists {SOURCE_SCHEMA};",
            *views,
            _comment(["Then: `analytics-assets grants host` prints the rights, `analytics-assets sources` checks."]),
        ]
    )


def _comment(lines: Iterable[str]) -> str:
    return "\n".join(f"-- {line}" for line in lines)


def _read_tables(host: HostDatabase, connection: sa.Connection) -> _Tables:
    tables: _Tables = {}
    for column in host.read_tables(connection):
        if not (column.table_sql.isprintable() and column.name.isprintable()):
            continue  # a line feed in a name would end a comment
        words = re.sub("[^a-z0-9]", "", column.table_name.lower())
        table = tables.setdefault(column.table, _Table(column.table_sql, words, column.protected))
        table.columns.append(column)
    return tables


def _propose(host: HostDatabase, view: SourceView, tables: _Tables) -> _Proposal:
    """Return the proposal whose table is named best, and in which least is not known."""
    names = _NAMES.get(view.name, (view.name.replace("_", "").removesuffix("s"),))
    ranked = [
        (bool(proposal.unknown), rank, proposal)
        for rank, name in enumerate(names)
        for table in tables.values()
        if re.search(name if view.name in _STATES else f"{name}s?$", table.words)
        for proposal in [_from_table(host, view, table, tables, f'its name contains "{name}"')]
    ]
    ranked.sort(key=lambda entry: entry[:2])
    best = [proposal for *place, proposal in ranked if place == list(ranked[0][:2])]
    if not best:
        return _from_log(host, view, tables)
    others = [proposal.table for *_, proposal in ranked if proposal.table != best[0].table]
    if len(best) > 1:
        best[0].unknown.append(f"which table is meant; as likely: {', '.join(p.table for p in best[1:])}")
    elif others:
        best[0].unclear.append(f"named alike, and not used: {', '.join(dict.fromkeys(others))}")
    return best[0]


def _from_table(host: HostDatabase, view: SourceView, table: _Table, tables: _Tables, why: str) -> _Proposal:
    changes = view.name in _STATES
    proposal = _Proposal(table.sql, f"from {table.sql}, because {why}", {"source": host.DRAFTING.no_source})
    proposal.unclear.append("does each row stand for one occurrence? The name only suggests it")
    if changes and not re.search(_CHANGES, table.words):
        proposal.unknown.append("does it keep a row per change? Where a row is updated in place, changes are lost")
    _add_event(host, proposal, table, tables)
    _add_moment(host, proposal, table, ("changed", *_CREATED) if changes else (*_HAPPENED, *_CREATED))
    if view.switch:
        _add_switch(host, proposal, table)
    if columns := table.find(_SIDE):
        proposal.unclear.append(f"source (web, admin or null) could follow from {_listed(columns)}")
    if columns := table.find(_SOFT_DELETED):
        proposal.unclear.append(
            f"{_listed(columns)} may mark rows as deleted; a row that happened still counts, so none is left out"
        )
    if columns := table.find("", *host.DRAFTING.payloads):
        proposal.unclear.append(f"the payload in {_listed(columns)} may hold what no column has; it is not used")
    if table.protected:
        proposal.unclear.append(f"row level security on {table.sql}: the owner of the view must see every row")
    return proposal


def _add_event(host: HostDatabase, proposal: _Proposal, table: _Table, tables: _Tables) -> None:
    """Add event_id: a foreign key to the table of events, a column named like one, or a key one table further."""
    events = {oid for oid, found in tables.items() if re.search(f"{_EVENTS}s?$", found.words)}
    keys = [column for column in table.columns if column.leads_to in events]
    if not keys and (keys := [c for c in table.find(f"^{_EVENTS}(_?(id|uuid))?$") if c.leads_to is None]):
        proposal.unclear.append(f"is {_listed(keys)} the event? No foreign key says so")
    if len(keys) > 1:
        keys = [column for column in keys if re.fullmatch(f"{_EVENTS}(_?id)?", column.name)] or keys
    further = [
        (column, parent, key)
        for column in table.columns
        if not keys and (parent := tables.get(column.leads_to))
        for key in parent.columns
        if key.leads_to in events
    ]
    if len(keys) == 1:
        (key,) = keys
        expression = f"t.{key.sql}"
    elif len(further) == 1:
        ((column, parent, key),) = further
        expression = f"p.{key.sql}"
        proposal.joins = f"\njoin {parent.sql} p on p.{column.key_sql} = t.{column.sql}"
        proposal.unclear.append(f"the event is that of {parent.sql}; rows without one there are left out by the join")
    else:
        choices = _listed(keys) if keys else ", ".join(f"{c.sql} in {p.sql}" for _, p, c in further)
        proposal.unknown.append(f"which column is the event{f'; candidates: {choices}' if choices else ''}")
        return
    if key.type not in host.COLUMN_TYPES["event_id"]:
        proposal.unknown.append(f"how {key.sql} ({key.type}) becomes an integer or a UUID")
    elif key.type in host.COLUMN_TYPES["source"]:
        proposal.unclear.append(f"{key.sql} is text: only integers and UUIDs are counted")
    if key.nullable:
        proposal.unclear.append(f"{key.sql} may be null: such a row is refused, with its day")
    proposal.select["event_id"] = expression


def _add_moment(host: HostDatabase, proposal: _Proposal, table: _Table, names: Iterable[str]) -> None:
    """Add occurred_at: the column with a time zone that is named best."""
    drafting = host.DRAFTING
    types = (*host.COLUMN_TYPES["occurred_at"], drafting.naive)
    named = [column for name in names for column in table.find(f"{name}(_|$)", *types)]
    zoned = [column for column in named if column.type != drafting.naive]
    if zoned:
        moment = zoned[0]
        proposal.select["occurred_at"] = f"t.{moment.sql}"
        if moment.nullable:
            proposal.unclear.append(f"{moment.sql} may be null: such a row is in no day, and a warning names it")
    elif named:
        moment = named[0]
        proposal.select["occurred_at"] = drafting.from_naive.format(f"t.{moment.sql}")
        proposal.names["occurred_at"] = drafting.naive_name
        proposal.unknown.append(
            f"in which time zone the application writes {moment.sql}, which has none{drafting.naive_hint}"
        )
    else:
        columns = table.find("", *types, "date")
        candidates = f"; candidates: {_listed(columns)}" if columns else ": no column has a time"
        proposal.unknown.append(f"when it happened{candidates}")


def _add_switch(host: HostDatabase, proposal: _Proposal, table: _Table) -> None:
    """Add turned_on, from the one boolean column whose name has a direction."""
    on, off = (table.find(pattern, *host.DRAFTING.booleans) for pattern in (_ON, _OFF))
    if len(on) + len(off) != 1 and not (len(off) == 1 and on == off):
        proposal.unknown.append("which column says whether it was turned on or off")
    elif off:
        proposal.select["turned_on"] = f"not t.{off[0].sql}"
        proposal.unclear.append(f"{off[0].sql} is read the wrong way round: true means turned off")
    else:
        proposal.select["turned_on"] = f"t.{on[0].sql}"


def _from_log(host: HostDatabase, view: SourceView, tables: _Tables) -> _Proposal:
    """Return a proposal from a general log, if there is one. Names do not tell which of its rows are meant."""
    logs = [table for table in tables.values() if re.search(_LOGS, table.words) and table.find(_ACTION)]
    if logs:
        proposal = _from_table(host, view, logs[0], tables, "no table is named after it, and this one is a log")
        action = logs[0].find(_ACTION)[0]
        proposal.unknown.insert(0, f"which values of {action.sql} mean it")
        proposal.joins += f"\nwhere t.{action.sql} in ('{_UNKNOWN}')"
        if logs[1:]:
            proposal.unclear.append(f"other logs: {', '.join(table.sql for table in logs[1:])}")
    else:
        proposal = _Proposal(
            _UNKNOWN, "no table is named after it, and none is a log", {"source": host.DRAFTING.no_source}
        )
        proposal.unknown.append("where the application keeps it; without a row per occurrence, it has to begin to")
    if pattern := _STATES.get(view.name):
        states = [f"{c.sql} in {t.sql}" for t in tables.values() for c in t.find(pattern, *host.DRAFTING.booleans)]
        if states:
            proposal.unclear.append(f"these hold only the present state, not the changes: {', '.join(states)}")
    return proposal


def _listed(columns: Iterable[CatalogColumn]) -> str:
    return ", ".join(f"{column.sql} ({column.type})" for column in columns)
