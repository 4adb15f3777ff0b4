"""What natc keeps on disk: libraries, manifests, schedules and tuning logs."""
