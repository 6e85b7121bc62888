"""The memory and time of a start: student and teacher of 100 M parameters, bf16, on 2 gloo ranks.

Peak is the memory of all tensors that are alive at once. What stays of it are weights, masters, room for
moments and gradients, and the teacher.
"""

import time

import torch

import configs
from tests.bench.harness import Row
from tests.bench.teacher import PRESET, begin
from tests.dist.teachers import Watch
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.models.config import build_backbone
from trainer.run.config import TrainConfig
from trainer.run.train import build

WORLD = 2
LARGE = [
    "model.num_groups=11",
    "model.group_channels=64",
    "model.intermediate_size=1408",
    "model.num_layers=48",
]


def rows() -> list[Row]:
    found = []
    for stage in (1, 3):
        answers = on_ranks(WORLD, measured, stage)
        peak, stays, whole = (max(column) for column in list(zip(*answers, strict=True))[:3])
        seconds = max(answer[3] for answer in answers)
        name = f"start at 100 M, bf16, ZeRO-{stage}, {WORLD} ranks"
        found.append(Row(f"{name}: peak", peak, whole, peak / whole, "MB", "–", "the network in fp32"))
        found.append(Row(f"{name}: peak", peak, stays, peak / stays, "MB", "≤ 1.5", "what stays of it"))
        found.append(
            Row(
                f"{name}: time",
                seconds,
                answers[0][4],
                seconds / answers[0][4],
                "s",
                "–",
                "making the network",
            )
        )
    return found


def measured(stage: int) -> tuple[float, float, float, float, float]:
    """(peak, what stays, the network in fp32) in MB; seconds of the start, and of making a network."""
    begin()
    changes = [*LARGE, "train.precision=bf16", f"train.zero_stage={stage}", "train.global_batch=8"]
    config = configs.load(TrainConfig, PRESET, changes)
    start = time.perf_counter()
    build_backbone(config.model)
    making = time.perf_counter() - start
    with Watch(None) as watch:
        start = time.perf_counter()
        engine, teacher = build(config, device=torch.device("cpu"), group=Group.of())
        seconds = time.perf_counter() - start
    entries = sum(shape.numel() for group in engine.flat_groups() for _, shape in group.slots.values())
    assert teacher.shards
    return watch.peak / 1e6, watch.alive / 1e6, 4 * entries / 1e6, seconds, making
