"""What rank 0 leaves of a run: its MLflow run with points and tags, the export in run.dir, the registered
model."""

import hashlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from cluster.process.heartbeat import heartbeat
from cluster.process.host import cache_root
from cluster.storage import store
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.models import pretrained
from trainer.run import run_status
from trainer.run.checkpoint.save import SaveCallbacks
from trainer.run.config import TrainConfig
from trainer.run.train_state import TrainState
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.mlflow_run import RunSpec
from trainer.tracking.uploader import Uploader

_STOPPED_S = 5.0  # that a run which is told to stop waits for MLflow


@dataclass(frozen=True)
class Start:
    """Where this process takes the training up, and what MLflow shows of it.

    ``step``: that it goes on after. ``waiting``: the points of the steps before that MLflow had not got yet.
    ``parameters``: of the network.
    """

    parameters: int
    tags: Mapping[str, str]
    step: int = 0
    waiting: bytes = b""


class Artifacts:
    """What rank 0 leaves of a run: points, tags and files in its MLflow run, the registered model."""

    def __init__(self, config: TrainConfig, *, same_run: bool, start: Start | None = None) -> None:
        """``same_run``: run.dir holds this very run, so that its MLflow run goes on. ``start``: None if there
        is nothing to train, only to deliver.

        Raises:
            TrackError, ValueError: MLflow refuses. StoreError: run.dir does not take the key.
        """
        self._run_dir, self._track = config.run.dir, config.track
        self._steps = config.train.steps
        key = _mlflow_key(config.run.dir, same_run=same_run)
        resolved = configs.dump(config)
        spec = RunSpec(
            config.track.uri,
            config.track.experiment,
            config.run.name,
            artifact_uri=config.track.artifact_uri,
            key=key,
            params=_params(config, resolved) | {"parameters": start.parameters} if start else {},
            tags={**start.tags, "git.commit": _git_commit()} if start else {},
            registered_model=config.track.registered_model,
        )
        self._uploader = Uploader(
            spec,
            _outbox_folder(config.run.dir, key),
            after=start.step if start else None,
            tail=start.waiting if start else b"",
        )
        self._uploader.attach_dict(resolved, "config.yaml")
        self._ended = False
        if self._uploader.id:
            say(f"MLflow run {self._uploader.id}")

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of ``step`` go to MLflow; what it does not take yet waits."""
        self._uploader.log(metrics, step=step)

    def save_callbacks(self, check_lock: Callable[[], None]) -> SaveCallbacks:
        """What is done around a checkpoint; ``check_lock`` raises if run.dir is no longer this run's."""

        def before() -> None:
            check_lock()
            self._uploader.sync()

        def after(uri: str, sha256: str) -> None:
            self._uploader.tag({"checkpoint.uri": store.absolute(uri), "checkpoint.sha256": sha256})

        # Beside a local run.dir the outbox itself outlives this process.
        metrics = bytes if store.is_local(self._run_dir) else self._uploader.tail
        return SaveCallbacks(metrics=metrics, before=before, after=after, say=say)

    def sync(self) -> None:
        """What MLflow has not got yet outlives a kill. To be called before the run is marked as finished.

        A finished run logs nothing again. If the disk is full, ``publish`` reports it.
        """
        with suppress(store.StoreError):
            self._uploader.sync()

    def publish(self) -> None:
        """Register the export in run.dir, once all else is delivered.

        Raises:
            TrackError: MLflow does not take it; the run is finished all the same, and the same command tries
            again.
        """
        run_dir, model = self._run_dir, self._track.registered_model
        self._ended = True
        weights = store.join(run_dir, pretrained.WEIGHTS)
        digest = hashlib.sha256(store.read_bytes(weights)).hexdigest()
        self._uploader.tag({"checkpoint.uri": store.absolute(weights), "checkpoint.sha256": digest})
        with heartbeat.inside("telling MLflow", phase=True, slow=True):
            self._uploader.drain(self._track.wait_s)
            with tempfile.TemporaryDirectory() as folder:
                for name in pretrained.FILES:
                    Path(folder, name).write_bytes(store.read_bytes(store.join(run_dir, name)))
                version = self._uploader.publish(Path(folder))
        if version:
            say(f"registered {model} version {version} as candidate (run {self._uploader.id})")
        run_status.write_finished(run_dir, steps=self._steps, delivered=True)

    def end(self, status: str) -> None:
        """The run ends early; what MLflow has not got within a few seconds waits for the next start."""
        self._ended = True
        self._uploader.end(status, wait_s=_STOPPED_S)

    def __enter__(self) -> "Artifacts":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any) -> None:
        if fault and not self._ended:
            self.end("FAILED" if isinstance(fault, Exception) else "KILLED")


def _git_commit() -> str:
    """The commit of this code; "unknown" outside a repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # an image without git
        return "unknown"
    return done.stdout.strip() or "unknown"


@contextmanager
def begin_artifacts(
    config: TrainConfig, group: Group, *, same_run: bool, start: Start
) -> Iterator[Artifacts | None]:
    """The artifacts of a run that is trained: rank 0 begins them, the others have None.

    Raises:
        EverywhereError: they are refused; before any rank has trained.
    """
    with ExitStack() as stack:
        artifacts = None
        with collectives.first_rank_decides(group, TrackError, ValueError, store.StoreError):
            if group.rank == 0:
                artifacts = stack.enter_context(Artifacts(config, same_run=same_run, start=start))
        yield artifacts


def publish(artifacts: Artifacts | None, group: Group) -> None:
    """Rank 0 brings the finished run to MLflow, all wait. EverywhereError if MLflow does not take it."""
    with _registering(group):
        if artifacts:
            artifacts.publish()


def deliver(config: TrainConfig, group: Group) -> None:
    """``publish`` of a run that was finished before, of which MLflow does not have all."""
    with _registering(group):
        if group.rank == 0:
            Artifacts(config, same_run=True).publish()


@contextmanager
def _registering(group: Group) -> Iterator[None]:
    with collectives.first_rank_decides(group, TrackError):
        try:
            yield
        except (TrackError, ValueError, store.StoreError) as fault:
            raise TrackError(
                f"the run is finished and its export is in run.dir, but it is not registered: {fault}"
            ) from fault


def export_to_run_dir(config: TrainConfig, state: TrainState, group: Group) -> None:
    """Rank 0 writes the teacher as files to run.dir, and the note that the run is finished; a collective."""
    tensors = pretrained.split_tensors(state.teacher.full_tensors(), keep=group.rank == 0)
    if group.rank == 0:
        pretrained.write(config.run.dir, state.teacher.module, tensors, card=_card(config, state))
        run_status.write_finished(config.run.dir, steps=config.train.steps, delivered=False)


def _params(config: TrainConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """The config by dotted keys. ``data.length`` is the last length, which users of the model need; lengths
    by step are a key of their own."""
    params = configs.flatten(resolved)
    if len(config.data.length) > 1:
        params |= {"data.length": config.data.last_length, "data.length_by_step": params["data.length"]}
    return params


def _mlflow_key(run_dir: str, *, same_run: bool) -> str:
    """The key by which the MLflow run of this run is found again; a new one unless it is the ``same_run``."""
    key = run_status.read_key(run_dir) if same_run else None
    if key is None:
        if store.is_local(run_dir):  # the outbox of another run, which left nothing else here
            shutil.rmtree(store.local_path(run_dir) / run_status.TRACK, ignore_errors=True)
        key = uuid.uuid4().hex
        run_status.write_key(run_dir, key)
    return key


def _outbox_folder(run_dir: str, key: str) -> Path:
    """The local folder in which points wait for MLflow."""
    if store.is_local(run_dir):
        return store.local_path(run_dir) / run_status.TRACK
    return cache_root() / "track" / key


def _card(config: TrainConfig, state: TrainState) -> str:
    """The model card: README.md of the export."""
    losses = ", ".join(f"{name} {weight:g}" for name, weight in config.loss.weights().items())
    first, *later = config.data.length
    lengths = ", ".join(
        [f"{first.length} bp", *(f"from step {part.from_step} on {part.length} bp" for part in later)]
    )
    lines = [
        "---",
        "library_name: dna-distill",
        "tags: [dna, self-distillation]",
        "---",
        f"# {config.run.name}",
        "",
        "DNA encoder pretrained by self-distillation: the teacher (moving average of the student) after "
        f"{state.step} steps of",
        f"{config.train.global_batch} windows of {lengths}. Losses and weights: {losses}. "
        f"Seed {config.run.seed}.",
        "",
        "Input: codes A 0, C 1, G 2, T 3, N 4, MASK 5, CLS 6, PAD 7. `model.safetensors` holds backbone and "
        "nucleotide head,",
        "`heads.safetensors` the projection heads that only pretraining uses. Weights fit the wiring in "
        "`config.json` alone.",
    ]
    return "\n".join(lines) + "\n"
