"""Throughput between two readings: base pairs a second, time waited for data, and model FLOPs utilisation.

Model FLOPs utilisation (Chowdhery et al. 2022, PaLM) is told against two peaks, since neither alone is
honest: what the chip's maker states for dense bf16, and what a product of two matrices of random numbers
reaches here. Random numbers: a chip that multiplies ones draws less power and runs faster.
"""

import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Dense bf16 FLOP/s by words of the name that CUDA gives the chip, from NVIDIA's data sheets; the first that
# fits.
_NOMINAL = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}


class Meter:
    """Counts steps, bp, FLOPs and waiting since the last reading.

    ``throughput/mfu`` divides by a matrix product measured here in ``dtype``, ``throughput/mfu_nominal`` by
    the chip's nominal bf16 rate, whatever the run computes in; the latter is not told of chips that are not
    known.
    """

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.bp_per_step = 0  # of all ranks
        self.flops_per_step = 0.0  # of this rank
        self.measured_peak = matmul_flops_per_s(device, dtype)
        self.nominal_peak = nominal_flops_per_s(device)
        self.restart()

    def expect(self, *, bp_per_step: int, flops_per_step: float) -> None:
        """The next step reads so many bp on all ranks, for so many FLOPs of this rank."""
        self.bp_per_step, self.flops_per_step = bp_per_step, flops_per_step

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
        rate = self._flops / elapsed
        values = {
            "throughput/bp_per_s": self._bp / elapsed,
            "throughput/step_ms": elapsed / max(self._steps, 1) * 1e3,
            "throughput/data_wait_fraction": self._waited / elapsed,
            "throughput/mfu": rate / self.measured_peak,
            "memory/peak_bytes": float(self._peak_bytes()),
        }
        if self.nominal_peak:
            values["throughput/mfu_nominal"] = rate / self.nominal_peak
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


def nominal_flops_per_s(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s that the maker states for the chip; None for one that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    # Whole words: an L40 is no L4, an RTX A1000 no A100.
    return next((rate for words, rate in _NOMINAL.items() if re.search(rf"\b{words}\b", name)), None)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, *, size: int | None = None) -> float:
    """FLOP/s of a product of two square matrices of random numbers in ``dtype``: the best of five."""
    n = size or (8192 if device.type == "cuda" else 1024)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator, device=device).to(dtype) for _ in range(2))
    best, products = (
        float("inf"),
        10 if device.type == "cuda" else 1,
    )  # so that one launch and one wait count little
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(products):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - start) / products)
    del a, b
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)  # the peak is to be the training's
    return 2 * n**3 / best
