"""What a task asks for: one file each, and their registry."""
