"""The clock of the analytics database, whose word on today everything else follows."""

from datetime import date, datetime, time
from zoneinfo import ZoneInfo

from analytics_assets.settings import Settings
from analytics_assets_tests.support.database import as_superuser


def set_clock(settings: Settings, moment: datetime) -> None:
    """Let it stand at a moment."""
    standing = f"select (timestamptz '{moment.isoformat()}' at time zone time_zone)::date from analytics.settings"  # noqa: S608
    as_superuser(
        settings,
        "create or replace function analytics.today() returns date language sql stable security definer"
        f" set search_path = pg_catalog, pg_temp as $$ {standing} $$",
    )


def noon_of(settings: Settings, day: date) -> datetime:
    """A moment of a day in the configured zone."""
    return datetime.combine(day, time(12), ZoneInfo(settings.time_zone))
