"""Counting inside the web application: what happened goes into counter dumps, and nothing about whom.

`counters` counts, `dumps` writes; `asgi`, `wsgi` and `django` count the responses of an application, by the route
templates that `routes` finds. Only the standard library and those modules of this package that hold to it too
(`contract`, `guard`, `days`) are imported here, so that the web application loads neither Dagster nor a database
driver. Reading the dumps is the pipeline's side and stands elsewhere.
"""

from analytics_assets.telemetry.counters import Telemetry, TelemetryError, do_not_count

__all__ = ["Telemetry", "TelemetryError", "do_not_count"]
