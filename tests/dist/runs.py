"""What the tests of checkpoints run on every rank: a stretch of a run, from its first step or from a
checkpoint on."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.dist.steps import method, set_up
from trainer.core import collectives
from trainer.distill.step import train_step
from trainer.engine.engine import Engine
from trainer.engine.optimizer_state import KINDS
from trainer.run import train_state
from trainer.run.checkpoint.resume import resume
from trainer.run.checkpoint.save import Saver
from trainer.run.checkpoint.snapshot import TEACHER

DATASETS = {"toy": "0" * 64}


def stretch(
    values: dict[str, Any],
    *,
    until: int,
    resumed: bool = False,
    save_at: tuple[int, ...] = (),
    look_at: int = 0,
    tracked: int = 1,
) -> dict[str, Any]:
    """Train up to step ``until``, from the newest checkpoint in run.dir on if ``resumed``; save after some
    steps.

    Gives by step what was trained, the sha256 of the whole state after the steps from ``look_at`` on, and
    what was said.
    """
    config, engine, now, reader = set_up(values)
    said: list[str] = []
    group = engine.group
    if resumed:
        found = resume(config.run.dir, engine, now, datasets=DATASETS, say=said.append)
        assert found is None or (reader.step_of(found.position), found.step) == (now.step, now.step)
    first = now.step
    saver = Saver(config, engine, datasets=DATASETS)
    trained, hashes = {}, {}
    if first >= look_at:
        hashes[first] = digests(engine, now)
    for batch in reader.batches(first, until):
        micro = batch.split(config.train.rows_at_once(group.size))
        result = train_step(
            engine,
            now.teacher,
            micro,
            method=method(config),
            states=now.centres,
            moment=config.moment(now.step),
            measure=now.step % 2 == 0,
        )
        metrics = train_state.apply(
            now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4
        )
        if now.skipped_blocks is not None:
            now.skipped_blocks.add(batch.skipped)
        if now.step % tracked == 0:
            metrics |= train_state.count_skipped_blocks(now, group, device=engine.device)
        if result.health:
            metrics |= train_state.check_collapse(now, result.health, group=group)[0]
        ids = collectives.gather_packed(group, {"ids": batch.ids_B4})["ids"].transpose(0, 1).flatten(0, 1)
        trained[now.step] = {"metrics": metrics, "ids": ids.tolist()}
        if now.step >= look_at:
            hashes[now.step] = digests(engine, now)
        if now.step in save_at:
            saver.save(now, reader.position(now.step))
    saver.wait()
    reader.close()
    return {
        "first": first,
        "trained": trained,
        "hashes": hashes,
        "said": said,
        "skipped": now.skipped,
        "applied": engine.optimizer_state.applied,
        "whole": whole(engine, now),
    }


def stretches(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """``stretch`` of each case, one after the other."""
    return {name: stretch(**case) for name, case in cases.items()}


def whole(engine: Engine, now: train_state.TrainState) -> dict[str, dict[str, Tensor]]:
    """Teacher, masters and moments of all ranks: kind -> parameter -> tensor."""
    found: dict[str, dict[str, Tensor]] = {
        TEACHER: {name: t.clone() for name, t in now.teacher.full_tensors()}
    }
    for kind in KINDS:
        found[kind] = {}
        for flat_group in engine.flat_groups():
            shard = flat_group.empty_shard(engine.group)
            engine.optimizer_state.copy(kind, flat_group, shard)
            flat = collectives.gather_packed(engine.group, {"shard": shard})["shard"].view(-1)
            for name, (offset, shape) in flat_group.slots.items():
                found[kind][name] = flat[offset : offset + shape.numel()].view(shape).clone()
    return found


def digests(engine: Engine, now: train_state.TrainState) -> dict[str, str]:
    """kind -> sha256 of all its entries in the order of the names; the student's weights and the centres
    beside."""
    found = {kind: sha256(tensors) for kind, tensors in whole(engine, now).items()}
    if engine.settings.zero_stage < 3:
        found["weights"] = sha256({name: p.detach().float() for name, p in engine.network.named_parameters()})
    found["centres"] = sha256({name: centre.float() for name, centre in now.centres.items()})
    return found


def sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].cpu().contiguous().view(torch.int32).numpy().tobytes())
    return digest.hexdigest()


def names(folder: Path) -> list[str]:
    """Names of the checkpoints under a run's folder."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())
