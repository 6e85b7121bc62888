"""Runs a command on nodes."""

import cluster.tasks  # noqa: F401 - it sets Ray's variables, which must be there before a file here imports ray
