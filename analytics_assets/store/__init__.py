"""The analytics database: its tables, its set-up, and the days in it."""
