"""Removing what has expired, in every place that keeps days, with evidence.

`places` and `dagster_records` are the registry of these places, `sweep` removes and reads back, `job` is what Dagster
runs. The first day that is kept comes from the analytics database, whose functions refuse to drop any other.
"""
