"""Removing expired days from everything that keeps days, with evidence.

`targets` and `dagster_records` are the retention targets. `event_log` is a Dagster event log that can forget. `sweep`
removes and reads back. `shortening` says what other settings would remove. The first day that is kept comes from the
analytics database, whose functions drop no other day. The Dagster job, sensor and check are in `defs`.
"""
