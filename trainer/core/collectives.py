"""The few collectives that training uses, each over a given process group; a group of one communicates
nothing.

Tensors are what steps exchange. Objects are for the control path: they are pickled, and wait for the device.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.process import compat
from cluster.process.exits import LOST_PEERS, ElsewhereError, EverywhereError, brief
from cluster.process.heartbeat import heartbeat
from configs import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """A process group (None: all processes), this process's rank in it, and its size."""

    rank: int
    size: int
    handle: "dist.ProcessGroup | None" = None

    @classmethod
    def of(cls, handle: "dist.ProcessGroup | None" = None) -> "Group":
        """The group as torch.distributed knows it; of size 1 where torch.distributed is not initialised."""
        if not dist.is_initialized():
            return cls(0, 1)
        return cls(dist.get_rank(handle), dist.get_world_size(handle), handle)


def background_group(group: Group) -> Group:
    """A gloo group of the same processes for threads alone, so that their collectives cannot be mixed with
    those of the steps; a collective."""
    if group.size == 1:
        return group
    ranks = dist.get_process_group_ranks(group.handle or dist.group.WORLD)
    return Group.of(dist.new_group(ranks, backend="gloo", use_local_synchronization=True))


def gather_packed(group: Group, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor of every rank, stacked to [W, ...], in one all-gather of bytes; any dtypes, bit for bit.

    Names, shapes and dtypes must agree over ranks; the order of the names need not.
    """
    tensors = dict(sorted(tensors.items()))
    # Each part begins at a multiple of 8 bytes, so that it can be viewed as its own dtype where it lies.
    parts = [_padded_bytes(tensor) for tensor in tensors.values()]
    flat = torch.cat(parts)
    gathered = flat.new_empty(group.size, flat.numel())
    all_gather_flat(group, gathered.view(-1), flat)
    columns = gathered.split([part.numel() for part in parts], dim=1)
    return {
        name: column[:, : tensor.numel() * tensor.element_size()]
        .contiguous()
        .view(tensor.dtype)
        .view(group.size, *tensor.shape)
        for (name, tensor), column in zip(tensors.items(), columns, strict=True)
    }


def _padded_bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    return torch.nn.functional.pad(flat, (0, -len(flat) % 8))


def all_gather_flat(group: Group, flat: Tensor, shard: Tensor) -> None:
    """Fill ``flat`` [W·n] with every rank's ``shard`` [n], in rank order."""
    if group.size == 1:
        flat.copy_(shard)
    else:
        with heartbeat.inside("all_gather"):
            compat.all_gather(flat, shard, group=group.handle)


class Pending:
    """Collectives that run in the background; their results are complete after ``wait``."""

    def __init__(self, works: Sequence[Any] = ()) -> None:
        self._works = list(works)

    def wait(self) -> None:
        """Return when all are done; at once if they were waited for before."""
        while self._works:
            with heartbeat.inside("the teacher's all_gather"):
                self._works.pop().wait()


def start_all_gather(group: Group, parts: Sequence[tuple[Tensor, Tensor]]) -> Pending:
    """Begin to fill each (flat [W·n], own shard [n]); the own shard may be this rank's part of ``flat``."""
    if group.size == 1:
        for flat, own in parts:
            if flat.data_ptr() != own.data_ptr():
                flat.copy_(own)
        return Pending()
    return Pending([compat.all_gather(flat, own, group=group.handle, async_op=True) for flat, own in parts])


class _Event:
    """All work queued on the current stream of ``device`` so far."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self._event.synchronize()


def written(device: torch.device) -> Pending:
    """Pending until all work that this process has queued on ``device`` is done; for readers on another
    stream."""
    return Pending([_Event(device)] if device.type == "cuda" else ())


def from_first(group: Group, tensor: Tensor) -> Tensor:
    """The first rank's ``tensor``; the argument is left as it was."""
    received = tensor.detach().clone()
    if group.size > 1:
        with heartbeat.inside("broadcast"):
            dist.broadcast(received, group_src=0, group=group.handle)
    return received


def sum_over_ranks(group: Group, tensor: Tensor) -> Tensor:
    """The sum of every rank's ``tensor``, in its own dtype; the argument is left as it was."""
    total = tensor.clone()
    if group.size > 1:
        with heartbeat.inside("all_reduce"):
            dist.all_reduce(total, group=group.handle)
    return total


def gather_rows(group: Group, rows: Tensor) -> Tensor:
    """Rows [n, D] of every rank, in rank order, where n may differ by rank."""
    if group.size == 1:
        return rows
    counts = torch.zeros(group.size, dtype=torch.int64, device=rows.device)
    counts[group.rank] = len(rows)
    counts = sum_over_ranks(group, counts)
    widest = int(counts.max())
    padded = rows.new_zeros(widest, rows.shape[1])
    padded[: len(rows)] = rows
    gathered = rows.new_empty(group.size * widest, rows.shape[1])
    all_gather_flat(group, gathered.view(-1), padded.view(-1))
    return torch.cat([gathered[rank * widest :][: int(count)] for rank, count in enumerate(counts)])


def object_from_first(group: Group, value: T) -> T:
    """The first rank's ``value``, which can be pickled; that of the others is ignored."""
    if group.size == 1:
        return value
    values = [value]
    with heartbeat.inside("broadcast"):
        dist.broadcast_object_list(values, group_src=0, group=group.handle)
    return values[0]


def gather_objects(group: Group, value: T) -> list[T]:
    """Every rank's ``value``, which can be pickled, in rank order."""
    values = [value] * group.size
    if group.size > 1:
        with heartbeat.inside("all_gather"):
            dist.all_gather_object(values, value, group=group.handle)
    return values


def raise_together(group: Group, fault: str | Exception | None) -> None:
    """End all ranks if any of them has a ``fault``; a collective.

    Raises:
        ValueError, or ``fault`` itself where it is an exception: on the ranks that have one; if all have one,
            on the first rank only.
        ElsewhereError: on the other ranks.
    """
    faults = sum(gather_objects(group, fault is not None))
    if fault is not None and (group.rank == 0 or faults < group.size):
        raise fault if isinstance(fault, Exception) else ValueError(fault)
    if faults:
        raise ElsewhereError(str(fault or "") or f"{faults} of the other ranks cannot go on, and say why")


@contextmanager
def together(group: Group) -> Iterator[None]:
    """The block, which has no collective in it, ends on all ranks if it fails on any: see
    ``raise_together``."""
    fault = None
    try:
        yield
    except (ValueError, OSError, RuntimeError) as caught:
        fault = caught
    raise_together(group, fault)


@dataclass(frozen=True)
class _Refusal:
    """Why the first rank cannot go on. ``usage``: because the command line or the config is wrong."""

    reason: str
    usage: bool


@contextmanager
def first_rank_decides(group: Group, *faults: type[Exception]) -> Iterator[None]:
    """The block, in which only the first rank does anything, ends all ranks if one of ``faults`` ends it.

    A collective; the block has none in it.

    Raises:
        ConfigError: on all ranks, where the first had one. EverywhereError: on all ranks, for other faults.
    """
    refusal = cause = None
    try:
        yield
    except faults as fault:
        refusal, cause = _Refusal(str(fault), usage=isinstance(fault, ConfigError)), fault
    if refusal := object_from_first(group, refusal):
        raise (ConfigError if refusal.usage else EverywhereError)(refusal.reason) from cause


def lost_peers(fault: BaseException) -> str | None:
    """A sentence, if ``fault`` means that other ranks are gone or do not answer; None for any other."""
    text = str(fault)
    gloo = "gloo" in text and any(word in text for word in ("onnection", "imed out", "Broken pipe"))
    if not (gloo or isinstance(fault, dist.DistError)):
        return None
    return f"{LOST_PEERS} in {heartbeat.read().describe()}: {brief(text)}"
