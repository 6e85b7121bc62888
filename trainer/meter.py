"""Throughput between two readings: base pairs a second, time waited for data, and model FLOPs utilisation."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Meter:
    """Counts steps, bp and waiting since the last reading; ``mfu`` is relative to a matrix product measured here."""

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.bp_per_step = 0  # of all ranks
        self.flops_per_step = 0.0  # of this rank; set once counted
        self._peak = _matmul_flops_per_s(device, dtype)
        self.restart()

    def expect(self, *, bp_per_step: int) -> None:
        """The next step reads so many bp; where that is not what the last one read, its FLOPs must be counted anew."""
        if bp_per_step != self.bp_per_step:
            self.bp_per_step, self.flops_per_step = bp_per_step, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def step(self) -> None:
        self._steps += 1
        self._bp += self.bp_per_step
        self._flops += self.flops_per_step

    def read(self) -> dict[str, float]:
        """Metrics since the last reading (or the start), and a new start."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "throughput/bp_per_s": self._bp / elapsed,
            "throughput/step_ms": elapsed / max(self._steps, 1) * 1e3,
            "throughput/data_wait_fraction": self._waited / elapsed,
            "throughput/mfu": self._flops / elapsed / self._peak,
            "memory/peak_bytes": float(self._peak_bytes()),
        }
        self.restart()
        return values

    def restart(self) -> None:
        """Leave out what has passed since the last reading (validation, say)."""
        self._start = time.perf_counter()
        self._steps, self._bp, self._flops, self._waited = 0, 0, 0.0, 0.0

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product in ``dtype``: the best of five."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.ones(n, n, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the peak is to be the training's
    return 2 * n**3 / best
