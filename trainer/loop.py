"""The training run: set up, step by step, validate, export, register."""

import json
import subprocess
import tempfile
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import configs
from cluster import store
from configs import ConfigError
from trainer import collectives, export
from trainer.collectives import Group
from trainer.config import TrainConfig
from trainer.data import Reader, open_reader
from trainer.dataset import open_datasets
from trainer.distill import train_step
from trainer.ema import ShardedEMA
from trainer.engine.student import Engine
from trainer.heads import Network
from trainer.meter import Meter
from trainer.state import NOT_FINITE, State, apply, end_if_stuck, first_state, judge
from trainer.track import Progress, Run, say
from trainer.validate import Validator

RESOLVED = "train_config.json"


def train(config: TrainConfig, *, device: torch.device, group: Group) -> None:
    """Run ``config`` to its last step; the results lie in run.dir and in MLflow.

    Raises:
        ConfigError: world size or run.dir do not fit. StoreError, ValueError, RuntimeError: the work failed.
    """
    faults = config.world_faults(group.size)
    if faults:
        raise ConfigError("\n  ".join(faults))
    if _finished(config, group, device):
        if group.rank == 0:
            say(f"{config.run.dir} holds this run, finished; nothing to do")
        return
    datasets = list(open_datasets(config, "train", say=say).values())
    flank = config.views.flank
    validator = Validator(config, flank=flank, device=device, group=group)
    engine, teacher = build(config, device=device, group=group)
    state = first_state(config, teacher, device=device)
    with closing(open_reader(config, datasets, flank=flank, group=group, say=say)) as reader:
        if group.rank > 0:
            _train(config, state, engine, reader, validator, None)
            return
        for uri in validator.left_out:
            say(f"{uri} has no val split: it is trained on, and left out of validation")
        with _start_run(config, [dataset.digest for dataset in datasets], engine) as run:
            store.write_bytes(store.join(config.run.dir, RESOLVED), _resolved(config))
            _train(config, state, engine, reader, validator, run)


def build(config: TrainConfig, *, device: torch.device, group: Group) -> tuple[Engine, ShardedEMA[Network]]:
    """Student under DeepSpeed and its teacher; the same weights for the same seed on any number of ranks."""
    torch.manual_seed(config.run.seed)
    backbone = export.build_backbone(config.model, activation_checkpointing=config.train.activation_checkpointing)
    network = Network(backbone, heads=export.projection_heads(config.loss, backbone.hidden_size))
    engine = Engine(
        network,
        device=device,
        group=group,
        zero_stage=config.train.zero_stage,
        precision=config.train.precision,
        micro_batch=config.micro_batch(group.size),
        accumulation=config.accumulation(group.size),
        weight_decay=config.train.weight_decay,
        betas=config.train.betas,
        grad_clip=config.train.grad_clip,
        deepspeed_settings=config.train.deepspeed,
    )
    return engine, engine.teacher()


def _train(
    config: TrainConfig, state: State, engine: Engine, reader: Reader, validator: Validator, run: Run | None
) -> None:
    group, device = engine.group, validator.device
    baselines = validator.baselines(reader.datasets)
    _validate(config, state, engine, validator, run, baselines)
    meter = Meter(device=device, dtype=engine.compute_dtype)
    progress = Progress(config.train.steps, shown=run is not None)
    batches = reader.batches(state.step, config.train.steps)
    while state.step < config.train.steps:
        with meter.waiting():
            batch = next(batches)
        meter.expect(bp_per_step=config.train.global_batch * batch.windows.length)
        counter = FlopCounterMode(display=False) if meter.flops_per_step == 0 else nullcontext()
        with counter:
            micro_batches = [windows.to(device) for windows in batch.split(config.micro_batch(group.size))]
            result = train_step(engine, state.teacher, micro_batches, config=config, centres=state.centres,
                                group=group, measure=_due(state.step + 1, config.health.every))  # fmt: skip
        if isinstance(counter, FlopCounterMode):
            meter.flops_per_step = float(counter.get_total_flops())
        metrics = apply(config, state, engine, result, ids_B4=batch.ids_B4)
        meter.step()
        collapse = None
        if result.health and result.finite:
            read, collapse = judge(state, result.health, group=group)
            metrics |= read
        if run and "train/skipped_steps" in metrics:
            say(f"step {state.step} is skipped: loss or gradient is not finite, {result.losses}")
        tracked = _due(state.step, config.track.every)
        if tracked or state.step == config.train.steps:
            metrics |= reader.skipped(device)
        if run:
            run.log(metrics | (meter.read() if tracked else {}), step=state.step)
            progress.advance(f"loss {result.losses['total']:.4f}")
        end_if_stuck(config, state, group)
        if collapse and config.health.on_collapse == "stop":
            raise RuntimeError(f"{collapse}; with health.on_collapse=warn the run would go on")
        if run and collapse:
            say(f"{collapse}; the run goes on, with health.on_collapse=stop it would end here")
        if _due(state.step, config.val.every) or state.step == config.train.steps:
            _validate(config, state, engine, validator, run, baselines)
            meter.restart()
        if _due(state.step, config.checkpoint.every):
            _snapshot(config, state, group)
            meter.restart()
    progress.close()
    _publish(config, state, group, run)


def _due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at ``step``."""
    return every > 0 and step % every == 0


def _validate(
    config: TrainConfig,
    state: State,
    engine: Engine,
    validator: Validator,
    run: Run | None,
    baselines: dict[str, float],
) -> None:
    teacher = state.teacher.module
    metrics = validator.masked(teacher) | validator.masked(engine.network, "val/student_") | baselines
    metrics |= validator.health(teacher, state.centres.get("distill"))
    if run:
        run.log(metrics, step=state.step)
        accuracy = metrics["val/mlm_accuracy"]
        say(
            f"step {state.step}: val accuracy {accuracy:.4f} ± {validator.standard_error(accuracy):.4f} "
            f"(majority {baselines['val/mlm_accuracy_majority']:.4f}, "
            f"Markov {baselines['val/mlm_accuracy_markov']:.4f}), "
            f"effective rank {metrics['health/effective_rank']:.1f}"
        )


def _snapshot(config: TrainConfig, state: State, group: Group) -> None:
    folder = store.join(config.run.dir, "checkpoints")
    _export(config, state, group, store.join(folder, f"step-{state.step:08d}"))
    if group.rank == 0:
        kept = sorted({name.split("/")[0] for name in store.list_files(folder)})
        for old in kept[: -config.checkpoint.keep_last]:
            store.remove(store.join(folder, old))


def _export(config: TrainConfig, state: State, group: Group, uri: str) -> export.Exported | None:
    """The teacher at ``uri``, written by rank 0; a collective."""
    tensors = export.split_tensors(state.teacher.full_tensors(), keep=group.rank == 0)
    if group.rank:
        return None
    return export.write(uri, state.teacher.module, tensors, card=_card(config, state))


def _publish(config: TrainConfig, state: State, group: Group, run: Run | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        exported = _export(config, state, group, folder)
        if not run or not exported:
            return
        run.attach(Path(folder), "model")
        checkpoint = store.join(store.absolute(config.run.dir), export.WEIGHTS)
        run.tag({"checkpoint.uri": checkpoint, "checkpoint.sha256": exported.sha256})
        if config.track.registered_model:
            version = run.register(config.track.registered_model, "model")
            run.tag({"model.version": version})
            say(f"registered {config.track.registered_model} version {version} as candidate (run {run.id})")
        # Last: the weights in run.dir say that the run is finished.
        for name in export.FILES:
            store.put_file(Path(folder, name), store.join(config.run.dir, name))


def _start_run(config: TrainConfig, digests: list[str], engine: Engine) -> Run:
    """Tag ``dataset.manifest_sha256``: the digest, or of a mixture all of them by commas, in the order of data.uri."""
    resolved = configs.dump(config)
    run = Run(
        uri=config.track.uri,
        experiment=config.track.experiment,
        name=config.run.name,
        artifact_uri=config.track.artifact_uri,
        params=_params(config, resolved) | {"parameters": export.parameter_count(engine.network)},
        tags={
            "dataset.manifest_sha256": ",".join(digests),
            "git.commit": _git_commit(),
            "world_size": str(engine.group.size),
            "zero_stage": str(engine.zero_stage),
        },
    )
    run.attach_dict(resolved, "config.yaml")
    say(f"MLflow run {run.id}")
    return run


def _params(config: TrainConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys. ``data.length`` is the last length, which users of the model need; lengths by step stand beside."""
    params = configs.flatten(resolved)
    if len(config.data.length) > 1:
        params |= {"data.length": config.data.last_length, "data.length_by_step": params["data.length"]}
    return params


def _resolved(config: TrainConfig) -> bytes:
    return json.dumps(configs.dump(config), indent=2, sort_keys=True).encode() + b"\n"


def _finished(config: TrainConfig, group: Group, device: torch.device) -> bool:
    """Whether run.dir holds this very run, finished. ConfigError if it holds anything else. Rank 0 looks, all hear."""
    verdict = 0
    # A run that ended before its first snapshot leaves no work to protect.
    if group.rank == 0 and set(store.list_files(config.run.dir)) - {RESOLVED, NOT_FINITE}:
        done = store.exists(store.join(config.run.dir, export.WEIGHTS))
        same = store.exists(store.join(config.run.dir, RESOLVED))
        same = same and store.read_bytes(store.join(config.run.dir, RESOLVED)) == _resolved(config)
        verdict = 1 if done and same else 2
    verdict = int(collectives.sum_over_ranks(group, torch.tensor(verdict, device=device)))
    if verdict == 2:
        raise ConfigError(f"run.dir: {config.run.dir} is not empty; runs are not resumed yet, so give a new folder")
    return verdict == 1


def _git_commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # an image without git
        return "unknown"
    return found.stdout.strip() or "unknown"


def _card(config: TrainConfig, state: State) -> str:
    losses = ", ".join(f"{name} {weight:g}" for name, weight in config.loss.weights().items())
    first, *later = config.data.length
    lengths = ", ".join([f"{first.length} bp", *(f"from step {part.from_step} on {part.length} bp" for part in later)])
    return f"""---
library_name: dna-distill
tags: [dna, self-distillation]
---
# {config.run.name}

DNA encoder pretrained by self-distillation: the teacher (moving average of the student) after {state.step} steps of
{config.train.global_batch} windows of {lengths}. Losses and weights: {losses}. Seed {config.run.seed}.

Input: codes A 0, C 1, G 2, T 3, N 4, MASK 5, CLS 6, PAD 7. `model.safetensors` holds backbone and nucleotide head,
`heads.safetensors` the projection heads that only pretraining uses. Weights fit the wiring in `config.json` alone.
"""
