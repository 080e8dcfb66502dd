"""Counting inside the web application: counter dumps hold what happened, and nothing about a person.

`counters` counts and `dumps` writes. `asgi`, `wsgi` and `django` count the responses of an application by route
template, which `routes` finds. These modules import only the standard library, `contract`, `guard` and `days`, so the
web application loads neither Dagster nor a database driver. The pipeline reads the dumps in `sources`.
"""

from analytics_assets.telemetry.counters import Telemetry, TelemetryError, do_not_count

__all__ = ["Telemetry", "TelemetryError", "do_not_count"]
