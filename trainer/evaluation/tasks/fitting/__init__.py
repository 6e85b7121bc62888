"""Models fitted to a task, in each mode."""
