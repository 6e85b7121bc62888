"""Time of whole training steps of a preset on one rank: ms, MFU against both peaks, memory, kernels.

A step is all that the training loop does for one: the batch that was read ahead, views, teacher, student,
backward, the optimiser's step, the teacher's update.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

import configs
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import method, set_up
from tests.gpu.peaks import wait
from trainer.distill.step import train_step
from trainer.run import reading, train_state
from trainer.run.config import TrainConfig
from trainer.run.flops import step_flops
from trainer.run.throughput import Meter

ROOT = Path(__file__).resolve().parents[2]


class Setting(NamedTuple):
    """A preset of configs/train, its precision, global batch, and the batch that is read at once."""

    preset: str
    precision: str
    batch: int
    micro_batch: int

    @property
    def name(self) -> str:
        return f"{self.preset} {self.precision} batch {self.batch}, {self.micro_batch} at once"


SETTINGS = [
    Setting("findna", "bf16", 64, 64),
    Setting("findna", "fp32", 64, 64),
    Setting("findna", "bf16", 256, 256),
    Setting("findna", "fp32", 256, 64),
    Setting("findna-plus", "bf16", 384, 48),
]
_SMALL = ["model.num_layers=2", "data.length=128", "loss.distill.prototypes=64"]


def measure(setting: Setting, device_name: str, *, small: bool) -> dict[str, Any]:
    """Figures of one setting; {"does_not_fit": True} where memory is too small. ``small``: sizes of a
    rehearsal."""
    try:
        return _measure(setting, torch.device(device_name), small)
    except torch.OutOfMemoryError as fault:
        return {"does_not_fit": True, "why": str(fault)[:300]}


def _measure(setting: Setting, device: torch.device, small: bool) -> dict[str, Any]:
    warm, steps, profiled = (1, 2, 1) if small else (4, 12, 2)
    batch, micro = (4, 2) if small else (setting.batch, setting.micro_batch)
    with tempfile.TemporaryDirectory() as folder:
        uri = write_dataset(
            Path(folder), {"train": [markov_sequence(2_000_000, seed=1)]}, block_bp=1 << 16, soft=True
        )
        overrides = [
            f"data.uri={uri}",
            f"run.dir={folder}/run",
            f"train.precision={setting.precision}",
            "data.lanes=4",
            f"train.global_batch={batch}",
            f"train.micro_batch={micro}",
            "train.steps=1000",
            *(_SMALL if small else []),
            *(
                ["views.crops.length=32", "loss.patch.prototypes=32"]
                if small and setting.preset != "findna"
                else []
            ),
        ]
        values = configs.load(
            TrainConfig, ROOT / f"configs/train/{setting.preset}.yaml", overrides
        ).model_dump()
        config, engine, now, reader = set_up(values, str(device), ahead=True)
        meter, took, waited = Meter(device=device, dtype=engine.settings.compute_dtype), [], 0.0
        batches = reader.batches(0, warm + steps + profiled)

        def step() -> None:
            nonlocal waited
            start = time.perf_counter()
            read = next(batches)
            waited += time.perf_counter() - start
            inputs = reading.step_inputs(config, engine, read)
            result = train_step(engine, now.teacher, inputs, method=method(config), states=now.centres)
            train_state.apply(now, engine, result, train=config.train, ema=config.ema, ids_B4=read.ids_B4)
            assert result.finite, result.losses

        for _ in range(warm):
            step()
        wait(device)
        waited = 0.0
        began = time.perf_counter()
        for _ in range(steps):
            start = time.perf_counter()
            step()
            wait(device)  # each step by itself, as its own reads of the losses do anyway
            took.append(time.perf_counter() - start)
        elapsed = time.perf_counter() - began
        length = config.data.last_length
        flops = step_flops(method(config), engine.network, length=length)
        rate = flops * steps / elapsed
        found: dict[str, Any] = {
            "step_ms": elapsed / steps * 1e3,
            "step_ms_p50": statistics.median(took) * 1e3,
            "step_ms_max": max(took) * 1e3,
            "data_wait_fraction": waited / elapsed,
            "bp_per_s": batch * length * steps / elapsed,
            "tflop_per_step": flops / 1e12,
            "tflops": rate / 1e12,
            "measured_peak_tflops": meter.measured_peak / 1e12,
            "mfu_measured": rate / meter.measured_peak,
            "mfu_nominal": meter.nominal_peak and rate / meter.nominal_peak,
            "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        }
        found |= _kernels(step, profiled, device)
        reader.close()
    return found


def _kernels(step: Any, steps: int, device: torch.device) -> dict[str, Any]:
    """Kernels a step, the ms that they take, and the 20 that take most (on a CPU: operators)."""
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step()
        wait(device)
    rows = [
        (e.key, e.count / steps, (e.self_device_time_total if gpu else e.self_cpu_time_total) / steps / 1e3)
        for e in seen.key_averages()
    ]
    rows = sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2])
    return {
        "kernels_per_step": sum(count for _, count, _ in rows),
        "kernel_ms_per_step": sum(ms for *_, ms in rows),
        "kernels": [
            {"name": name[:120], "per_step": count, "ms_per_step": ms} for name, count, ms in rows[:20]
        ],
    }
