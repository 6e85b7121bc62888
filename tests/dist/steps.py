"""What the multi-rank tests run on every rank: a small real training run, told by its numbers."""

from typing import Any

import torch

from trainer import loop, schedule
from trainer.collectives import Group
from trainer.config import TrainConfig
from trainer.data import open_reader
from trainer.dataset import open_datasets
from trainer.distill import make_pairs, train_step
from trainer.engine import init_distributed
from trainer.views import flank_for


def small_config(uri: str, **changes: Any) -> dict[str, Any]:
    """All three losses, both directions, noise and every augmentation; ``changes`` are dotted keys, "." as "__"."""
    values: dict[str, Any] = {
        "run": {"dir": "unused", "seed": 5},
        "data": {"uri": uri, "length": 48, "lanes": 12},
        "model": {"num_layers": 2, "num_groups": 5, "group_channels": 5, "intermediate_size": 31, "num_summary": 3,
                  "norm": "layer"},
        "views": {"symmetric": True, "student": {"noise": 0.1, "reverse_complement": 0.5},
                  "teacher": {"operations": {"deletion": 4, "insertion": 4, "shift": 4}, "substitution": 0.05}},
        "loss": {"mlm": {"weight": 1.0}, "distill": {"weight": 0.5, "prototypes": 17, "mlp_size": 13, "bottleneck": 7},
                 "contrastive": {"weight": 0.5, "mlp_size": 11, "embedding": 6}},
        "ema": {"momentum": 0.9, "momentum_end": 0.99},
        "train": {"steps": 20, "global_batch": 24, "lr": 3e-3, "grad_clip": 1.0, "warmup_fraction": 0.2},
    }
    for key, value in changes.items():
        node = values
        *path, last = key.split("__")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return values


def run_steps(values: dict[str, Any], steps: int, device_name: str = "cpu") -> dict[str, Any]:
    """Train ``steps`` steps on this rank's group: losses, norms, sample ids, views and masks, the full teacher."""
    config = TrainConfig.model_validate(values)
    device = torch.device(device_name)
    init_distributed(device)
    group = Group.of()
    assert config.world_faults(group.size) == []
    engine, teacher = loop.build(config, device=device, group=group)
    state = loop.State(0, teacher, loop._first_centre(config, device))
    flank = flank_for(config.views.student.operations, config.views.teacher.operations)
    reader = open_reader(config, list(open_datasets(config, "train").values()), flank=flank, group=group)
    losses, norms, momenta, samples = [], [], [], {}
    mismatches = 0
    reference = {name: tensor.clone() for name, tensor in masters(engine)}
    start, first_update = dict(reference), 0.0
    for step in range(steps):
        batch = reader.batch(step)
        micro = [windows.to(device) for windows in batch.split(config.micro_batch(group.size))]
        first = make_pairs(batch.windows.to(device), config.views)[0]
        for row, key in enumerate(map(tuple, batch.ids_B4.tolist())):
            samples[step, key] = (first.masked.codes_BL[row].tolist(), first.masked.target_BL[row].tolist(),
                                  first.teacher.codes_BL[row].tolist(), first.noise_BLC[row].sum().item())
        result = train_step(engine, teacher.module, micro, config=config, centre_K=state.centre_K, group=group)
        metrics = loop._apply(config, state, engine, result)
        if not step:
            first_update = float(sum((master - start[name]).pow(2).sum() for name, master in masters(engine))) ** 0.5
        losses.append(result.losses)
        norms.append(metrics["grad_norm"])
        momenta.append(metrics["ema/momentum"])
        momentum = schedule.momentum(state.step * config.train.global_batch, start=config.ema.momentum,
                                     end=config.ema.momentum_end,
                                     total_samples=config.train.steps * config.train.global_batch)
        for name, master in masters(engine):
            reference[name] = torch.lerp(reference[name], master, 1.0 - momentum)
        if step % 5 and step != steps - 1:
            continue
        parameters = dict(teacher.module.named_parameters())
        for name, tensor in teacher.full_tensors():
            mismatches += int((tensor != reference[name]).sum())
            mismatches += int((parameters[name] != tensor.to(parameters[name].dtype)).sum())
    return {
        "losses": losses,
        "norms": norms,
        "first_update": first_update,
        "momenta": momenta,
        "samples": samples,
        "mismatches": mismatches,
        "moved": float(sum((tensor - parameters[name].float()).abs().sum() for name, tensor in masters(engine))),
        "optimizer": type(engine._deepspeed.optimizer).__name__,
        "shard_entries": sum(shard.numel() for shard in teacher.shards),
        "entries": sum(tensor.numel() for tensor in reference.values()),
    }


def poisoned_step(values: dict[str, Any], what: str = "gradient") -> dict[str, Any]:
    """One step whose ``what`` is NaN on rank 0 alone: the sentence that ends the run, and how far the teacher moved."""
    config = TrainConfig.model_validate(values)
    device = torch.device("cpu")
    init_distributed(device)
    group = Group.of()
    engine, teacher = loop.build(config, device=device, group=group)
    state = loop.State(0, teacher, loop._first_centre(config, device))
    reader = open_reader(config, list(open_datasets(config, "train").values()), flank=12, group=group)
    before = {name: tensor.clone() for name, tensor in teacher.full_tensors()}
    micro = reader.batch(0).split(config.micro_batch(group.size))
    if group.rank == 0 and what == "gradient":
        engine.network.nucleotide.weight.register_hook(lambda gradient: gradient * torch.nan)
    result = train_step(engine, teacher.module, micro, config=config, centre_K=state.centre_K, group=group)
    if what == "loss":
        result.losses["total"] = float("nan")
    sentence = ""
    try:
        loop._apply(config, state, engine, result)
    except RuntimeError as fault:
        sentence = str(fault)
    moved = sum(int((tensor != before[name]).sum()) for name, tensor in teacher.full_tensors())
    return {"sentence": sentence, "teacher_moved": moved}


def masters(engine: Any) -> list[tuple[str, torch.Tensor]]:
    """(name, full fp32 master) gathered from every rank's partition; the unsharded truth."""
    found = []
    for flat_group in engine.flat_groups():
        shard = torch.zeros(flat_group.numel // engine.group.size, device=flat_group.masters[0][1].device)
        for offset, piece in flat_group.masters:
            shard[offset : offset + piece.numel()] = piece
        parts = [torch.zeros_like(shard) for _ in range(engine.group.size)]
        torch.distributed.all_gather(parts, shard)
        flat = torch.cat(parts)
        found += [(name, flat[o : o + shape.numel()].view(shape)) for name, (o, shape) in flat_group.slots.items()]
    return found
