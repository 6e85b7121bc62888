"""Writing checkpoints behind the steps: a copy in memory while the step waits, the rest in a thread of every
rank.

staged -> hashed -> all ranks report -> manifest -> renamed -> pointed to. The threads talk over a process
group of their own, so that their collectives never meet those of the steps.
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
from typing import Any

import torch
import torch.distributed as dist
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
from trainer.run.train_state import State

_FINE, _NOT_SAVED, _ENDS = 0, 1, 2
_REPORT = 1 + 8 + 32  # one of these, size, sha256


@dataclass(frozen=True)
class Hooks:
    """What rank 0 does around the publication of a checkpoint.

    ``metrics``: the points that are still to be delivered, b"" where they outlive this machine without being
    saved. ``before``: makes lasting what must not be older than the checkpoint, and raises if run.dir is no
    longer ours; it is called before anything is removed or written, and again before the manifest is.
    ``after``: is told the URI and the sha256 of the manifest. ``say``: one line to the user.
    """

    metrics: Callable[[], bytes] = bytes
    before: Callable[[], None] = lambda: None
    after: Callable[[str, str], None] = lambda uri, sha256: None
    say: Callable[[str], None] = print


class Saver:
    """The checkpoints of a run; all ranks call its methods alike."""

    def __init__(
        self, config: TrainConfig, engine: Engine, *, datasets: Mapping[str, str], hooks: Hooks | None = None
    ) -> None:
        """``datasets``: URI -> sha256 of its manifest. ``hooks``: on rank 0."""
        self._config, self._engine, self._hooks = config, engine, hooks or Hooks()
        self._datasets = manifests.redact_keys(datasets)
        self._group = _own_group(engine.group)
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._failed = 0  # saves on end
        self.newest = 0

    def save(self, state: State, position: dict[str, Any]) -> float:
        """Begin to save ``state``, with the reader's ``position``: seconds that the step waited.

        Raises:
            RuntimeError: on all ranks, if checkpoint.max_failed saves on end have failed.
        """
        start = time.perf_counter()
        self.wait()
        if self._snapshot is None:
            self._snapshot = Snapshot(self._engine)
        self._snapshot.take(state)
        common = shared(state, self._engine)
        manifest = self._manifest(state, position)
        metrics = self._hooks.metrics() if self._group.rank == 0 else b""
        self._thread = threading.Thread(target=self._run, args=(manifest, common, metrics), daemon=True)
        self._thread.start()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Come back when no save is under way. RuntimeError as ``save``, or if the other ranks are gone."""
        if self._thread is None:
            return
        with heartbeat.inside("waiting for the checkpoint", phase=True):
            self._thread.join()
        self._thread = None
        fault, self._fault = self._fault, None
        if isinstance(fault, _NotSavedError):
            self._failed += 1
            if self._group.rank == 0:
                self._hooks.say(f"warning: {fault}; the checkpoint before it stands, and the run goes on")
            if self._failed >= self._config.checkpoint.max_failed:
                raise RuntimeError(
                    f"{fault}; that is {self._failed} checkpoints on end, so the run ends here and can "
                    "be taken up again from the last one that was saved"
                )
        elif fault is not None:
            raise fault
        else:
            self._failed = 0

    def _manifest(self, state: State, position: dict[str, Any]) -> Manifest:
        return Manifest(
            step=state.step,
            applied=self._engine.saved.applied,
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

    def _run(self, manifest: Manifest, common: dict[str, Tensor], metrics: bytes) -> None:
        try:
            self._write(manifest, common, metrics)
            self.newest = manifest.step
            heartbeat.saved(manifest.step)
        except BaseException as fault:  # it is told where the main thread waits for this one
            self._fault = fault

    def _write(self, manifest: Manifest, common: dict[str, Tensor], metrics: bytes) -> None:
        run_dir, step, group, snapshot = self._config.run.dir, manifest.step, self._group, self._snapshot
        assert snapshot is not None, "a snapshot was taken"
        stage, place = manifests.stage(run_dir, step), manifests.place(run_dir, step)

        def clear() -> None:
            # A save that was killed, or is damaged, must not be mixed with this one, nor fill the disk.
            self._hooks.before()  # what is there may be another run's by now
            for uri in {place, *(manifests.partials(run_dir) if stage != place else ())}:
                store.remove(uri)

        self._together(step, clear, only_first=True)
        name = manifests.rank_file(group.rank, group.size)
        reports = self._together(step, lambda: _put(store.join(stage, name), snapshot.tensors()), stage=stage)

        def publish() -> None:
            written = {
                manifests.rank_file(rank, group.size): File(
                    size=report.size, sha256=report.sha256, fragments=snapshot.places(rank)
                )
                for rank, report in enumerate(reports)
            }
            written[manifests.SHARED] = _put(store.join(stage, manifests.SHARED), common)
            if metrics:
                store.write_bytes(store.join(stage, manifests.METRICS), metrics)
                written[manifests.METRICS] = File(
                    size=len(metrics), sha256=hashlib.sha256(metrics).hexdigest()
                )
            self._publish(manifest.model_copy(update={"files": written}), stage, place)

        self._together(step, publish, only_first=True, stage=stage)

    def _together(
        self, step: int, work: Callable[[], Any], *, only_first: bool = False, stage: str = ""
    ) -> list[File]:
        """``work``, here or on rank 0 only; the File that each rank's gave (empty where it gave none), on
        every rank.

        If a store failed, what is in a local ``stage`` goes, for the disk may be full.

        Raises:
            _NotSavedError: on all ranks, if a store failed on any. What else goes wrong is raised where it
                did, and an ElsewhereError on the others.
        """
        fault: Exception | None = None
        mine, report = None, torch.zeros(_REPORT, dtype=torch.uint8)
        try:
            mine = work() if self._group.rank == 0 or not only_first else None
        except Exception as caught:
            fault = caught
        code = (
            _FINE if fault is None else _NOT_SAVED if isinstance(fault, OSError | store.StoreError) else _ENDS
        )
        written = mine if isinstance(mine, File) else File(size=0, sha256="0" * 64)
        packed = bytes([code]) + written.size.to_bytes(8, "little") + bytes.fromhex(written.sha256)
        report.copy_(torch.frombuffer(bytearray(packed), dtype=torch.uint8))
        everywhere = collectives.gather_packed(self._group, {"report": report})["report"]
        codes = everywhere[:, 0].tolist()
        if fault is not None and code == _ENDS:
            raise fault
        if _ENDS in codes:
            raise ElsewhereError(f"rank {codes.index(_ENDS)} cannot go on, and says why")
        if _NOT_SAVED in codes:
            rank = self._group.rank if code == _NOT_SAVED else codes.index(_NOT_SAVED)
            reason = fault or f"rank {rank} could not write its part"
            if stage and self._group.rank == 0 and store.is_local(stage):
                with contextlib.suppress(store.StoreError):
                    store.remove(stage)
            raise _NotSavedError(f"the checkpoint of step {step} is not saved: {reason}")
        return [
            File(
                size=int.from_bytes(bytes(row[1:9].tolist()), "little"), sha256=bytes(row[9:].tolist()).hex()
            )
            for row in everywhere
        ]

    def _publish(self, manifest: Manifest, stage: str, place: str) -> None:
        run_dir, kept = self._config.run.dir, self._config.checkpoint
        there = store.sizes(stage)
        if missing := [name for name, file in manifest.files.items() if there.get(name) != file.size]:
            raise store.StoreError(
                f"{redact(stage)} does not show {', '.join(missing[:3])}, which other ranks have "
                "written: all hosts need to see the same run.dir"
            )
        self._hooks.before()
        data = manifest.to_bytes()
        store.write_bytes(store.join(stage, manifests.MANIFEST), data)
        if stage != place:
            _sync_folder(store.local_path(stage))
            os.rename(store.local_path(stage), store.local_path(place))
            _sync_folder(store.local_path(place).parent)
        digest = hashlib.sha256(data).hexdigest()
        pointer = {
            "format_version": manifests.FORMAT_VERSION,
            "step": manifest.step,
            "manifest_sha256": digest,
        }
        try:
            store.write_bytes(
                store.join(manifests.folder(run_dir), manifests.POINTER), json.dumps(pointer).encode() + b"\n"
            )
            self._hooks.after(place, digest)
            for old in manifests.leftovers(
                run_dir, step=manifest.step, keep_last=kept.keep_last, keep_every=kept.keep_every
            ):
                store.remove(store.join(old, manifests.MANIFEST))  # first: half of one is not whole
                store.remove(old)
        except OSError as fault:
            self._hooks.say(f"warning: {fault}; the checkpoint of step {manifest.step} is saved all the same")


class _NotSavedError(RuntimeError):
    """A store failed; the run can go on."""


def _own_group(group: Group) -> Group:
    """A gloo group of the same processes for the threads alone."""
    if group.size == 1:
        return group
    ranks = dist.get_process_group_ranks(group.handle or dist.group.WORLD)
    return Group.of(dist.new_group(ranks, backend="gloo", use_local_synchronization=True))


def _put(uri: str, tensors: Mapping[str, Tensor]) -> File:
    with store.publish(uri) as file:
        return files.write(file, tensors, lasting=store.is_local(uri))


def _sync_folder(path: Path) -> None:
    """Make the names in ``path`` last over a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
