"""What the multi-rank tests run on every rank: a small real training run, told by its numbers."""

import sys
from typing import Any

import pytest
import torch

from tests.dist.teachers import masters
from trainer.core import schedules
from trainer.core.collectives import Group
from trainer.data.batch import Batch
from trainer.data.dataset import open_datasets
from trainer.data.loader import Reader, open_reader
from trainer.distill.method import Method
from trainer.distill.step import train_step
from trainer.engine.engine import Engine
from trainer.engine.process_group import init_distributed
from trainer.run import reading, train, train_state, world_size
from trainer.run.config import TrainConfig
from trainer.views.view_batch import make_view_pairs


def small_config(uri: str, **changes: Any) -> dict[str, Any]:
    """Losses of every kind, both directions, noise, crops and every augmentation; ``changes`` are dotted
    keys, "." as "__"."""
    values: dict[str, Any] = {
        "run": {"dir": "unused", "seed": 5},
        "track": {"report_every": 0},
        "data": {"uri": uri, "length": 48, "lanes": 12},
        "model": {
            "num_layers": 2,
            "num_groups": 5,
            "group_channels": 5,
            "intermediate_size": 31,
            "num_summary": 3,
            "norm": "layer",
        },
        "views": {
            "symmetric": True,
            "student": {"noise": 0.1, "reverse_complement": 0.5},
            "teacher": {"operations": {"deletion": 4, "insertion": 4, "shift": 4}, "substitution": 0.05},
            "crops": {"number": 2, "length": 21, "operations": {"deletion": 3}, "reverse_complement": 0.5},
        },
        "loss": {
            "mlm": {"weight": 1.0, "soft_weight": 0.25},
            "distill": {"weight": 0.5, "prototypes": 17, "mlp_size": 13, "bottleneck": 7},
            "patch": {
                "weight": 0.2,
                "prototypes": 19,
                "mlp_size": 9,
                "bottleneck": 5,
                "pairs": 6,
                "balance": "sinkhorn",
            },
            "contrastive": {"weight": 0.5, "mlp_size": 11, "embedding": 6},
        },
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


def coupled_config(uri: str, **changes: Any) -> dict[str, Any]:
    """The losses that tie the student's rows of all ranks to each other, and the other balances."""
    return small_config(
        uri,
        **{
            "loss__contrastive__keys": "student",
            "loss__contrastive__learnable_scale": True,
            "loss__distill__balance": "sinkhorn",
            "loss__patch__balance": "centring",
            "loss__koleo__weight": 0.1,
            "loss__vicreg": {"weight": 0.02, "mlp_size": 9, "embedding": 7},
            **changes,
        },
    )


def taught_config(uri: str, **changes: Any) -> dict[str, Any]:
    """The settings with which a teacher stays informative, and the loss without prototypes."""
    return small_config(
        uri,
        **{
            "loss__distill__reads": "pooled",
            "loss__distill__balance": "sinkhorn",
            "loss__distill__centre_bottleneck": True,
            "loss__distill__predictor": True,
            "loss__distill__teacher_temperature_start": 0.08,
            "loss__distill__teacher_temperature_warmup": 0.5,
            "loss__patch__balance": "centring",
            "loss__patch__centre_bottleneck": True,
            "loss__sigreg": {"weight": 0.3, "mlp_size": 9, "embedding": 7, "slices": 5},
            **changes,
        },
    )


def set_up(
    values: dict[str, Any], device_name: str = "cpu", *, ahead: bool = False
) -> tuple[TrainConfig, Engine, train_state.TrainState, Reader]:
    """A run before its first step, on this rank's group; ``ahead``: the reader prepares what a step reads."""
    config, device = TrainConfig.model_validate(values), torch.device(device_name)
    init_distributed(device)
    group = Group.of()
    assert world_size.faults(config.train, lanes=config.data.lanes, world=group.size) == []
    engine, teacher = train.build(config, device=device, group=group)
    now = train_state.first_state(config, teacher, device=device)
    datasets = list(open_datasets(config.data, "train").values())
    reader = open_reader(
        config.data,
        datasets,
        plan=reading.sampling_plan(config),
        group=group,
        soft=config.loss.needs_soft_mask,
        track=config.loss.needs_track,
        device=device,
        prepare=reading.preparation(config, method(config), device, group) if ahead else None,
    )
    return config, engine, now, reader


def method(config: TrainConfig) -> Method:
    """What every step of ``config`` is made of, on this rank's group."""
    return Method(config.views, config.loss.terms(), config.train.global_batch, Group.of())


def run_cases(cases: dict[str, tuple[dict[str, Any], int]]) -> dict[str, dict[str, Any]]:
    """``run_steps`` of each case (config, steps), one after the other."""
    return {name: run_steps(values, steps) for name, (values, steps) in cases.items()}


def whole_step(config: TrainConfig, engine: Engine, now: train_state.TrainState, batch: Batch) -> None:
    """All that the training loop does for one batch but reading it, for what is timed; its batch is one
    micro-batch."""
    result = train_step(engine, now.teacher, [batch.windows], method=method(config), states=now.centres)
    train_state.apply(now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4)
    assert result.finite and now.teacher.module is not None


def run_steps(values: dict[str, Any], steps: int, device_name: str = "cpu") -> dict[str, Any]:
    """Train ``steps`` steps on this rank's group: losses, norms, sample ids, views and masks, the full
    teacher."""
    config, engine, now, reader = set_up(values, device_name)
    device, teacher, group = torch.device(device_name), now.teacher, engine.group
    losses, norms, momenta, samples = [], [], [], {}
    mismatches = 0
    reference = masters(engine)
    start, first_update = dict(reference), 0.0
    for step in range(steps):
        batch = reader.batch(step)
        micro = [windows.to(device) for windows in batch.split(config.train.rows_at_once(group.size))]
        first = make_view_pairs(batch.windows.to(device), config.views)[0]
        for row, key in enumerate(map(tuple, batch.ids_B4.tolist())):
            samples[step, key] = (
                first.masked.codes_BL[row].tolist(),
                first.masked.target_BL[row].tolist(),
                first.teacher.codes_BL[row].tolist(),
                first.noise_BLC[row].sum().item(),
            )
        result = train_step(
            engine,
            teacher,
            micro,
            method=method(config),
            states=now.centres,
            moment=config.moment(now.step),
        )
        metrics = train_state.apply(
            now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4
        )
        moved = masters(engine)
        if not step:
            first_update = (
                float(sum((master - start[name]).pow(2).sum() for name, master in moved.items())) ** 0.5
            )
        losses.append(result.losses)
        norms.append(metrics["grad_norm"])
        momenta.append(metrics["ema/momentum"])
        momentum = schedules.momentum(
            now.step * config.train.global_batch,
            start=config.ema.momentum,
            end=config.ema.momentum_end,
            total_samples=config.train.steps * config.train.global_batch,
        )
        for name, master in moved.items():
            reference[name] = torch.lerp(reference[name], master, 1.0 - momentum)
        if step % 5 and step != steps - 1:
            continue
        for name, tensor in teacher.full_tensors():
            mismatches += int((tensor != reference[name]).sum())
        if config.train.zero_stage < 3:
            for name, parameter in teacher.module.named_parameters():
                mismatches += int((parameter != reference[name].to(parameter.dtype)).sum())
    return {
        "losses": losses,
        "norms": norms,
        "first_update": first_update,
        "momenta": momenta,
        "samples": samples,
        "mismatches": mismatches,
        "moved": float(sum((tensor - reference[name]).abs().sum() for name, tensor in moved.items())),
        "optimizer": type(engine._deepspeed.optimizer).__name__,
        "shard_entries": sum(shard.numel() for shard in teacher.shards),
        "entries": sum(tensor.numel() for tensor in reference.values()),
        "names": len(reference),
    }


def poisoned_steps(values: dict[str, Any], poison: dict[int, tuple[str, int]], steps: int) -> dict[str, Any]:
    """``steps`` steps of which some are poisoned on one rank: step -> ("loss" or "gradient", rank).

    A step poisoned with ("leave out", any) is not trained at all, which is what a skipped one must come to.
    """
    config, engine, now, reader = set_up(values)
    teacher, group = now.teacher, engine.group
    what = ""

    def spoil(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if what == "gradient":
            output.register_hook(lambda gradient: gradient * torch.inf)
        return output * torch.nan if what == "loss" else output

    engine.network.nucleotide.register_forward_hook(spoil)
    metrics, sentence = [], ""
    for step in range(1, steps + 1):
        batch = reader.batch(step - 1)
        kind, rank = poison.get(step, ("", 0))
        if kind == "leave out":
            now.step += 1
            continue
        what = kind if rank == group.rank else ""
        micro = batch.split(config.train.rows_at_once(group.size))
        result = train_step(engine, teacher, micro, method=method(config), states=now.centres)
        try:
            metrics.append(
                train_state.apply(
                    now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4
                )
            )
            train_state.end_if_stuck(now, group, run_dir=config.run.dir, max_skipped=config.train.max_skipped)
        except RuntimeError as fault:
            sentence = str(fault)
            break
    return {
        "metrics": metrics,
        "sentence": sentence,
        "skipped": now.skipped,
        "masters": masters(engine),
        "teacher": dict(teacher.full_tensors()),
        "centres": now.centres,
        "ids": batch.ids_B4,
    }


def poisoned_cases(
    cases: list[tuple[dict[str, Any], dict[int, tuple[str, int]], int]],
) -> list[dict[str, Any]]:
    return [poisoned_steps(*case) for case in cases]


def counted_collectives(values: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Calls of torch.distributed that are not DeepSpeed's, in one step: "forward" and "backward" -> name ->
    count."""
    config, engine, now, reader = set_up(values)
    teacher, group = now.teacher, engine.group
    assert teacher.module is not engine.network  # and its first weights have come
    calls: dict[str, dict[str, int]] = {"forward": {}, "backward": {}}
    phase = "forward"

    def watched(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            frame: Any = sys._getframe(1)
            while frame and "deepspeed" not in frame.f_code.co_filename:
                frame = frame.f_back
            if frame is None:
                calls[phase][name] = calls[phase].get(name, 0) + 1
            return function(*args, **kwargs)

        return call

    def backward(loss: torch.Tensor) -> None:
        nonlocal phase
        phase = "backward"
        plain(loss)
        phase = "forward"

    plain, engine.backward = engine.backward, backward
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "all_gather_single",
            "all_gather",
            "all_gather_into_tensor",
            "all_reduce",
            "broadcast",
            "batch_isend_irecv",
            "reduce_scatter_tensor",
            "all_to_all_single",
        ):
            if hasattr(torch.distributed, name):
                patch.setattr(torch.distributed, name, watched(name, getattr(torch.distributed, name)))
        micro = reader.batch(0).split(config.train.rows_at_once(group.size))
        train_step(engine, teacher, micro, method=method(config), states=now.centres)
    return calls


def counted_cases(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    return {name: counted_collectives(values) for name, values in cases.items()}


def judged_run(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """A run whose health is read every health.every steps: the readings and the first finding."""
    config, engine, now, reader = set_up(values)
    teacher, group = now.teacher, engine.group
    found: dict[str, Any] = {"readings": {}, "first": None}
    for batch in reader.batches(0, steps):
        due = (now.step + 1) % config.health.every == 0
        micro = batch.split(config.train.rows_at_once(group.size))
        result = train_step(
            engine,
            teacher,
            micro,
            method=method(config),
            states=now.centres,
            moment=config.moment(now.step),
            measure=due,
        )
        train_state.apply(now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4)
        assert bool(result.health) == due
        if due:
            found["readings"][now.step], sentence = train_state.check_collapse(
                now, result.health, group=group
            )
            found["first"] = found["first"] or (sentence and (now.step, sentence))
    return found


def judged_cases(cases: dict[str, tuple[dict[str, Any], int]]) -> dict[str, dict[str, Any]]:
    return {name: judged_run(*case) for name, case in cases.items()}
