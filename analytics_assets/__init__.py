"""Daily usage counts that hold nothing about a person, as Dagster assets.

Nothing is imported here: a web application that imports `analytics_assets.telemetry` must not load Dagster.
"""
