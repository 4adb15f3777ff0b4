"""The search for fast schedules."""
