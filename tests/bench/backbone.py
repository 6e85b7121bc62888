"""A pretraining step of dilated convolutions on two cores against bare forward and backward of the same rows.

Two gloo ranks of one thread each. A step is all that the training loop does but reading: views, teacher,
student with its heads, losses, backward, the optimiser's step, the teacher's update. Bare: both networks'
backbones on as many letters, and the student's backward.
"""

import tempfile
from pathlib import Path

import torch

import configs
from cluster.process.memory import keep_freed_memory
from tests.bench.harness import Row
from tests.bench.teacher import begin, in_turns
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import set_up, whole_step
from tests.ranks import on_ranks
from trainer.run.config import TrainConfig

PRESET = Path(__file__).parents[2] / "configs/train/demo.yaml"
WORLD, ROWS, LENGTH, TURNS = 2, 256, 256, 7
MODEL = {"name": "dilated-conv", "hidden_size": 64}


def rows() -> list[Row]:
    return [_row(precision) for precision in ("bf16", "fp32")]


def _row(precision: str) -> Row:
    answers = on_ranks(WORLD, seconds, precision, timeout_s=600)
    step, bare = (ROWS * LENGTH / 1e3 / max(rank[name] for rank in answers) for name in ("step", "bare"))
    return Row(
        f"pretraining step, dilated-conv 0.4 M, {precision}, two cores",
        step,
        bare,
        step / bare,
        "kbp/s",
        "≥ 0.85",
        "bare forward and backward",
    )


def seconds(precision: str) -> dict[str, float]:
    """Medians on this rank: "step" and "bare"."""
    begin()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        uri = write_dataset(Path(folder), {"train": [markov_sequence(1_000_000, seed=1)]}, block_bp=1 << 16)
        changes = [
            f"data.uri={uri}",
            f"data.length={LENGTH}",
            "data.lanes=4",
            f"run.dir={folder}/run",
            f"train.precision={precision}",
            f"train.global_batch={ROWS}",
            "train.zero_stage=1",
        ]
        values = configs.load(TrainConfig, PRESET, changes).model_dump()
        config, engine, now, reader = set_up(values | {"model": MODEL})
        batches = list(reader.batches(0, TURNS + 1))

    def step() -> None:
        whole_step(config, engine, now, batches.pop())

    student, teacher = engine.network.backbone, now.teacher.module.backbone
    weights = list(student.parameters())
    codes_BL = torch.randint(0, 4, (ROWS // engine.group.size, LENGTH), dtype=torch.uint8)

    def bare() -> None:
        with torch.no_grad():
            teacher(codes_BL)
        letters_BLD = student(codes_BL).letters_BLD
        torch.autograd.grad(letters_BLD, weights, torch.ones_like(letters_BLD))

    return in_turns({"step": step, "bare": bare}, TURNS)
