"""What one machine needs without any set-up: the embedded PostgreSQL, and Dagster's processes."""
