"""Everything that runs on one machine without any set-up: the embedded PostgreSQL and the demonstration application."""
