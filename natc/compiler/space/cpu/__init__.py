"""Design spaces for CPUs."""
