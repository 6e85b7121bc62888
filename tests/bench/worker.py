"""What a worker of a build costs before its first task: its own memory, and its time of the processor.

This file imports little itself, since the worker imports it.
"""

import importlib
import os

import psutil


def cost(_: object) -> tuple[float, float]:
    """(MiB of this process alone, seconds of CPU since it began), once it has imported what a build needs."""
    importlib.import_module("data_prep.dataset.build")
    process = psutil.Process(os.getpid())
    times = process.cpu_times()
    return process.memory_full_info().uss / (1 << 20), times.user + times.system
