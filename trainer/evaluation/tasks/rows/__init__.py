"""The rows of a task: read, checked, split, without leaks."""
