"""A run's state at the end of a step, as tensors by name: copied while the step waits, and put back.

A rank has fragments of the teacher and of the student's masters and moments, named KIND/PARAMETER; what all
ranks have alike (centres, buffers, ids of skipped samples, skipped blocks) is rank 0's to write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine import partition
from trainer.engine.engine import Engine
from trainer.engine.optimizer_state import KINDS
from trainer.engine.partition import FlatGroup
from trainer.run.train_state import TrainState

TEACHER = "teacher"
_BLOCKS = "skipped_blocks"


class Snapshot:
    """A copy in memory of this rank's part of the state, in buffers that each ``take`` overwrites."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._groups = engine.flat_groups()
        pinned = engine.device.type == "cuda"
        self._buffers: dict[str, list[Tensor]] = {}
        for kind in (TEACHER, *KINDS):
            shards = [
                flat_group.empty_shard(engine.group, device=torch.device("cpu"))
                for flat_group in self._groups
            ]
            self._buffers[kind] = [shard.pin_memory() if pinned else shard for shard in shards]

    @torch.no_grad()
    def take(self, state: TrainState) -> None:
        """Copy the state as it is now, over the copy before."""
        for shard, buffer in zip(state.teacher.shards, self._buffers[TEACHER], strict=True):
            buffer.copy_(shard, non_blocking=True)
        for kind in KINDS:
            for flat_group, buffer in zip(self._groups, self._buffers[kind], strict=True):
                self._engine.optimizer_state.copy(kind, flat_group, buffer)
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)

    def tensors(self) -> dict[str, Tensor]:
        """KIND/PARAMETER -> this rank's entries of it; views."""
        return {
            f"{kind}/{name}": part
            for kind, shards in self._buffers.items()
            for name, [(_, part)] in partition.fragments_of(shards, self._groups, self._engine.group).items()
        }

    def places(self, rank: int) -> dict[str, tuple[int, int]]:
        """PARAMETER -> (first entry, entries) that ``rank`` has of it."""
        of_rank = Group(rank, self._engine.group.size)
        return {
            piece.name: (piece.at, piece.length)
            for flat_group in self._groups
            for piece in flat_group.pieces(of_rank)
        }


def shared(state: TrainState, engine: Engine) -> dict[str, Tensor]:
    """What all ranks have alike, copied to the CPU; a collective where steps or blocks are being skipped."""
    tensors = {f"centre/{name}": centre for name, centre in state.centres.items()}
    if state.read_centre_PK is not None:
        tensors["read_centre"] = state.read_centre_PK
    tensors |= {f"buffer/{name}": buffer for name, buffer in engine.network.named_buffers()}
    if state.skipped_ids:
        own = {str(step): ids_B4.to(engine.device) for step, (_, ids_B4) in state.skipped_ids.items()}
        everywhere = collectives.gather_packed(engine.group, own)
        tensors |= {f"skipped/{step}": in_order(ids_WB4) for step, ids_WB4 in everywhere.items()}
    if state.skipped_blocks is not None:
        blocks_N3 = state.skipped_blocks.everywhere(engine.group, device=engine.device)
        tensors |= {_BLOCKS: blocks_N3} if len(blocks_N3) else {}
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def in_order(rows_WB: Tensor) -> Tensor:
    """Rows of all ranks in the order of the global batch, of which row b of rank r is sample b·W + r."""
    return rows_WB.transpose(0, 1).flatten(0, 1)


@dataclass(frozen=True)
class Needs:
    """What this rank reads on a resume: shards of the teacher, and of the student (under ZeRO-0 all of
    it)."""

    teacher: tuple[Sequence[FlatGroup], Group]
    student: tuple[Sequence[FlatGroup], Group]

    @classmethod
    def of(cls, engine: Engine) -> "Needs":
        return cls((engine.flat_groups(), engine.group), engine.optimizer_state.groups())

    def ranges(self) -> dict[str, list[tuple[int, int]]]:
        """PARAMETER -> [(first entry, entries)] that this rank needs of some kind; empty if it needs none."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        for groups, group in (self.teacher, self.student):
            for flat_group in groups:
                for name in flat_group.slots:
                    ranges.setdefault(name, [])
                for piece in flat_group.pieces(group):
                    ranges[piece.name].append((piece.at, piece.length))
        return ranges


def restore_shards(
    saved: Mapping[str, partition.Fragments], needs: Needs, engine: Engine, state: TrainState, *, applied: int
) -> None:
    """Teacher, masters and moments from ``saved`` [kind]; a collective.

    Raises:
        ValueError: on all ranks, before anything has changed, if a fragment does not fit or entries are
        missing.
    """
    groups, group = needs.student
    shards = {
        kind: [flat_group.empty_shard(group, device=torch.device("cpu")) for flat_group in groups]
        for kind in KINDS
    }
    fault = None
    for kind in KINDS:
        fault = fault or partition.fill_shards(shards[kind], groups, saved[kind], group, what=kind)
    collectives.raise_together(engine.group, fault)
    state.teacher.load(saved[TEACHER])
    engine.optimizer_state.load(shards, applied=applied)


def restore_shared(tensors: Mapping[str, Tensor], engine: Engine, state: TrainState) -> None:
    """Centres, buffers, the ids of skipped samples, and skipped blocks, which older checkpoints do not have.

    Raises:
        ValueError: the run has other centres or buffers than those that were saved.
    """
    group, device = engine.group, engine.device
    buffers = dict(engine.network.named_buffers())
    expected = {f"centre/{name}": centre for name, centre in state.centres.items()}
    expected |= {f"buffer/{name}": buffer for name, buffer in buffers.items()}
    saved = {name: tensor for name, tensor in tensors.items() if name.startswith(("centre/", "buffer/"))}
    differing = sorted(
        name
        for name in expected.keys() | saved.keys()
        if name not in expected or name not in saved or expected[name].shape != saved[name].shape
    )
    if differing:
        raise ValueError(f"the saved run has other centres or buffers than this one: {', '.join(differing)}")
    for name, buffer in buffers.items():
        buffer.copy_(saved[f"buffer/{name}"])
    state.centres = {name: saved[f"centre/{name}"].to(device) for name in state.centres}
    read_centre = tensors.get("read_centre")
    state.read_centre_PK = None if read_centre is None else read_centre.to(device)
    state.skipped_ids = {
        int(name.removeprefix("skipped/")): ({}, tensors[name][group.rank :: group.size])
        for name in sorted(tensors)
        if name.startswith("skipped/")
    }
    if state.skipped_blocks is not None:
        state.skipped_blocks.restore(tensors.get(_BLOCKS, torch.empty(0, 3, dtype=torch.int64)))
