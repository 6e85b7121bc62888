"""What a study would run, in FLOPs and in seconds of this machine; nothing is started."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

from cluster.process import host
from trainer.evaluation.precision import computing_in
from trainer.evaluation.tasks.config import SEEDLESS, TaskConfig
from trainer.evaluation.tasks.fitting.modes import Precisions
from trainer.models.config import build_backbone
from trainer.models.network import Network
from trainer.run.config import TrainConfig
from trainer.study.config import SCRATCH
from trainer.study.plan import Pretraining, StudyPlan
from trainer.workers.plan import EMBEDDING_MODE, WorkTask, read_data, weight

_ROWS = 64  # of the batch that is timed
_TIMED_S = 1.0
_FORWARD, _TRAINING = 2, 6  # FLOPs for each weight and letter: of reading, of a step
_SHARE = 0.8  # of the bare network's speed, which pretraining and fine-tuning reach about


def describe_plan(plan: StudyPlan, status: Mapping[str, str]) -> Iterator[str]:
    """Lines: the dataset, each pretraining, the units of tasks, and the time in all.

    Raises: StoreError, ValueError: a task cannot be read.
    """
    config = plan.config
    if plan.dataset:
        yield f"dataset: {plan.dataset.uri}, made of {plan.dataset.config} where it is not there"
    speeds = {one.arm: speed(one.config, threads=config.pretrain.cpus or 1) for one in plan.pretrainings}
    places = config.pretrain.at_once or len(plan.pretrainings)
    if not config.pretrain.gpus and config.pretrain.cpus:
        places = min(places, max(1, host.usable() // config.pretrain.cpus))
    left = 0.0
    for one in plan.pretrainings:
        done = status[str(one)] == "finished"
        seconds = _seconds(one.cost.flops, speeds[one.arm], on_gpu=bool(config.pretrain.gpus))
        left += 0.0 if done else seconds or 0.0
        what = (
            "done"
            if done
            else "not timed, there is no GPU here"
            if seconds is None
            else f"about {seconds:,.0f} s"
        )
        yield (
            f"pretraining {one}: {one.cost.parameters:,} parameters, {one.cost.steps:,} steps, "
            f"{one.cost.flops:.3e} FLOPs of {config.pretrain.flops:.3g}; {what}"
        )
    if left:
        at_once = min(places, len(plan.pretrainings))
        yield f"pretraining, {at_once} at once: about {left / at_once:,.0f} s to go"
    yield from _describe_tasks(plan, speeds)


def _describe_tasks(plan: StudyPlan, speeds: Mapping[str, float]) -> Iterator[str]:
    found = read_data(plan.task_configs)
    units, flops = Counter[str](), 0.0
    largest = max(plan.pretrainings, key=lambda one: one.cost.parameters)
    weights = _weights(largest.config)
    for task, data in found:
        work = WorkTask(task, data, "", Precisions("fp32", "fp32"), "")
        for mode in task.modes:
            times = _times(plan.pretrainings, task, mode, scratch=len(plan.scratch))
            units[mode] += times
            if mode in ("finetune", SCRATCH):
                flops += times * _FORWARD * weights * weight(mode, work)
            elif mode == EMBEDDING_MODE:
                letters = sum(len(each) for split in data.splits for each in split.letters)
                flops += times * 2 * _FORWARD * weights * letters  # of both strands
    counts = ", ".join(f"{count:,} {mode}" for mode, count in units.items())
    yield f"units of tasks: {sum(units.values()):,} ({counts}); what MLflow has is not run again"
    cpus, gpus = (max(getattr(task.workers, name) for task, _ in found) for name in ("cpus", "gpus"))
    seconds = _seconds(flops, min(speeds.values()), on_gpu=bool(gpus))
    places = max(1, host.usable() // cpus)
    if seconds is None:
        yield f"networks on tasks: {flops:.3e} FLOPs; not timed, there is no GPU here"
    else:
        yield (
            f"networks on tasks: {flops:.3e} FLOPs, about {seconds / places:,.0f} s with {places} units at "
            "once; linear models come on top, some seconds each"
        )


def _times(pretrainings: Sequence[Pretraining], task: TaskConfig, mode: str, *, scratch: int) -> int:
    """How many units a mode of a task has."""
    seeds = 1 if mode in SEEDLESS else len(task.seeds)
    if mode in ("kmer", "onehot"):
        return seeds
    return seeds * (scratch if mode == SCRATCH else len(pretrainings))


def speed(config: TrainConfig, *, threads: int) -> float:
    """FLOP/s of the bare network's forward and backward on this machine's GPU, else on ``threads`` cores."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = Network(build_backbone(config.model), heads={}).to(device)
        codes = torch.randint(4, (_ROWS, config.data.last_length), dtype=torch.uint8, device=device)
        steps, began = 0, time.monotonic()
        while (
            time.monotonic() - began < _TIMED_S or steps < 3
        ):  # the first one, which is slow, does not count
            if steps == 1:
                began = time.monotonic()
            with computing_in(config.train.precision, device):
                pooled = network(codes, nucleotides=False).pooled_BD
            pooled.float().square().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            steps += 1
        positions = _ROWS * network.backbone.positions(config.data.last_length)
        return (steps - 1) * _TRAINING * _weights(config) * positions / (time.monotonic() - began)
    finally:
        torch.set_num_threads(before)


def _weights(config: TrainConfig) -> int:
    return sum(p.numel() for p in build_backbone(config.model).parameters() if p.ndim >= 2)


def _seconds(flops: float, rate: float, *, on_gpu: bool) -> float | None:
    """The time of ``flops``; None where it will be a GPU's, and this machine has none."""
    return None if on_gpu and not torch.cuda.is_available() else flops / (_SHARE * rate)
