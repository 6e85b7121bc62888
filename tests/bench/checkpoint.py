"""What a checkpoint costs the step: findna's preset on two gloo processes, bf16, ZeRO-1, to a store on
loopback.

The slower rank counts. A save is waited for before the next one begins, so that the stall is that of the copy
alone.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tests import s3
from tests.bench.harness import Row
from tests.bench.teacher import WINDOWS, begin, preset
from tests.bench.views import make_windows
from tests.dist.steps import method
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.distill.step import train_step
from trainer.engine.optimizer_state import KINDS
from trainer.run import train, train_state
from trainer.run.checkpoint.save import Saver
from trainer.run.export import Exporter
from trainer.run.train_state import TrainState

WORLD, TURNS = 2, 9


def rows() -> list[Row]:
    with s3.proxy() as proxy, s3.bucket(proxy) as bucket:
        answers = on_ranks(WORLD, seconds, f"{bucket.uri}/run", s3.environment(proxy), timeout_s=600)
    slower = {name: max(rank[name] for rank in answers) for name in answers[0]}
    stall, memory = 1e3 * slower["stall"], 1e3 * slower["copy"]
    beside, quiet = 1e3 * slower["beside"], 1e3 * slower["step"]
    written = 1e3 * slower["save"]
    return [
        Row(
            "checkpoint, 12.65 M, with upload: stall of the step",
            stall,
            memory,
            stall / memory,
            "ms",
            "≤ 2",
            "one copy of the state in memory",
        ),
        Row(
            "checkpoint: the step while it is written and sent",
            beside,
            quiet,
            beside / quiet,
            "ms",
            "–",
            "the step, 4 rows a rank",
        ),
        Row(
            "checkpoint, from the copy to the pointer",
            written,
            quiet,
            written / quiet,
            "ms",
            "–",
            "the same step",
        ),
        Row(
            "track.register_every: stall of the step by an export",
            1e3 * slower["export"],
            1e3 * slower["copy of the teacher"],
            slower["export"] / slower["copy of the teacher"],
            "ms",
            "≤ 2",
            "one copy of the teacher in memory",
        ),
        Row(
            "track.register_every: the step while an export is written and sent",
            1e3 * slower["beside an export"],
            quiet,
            1e3 * slower["beside an export"] / quiet,
            "ms",
            "–",
            "the same step without",
        ),
    ]


def seconds(uri: str, environment: dict[str, str]) -> dict[str, float]:
    """Medians on this rank."""
    os.environ |= environment
    begin()
    config, group, device = preset(1), Group.of(), torch.device("cpu")
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": uri})})
    engine, teacher = train.build(config, device=device, group=group)
    now = train_state.first_state(config, teacher, device=device)
    windows = make_windows().each(lambda tensor: tensor[group.rank : WINDOWS : group.size])
    ids_B4 = torch.zeros(len(windows.codes_BS), 4, dtype=torch.int64)

    def step() -> float:
        dist.barrier()
        start = time.perf_counter()
        result = train_step(engine, teacher, [windows], method=method(config), states=now.centres)
        train_state.apply(now, engine, result, train=config.train, ema=config.ema, ids_B4=ids_B4)
        assert teacher.module is not None  # waits
        return time.perf_counter() - start

    step()
    saver = Saver(config, engine, datasets={})
    shards = [*teacher.shards, *(part for kind in KINDS for part in parts(engine, kind))]
    buffers = copy.deepcopy(shards)
    times: dict[str, list[float]] = {name: [] for name in ("stall", "copy", "save")}
    for turn in range(TURNS + 1):
        dist.barrier()
        start = time.perf_counter()
        for buffer, shard in zip(buffers, shards, strict=True):
            buffer.copy_(shard)
        copied = time.perf_counter() - start
        dist.barrier()
        now.step += 1
        start = time.perf_counter()
        saver.save(now, {})
        stalled = time.perf_counter() - start
        saver.wait()
        if turn:
            for name, value in (("stall", stalled), ("copy", copied), ("save", time.perf_counter() - start)):
                times[name].append(value)
    times |= exports(Exporter(config, engine), now, step)
    quiet = [step() for _ in range(3)]
    beside = []
    for _ in range(3):
        saver.save(now, {})
        beside.append(step())
        saver.wait()
    found = {name: statistics.median(values) for name, values in times.items()}
    return found | {"step": statistics.median(quiet), "beside": statistics.median(beside)}


def exports(exporter: Exporter, now: TrainState, step: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each turn: the stall, a copy of the teacher in memory, and a step beside an export."""
    shards = now.teacher.shards
    buffers = copy.deepcopy(shards)
    times: dict[str, list[float]] = {
        name: [] for name in ("export", "copy of the teacher", "beside an export")
    }
    for turn in range(TURNS + 1):
        dist.barrier()
        start = time.perf_counter()
        for buffer, shard in zip(buffers, shards, strict=True):
            buffer.copy_(shard)
        copied = time.perf_counter() - start
        dist.barrier()
        now.step += 1
        stalled = exporter.begin(now)
        if turn > TURNS - 3:
            times["beside an export"].append(step())
        exporter.wait()
        if turn:  # the first one makes its buffers and its group
            times["export"].append(stalled)
            times["copy of the teacher"].append(copied)
    return times


def parts(engine: Any, kind: str) -> list[torch.Tensor]:
    """This rank's shards of ``kind``."""
    shards = [flat_group.empty_shard(engine.group) for flat_group in engine.flat_groups()]
    for flat_group, shard in zip(engine.flat_groups(), shards, strict=True):
        engine.optimizer_state.copy(kind, flat_group, shard)
    return shards
