"""What a study would run, in FLOPs and in seconds of this machine; nothing is started."""

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

import configs
from cluster.process import host
from trainer.evaluation.tasks.config import FLOORS, SEEDLESS, TaskConfig
from trainer.evaluation.tasks.fitting.prepared import Precisions
from trainer.inference.precision import computing_in
from trainer.models.config import build_backbone
from trainer.models.network import Network
from trainer.run.config import TrainConfig
from trainer.study.config import SCRATCH
from trainer.study.plan import Pretraining, StudyPlan
from trainer.workers.plan import EMBEDDING_MODE, WorkTask, read_data, weight

_ROWS = 64  # of the batch that is timed
_TIMED_S = 3.0
_LEAST_STEPS = 4  # of which the first does not count
_FORWARD, _TRAINING = 2, 6  # FLOPs for each weight and letter: of reading, of a step
_NO_GPU = "not timed, there is no GPU here"
_SHARE = 0.8  # of the bare network's speed, which pretraining and fine-tuning reach about


def describe_plan(plan: StudyPlan, status: Mapping[str, str]) -> Iterator[str]:
    """Lines: the dataset, each pretraining, the units of tasks, and the time in all.

    Raises: StoreError, ValueError: a task cannot be read.
    """
    pretrain, timer = plan.config.pretrain, _Timer()
    if plan.dataset:
        yield f"dataset: {plan.dataset.uri}, made of {plan.dataset.config} where it is not there"
    left = 0.0
    for one in plan.pretrainings:
        what, on_gpu = "done", bool(pretrain.gpus)
        if status[str(one)] != "finished":
            seconds = timer.seconds(one, one.cost.flops, threads=pretrain.cpus or 1, on_gpu=on_gpu)
            what = _NO_GPU if seconds is None else f"about {seconds:,.0f} s alone"
            left += seconds or 0.0
        yield (
            f"pretraining {one}: {one.cost.parameters:,} parameters, {one.cost.steps:,} steps, "
            f"{one.cost.flops:.3e} FLOPs of {pretrain.flops:.3g}; {what}"
        )
    if left:
        places = min(places_of(pretrain.cpus, pretrain.gpus), pretrain.at_once or len(plan.pretrainings))
        yield f"all pretrainings, at the speed of {places} at once: about {left / places:,.0f} s to go"
    yield from _describe_tasks(plan, timer)


def places_of(cpus: float, gpus: float) -> int:
    """How many processes that take so much work at full speed at once on this machine; those that share a
    GPU have the speed of one."""
    if gpus:
        return max(1, int(torch.cuda.device_count() // max(1, gpus)))
    return max(1, int(host.usable() // cpus)) if cpus else host.usable()


def _describe_tasks(plan: StudyPlan, timer: "_Timer") -> Iterator[str]:
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
    seconds = timer.seconds(largest, flops, threads=max(1, int(cpus)), on_gpu=bool(gpus))
    if seconds is None:
        yield f"networks on tasks: {flops:.3e} FLOPs; {_NO_GPU}"
    else:
        places = places_of(cpus, gpus)
        yield (
            f"networks on tasks: {flops:.3e} FLOPs, about {seconds / places:,.0f} s at the speed of {places} "
            "at once; linear models come on top, some seconds each"
        )


class _Timer:
    """Times each network once on each kind of device."""

    def __init__(self) -> None:
        self._speeds: dict[tuple[str, int, bool], float] = {}

    def seconds(self, one: Pretraining, flops: float, *, threads: int, on_gpu: bool) -> float | None:
        """The time of ``flops`` with the network of ``one``; None where it needs a GPU, and there is none."""
        if on_gpu and not torch.cuda.is_available():
            return None
        key = (json.dumps(configs.dump(one.config.model), sort_keys=True), threads, on_gpu)
        if key not in self._speeds:
            self._speeds[key] = speed(one.config, threads=threads, on_gpu=on_gpu)
        return flops / (_SHARE * self._speeds[key])


def _times(pretrainings: Sequence[Pretraining], task: TaskConfig, mode: str, *, scratch: int) -> int:
    """How many units a mode of a task has."""
    seeds = 1 if mode in SEEDLESS else len(task.seeds)
    if mode in FLOORS:
        return seeds
    return seeds * (scratch if mode == SCRATCH else len(pretrainings))


def speed(config: TrainConfig, *, threads: int, on_gpu: bool) -> float:
    """FLOP/s of the bare network's forward and backward on this machine's GPU, or on ``threads`` cores.

    Of the median step in some seconds: the mean is less steady where a machine is shared.
    """
    device = torch.device("cuda" if on_gpu else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = Network(build_backbone(config.model), heads={}).to(device)
        codes = torch.randint(4, (_ROWS, config.data.last_length), dtype=torch.uint8, device=device)
        seconds: list[float] = []
        while sum(seconds) < _TIMED_S or len(seconds) < _LEAST_STEPS:
            began = time.monotonic()
            with computing_in(config.train.precision, device):
                pooled = network(codes, nucleotides=False).pooled_BD
            pooled.float().square().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.monotonic() - began)
        positions = _ROWS * network.backbone.positions(config.data.last_length)
        # The first step is slow: libraries choose their kernels.
        return _TRAINING * _weights(config) * positions / statistics.median(seconds[1:])
    finally:
        torch.set_num_threads(before)


def _weights(config: TrainConfig) -> int:
    return sum(p.numel() for p in build_backbone(config.model).parameters() if p.ndim >= 2)
