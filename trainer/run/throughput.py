"""Throughput between two readings: base pairs a second, where a step's time goes, model FLOPs utilisation.

A step's time is that between the ends of two steps. It is the wait for data, the wait for the device and the
other ranks where a number is read from them (trainer/core/waiting.py), and the rest, host time: on a GPU what
Python needs to issue the step's kernels, on a CPU the computing too.

Model FLOPs utilisation (Chowdhery et al. 2022, PaLM) is given against two peaks, since neither alone is
honest: the rate that the chip's maker states for dense bf16, and the rate that a product of two matrices of
random numbers reaches here. Random numbers, because a chip that multiplies ones draws less power and runs
faster.
"""

import math
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from trainer.core.waiting import device_wait
from trainer.run.goodput import Goodput

# Dense bf16 FLOP/s from NVIDIA's data sheets, by words of the name that CUDA gives the chip; the first match
# counts.
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


@dataclass
class _Counts:
    start: float = field(default_factory=lambda: time.perf_counter())
    step_began: float = field(default_factory=lambda: time.perf_counter())
    steps: int = 0
    bp: int = 0  # of all ranks
    flops: float = 0.0  # of this rank
    waited: float = 0.0
    device: float = field(default_factory=lambda: device_wait.seconds)  # waited before the start
    seconds: list[float] = field(default_factory=list)  # of each step


class Meter:
    """Counts steps, bp, FLOPs and the time waited for data since the last reading.

    ``throughput/mfu`` divides by the rate of a matrix product measured here in ``dtype``.
    ``throughput/mfu_nominal`` divides by the chip's nominal bf16 rate, whatever the run computes in; it is
    left out for chips that are not known. ``ranks``: of the run. ``goodput``: of the run, where this rank
    logs it.
    """

    def __init__(
        self, *, device: torch.device, dtype: torch.dtype, ranks: int = 1, goodput: Goodput | None = None
    ) -> None:
        self.device, self.dtype, self.ranks, self.goodput = device, dtype, ranks, goodput
        self.measured_peak = matmul_flops_per_s(device, dtype)
        self.nominal_peak = nominal_flops_per_s(device)
        self._counts = _Counts()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._counts.waited += time.perf_counter() - start

    def step(self, *, bp: int, flops: float, applied: bool = True) -> None:
        """A step is done, in which all ranks together read ``bp`` and this rank needed ``flops``; whether its
        update was ``applied``."""
        now = time.perf_counter()
        seconds, self._counts.step_began = now - self._counts.step_began, now
        self._counts.seconds.append(seconds)
        if self.goodput and applied:
            self.goodput.applied(seconds)
        self._counts.steps += 1
        self._counts.bp += bp
        self._counts.flops += flops

    def read(self) -> dict[str, float]:
        """Metrics since the last reading or restart; the counts begin again."""
        counts = self._counts
        elapsed = max(time.perf_counter() - counts.start, 1e-9)
        rate = counts.flops / elapsed
        waits = counts.waited / elapsed, (device_wait.seconds - counts.device) / elapsed
        values = {
            "throughput/bp_per_s": counts.bp / elapsed,
            "throughput/bp_per_s_per_rank": counts.bp / elapsed / self.ranks,
            "throughput/step_ms": elapsed / max(counts.steps, 1) * 1e3,
            "throughput/data_wait_fraction": waits[0],
            "throughput/device_wait_fraction": waits[1],
            "throughput/host_fraction": max(0.0, 1 - sum(waits)),
            "throughput/mfu": rate / self.measured_peak,
            "memory/peak_bytes": float(self._peak_bytes()),
        }
        if counts.seconds:
            values["throughput/step_ms_p50"] = _quantile(counts.seconds, 0.5) * 1e3
            values["throughput/step_ms_p95"] = _quantile(counts.seconds, 0.95) * 1e3
        if self.goodput:
            values["throughput/goodput"] = self.goodput.read()
        if self.nominal_peak:
            values["throughput/mfu_nominal"] = rate / self.nominal_peak
        self.restart()
        return values

    def restart(self) -> None:
        """Begin the counts again, for what has passed was not all training (validation, for example)."""
        self._counts = _Counts()

    def keep(self, step: int) -> None:
        """Write down what the run needs to go on counting after ``step``."""
        if self.goodput:
            self.goodput.keep(step)

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _quantile(values: list[float], share: float) -> float:
    """The smallest of ``values`` that at least this share of them is no greater than."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


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
    best = float("inf")
    products = 10 if device.type == "cuda" else 1  # so that one launch and one wait count little
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
