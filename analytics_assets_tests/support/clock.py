"""The clock of the analytics database, whose word on today everything else follows."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from analytics_assets.settings import Settings
from analytics_assets_tests.support.database import admin_url, as_superuser


@contextmanager
def clock_at(settings: Settings, moment: datetime) -> Iterator[None]:
    """Stop the clock at a moment for a block, after which it runs again."""
    engine = sa.create_engine(admin_url(settings))
    with engine.connect() as connection:
        running = connection.exec_driver_sql("select pg_get_functiondef('analytics.today()'::regprocedure)").scalar()
    engine.dispose()
    set_clock(settings, moment)
    try:
        yield
    finally:
        now = f"{running}; {_let_pass(f'date {moment.date().isoformat()!r}', 'analytics.today()')}"
        as_superuser(settings, now)


def set_clock(settings: Settings, moment: datetime, *, time_has_passed: bool = True) -> None:
    """Stop the clock at a moment. Unless it is a wrong clock, that much time has passed since everything before."""
    standing = f"select (timestamptz '{moment.isoformat()}' at time zone time_zone)::date from analytics.settings"  # noqa: S608
    if time_has_passed:
        as_superuser(settings, _let_pass("analytics.today()", f"({standing})"))
    as_superuser(
        settings,
        "create or replace function analytics.today() returns date language sql stable security definer"
        f" set search_path = pg_catalog, pg_temp as $$ {standing} $$",
    )


def _let_pass(before: str, now: str) -> str:
    """SQL that makes everything noted on removals older by the days between two dates."""
    passed = f"({now} - {before}) * interval '1 day'"
    return (
        f"update analytics.retention_ledger set removed_at = removed_at - {passed};"  # noqa: S608
        f" update analytics.settings set cutoff_at = cutoff_at - {passed}"
    )


def noon_of(settings: Settings, day: date) -> datetime:
    """A moment of a day in the configured zone."""
    return datetime.combine(day, time(12), ZoneInfo(settings.time_zone))
