"""Exports: the teacher of a step as a folder of files, written while the training goes on.

At a due step every rank copies its shards of the teacher in memory; that is all that the step waits for. A
thread of every rank brings one whole tensor after the other to the first rank, which writes it. The bytes are
the same on any number of ranks and under any ZeRO stage.

An export lies in run.dir/exports/step-N until MLflow has it as a version. Its weights are written last, so
that it is whole if they are there; then it is not written again, also when its step is.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from cluster.process.heartbeat import heartbeat
from cluster.storage import store
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.engine import partition
from trainer.engine.engine import Engine
from trainer.evaluation.encoder_pyfunc import write_encoder_mlmodel
from trainer.models import pretrained
from trainer.run import run_status
from trainer.run.config import TrainConfig
from trainer.run.run_card import RunCard
from trainer.run.train_state import TrainState

_STEP = re.compile(r"step-(\d{8})")


def place(run_dir: str, step: int) -> str:
    """Where the export of ``step`` waits for MLflow."""
    return store.join(run_dir, run_status.EXPORTS, f"step-{step:08d}")


def waiting(run_dir: str) -> list[int]:
    """The steps of all whole exports that wait for MLflow, in order. StoreError if they cannot be listed."""
    names = (name.split("/") for name in store.list_files(store.join(run_dir, run_status.EXPORTS)))
    return sorted(
        int(found[1])
        for name in names
        if name[1:] == [pretrained.WEIGHTS] and (found := _STEP.fullmatch(name[0]))
    )


def remove_empty(run_dir: str) -> None:
    """Remove the folder of exports once nothing waits there; only when no export is being written."""
    if store.is_local(run_dir):
        with suppress(OSError):  # something waits
            (store.local_path(run_dir) / run_status.EXPORTS).rmdir()


def fetch(run_dir: str, step: int, folder: Path) -> bool:
    """The export of ``step`` that waits for MLflow as an MLflow model in a local ``folder``; False if there
    is none."""
    uri = place(run_dir, step)
    if not store.exists(store.join(uri, pretrained.WEIGHTS)):
        return False
    pretrained.copy(uri, str(folder))
    write_encoder_mlmodel(folder)
    return True


class Exporter:
    """The exports of a run; all ranks call its methods alike."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        *,
        exported: Callable[[int], None] | None = None,
        card: RunCard | None = None,
    ) -> None:
        """``exported``: called on rank 0 with the step of each export, once it is whole. ``card``: of what
        rank 0 writes; by default with what the config says."""
        self._config, self._engine = config, engine
        self._card = card or RunCard(config, engine.network)
        self._exported = exported or (lambda step: None)
        self._group: Group | None = None
        self._buffers: list[Tensor] = []
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def begin(self, state: TrainState) -> float:
        """The seconds that the step waited until the export of ``state`` had begun; a collective."""
        start = time.perf_counter()
        self.wait()
        self._begin(state, self._exported)
        return time.perf_counter() - start

    def wait(self) -> None:
        """Return when no export is running. One that a store refused is warned of, and the run goes on.

        Raises: whatever else went wrong in it, such as that the other ranks are gone.
        """
        try:
            self._join()
        except (store.StoreError, OSError) as fault:
            say(f"warning: {fault}; this step gives no version, and the run goes on")

    def written(self) -> None:
        """Return when no export is running, from any thread; ``wait`` reports how it ended."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def finish(self, state: TrainState) -> None:
        """Export ``state`` as the run's last one, also to run.dir itself; a collective.

        Raises:
            EverywhereError: a store refuses it.
        """
        run_dir, step = self._config.run.dir, state.step
        self.wait()
        self._begin(state, lambda step: None)
        with collectives.first_rank_decides(self._engine.group, store.StoreError, OSError):
            self._join()
            if self._engine.group.rank == 0:
                pretrained.copy(place(run_dir, step), run_dir)
                run_status.write_finished(run_dir, steps=step, delivered=False)
                self._exported(step)

    @torch.no_grad()
    def _begin(self, state: TrainState, done: Callable[[int], None]) -> None:
        engine, teacher = self._engine, state.teacher
        if self._group is None:
            self._group = collectives.background_group(engine.group)
            cpu, pinned = torch.device("cpu"), engine.device.type == "cuda"
            shards = [part.empty_shard(engine.group, device=cpu) for part in teacher.groups]
            self._buffers = [shard.pin_memory() if pinned else shard for shard in shards]
        for buffer, shard in zip(self._buffers, teacher.shards, strict=True):
            buffer.copy_(shard, non_blocking=True)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        card = self._card.at(state.step) if engine.group.rank == 0 else ""
        arguments = (state.step, card, teacher.groups, self._group, done)
        thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        thread.start()
        self._thread = thread  # only now: another thread may join it

    def _join(self) -> None:
        if self._thread is None:
            return
        with heartbeat.inside("waiting for the export", phase=True):
            self._thread.join()
        self._thread = None
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _run(
        self,
        step: int,
        card: str,
        groups: list[partition.FlatGroup],
        group: Group,
        done: Callable[[int], None],
    ) -> None:
        try:
            self._write(step, card, groups, group)
            if group.rank == 0:
                done(step)
        except BaseException as fault:  # raised where the main thread waits for this one
            self._fault = fault

    def _write(self, step: int, card: str, groups: list[partition.FlatGroup], group: Group) -> None:
        run_dir = self._config.run.dir
        uri, network, fault = place(run_dir, step), self._engine.network, None
        there = True
        if group.rank == 0:
            try:
                there = store.exists(store.join(uri, pretrained.WEIGHTS))
            except store.StoreError as caught:
                fault = caught
        if not collectives.object_from_first(group, there):
            shapes = partition.shapes_of(groups)
            names = pretrained.in_order(shapes)
            tensors = _with_progress(partition.whole_tensors(self._buffers, groups, group, names=names))
            try:
                if group.rank == 0:
                    pretrained.write_stream(uri, network, shapes, tensors, card=card)
            except (store.StoreError, OSError):
                if store.is_local(uri):
                    with suppress(store.StoreError):
                        store.remove(uri)  # for the disk may be full
                raise
            finally:
                for _ in tensors:  # the other ranks send them all the same
                    pass
        if fault is not None:
            raise fault


def _with_progress(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for each in tensors:
        heartbeat.advance()
        yield each
