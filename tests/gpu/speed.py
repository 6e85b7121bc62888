"""Time of training steps of a preset on one rank, and of their parts: ms, MFU against both peaks, memory,
kernels.

A step is all that the training loop does for one: the batch that was read ahead, views, teacher, student,
backward, the optimiser's step, the teacher's update. Its parts are its own calls, made again alone: the
teacher's forward, and the student's forward and backward (of one micro-batch, heads and logits with it).
"""

import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import configs
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import method, set_up
from tests.gpu.peaks import seconds, wait
from trainer.distill.step import train_step
from trainer.engine import compiled
from trainer.engine.engine import Engine
from trainer.run import reading, train_state
from trainer.run.config import TrainConfig
from trainer.run.flops import embedding_flops, step_flops
from trainer.run.throughput import Meter

ROOT = Path(__file__).resolve().parents[2]
EAGER_S, COMPILED_S = 25.0, 85.0  # that a row may take on a GPU, most of it for graphs and kernels


class Setting(NamedTuple):
    """A preset of configs/train, its precision, global batch, and the batch that is read at once.

    ``compile``: train.compile. ``kernel``: model.kernel, where the backbone has such a key. ``model``:
    another backbone in place of the preset's.
    """

    preset: str
    precision: str
    batch: int
    micro_batch: int
    compile: str = "off"
    kernel: str = "plain"
    model: str = ""

    @property
    def name(self) -> str:
        words = [self.model or self.preset, self.precision, f"batch {self.batch}, {self.micro_batch} at once"]
        if self.kernel != "plain":
            words.append(self.kernel)
        if self.compile != "off":
            words.append("compiled" if self.compile == "default" else self.compile)
        return " ".join(words)

    @property
    def seconds(self) -> float:
        return EAGER_S if self.compile == "off" else COMPILED_S


_CONV = "dilated-conv"
# The worth of a figure decides the order, since time may be up: what the plain step costs, what each step of
# the ladder brings at the preset's own batch, then other batches, slices, the other backbone, fp32.
SETTINGS = [
    Setting("findna", "bf16", 64, 64),
    Setting("findna", "bf16", 64, 64, kernel="triton"),
    Setting("findna", "bf16", 64, 64, "reduce-overhead", kernel="triton"),
    Setting("findna", "bf16", 256, 256, "reduce-overhead", kernel="triton"),
    Setting("findna", "bf16", 64, 64, "reduce-overhead"),
    Setting("findna", "bf16", 64, 64, "reduce-overhead", model=_CONV),
    Setting("findna", "fp32", 64, 64),
    Setting("findna", "bf16", 256, 256, kernel="triton"),
    Setting("findna", "bf16", 256, 256),
    Setting("findna", "bf16", 64, 64, "default", kernel="triton"),
    Setting("findna", "bf16", 64, 64, "default"),
    Setting("findna", "bf16", 64, 16, "reduce-overhead", kernel="triton"),  # slices that stay in the cache
    Setting("findna", "bf16", 256, 256, "reduce-overhead"),
    Setting("findna", "bf16", 64, 64, model=_CONV),
    Setting("findna", "bf16", 256, 256, "reduce-overhead", model=_CONV),
    Setting("findna-plus", "bf16", 384, 48, "reduce-overhead", kernel="triton"),
    Setting("findna-plus", "bf16", 384, 48),
    Setting("findna", "fp32", 256, 64),
]
REHEARSED = [
    Setting("findna", "bf16", 64, 64),
    Setting("findna", "bf16", 64, 64, kernel="triton"),
    Setting("findna", "bf16", 64, 64, "default", model=_CONV),
]
_MODELS = {_CONV: {"name": _CONV, "hidden_size": 128}}
_SMALL = ["data.length=128", "loss.distill.prototypes=64"]


def measure(setting: Setting, device_name: str, *, small: bool) -> dict[str, Any]:
    """Figures of one setting; {"does_not_fit": True} where memory is too small, {"skipped": why} where this
    machine has no such kernel. ``small``: sizes of a rehearsal, whose graphs run without Inductor."""
    if setting.kernel == "triton" and device_name == "cpu":
        return {"skipped": "Triton's kernels are timed on a GPU only"}
    if small:
        compiled.BACKEND = "aot_eager"
    try:
        return _measure(setting, torch.device(device_name), small)
    except torch.OutOfMemoryError as fault:
        return {"does_not_fit": True, "why": str(fault)[:300]}


def _config(setting: Setting, folder: str, *, small: bool) -> dict[str, Any]:
    batch, micro = (4, 2) if small else (setting.batch, setting.micro_batch)
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
        f"train.compile={setting.compile}",
        "train.steps=1000",
    ]
    if small:
        overrides += _SMALL
        if setting.preset != "findna":
            overrides += ["views.crops.length=32", "loss.patch.prototypes=32"]
    values = configs.load(TrainConfig, ROOT / f"configs/train/{setting.preset}.yaml", overrides).model_dump()
    if setting.model:
        return values | {"model": _MODELS[setting.model]}
    values["model"]["kernel"] = setting.kernel
    if small:
        values["model"]["num_layers"] = 2
    return values


def _measure(setting: Setting, device: torch.device, small: bool) -> dict[str, Any]:
    warm, steps, profiled = (1, 2, 1) if small else (4, 12, 2)
    with tempfile.TemporaryDirectory() as folder:
        values = _config(setting, folder, small=small)
        config, engine, now, reader = set_up(values, str(device), ahead=True)
        meter, took, waited = Meter(device=device, dtype=engine.settings.compute_dtype), [], 0.0
        batches = reader.batches(0, warm + steps + profiled)
        batch = config.train.global_batch

        def step() -> None:
            nonlocal waited
            start = time.perf_counter()
            read = next(batches)
            waited += time.perf_counter() - start
            inputs = reading.step_inputs(config, engine, read)
            result = train_step(engine, now.teacher, inputs, method=method(config), states=now.centres)
            train_state.apply(now, engine, result, train=config.train, ema=config.ema, ids_B4=read.ids_B4)
            assert result.finite, result.losses

        began = time.perf_counter()
        with Calls(engine.network, now.teacher.module) as calls:
            step()
            wait(device)
        first_s = time.perf_counter() - began
        for _ in range(warm - 1):
            step()
        wait(device)
        waited = 0.0
        began = time.perf_counter()
        for _ in range(steps):
            start = time.perf_counter()
            step()
            took.append(time.perf_counter() - start)  # its last act is to read its losses
        wait(device)
        elapsed = time.perf_counter() - began
        length = config.data.last_length
        flops = step_flops(method(config), engine.network, length=length)
        rate = flops * steps / elapsed
        found: dict[str, Any] = {
            "step_ms": elapsed / steps * 1e3,
            "step_ms_p50": statistics.median(took) * 1e3,
            "step_ms_max": max(took) * 1e3,
            "first_step_s": first_s,
            "data_wait_fraction": waited / elapsed,
            "bp_per_s": batch * length * steps / elapsed,
            "tflop_per_step": flops / 1e12,
            "tflops": rate / 1e12,
            "measured_peak_tflops": meter.measured_peak / 1e12,
            "mfu_measured": rate / meter.measured_peak,
            "mfu_nominal": meter.nominal_peak and rate / meter.nominal_peak,
            "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        }
        found |= _parts(
            engine, now.teacher.module, calls, device, turns=2 if small else 10, peak=meter.measured_peak
        )
        if setting.compile != "off":
            found |= {
                forward.called: forward.graphs if forward.works else "plain" for forward in engine.forwards
            }
        found |= _kernels(step, profiled, device)
        reader.close()
    return found


class Calls:
    """What each of ``modules`` is called with while the context lasts, the last time."""

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = modules
        self.made: dict[nn.Module, tuple[Any, Any]] = {}

    def __enter__(self) -> "Calls":
        self._hooks = [
            module.register_forward_pre_hook(self._keep, with_kwargs=True) for module in self._modules
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.made[module] = args, kwargs


def _parts(
    engine: Engine, teacher: nn.Module, calls: Calls, device: torch.device, *, turns: int, peak: float
) -> dict[str, Any]:
    """ms and MFU of the teacher's forward and of the student's forward and backward, each call alone."""
    student = engine.network
    weights = [parameter for parameter in student.parameters() if parameter.requires_grad]

    def call(module: nn.Module) -> Any:
        args, kwargs = calls.made[module]
        return module(*args, **kwargs)

    def learn() -> None:
        with engine.fast():
            outputs = [part for part in tensors(call(student)) if part.requires_grad]
        ones = [torch.ones_like(part) for part in outputs]
        torch.autograd.grad(outputs, weights, ones, allow_unused=True)

    def read() -> None:
        with torch.no_grad(), engine.fast():
            call(teacher)

    found: dict[str, Any] = {}
    for name, module, times, run in (("forward", teacher, 1, read), ("forward_backward", student, 3, learn)):
        codes_BL: Tensor = calls.made[module][0][0]
        flops = times * embedding_flops(student, [codes_BL.shape[1]] * len(codes_BL)) / 2
        took = seconds(run, device, turns=turns)
        found |= {f"{name}_ms": took * 1e3, f"{name}_mfu_measured": flops / took / peak}
    return found


def tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ():
        yield from tensors(part)


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
