"""What Dagster loads, and nothing else: partitions, assets, checks, jobs, schedules and sensors."""
