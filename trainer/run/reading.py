"""What the steps of a run read: which windows, and what the reader's thread makes of them ahead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trainer.core import collectives
from trainer.core import device as devices
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.core.parcel import Parcel
from trainer.data.batch import Batch
from trainer.data.dataset import Dataset
from trainer.data.loader import Reader, open_reader
from trainer.data.regions import RegionSet
from trainer.data.sampling import SamplingPlan
from trainer.data.windows import Windows
from trainer.distill.method import Method, StepInputs
from trainer.engine.engine import Engine
from trainer.run.checkpoint.resume import Resumed
from trainer.run.config import TrainConfig


@dataclass(frozen=True)
class Opened:
    """The train splits of a run's datasets, and the regions on which their windows are centred."""

    datasets: Sequence[Dataset]
    regions: Sequence[RegionSet]


def sampling_plan(config: TrainConfig) -> SamplingPlan:
    """All that decides which windows each step reads."""
    return SamplingPlan.of(
        config.data,
        seed=config.run.seed,
        global_batch=config.train.global_batch,
        flank=config.views.flank,
    )


def open_run_reader(
    config: TrainConfig,
    method: Method,
    data: Opened,
    engine: Engine,
    resumed: Resumed | None,
) -> Reader:
    """The reader of the run's batches, at the step that it goes on from; a collective."""
    group = engine.group
    with collectives.together(group):
        reader = open_reader(
            config.data,
            data.datasets,
            plan=sampling_plan(config),
            group=group,
            soft=config.loss.needs_soft_mask,
            track=config.loss.needs_track,
            device=engine.device,
            # On a CPU the thread would only take a core from the step that is being computed.
            prepare=preparation(config, method, engine.device, group)
            if devices.is_queued(engine.device)
            else None,
            regions=data.regions,
            warn=say,
        )
    if resumed:
        assert reader.step_of(resumed.position) == resumed.step, "the position is the step's"
    return reader


def preparation(
    config: TrainConfig, method: Method, device: torch.device, group: Group
) -> Callable[[Batch], Parcel[StepInputs]]:
    """What the reader's thread makes of a batch: all that the step reads, in one buffer, pinned for a GPU."""
    rows, pin = config.train.rows_at_once(group.size), device.type == "cuda"
    return lambda batch: Parcel.of(StepInputs.of(batch.split(rows), method), pin=pin)


def step_inputs(config: TrainConfig, engine: Engine, batch: Batch) -> Sequence[Windows] | StepInputs:
    """What a step reads of ``batch``, on the engine's device."""
    if batch.prepared is not None:
        prepared: StepInputs = batch.prepared.to(engine.device)
        return prepared
    return [
        windows.to(engine.device) for windows in batch.split(config.train.rows_at_once(engine.group.size))
    ]
