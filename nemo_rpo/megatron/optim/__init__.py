"""The optimizer, its schedule, and a step that may be skipped."""
