"""A little activity of the host application for every metric, the same on each day."""

from collections.abc import Sequence
from datetime import date

from analytics_assets.settings import Settings
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.host import Host, moments

EVENTS_PER_DAY = 5 + 3 + 4 + 9 + 2
RESPONSES_PER_DAY = 30 + 10


def fill(host: Host, settings: Settings, days: Sequence[date]) -> None:
    """The same activity on each day, for every metric."""
    zone = settings.time_zone
    for day in days:
        host.occur("signups", moments(day, zone, 5))
        host.occur("visibility", moments(day, zone, 3), source=None)
        host.occur("consent", moments(day, zone, 4), turned_on=True)
        noon = moments(day, zone, 2)[1]
        with Telemetry(settings.dump_dir, time_zone=zone, clock=noon.timestamp) as telemetry:
            telemetry.count("directory_page_viewed", event_id=7, source="web", times=9)
            telemetry.count("directory_searched", event_id=7, times=2)
            telemetry.count_response("GET", "/events/{event_id}", 200, times=30)
            telemetry.count_response("GET", "/events/{event_id}", 500, times=10)
