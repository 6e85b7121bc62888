"""All that a run carries from step to step and resumes with, and how one step's result changes it: applied,
or skipped on all ranks."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cluster.storage import store
from trainer.core import collectives, schedules
from trainer.core.collectives import Group
from trainer.distill import representation_metrics
from trainer.distill.collapse_guard import CollapseGuard, PrototypeWatch
from trainer.distill.result import StepResult
from trainer.engine.config import Ema, Train
from trainer.engine.ema import ShardedEMA
from trainer.engine.engine import Engine
from trainer.losses.prototypes import PrototypeLoss
from trainer.models.network import Network
from trainer.run.config import TrainConfig
from trainer.run.run_status import NOT_FINITE


class SkippedBlocks:
    """The damaged blocks of all steps up to now, as (leaf, epoch, block): each counts once an epoch."""

    def __init__(self) -> None:
        self._everywhere: set[tuple[int, ...]] = set()
        self._new: set[tuple[int, ...]] = set()  # met by this rank since the last ``everywhere``

    def add(self, blocks: Iterable[tuple[int, int, int]]) -> None:
        """Count the blocks that this rank met in a step."""
        self._new |= set(blocks) - self._everywhere

    def everywhere(self, group: Group, *, device: torch.device) -> Tensor:
        """Those of all ranks, int64 [N, 3], in order; a collective."""
        new_N3 = torch.tensor(sorted(self._new), dtype=torch.int64, device=device).view(-1, 3)
        if int(collectives.sum_over_ranks(group, torch.tensor(len(new_N3), device=device))):
            self._everywhere |= set(map(tuple, collectives.gather_rows(group, new_N3).tolist()))
            self._new.clear()
        return torch.tensor(sorted(self._everywhere), dtype=torch.int64).view(-1, 3)

    def restore(self, blocks_N3: Tensor) -> None:
        """Go on from what ``everywhere`` gave at the step of the checkpoint."""
        self._everywhere, self._new = set(map(tuple, blocks_N3.tolist())), set()


@dataclass
class TrainState:
    """All that changes from step to step besides the student's own optimiser.

    ``step`` counts batches, applied or not. ``skipped_ids``: step -> (losses, this rank's sample ids [B, 4])
    of the steps skipped in a row up to now. ``skipped_blocks``: None where a damaged block ends the run.
    """

    step: int
    teacher: ShardedEMA[Network]
    centres: dict[str, Tensor]  # what losses carry from step to step, by name
    guard: CollapseGuard
    skipped: int = 0
    skipped_ids: dict[int, tuple[dict[str, float], Tensor]] = field(default_factory=dict)
    read_centre_PK: Tensor | None = None  # as it was at the last health reading
    watched_centre: str | None = None  # the loss whose centre's drift is read
    skipped_blocks: SkippedBlocks | None = None


def first_state(config: TrainConfig, teacher: ShardedEMA[Network], *, device: torch.device) -> TrainState:
    """The state before the first step."""
    terms = config.loss.terms()
    first = {term.name: term.first_state(teacher.module, device) for term in terms}
    centres = {name: centre for name, centre in first.items() if centre is not None}
    watches = [PrototypeWatch.of(term) for term in terms if isinstance(term, PrototypeLoss)]
    guard = CollapseGuard(watches, patience=config.health.patience)
    blocks = SkippedBlocks() if config.data.on_corrupt == "skip" else None
    watched = next((term.name for term in terms if term.watches_drift), None)
    return TrainState(0, teacher, centres, guard, skipped_blocks=blocks, watched_centre=watched)


def apply(
    state: TrainState, engine: Engine, result: StepResult, *, train: Train, ema: Ema, ids_B4: Tensor
) -> dict[str, float]:
    """The step's metrics. Optimiser, teacher and centres take their step, or none of them does.

    A skipped step still counts for the schedules of learning rate and momentum.
    """
    state.step += 1
    total_steps = train.schedule_steps or train.steps
    rate = schedules.learning_rate(
        state.step,
        peak=train.lr,
        total_steps=total_steps,
        warmup_fraction=train.warmup_fraction,
        final_fraction=train.final_lr_fraction,
    )
    momentum = schedules.momentum(
        state.step * train.global_batch,
        start=ema.momentum,
        end=ema.momentum_end,
        total_samples=total_steps * train.global_batch,
    )
    norm = _take_step(state, engine, result, rate=rate, momentum=momentum)
    if norm is None:
        return _skipped(state, result, ids_B4)
    assert math.isfinite(norm), f"step {state.step}: a gradient of norm {norm} was applied"
    state.skipped_ids.clear()
    losses = {f"loss/{name}": value for name, value in result.losses.items()}
    optimiser = {"lr": rate, "grad_norm": norm}  # by these names since the first version
    grouped = {
        f"optim/{name}": value for name, value in optimiser.items()
    }  # a section of their own in the UI
    return losses | optimiser | grouped | {"ema/momentum": momentum}


def _take_step(
    state: TrainState, engine: Engine, result: StepResult, *, rate: float, momentum: float
) -> float | None:
    """The gradient's norm, where optimiser, teacher and centres have taken their step; None if none has."""
    decision = result.decision
    if decision is not None and engine.steps_unread:
        # All of it is queued before the host waits for the verdict, so that the GPU has work meanwhile.
        engine.step_where(decision, rate)
        state.teacher.update(momentum, where=decision.applies)
        for name, after in result.states.items():
            state.centres[name] = torch.where(decision.applies, after, state.centres[name])
        return result.norm if result.finite else None
    if not result.finite:
        engine.skip()
        return None
    applied, found = engine.step(rate, decision)
    if not applied:  # by DeepSpeed's own check of the norm
        return None
    state.teacher.update(momentum)
    state.centres |= result.states
    return found


def count_skipped_blocks(state: TrainState, group: Group, *, device: torch.device) -> dict[str, float]:
    """``data/skipped_blocks`` of all ranks up to now; nothing where a damaged block ends the run. A
    collective."""
    if state.skipped_blocks is None:
        return {}
    return {"data/skipped_blocks": float(len(state.skipped_blocks.everywhere(group, device=device)))}


def end_if_stuck(state: TrainState, group: Group, *, run_dir: str, max_skipped: int) -> None:
    """Return unless ``max_skipped`` steps in a row were skipped; a collective.

    Raises:
        RuntimeError: their losses, and where their sample ids were saved.
    """
    if len(state.skipped_ids) < max_skipped:
        return
    path = store.join(run_dir, NOT_FINITE)
    try:
        _save_ids(path, state, group)
        where = f"and the samples are listed in {path}"
    except store.StoreError as fault:
        where = f"but the samples could not be listed: {fault}"
    losses, _ = state.skipped_ids[state.step]
    raise RuntimeError(
        f"step {state.step}: no finite loss and gradient in {len(state.skipped_ids)} steps in a row, "
        f"{losses}; weights and teacher are as before them, {where}"
    )


def check_collapse(
    state: TrainState, readings: dict[str, float], *, group: Group
) -> tuple[dict[str, float], str | None]:
    """(metrics of the batch's health, what collapsed or None). A collective: all ranks hear rank 0's
    finding."""
    centre_PK = state.centres.get(state.watched_centre) if state.watched_centre else None
    if centre_PK is not None:
        if state.read_centre_PK is not None:
            readings["health/centre_drift"] = representation_metrics.centre_drift(
                centre_PK, state.read_centre_PK
            )
        state.read_centre_PK = centre_PK
    collapse = collectives.object_from_first(group, state.guard.check(readings, step=state.step))
    metrics = {name.replace("health/", "batch_health/"): value for name, value in readings.items()}
    metrics["batch_health/collapsed"] = float(state.guard.collapsed)
    return metrics, collapse


def _skipped(state: TrainState, result: StepResult, ids_B4: Tensor) -> dict[str, float]:
    state.skipped += 1
    state.skipped_ids[state.step] = (result.losses, ids_B4)
    return {"train/skipped_steps": float(state.skipped)}


def _save_ids(path: str, state: TrainState, group: Group) -> None:
    """Write the steps skipped in a row, each with its losses and the (dataset, epoch, block, window) of every
    rank's rows."""
    device = state.teacher.shards[0].device
    own = {str(step): ids_B4.to(device) for step, (_, ids_B4) in state.skipped_ids.items()}
    everywhere = collectives.gather_packed(group, own)
    if group.rank == 0:
        steps: list[dict[str, Any]] = [
            {
                "step": step,
                "losses": {name: str(value) for name, value in losses.items()},
                "samples": everywhere[str(step)].flatten(0, 1).tolist(),
            }
            for step, (losses, _) in state.skipped_ids.items()
        ]
        content = {"ids": "dataset, epoch, block, window", "steps": steps}
        store.write_bytes(path, json.dumps(content, indent=1).encode())
