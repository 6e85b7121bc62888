"""What rank 0 leaves of a run: its MLflow run with points and tags, the export in run.dir, the registered
model."""

import hashlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import configs
from cluster.process.heartbeat import heartbeat
from cluster.process.host import cache_root
from cluster.storage import store
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.models import pretrained
from trainer.run import run_status
from trainer.run.checkpoint.resume import Resumed
from trainer.run.checkpoint.save import Hooks
from trainer.run.config import TrainConfig
from trainer.run.train_state import State
from trainer.tracking.uploader import Delivery

_STOPPED_S = 5.0  # that a run which is told to stop waits for MLflow


class Record:
    """The MLflow run of a training run, found again when it is taken up again."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        again: bool,
        resumed: Resumed | None = None,
        parameters: int = 0,
        digests: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """``again``: run.dir holds this very run, so that its MLflow run goes on. ``digests``: of the
        datasets.

        Raises:
            TrackError, ValueError: MLflow refuses. StoreError: run.dir does not take the key.
        """
        self._config, run_dir = config, config.run.dir
        local = store.is_local(run_dir)
        key = run_status.read_key(run_dir) if again else None
        if key is None:
            if local:  # of another run, which left nothing else here
                shutil.rmtree(store.local_path(run_dir) / run_status.TRACK, ignore_errors=True)
            key = uuid.uuid4().hex
            run_status.write_key(run_dir, key)
        folder = store.local_path(run_dir) / run_status.TRACK if local else cache_root() / "track" / key
        self._saves_metrics = not local
        resolved = configs.dump(config)
        track = config.track
        self._delivery = Delivery(
            uri=track.uri,
            experiment=track.experiment,
            name=config.run.name,
            artifact_uri=track.artifact_uri,
            key=key,
            params=_params(config, resolved) | {"parameters": parameters} if parameters else {},
            tags={
                **(
                    {"dataset.manifest_sha256": ",".join(digests), "git.commit": _git_commit()}
                    if digests
                    else {}
                ),
                **(tags or {}),
            },
            folder=folder,
            model=track.registered_model,
            after=resumed.step if resumed else 0 if parameters else None,
            tail=resumed.metrics if resumed else b"",
        )
        self._delivery.attach_dict(resolved, "config.yaml")
        self.log = self._delivery.log
        self._ended = False
        if self._delivery.id:
            say(f"MLflow run {self._delivery.id}")

    def hooks(self, check: Any) -> Hooks:
        """What is done around a checkpoint; ``check`` raises if run.dir is no longer ours."""

        def before() -> None:
            check()
            self._delivery.sync()

        def after(uri: str, sha256: str) -> None:
            self._delivery.tag({"checkpoint.uri": store.absolute(uri), "checkpoint.sha256": sha256})

        return Hooks(
            metrics=self._delivery.tail if self._saves_metrics else bytes, before=before, after=after, say=say
        )

    def publish(self) -> None:
        """Register what run.dir holds, once all else is delivered.

        Raises:
            TrackError: MLflow does not take it; the run is finished all the same, and the same command tries
            again.
        """
        run_dir, model = self._config.run.dir, self._config.track.registered_model
        self._ended = True
        weights = store.read_bytes(store.join(run_dir, pretrained.WEIGHTS))
        checkpoint = store.join(store.absolute(run_dir), pretrained.WEIGHTS)
        self._delivery.tag(
            {"checkpoint.uri": checkpoint, "checkpoint.sha256": hashlib.sha256(weights).hexdigest()}
        )
        with heartbeat.inside("telling MLflow", phase=True, slow=True):
            self._delivery.drain(self._config.track.wait_s)
            with tempfile.TemporaryDirectory() as folder:
                for name in pretrained.FILES:
                    Path(folder, name).write_bytes(store.read_bytes(store.join(run_dir, name)))
                version = self._delivery.publish(Path(folder), model=model)
        if version:
            say(f"registered {model} version {version} as candidate (run {self._delivery.id})")
        run_status.tell_finished(self._config, delivered=True)

    def end(self, status: str) -> None:
        """The run ends early; what MLflow has not got within a few seconds waits for the next start."""
        self._ended = True
        self._delivery.end(status, wait_s=_STOPPED_S)

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any) -> None:
        if fault and not self._ended:
            self.end("FAILED" if isinstance(fault, Exception) else "KILLED")


def export_to_run_dir(config: TrainConfig, state: State, group: Group) -> None:
    """The teacher as files in run.dir, and the note that the run is finished, both by rank 0; a
    collective."""
    tensors = pretrained.split_tensors(state.teacher.full_tensors(), keep=group.rank == 0)
    if group.rank == 0:
        pretrained.write(config.run.dir, state.teacher.module, tensors, card=_card(config, state))
        run_status.tell_finished(config, delivered=False)


def _params(config: TrainConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys. ``data.length`` is the last length, which users of the model need; lengths by step stand
    beside."""
    params = configs.flatten(resolved)
    if len(config.data.length) > 1:
        params |= {"data.length": config.data.last_length, "data.length_by_step": params["data.length"]}
    return params


def _git_commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:  # an image without git
        return "unknown"
    return found.stdout.strip() or "unknown"


def _card(config: TrainConfig, state: State) -> str:
    losses = ", ".join(f"{name} {weight:g}" for name, weight in config.loss.weights().items())
    first, *later = config.data.length
    lengths = ", ".join(
        [f"{first.length} bp", *(f"from step {part.from_step} on {part.length} bp" for part in later)]
    )
    return f"""---
library_name: dna-distill
tags: [dna, self-distillation]
---
# {config.run.name}

DNA encoder pretrained by self-distillation: the teacher (moving average of the student) after {state.step}
steps of {config.train.global_batch} windows of {lengths}. Losses and weights: {losses}.
Seed {config.run.seed}.

Input: codes A 0, C 1, G 2, T 3, N 4, MASK 5, CLS 6, PAD 7. `model.safetensors` holds backbone and nucleotide
head, `heads.safetensors` the projection heads that only pretraining uses. Weights fit the wiring in
`config.json` alone.
"""
