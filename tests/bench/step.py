"""A whole training step against bare forward, backward and AdamW of the same network, and against what this
machine multiplies.

One process of one thread. A step is all that the training loop does but reading: views, teacher, student,
losses, backward, the optimiser's step, the teacher's update. Bare: the step's own calls of teacher and
student, heads with them, the gradient of their outputs, and torch's AdamW on fp32 weights.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

import configs
from cluster.process.memory import keep_freed_memory
from tests.bench.harness import Row
from tests.bench.teacher import begin, in_turns
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import method, set_up, whole_step
from tests.gpu.speed import Calls, tensors
from tests.ranks import on_ranks
from trainer.run.config import TrainConfig
from trainer.run.flops import step_flops
from trainer.run.throughput import matmul_flops_per_s

PRESETS = Path(__file__).parents[2] / "configs/train"


class Case(NamedTuple):
    preset: str
    called: str
    rows: int
    turns: int


CASES = [Case("demo", "demo, 0.11 M", 48, 15), Case("findna", "findna, 12.65 M", 4, 5)]


def rows() -> list[Row]:
    return [row for case in CASES for precision in ("bf16", "fp32") for row in _rows(case, precision)]


def _rows(case: Case, precision: str) -> list[Row]:
    (found,) = on_ranks(1, seconds, case, precision, timeout_s=900)
    name = f"step, {case.called}, {precision}, one core"
    against = found["bare"] / found["step"]
    rate = found["flops"] / found["step"]
    return [
        Row(name, 1 / found["step"], 1 / found["bare"], against, "steps/s", "≥ 0.85", "bare, with AdamW"),
        Row(
            f"{name}: MFU",
            rate / 1e9,
            found["peak"] / 1e9,
            rate / found["peak"],
            "GFLOP/s",
            "≥ 0.6",
            "a measured random product",
        ),
    ]


def seconds(case: Case, precision: str, compile: str = "off") -> dict[str, float]:
    """Medians of "step" and "bare"; "flops" of a step by formula, "peak" FLOP/s of a product."""
    begin()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        config, engine, now, batches = prepare(case, precision, compile, folder)

    def step() -> None:
        whole_step(config, engine, now, batches.pop())

    student, teacher = engine.network, now.teacher.module
    with Calls(student, teacher) as calls:
        step()
    weights = list(student.parameters())
    masters = [torch.nn.Parameter(weight.detach().float()) for weight in weights]
    optimizer = torch.optim.AdamW(masters)

    def call(module: torch.nn.Module) -> Any:
        args, kwargs = calls.made[module]
        with engine.fast():
            return module(*args, **kwargs)

    def bare() -> None:
        with torch.no_grad():
            call(teacher)
        outputs = [part for part in tensors(call(student)) if part.requires_grad]
        ones = [torch.ones_like(part) for part in outputs]
        gradients = torch.autograd.grad(outputs, weights, ones, allow_unused=True)
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = None if gradient is None else gradient.float()
        optimizer.step()

    taken = in_turns({"step": step, "bare": bare}, case.turns)
    dtype = engine.settings.compute_dtype
    return taken | {
        "flops": step_flops(method(config), student, length=config.data.last_length),
        "peak": matmul_flops_per_s(torch.device("cpu"), dtype),
    }


def prepare(case: Case, precision: str, compile: str, folder: str) -> tuple[Any, Any, Any, list[Any]]:
    """Config, engine and state of a run of ``case`` in ``folder``, and its batches."""
    uri = write_dataset(Path(folder), {"train": [markov_sequence(1_000_000, seed=1)]}, block_bp=1 << 16)
    changes = [
        f"data.uri={uri}",
        "data.lanes=4",
        f"run.dir={folder}/run",
        f"train.precision={precision}",
        f"train.compile={compile}",
        f"train.global_batch={case.rows}",
        "train.zero_stage=1",
    ]
    values = configs.load(TrainConfig, PRESETS / f"{case.preset}.yaml", changes).model_dump()
    config, engine, now, reader = set_up(values)
    batches = list(reader.batches(0, case.turns + 2))
    reader.close()
    return config, engine, now, batches
