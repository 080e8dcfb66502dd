"""The embedded PostgreSQL and Dagster's processes, for one machine without any set-up."""
