"""The teacher on two gloo processes: its bits, its size, what its update and refresh cost in the findna
preset.

Each rank works on one thread, and the slower rank's median counts. What communicates begins on both ranks at
once. The average alone is timed on one rank after the other: together they would measure the memory bus that
they share here.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import configs
from cluster.process import compat
from tests.bench.harness import Row
from tests.bench.views import make_windows
from tests.dist.steps import method
from tests.dist.teachers import forward_differs, make_engine, masters, same, train
from tests.ranks import on_ranks
from trainer.core.collectives import Group, Pending
from trainer.distill.step import train_step
from trainer.engine.ema import FlatWeights, ShardedEMA
from trainer.engine.process_group import init_distributed
from trainer.run import train_state
from trainer.run.config import TrainConfig
from trainer.run.train import build

WORLD = 2
PRESET = Path(__file__).parents[2] / "configs/train/findna.yaml"
STEPS, SKIP_EVERY = 50, 10
MOMENTUM = 0.996
WINDOWS = 8  # of 1,000 letters, in the global batch: 4 a rank
TURNS = 41


def rows() -> list[Row]:
    return [*exact(), size(), *costs()]


def exact() -> list[Row]:
    """Entries that differ, over all ZeRO stages in fp32 and bf16."""
    answers = on_ranks(WORLD, count_mismatches)
    rows = []
    for what, name in (
        ("teacher", "teacher, 50 steps, ZeRO 0-3, fp32 and bf16: wrong"),
        ("outputs", "teacher's outputs after them: wrong"),
    ):
        wrong, seen = (sum(rank[what][i] for rank in answers) for i in (0, 1))
        rows.append(Row(name, wrong, seen, wrong / seen, "entries", "0", "entries compared"))
    return rows


def size() -> Row:
    """Of the stage that holds most on one rank."""
    answers = [on_ranks(WORLD, held, stage) for stage in range(4)]
    ours, whole = max(max(ranks) for ranks in answers)
    return Row(
        "teacher, fp32 on a rank, worst of ZeRO 0-3",
        ours / 2**20,
        whole / WORLD / 2**20,
        ours * WORLD / whole,
        "MiB",
        "≤ 1.001",
        "half of the model in fp32",
    )


def costs() -> list[Row]:
    answers = on_ranks(WORLD, seconds, timeout_s=600)
    slower = {name: max(rank[name] for rank in answers) for name in answers[0]}
    millions = slower.pop("millions")
    update, loop_ = millions / slower["update"], millions / slower["loop"]
    refresh, bare = 1e3 * slower["refresh"], 1e3 * slower["bare"]
    both, step = 1e3 * slower["both"], 1e3 * slower["step"]
    return [
        Row(
            "teacher, EMA update on one rank of two, ZeRO-1",
            update,
            loop_,
            update / loop_,
            "M params/s",
            "≥ 3",
            "mul_().add_() over state_dicts",
        ),
        Row(
            "teacher, refresh in bf16",
            refresh,
            bare,
            refresh / bare,
            "ms",
            "≤ 1.3",
            "one all-gather, same bytes",
        ),
        Row(
            "teacher, update and refresh of a bf16 step of 8 x 1,000",
            both,
            step,
            both / step,
            "ms",
            "≤ 0.02",
            "the step, 4 rows a rank",
        ),
    ]


def begin() -> None:
    """Join the other rank; what DeepSpeed prints goes to stderr, where it does not stand in the table."""
    os.dup2(2, 1)
    init_distributed(torch.device("cpu"))


def count_mismatches() -> dict[str, tuple[int, int]]:
    """(wrong, compared) of the teacher's entries and of its outputs, against an unsharded average of the
    masters."""
    begin()
    found = {"teacher": (0, 0), "outputs": (0, 0)}
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            engine = make_engine(Group.of(), stage, precision, 1)
            teacher = engine.teacher()
            reference = masters(engine)
            for step in range(STEPS):
                momentum = 0.9 + 0.002 * step
                if train(engine, step, poison=step % SKIP_EVERY == 0):
                    teacher.update(momentum)
                    reference = {
                        name: torch.lerp(reference[name], master, 1 - momentum)
                        for name, master in masters(engine).items()
                    }
            wrong, outputs = (
                same(dict(teacher.full_tensors()), reference),
                forward_differs(teacher, engine, reference),
            )
            for what, bad, seen in (
                ("teacher", wrong, sum(tensor.numel() for tensor in reference.values())),
                ("outputs", outputs, 8 * 3),
            ):
                found[what] = (found[what][0] + bad, found[what][1] + seen)
            engine._deepspeed.destroy()
    return found


def preset(stage: int) -> TrainConfig:
    changes = ["train.precision=bf16", f"train.zero_stage={stage}", f"train.global_batch={WINDOWS}"]
    return configs.load(TrainConfig, PRESET, changes)


def held(stage: int) -> tuple[int, int]:
    """Bytes of (this rank's part of the teacher, all parameters in fp32)."""
    begin()
    engine, teacher = build(preset(stage), device=torch.device("cpu"), group=Group.of())
    entries = sum(shape.numel() for group in engine.flat_groups() for _, shape in group.slots.values())
    return sum(shard.untyped_storage().nbytes() for shard in teacher.shards), 4 * entries


class Nowhere:
    """Weights that no module has, so that an update is the average alone."""

    def write(self, shards: Sequence[Tensor]) -> Pending:
        return Pending()


def seconds() -> dict[str, float]:
    """Medians on this rank, ZeRO-1 in bf16; "millions": parameters of the model."""
    begin()
    config, group, device = preset(1), Group.of(), torch.device("cpu")
    engine, teacher = build(config, device=device, group=group)
    flat_groups = engine.flat_groups()

    local = ShardedEMA(nn.Module(), nn.Module(), flat_groups, Nowhere(), group=group)
    student = copy.deepcopy(teacher.module).float()
    average = {name: tensor.clone() for name, tensor in student.state_dict().items()}

    def whole_loop() -> None:
        for name, tensor in student.state_dict().items():
            average[name].mul_(MOMENTUM).add_(tensor, alpha=1 - MOMENTUM)

    weights = FlatWeights(copy.deepcopy(teacher.module), flat_groups, group=group)
    everyone = torch.zeros(sum(flat_group.numel for flat_group in flat_groups), dtype=torch.bfloat16)
    mine = everyone.chunk(WORLD)[group.rank].clone()

    def update_and_refresh() -> None:
        teacher.update(MOMENTUM)
        assert teacher.module is not None  # waits

    found = {"millions": sum(tensor.numel() for tensor in average.values()) / 1e6}
    found |= in_turns({"update": lambda: local.update(MOMENTUM), "loop": whole_loop}, TURNS, apart=True)
    found |= in_turns(
        {
            "refresh": lambda: weights.write(teacher.shards).wait(),
            "bare": lambda: compat.all_gather(everyone, mine),
            "both": update_and_refresh,
        },
        TURNS,
    )

    windows = make_windows().each(lambda tensor: tensor[group.rank : WINDOWS : group.size])
    assert windows.flank == config.views.flank, "the preset's operations are those of the bench's windows"
    now = train_state.first_state(config, teacher, device=device)
    ids_B4 = torch.zeros(len(windows.codes_BS), 4, dtype=torch.int64)

    def step() -> None:
        result = train_step(engine, teacher, [windows], method=method(config), states=now.centres)
        train_state.apply(now, engine, result, train=config.train, ema=config.ema, ids_B4=ids_B4)
        assert teacher.module is not None

    return found | in_turns({"step": step}, 3)


def in_turns(functions: dict[str, Callable[[], Any]], turns: int, *, apart: bool = False) -> dict[str, float]:
    """name -> median seconds of a call, after a warm-up; all ranks begin together, or ``apart`` one after the
    other."""
    rank, size = dist.get_rank(), dist.get_world_size()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            for now in range(size) if apart else [rank]:
                dist.barrier()
                if now != rank:
                    continue
                start = time.perf_counter()
                function()
                if turn:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}
