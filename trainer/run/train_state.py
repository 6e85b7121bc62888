"""What a run carries from step to step, and how one step's result changes it: applied, or skipped on all
ranks."""

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
from trainer.distill.step import StepResult
from trainer.engine.ema import ShardedEMA
from trainer.engine.engine import Engine
from trainer.losses.prototypes import PrototypeLoss
from trainer.models.network import Network
from trainer.run.config import TrainConfig

NOT_FINITE = "not_finite.json"


class SkippedBlocks:
    """The damaged blocks that the steps up to now met, as (dataset, epoch, block): each counts once an
    epoch."""

    def __init__(self) -> None:
        self._everywhere: set[tuple[int, ...]] = set()
        self._mine: set[tuple[int, ...]] = set()  # met by this rank since the ranks last told each other

    def add(self, blocks: Iterable[tuple[int, int, int]]) -> None:
        """This rank's step met them."""
        self._mine |= set(blocks) - self._everywhere

    def everywhere(self, group: Group, *, device: torch.device) -> Tensor:
        """Those of all ranks, int64 [N, 3], in order; a collective."""
        mine_N3 = torch.tensor(sorted(self._mine), dtype=torch.int64, device=device).view(-1, 3)
        if int(collectives.sum_over_ranks(group, torch.tensor(len(mine_N3), device=device))):
            self._everywhere |= set(map(tuple, collectives.gather_rows(group, mine_N3).tolist()))
            self._mine.clear()
        return torch.tensor(sorted(self._everywhere), dtype=torch.int64).view(-1, 3)

    def restore(self, blocks_N3: Tensor) -> None:
        """As ``everywhere`` gave it, at the step that the run goes on after."""
        self._everywhere, self._mine = set(map(tuple, blocks_N3.tolist())), set()


@dataclass
class State:
    """All that changes from step to step besides the student's own optimiser.

    ``step`` counts batches, applied or not. ``skipped_ids``: step -> (losses, this rank's sample ids [B, 4])
    of the steps skipped in a row up to now. ``skipped_blocks``: None where a damaged block ends the run.
    """

    step: int
    teacher: ShardedEMA[Network]
    centres: dict[str, Tensor]
    guard: CollapseGuard
    skipped: int = 0
    skipped_ids: dict[int, tuple[dict[str, float], Tensor]] = field(default_factory=dict)
    read_centre_PK: Tensor | None = None  # as it was at the last health reading
    skipped_blocks: SkippedBlocks | None = None


def first_state(config: TrainConfig, teacher: ShardedEMA[Network], *, device: torch.device) -> State:
    """The state before the first step."""
    terms = config.loss.terms()
    first = {term.name: term.first_state(teacher.module, device) for term in terms}
    centres = {name: centre for name, centre in first.items() if centre is not None}
    watches = [PrototypeWatch.of(term) for term in terms if isinstance(term, PrototypeLoss)]
    guard = CollapseGuard(watches, patience=config.health.patience)
    blocks = SkippedBlocks() if config.data.on_corrupt == "skip" else None
    return State(0, teacher, centres, guard, skipped_blocks=blocks)


def apply(
    config: TrainConfig, state: State, engine: Engine, result: StepResult, *, ids_B4: Tensor
) -> dict[str, float]:
    """Optimiser, teacher and centres take their step, or none of them does: the step's metrics.

    A skipped step still counts for the schedules of learning rate and momentum.
    """
    state.step += 1
    if not result.finite:
        engine.skip()
        return _skipped(state, result, ids_B4)
    rate = schedules.learning_rate(
        state.step,
        peak=config.train.lr,
        total_steps=config.schedule_steps,
        warmup_fraction=config.train.warmup_fraction,
        final_fraction=config.train.final_lr_fraction,
    )
    applied, norm = engine.step(rate)
    if not applied:  # by DeepSpeed's own check of the norm
        return _skipped(state, result, ids_B4)
    assert math.isfinite(norm), f"step {state.step}: a gradient of norm {norm} was applied"
    momentum = schedules.momentum(
        state.step * config.train.global_batch,
        start=config.ema.momentum,
        end=config.ema.momentum_end,
        total_samples=config.schedule_steps * config.train.global_batch,
    )
    state.teacher.update(momentum)
    state.centres |= result.states
    state.skipped_ids.clear()
    losses = {f"loss/{name}": value for name, value in result.losses.items()}
    return losses | {"lr": rate, "ema/momentum": momentum, "grad_norm": norm}


def count_skipped_blocks(state: State, group: Group, *, device: torch.device) -> dict[str, float]:
    """``data/skipped_blocks`` of all ranks up to now; nothing where a damaged block ends the run. A
    collective."""
    if state.skipped_blocks is None:
        return {}
    return {"data/skipped_blocks": float(len(state.skipped_blocks.everywhere(group, device=device)))}


def end_if_stuck(config: TrainConfig, state: State, group: Group) -> None:
    """Ends the run after train.max_skipped skipped steps on end; a collective.

    Raises:
        RuntimeError: their losses, and where their sample ids were saved.
    """
    if len(state.skipped_ids) < config.train.max_skipped:
        return
    path = store.join(config.run.dir, NOT_FINITE)
    try:
        _save_ids(path, state, group)
        where = f"and the samples are listed in {path}"
    except store.StoreError as fault:
        where = f"but the samples could not be listed: {fault}"
    losses, _ = state.skipped_ids[state.step]
    raise RuntimeError(
        f"step {state.step}: no finite loss and gradient in {len(state.skipped_ids)} steps on end, "
        f"{losses}; weights and teacher are as before them, {where}"
    )


def judge(state: State, readings: dict[str, float], *, group: Group) -> tuple[dict[str, float], str | None]:
    """(metrics of the batch's health, what collapsed or None); a collective: rank 0's finding is all
    ranks'."""
    centre_PK = state.centres.get("distill")
    if centre_PK is not None:
        if state.read_centre_PK is not None:
            readings["health/centre_drift"] = representation_metrics.centre_drift(
                centre_PK, state.read_centre_PK
            )
        state.read_centre_PK = centre_PK
    fault = state.guard.check(readings, step=state.step)
    device = state.teacher.shards[0].device
    found = bool(collectives.from_first(group, torch.tensor(fault is not None, device=device)))
    metrics = {name.replace("health/", "batch_health/"): value for name, value in readings.items()}
    metrics["batch_health/collapsed"] = float(state.guard.collapsed)
    return metrics, (fault or f"step {state.step}: rank 0 found a collapse") if found else None


def _skipped(state: State, result: StepResult, ids_B4: Tensor) -> dict[str, float]:
    state.skipped += 1
    state.skipped_ids[state.step] = (result.losses, ids_B4)
    return {"train/skipped_steps": float(state.skipped)}


def _save_ids(path: str, state: State, group: Group) -> None:
    """The steps skipped in a row, each with its losses and the (dataset, epoch, block, window) of every
    rank's rows."""
    device = next(iter(state.teacher.shards)).device
    mine = {str(step): ids_B4.to(device) for step, (_, ids_B4) in state.skipped_ids.items()}
    everywhere = collectives.gather_packed(group, mine)
    if group.rank == 0:
        found: list[dict[str, Any]] = [
            {
                "step": step,
                "losses": {name: str(value) for name, value in losses.items()},
                "samples": everywhere[str(step)].flatten(0, 1).tolist(),
            }
            for step, (losses, _) in state.skipped_ids.items()
        ]
        store.write_bytes(
            path, json.dumps({"ids": "dataset, epoch, block, window", "steps": found}, indent=1).encode()
        )
