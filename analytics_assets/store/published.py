"""Publishing days and weeks, and reading what is published.

The rules are those of `publication.fives`, as SQL over a range of days at once. `publication.publish` decides which
days are closed. Everything of one publication is one transaction: a crash leaves all of it or nothing. Rows of schema
`published` are inserted and never changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, NamedTuple

import sqlalchemy as sa

from analytics_assets.contract import PUBLISHED_BASE, Published, published_names
from analytics_assets.store import Store
from analytics_assets.store.tables import (
    COLLECTED_DAYS,
    DAILY_COUNTS,
    DAILY_NAMES,
    DAYS,
    PUBLICATIONS,
    PUBLISHED_CARRIES,
    WEEKLY_COUNTS,
    WEEKS,
)


@dataclass(frozen=True)
class Grain:
    """What is published per day and event, or per week over all events."""

    published: Published
    counts: sa.Table
    states: sa.Table
    days: int
    """How many days are published as one number: 1 or 7."""
    period: str
    """SQL: the first day of the period that a day of the counts belongs to."""
    event_id: str
    """SQL: which event the series is about."""
    unit: str
    """How a period is called."""

    @property
    def names(self) -> tuple[str, ...]:
        """The event names that are published so."""
        return published_names(self.published)

    @property
    def start(self) -> str:
        """The column with the first day of the period."""
        return self.states.columns[0].name


ALL_EVENTS: Final = "all"
"""Stands for the event in a series over all events."""

DAILY: Final = Grain(Published.BY_DAY_AND_EVENT, DAILY_COUNTS, DAYS, 1, "event_date", "event_id", "day")
WEEKLY: Final = Grain(
    Published.BY_WEEK,
    WEEKLY_COUNTS,
    WEEKS,
    7,
    "cast(date_trunc('week', event_date) as date)",
    f"cast('{ALL_EVENTS}' as text)",
    "week",
)
GRAINS: Final = (DAILY, WEEKLY)


class Period(NamedTuple):
    """A day, or a week by its Monday, of one event name."""

    event_name: str
    start: date
    collected: bool
    """Whether every day of it has been collected."""


@contextmanager
def publishing(store: Store) -> Iterator[sa.Connection]:
    """Yield a transaction that publishes. Two at once take turns. Raises DatabaseError."""
    with store.transaction("publishing") as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("analytics publication"))))
        # The default would sort the days of a first fill on disk.
        connection.exec_driver_sql("set local work_mem = '128MB'")
        yield connection


@contextmanager
def merging(store: Store) -> Iterator[None]:
    """Let no two pipelines change merged dumps at once, on whichever machines they run. Raises DatabaseError.

    The lock is a transaction's, because a pooler may hand a session to somebody else between two transactions.
    """
    with store.transaction("waiting for another merge of dumps") as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("analytics merge"))))
        yield


def read_collected(connection: sa.Connection) -> dict[str, set[date]]:
    """Return the days of each metric that are collected."""
    found: dict[str, set[date]] = defaultdict(set)
    for asset, day in connection.execute(sa.select(COLLECTED_DAYS.c.asset, COLLECTED_DAYS.c.event_date)):
        found[asset].add(day)
    return found


def read_last_published(connection: sa.Connection) -> dict[str, date]:
    """Return the first day of the newest period of each event name that was published in its turn."""
    name, day = PUBLICATIONS.c.event_name, PUBLICATIONS.c.event_date
    query = sa.select(name, sa.func.max(day).label("last")).where(~PUBLICATIONS.c.filled).group_by(name)
    return {row.event_name: row.last for row in connection.execute(query)}


def read_last_published_days(store: Store) -> dict[str, date]:
    """Return the newest day of each event name that is published by the day. Raises DatabaseError."""
    with store.transaction("reading what is published") as connection:
        published = read_last_published(connection)
    return {name: day for name, day in published.items() if name in DAILY_NAMES}


def read_state(connection: sa.Connection, grain: Grain, event_name: str, start: date) -> str | None:
    """Return `published` or `not_collected`, None for a period of which nothing was said."""
    table = grain.states
    query = sa.select(table.c.state).where(table.c[grain.start] == start, table.c.event_name == event_name)
    state: str | None = connection.scalar(query)
    return state


# P_d - P_(d-1), with P the running total of the stretch less its remainder. The carry is what the running total begins
# with; a carry from before another base is dropped, also when the base has come back.
_PUBLISH: Final = """
with periods as (
    select * from unnest(cast(:names as text[]), cast(:starts as date[]), cast(:collected as boolean[]))
        as given(event_name, start, collected)
), counted as (
    select event_name, {event_id} as event_id, {period} as start, cast(sum(count) as bigint) as count
    from analytics.daily_event_counts
    where event_date between :first and :last and event_name = any(:names)
    group by 1, 2, 3
), totals as (
    select event_name, event_id, start, count,
           coalesce(carry, 0) + cast(sum(count) over series as bigint) as total,
           lead(start) over series is null as last
    from counted
    join periods using (event_name, start)
    left join (
        select * from analytics.published_carries carries where base = :base and not :filled and not exists (
            select from analytics.publications later
            where later.event_name = carries.event_name and later.event_date > carries.event_date
            and later.base <> :base and not later.filled)
    ) kept using (event_name, event_id)
    where collected
    window series as (partition by event_id, event_name order by start rows unbounded preceding)
), steps as (
    select event_name, event_id, start, last, cast(total % :base as integer) as carry,
           cast(total - total % :base - (total - count - (total - count) % :base) as bigint) as step
    from totals
), stated as (
    insert into {states} ({start}, event_name, state, filled, base)
    select start, event_name, case when collected then 'published' else 'not_collected' end, :filled, :base from periods
    {on_conflict}
), kept as (
    insert into analytics.published_carries as kept (event_name, event_id, carry, base, event_date)
    select event_name, event_id, carry, :base, start from steps where last and not :filled
    on conflict (event_name, event_id) do update
        set carry = excluded.carry, base = excluded.base, event_date = excluded.event_date
)
insert into {counts} ({columns})
select {columns_of_steps}, step from steps where step > 0 order by 1, 2
"""

# Whatever changes a published number or state later changes this. The counts are summarized first, and once: new days
# are in no statistics yet, and a join planned for the few rows that are expected takes a minute for a million.
_FINGERPRINTS: Final = """
with listed as materialized (
    select event_name, {start}, string_agg(' ' || {series} || '=' || count, '' order by {series} collate "C") as counts
    from {counts} where {start} between :first and :last group by 1, 2
)
select event_name, {start} as start, md5(state || coalesce(counts, '')) as fingerprint, filled, base
from {states} left join listed using (event_name, {start})
where {start} between :first and :last
"""

_NOTE: Final = """
insert into analytics.publications (event_name, event_date, filled, base, fingerprint)
select event_name, start, :filled, :base, fingerprint from ({fingerprints}) found
join unnest(cast(:names as text[]), cast(:starts as date[])) as given(event_name, start) using (event_name, start)
"""


def publish_periods(
    connection: sa.Connection, grain: Grain, periods: Sequence[Period], *, filled: bool = False
) -> None:
    """Publish periods that are not published yet, in a transaction of `publishing`.

    Of each event name they follow on what is published, in order and without a gap. With `filled`, each is a stretch of
    its own: it begins with carry 0, its remainder is dropped, and it may be noted as not collected.

    Raises:
        DatabaseError: a period was published before or has expired. Nothing is published then.
    """
    if not periods:
        return
    parameters = {
        "names": [period.event_name for period in periods],
        "starts": [period.start for period in periods],
        "collected": [period.collected for period in periods],
        # As literals, so that only the partitions of these days are read.
        "first": min(period.start for period in periods),
        "last": max(period.start for period in periods) + timedelta(days=grain.days - 1),
        "base": PUBLISHED_BASE,
        "filled": filled,
    }
    if filled:
        for period in periods:
            connection.execute(
                sa.select(sa.func.analytics.mark_filled(period.start, period.event_name, PUBLISHED_BASE))
            )
    columns = [column.name for column in grain.counts.columns]
    shape = {
        "event_id": grain.event_id,
        "period": grain.period,
        "start": grain.start,
        "states": str(grain.states),
        "counts": str(grain.counts),
        "on_conflict": "on conflict do nothing" if filled else "",
        "columns": ", ".join(columns),
        "columns_of_steps": ", ".join("start" if column == grain.start else column for column in columns[:-1]),
    }
    connection.execute(sa.text(_PUBLISH.format(**shape)), parameters)
    connection.execute(sa.text(_NOTE.format(fingerprints=_fingerprints(grain))), parameters)


def _fingerprints(grain: Grain) -> str:
    series = "event_id" if "event_id" in grain.counts.c else "event_name"
    return _FINGERPRINTS.format(start=grain.start, states=grain.states, counts=grain.counts, series=series)


# The newest note of a period is the one that holds: a period may be filled after it was noted as not collected.
_ALTERED: Final = """
with notes as (
    select distinct on (event_name, event_date) event_name, event_date as start, base, fingerprint, filled
    from analytics.publications where event_name = any(:names) order by event_name, event_date, filled desc
), live as ({fingerprints})
select :periods || ' that are not as they were published' as what,
       (select count(*) from notes full join live using (event_name, start)
        where (notes.fingerprint, notes.filled, notes.base)
            is distinct from (live.fingerprint, live.filled, live.base)) as number
union all
select 'counts of ' || :periods || ' that were not published',
       (select count(*) from {counts} counts where not exists (
            select from {states} states where states.{start} = counts.{start}
            and states.event_name = counts.event_name and states.state = 'published'))
union all
select 'counts that are not a multiple of the base, or not above 0',
       (select count(*) from {counts} counts join notes on notes.start = counts.{start}
        and notes.event_name = counts.event_name where count % base <> 0 or count <= 0)
"""


def find_altered(store: Store) -> list[str]:
    """List what is not as it was published: periods, counts, carries. A line says how much, never what."""
    found = []
    with store.transaction("comparing what is published with the notes on it") as connection:
        for grain in GRAINS:
            query = _ALTERED.format(
                fingerprints=_fingerprints(grain), counts=grain.counts, states=grain.states, start=grain.start
            )
            parameters = {"names": list(grain.names), "first": date.min, "last": date.max, "periods": f"{grain.unit}s"}
            found += [
                f"{grain.counts}: {row.number} {row.what}"
                for row in connection.execute(sa.text(query), parameters)
                if row.number
            ]
        carry, base = PUBLISHED_CARRIES.c.carry, PUBLISHED_CARRIES.c.base
        newest = sa.select(sa.func.max(PUBLICATIONS.c.event_date)).scalar_subquery()
        # A carry of the future would never expire.
        out_of_range = ~carry.between(0, base - 1) | (PUBLISHED_CARRIES.c.event_date > newest)
        wrong = connection.scalar(sa.select(sa.func.count()).where(out_of_range))
    return [*found, f"{PUBLISHED_CARRIES}: {wrong} carries out of range"] if wrong else found


class Stretch(NamedTuple):
    """Successive periods of one event name that are published on one carry."""

    event_name: str
    base: int
    collected: dict[date, bool]
    """First day of each period, in order -> whether it was collected when it was published."""


def read_stretches(connection: sa.Connection, grain: Grain) -> list[Stretch]:
    """Return every stretch that has a period which is kept. A filled period is a stretch of its own."""
    notes = PUBLICATIONS.c
    columns = grain.states.c
    query = (
        sa.select(notes.event_name, notes.event_date, notes.filled, notes.base, columns.state)
        .join(grain.states, (columns[grain.start] == notes.event_date) & (columns.event_name == notes.event_name))
        .order_by(notes.event_name, notes.filled, notes.event_date)
    )
    rows = connection.execute(query).all()
    filled = {(row.event_name, row.event_date) for row in rows if row.filled}
    found: list[Stretch] = []
    for row in rows:
        last = found[-1] if found and not row.filled else None
        if last is None or (last.event_name, last.base) != (row.event_name, row.base):
            found.append(last := Stretch(row.event_name, row.base, {}))
        # A filled period was not collected when its turn came.
        last.collected[row.event_date] = row.filled or (
            row.state == "published" and (row.event_name, row.event_date) not in filled
        )
    return found


def read_steps(connection: sa.Connection, grain: Grain) -> dict[tuple[str, str], dict[date, int]]:
    """Return the steps of every series that has one: (event name, event or `all`) -> first day -> step."""
    counts = grain.counts.c
    event_id = counts.event_id if "event_id" in counts else sa.literal(ALL_EVENTS)
    found: dict[tuple[str, str], dict[date, int]] = defaultdict(dict)
    for name, event, start, step in connection.execute(
        sa.select(counts.event_name, event_id, counts[grain.start], counts.count)
    ):
        found[name, event][start] = step
    return found
