"""What rank 0 leaves of a run: the MLflow run with its points and tags, the export in run.dir, the registered model."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import configs
from cluster import store
from trainer import export, rundir
from trainer.collectives import Group
from trainer.config import TrainConfig
from trainer.engine.student import Engine
from trainer.progress import say
from trainer.state import State
from trainer.track import Run


def start_run(config: TrainConfig, digests: list[str], engine: Engine) -> Run:
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


def _export(config: TrainConfig, state: State, group: Group, uri: str) -> export.Exported | None:
    """The teacher at ``uri``, written by rank 0; a collective."""
    tensors = export.split_tensors(state.teacher.full_tensors(), keep=group.rank == 0)
    if group.rank:
        return None
    return export.write(uri, state.teacher.module, tensors, card=_card(config, state))


def publish(config: TrainConfig, state: State, group: Group, run: Run | None) -> None:
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
        for name in export.FILES:
            store.put_file(Path(folder, name), store.join(config.run.dir, name))
        rundir.finish(config)


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
