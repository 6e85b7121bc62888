"""Checkpoints written in the background: the step waits for a copy in memory, a thread of every rank does the
rest.

A checkpoint is staged and hashed; all ranks report; rank 0 writes the manifest, renames the folder and points
latest.json to it. The threads have a process group of their own, so that their collectives cannot be mixed
with those of the steps.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from torch import Tensor

import configs
from cluster.process.exits import ElsewhereError
from cluster.process.heartbeat import heartbeat
from cluster.storage import store
from configs import redact
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine.engine import Engine
from trainer.run.checkpoint import files, manifests
from trainer.run.checkpoint.manifests import File, Manifest
from trainer.run.checkpoint.snapshot import Snapshot, shared
from trainer.run.config import TrainConfig
from trainer.run.train_state import TrainState

T = TypeVar("T")


@dataclass(frozen=True)
class SaveCallbacks:
    """What rank 0 does around the publication of a checkpoint.

    ``metrics``: gives the points that MLflow has not got yet, also those of later steps, b"" where they need
    not be saved with the checkpoint; it is called after ``before``. ``before``: writes to disk what must not
    be older than the checkpoint, and raises if another run holds run.dir; it is called before anything is
    removed or written, and again before the manifest is. ``after``: gets the URI and the sha256 of the
    manifest. ``say``: one line to the user.
    """

    metrics: Callable[[], bytes] = bytes
    before: Callable[[], None] = lambda: None
    after: Callable[[str, str], None] = lambda uri, sha256: None
    say: Callable[[str], None] = print


class Saver:
    """The checkpoints of a run; all ranks call its methods alike."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        *,
        datasets: Mapping[str, str],
        callbacks: SaveCallbacks | None = None,
    ) -> None:
        """``datasets``: as ``resume``'s. ``callbacks``: on rank 0."""
        self._config, self._engine, self._callbacks = config, engine, callbacks or SaveCallbacks()
        self._datasets = manifests.redact_keys(datasets)
        self._group = collectives.background_group(engine.group)
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._failed = 0  # saves in a row
        self.newest = 0

    def save(self, state: TrainState, position: dict[str, Any]) -> float:
        """The seconds that the step waited until the save of ``state`` had begun. ``position``: the reader's.

        Raises:
            RuntimeError: on all ranks, if checkpoint.max_failed saves in a row have failed.
        """
        start = time.perf_counter()
        self.wait()
        if self._snapshot is None:
            self._snapshot = Snapshot(self._engine)
        self._snapshot.take(state)
        common = shared(state, self._engine)
        manifest = self._manifest(state, position)
        self._thread = threading.Thread(target=self._save, args=(manifest, common), daemon=True)
        self._thread.start()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Return when no save is running. RuntimeError as ``save``, or if the other ranks are gone."""
        if self._thread is None:
            return
        with heartbeat.inside("waiting for the checkpoint", phase=True):
            self._thread.join()
        self._thread = None
        fault, self._fault = self._fault, None
        if isinstance(fault, _NotSavedError):
            self._failed += 1
            if self._group.rank == 0:
                self._callbacks.say(f"warning: {fault}; the checkpoint before it stands, and the run goes on")
            if self._failed >= self._config.checkpoint.max_failed:
                raise RuntimeError(
                    f"{fault}; that is {self._failed} checkpoints in a row, so the run ends here and can "
                    "be taken up again from the last one that was saved"
                )
        elif fault is not None:
            raise fault
        else:
            self._failed = 0

    def _manifest(self, state: TrainState, position: dict[str, Any]) -> Manifest:
        return Manifest(
            step=state.step,
            applied=self._engine.optimizer_state.applied,
            world=self._group.size,
            config=configs.dump(self._config),
            datasets=self._datasets,
            wiring=self._engine.network.backbone.wiring_sha256(),
            position=position,
            guard=state.guard.state(),
            skipped=state.skipped,
            skipped_losses={
                str(step): {name: str(loss) for name, loss in losses.items()}
                for step, (losses, _) in state.skipped_ids.items()
            },
            files={},
        )

    def _save(self, manifest: Manifest, common: dict[str, Tensor]) -> None:
        try:
            self._write(manifest, common)
            self.newest = manifest.step
            heartbeat.saved(manifest.step)
        except BaseException as fault:  # raised where the main thread waits for this one
            self._fault = fault

    def _write(self, manifest: Manifest, common: dict[str, Tensor]) -> None:
        run_dir, step = self._config.run.dir, manifest.step
        stage, place = manifests.stage(run_dir, step), manifests.place(run_dir, step)
        group, snapshot = self._group, self._snapshot
        assert snapshot is not None, "a snapshot was taken"

        def clear() -> None:
            if group.rank == 0:
                self._callbacks.before()  # what is there may be another run's by now
                # A save that was killed, or is damaged, must not be mixed with this one, nor fill the disk.
                for uri in {place, *(manifests.partials(run_dir) if stage != place else ())}:
                    store.remove(uri)

        def write_part() -> File:
            name = manifests.rank_file(group.rank, group.size)
            return _put(store.join(stage, name), snapshot.tensors())

        def publish() -> None:
            if group.rank == 0:
                written = {
                    manifests.rank_file(rank, group.size): File(
                        size=part.size, sha256=part.sha256, fragments=snapshot.places(rank)
                    )
                    for rank, part in enumerate(parts)
                }
                written |= _put_shared(stage, common, self._callbacks.metrics())
                self._publish(manifest.model_copy(update={"files": written}), stage, place)

        _on_all(group, clear, step=step)
        try:
            parts = _on_all(group, write_part, step=step)
            _on_all(group, publish, step=step)
        except _NotSavedError:
            if group.rank == 0 and store.is_local(stage):
                with contextlib.suppress(store.StoreError):
                    store.remove(stage)  # for the disk may be full
            raise

    def _publish(self, manifest: Manifest, stage: str, place: str) -> None:
        there = store.sizes(stage)
        if missing := [name for name, file in manifest.files.items() if there.get(name) != file.size]:
            raise store.StoreError(
                f"{redact(stage)} does not show {', '.join(missing[:3])}, which other ranks have "
                "written: all hosts need to see the same run.dir"
            )
        self._callbacks.before()
        data = manifest.to_bytes()
        store.write_bytes(store.join(stage, manifests.MANIFEST), data)
        if stage != place:
            _sync_folder(store.local_path(stage))
            os.rename(store.local_path(stage), store.local_path(place))
            _sync_folder(store.local_path(place).parent)
        try:
            self._announce(manifest.step, place, hashlib.sha256(data).hexdigest())
        except OSError as fault:
            self._callbacks.say(
                f"warning: {fault}; the checkpoint of step {manifest.step} is saved all the same"
            )

    def _announce(self, step: int, place: str, digest: str) -> None:
        """Point to the checkpoint that is published at ``place``, and remove those that are not kept."""
        run_dir, kept = self._config.run.dir, self._config.checkpoint
        pointer = {"format_version": manifests.FORMAT_VERSION, "step": step, "manifest_sha256": digest}
        path = store.join(manifests.folder(run_dir), manifests.POINTER)
        store.write_bytes(path, json.dumps(pointer).encode() + b"\n")
        self._callbacks.after(place, digest)
        for old in manifests.leftovers(
            run_dir, step=step, keep_last=kept.keep_last, keep_every=kept.keep_every
        ):
            store.remove(store.join(old, manifests.MANIFEST))  # first: half of one is not whole
            store.remove(old)


class _NotSavedError(RuntimeError):
    """A store failed; the run can go on."""


@dataclass(frozen=True)
class _Report(Generic[T]):
    """What one rank's work gave. ``unsaved``: a store failed. ``ends``: what went wrong ends the run."""

    value: T | None = None
    unsaved: bool = False
    ends: bool = False


def _on_all(group: Group, work: Callable[[], T], *, step: int) -> list[T]:
    """What ``work`` gave on each rank, on every rank. ``step``: of the checkpoint, for the messages.

    Raises:
        _NotSavedError: on all ranks, if a store failed on any. Whatever else goes wrong is raised on the
        ranks
            that it happened on, and an ElsewhereError on the others.
    """
    value: T | None = None
    fault: Exception | None = None
    try:
        value = work()
    except Exception as caught:
        fault = caught
    unsaved = isinstance(fault, OSError | store.StoreError)
    reports = collectives.gather_objects(
        group, _Report(value, unsaved=unsaved, ends=fault is not None and not unsaved)
    )
    if fault is not None and not unsaved:
        raise fault
    for rank, report in enumerate(reports):
        if report.ends:
            raise ElsewhereError(f"rank {rank} cannot go on, and says why")
    for rank, report in enumerate(reports):
        if report.unsaved:
            reason = fault or f"rank {rank} could not write its part"
            raise _NotSavedError(f"the checkpoint of step {step} is not saved: {reason}")
    return [cast(T, report.value) for report in reports]


def _put(uri: str, tensors: Mapping[str, Tensor]) -> File:
    with store.publish(uri) as file:
        return files.write(file, tensors, lasting=store.is_local(uri))


def _put_shared(stage: str, common: Mapping[str, Tensor], metrics: bytes) -> dict[str, File]:
    """The files that rank 0 writes for all, by name."""
    written = {manifests.SHARED: _put(store.join(stage, manifests.SHARED), common)}
    if metrics:
        store.write_bytes(store.join(stage, manifests.METRICS), metrics)
        written[manifests.METRICS] = File(size=len(metrics), sha256=hashlib.sha256(metrics).hexdigest())
    return written


def _sync_folder(path: Path) -> None:
    """Make sure that the names in ``path`` outlive a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
