"""What a run carries from step to step, and how one step's result changes it: applied, or skipped on all ranks."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cluster import store
from trainer import collectives, health, schedule
from trainer.collectives import Group
from trainer.config import TrainConfig
from trainer.distill import StepResult
from trainer.ema import ShardedEMA
from trainer.engine.student import Engine
from trainer.guard import CollapseGuard
from trainer.heads import Network

NOT_FINITE = "not_finite.json"


@dataclass
class State:
    """All that changes from step to step besides the student's own optimiser.

    ``step`` counts batches, applied or not. ``skipped_ids``: step -> (losses, this rank's sample ids [B, 4]) of the
    steps skipped in a row up to now.
    """

    step: int
    teacher: ShardedEMA[Network]
    centres: dict[str, Tensor]
    guard: CollapseGuard
    skipped: int = 0
    skipped_ids: dict[int, tuple[dict[str, float], Tensor]] = field(default_factory=dict)
    read_centre_PK: Tensor | None = None  # as it was at the last health reading


def first_state(config: TrainConfig, teacher: ShardedEMA[Network], *, device: torch.device) -> State:
    """The state before the first step."""
    heads = {"distill": (config.loss.distill, config.model.num_summary), "patch": (config.loss.patch, 1)}
    centres = {name: torch.zeros(positions, head.prototypes, device=device) for name, (head, positions) in heads.items()
               if head.weight and head.balance == "centring"}  # fmt: skip
    prototypes = config.loss.distill.prototypes if config.loss.distill.weight else None
    return State(0, teacher, centres, CollapseGuard(prototypes=prototypes, patience=config.health.patience))


def apply(
    config: TrainConfig, state: State, engine: Engine, result: StepResult, *, ids_B4: Tensor
) -> dict[str, float]:
    """Optimiser, teacher and centres take their step, or none of them does: the step's metrics.

    Raises:
        RuntimeError: train.max_skipped steps in a row were not finite; their sample ids lie in run.dir.
    """
    state.step += 1
    if not result.finite:
        engine.skip()
        return _skipped(config, state, result, engine.group, ids_B4)
    rate = schedule.learning_rate(
        state.step,
        peak=config.train.lr,
        total_steps=config.schedule_steps,
        warmup_fraction=config.train.warmup_fraction,
        final_fraction=config.train.final_lr_fraction,
    )
    applied, norm = engine.step(rate)
    if not applied:  # finite entries, but their squares overflow
        return _skipped(config, state, result, engine.group, ids_B4)
    if not math.isfinite(norm):
        raise RuntimeError(f"step {state.step}: the gradient's norm is {norm}, losses {result.losses}; use a lower "
                           "train.lr, or train.zero_stage 1, which skips such steps")  # fmt: skip
    momentum = schedule.momentum(
        state.step * config.train.global_batch,
        start=config.ema.momentum,
        end=config.ema.momentum_end,
        total_samples=config.schedule_steps * config.train.global_batch,
    )
    state.teacher.update(momentum)
    for name, centre_PK in result.centres.items():
        kept = getattr(config.loss, name).centre_momentum
        state.centres[name] = state.centres[name].lerp(centre_PK, 1 - kept)
    state.skipped_ids.clear()
    losses = {f"loss/{name}": value for name, value in result.losses.items()}
    return losses | {"lr": rate, "ema/momentum": momentum, "grad_norm": norm}


def judge(config: TrainConfig, state: State, readings: dict[str, float]) -> tuple[dict[str, float], str | None]:
    """(metrics of the batch's health, what collapsed or None), the same on all ranks.

    Raises:
        RuntimeError: something collapsed and health.on_collapse is "stop".
    """
    centre_PK = state.centres.get("distill")
    if centre_PK is not None:
        if state.read_centre_PK is not None:
            readings["health/centre_drift"] = health.centre_drift(centre_PK, state.read_centre_PK)
        state.read_centre_PK = centre_PK
    fault = state.guard.check(readings, step=state.step)
    if fault and config.health.on_collapse == "stop":
        raise RuntimeError(f"{fault}; health.on_collapse=warn goes on all the same")
    metrics = {name.replace("health/", "batch_health/"): value for name, value in readings.items()}
    return metrics | {"batch_health/collapsed": float(fault is not None)}, fault


def _skipped(
    config: TrainConfig, state: State, result: StepResult, group: Group, ids_B4: Tensor
) -> dict[str, float]:
    state.skipped += 1
    state.skipped_ids[state.step] = (result.losses, ids_B4)
    if len(state.skipped_ids) >= config.train.max_skipped:
        path = store.join(config.run.dir, NOT_FINITE)
        _save_ids(path, state, group)
        raise RuntimeError(f"step {state.step}: no finite loss and gradient in {len(state.skipped_ids)} steps on end, "
                           f"{result.losses}; weights and teacher are as before them, and the samples are listed in "
                           f"{path}")  # fmt: skip
    return {"train/skipped_steps": float(state.skipped)}


def _save_ids(path: str, state: State, group: Group) -> None:
    """The steps skipped in a row, each with its losses and the (dataset, epoch, block, window) of every rank's rows."""
    device = next(iter(state.teacher.shards)).device
    mine = {str(step): ids_B4.to(device) for step, (_, ids_B4) in state.skipped_ids.items()}
    everywhere = collectives.gather_packed(group, mine)
    if group.rank == 0:
        found: list[dict[str, Any]] = [
            {"step": step, "losses": {name: str(value) for name, value in losses.items()},
             "samples": everywhere[str(step)].flatten(0, 1).tolist()}
            for step, (losses, _) in state.skipped_ids.items()
        ]  # fmt: skip
        store.write_bytes(path, json.dumps({"ids": "dataset, epoch, block, window", "steps": found}, indent=1).encode())
