"""The few collectives that training uses, each over a given process group; a group of one communicates
nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.process import compat
from cluster.process.exits import LOST_PEERS, ElsewhereError, brief
from cluster.process.heartbeat import heartbeat


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
    """Collectives that are under way; their results are there after ``wait``."""

    def __init__(self, works: Sequence[Any] = ()) -> None:
        self._works = list(works)

    def wait(self) -> None:
        """Come back when all are done; at once if they were waited for before."""
        while self._works:
            with heartbeat.inside("the teacher's all_gather"):
                self._works.pop().wait()


def start_all_gather(group: Group, parts: Sequence[tuple[Tensor, Tensor]]) -> Pending:
    """Begin to fill each (flat [W·n], own shard [n]); ``own`` may be this rank's part of ``flat`` itself."""
    if group.size == 1:
        for flat, own in parts:
            if flat.data_ptr() != own.data_ptr():
                flat.copy_(own)
        return Pending()
    return Pending([compat.all_gather(flat, own, group=group.handle, async_op=True) for flat, own in parts])


class _Event:
    """What the current stream of ``device`` has been given so far."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self._event.synchronize()


def written(device: torch.device) -> Pending:
    """Pending until all that this process has asked of ``device`` is done, for those who read on another
    stream."""
    return Pending([_Event(device)] if device.type == "cuda" else ())


def from_first(group: Group, tensor: Tensor) -> Tensor:
    """The first rank's ``tensor``; the argument is left as it was."""
    received = tensor.detach().clone()
    if group.size > 1:
        with heartbeat.inside("broadcast"):
            dist.broadcast(received, group_src=0, group=group.handle)
    return received


def text_from_first(group: Group, text: str, *, device: torch.device) -> str:
    """The first rank's ``text``; what others give is not looked at."""
    if group.size == 1:
        return text
    data = (
        torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        if text
        else torch.empty(0, dtype=torch.uint8)
    )
    size = int(from_first(group, torch.tensor(len(data), device=device)))
    if not size:
        return ""
    mine = data.to(device) if group.rank == 0 else torch.empty(size, dtype=torch.uint8, device=device)
    return from_first(group, mine).cpu().numpy().tobytes().decode()


def sum_over_ranks(group: Group, tensor: Tensor) -> Tensor:
    """The sum of every rank's ``tensor``, in its own dtype; the argument is left as it was."""
    total = tensor.clone()
    if group.size > 1:
        with heartbeat.inside("all_reduce"):
            dist.all_reduce(total, group=group.handle)
    return total


def raise_together(group: Group, fault: str | Exception | None, *, device: torch.device) -> None:
    """If any rank has a ``fault``: it, or a ValueError of it, there (on the first rank, if all have one), on
    the others ElsewhereError.

    A collective.
    """
    faults = int(sum_over_ranks(group, torch.tensor(int(fault is not None), device=device)))
    if fault is not None and (group.rank == 0 or faults < group.size):
        raise fault if isinstance(fault, Exception) else ValueError(fault)
    if faults:
        raise ElsewhereError(str(fault or "") or f"{faults} of the other ranks cannot go on, and say why")


@contextmanager
def together(group: Group, *, device: torch.device) -> Iterator[None]:
    """What the block, which has no collective in it, raises on any rank ends all, as ``raise_together`` has
    it."""
    fault = None
    try:
        yield
    except (ValueError, OSError, RuntimeError) as caught:
        fault = caught
    raise_together(group, fault, device=device)


def lost_peers(fault: BaseException) -> str | None:
    """A sentence, if ``fault`` means that other ranks are gone or do not answer; None for any other."""
    text = str(fault)
    gloo = "gloo" in text and any(word in text for word in ("onnection", "imed out", "Broken pipe"))
    if not (gloo or isinstance(fault, dist.DistError)):
        return None
    return f"{LOST_PEERS} in {heartbeat.read().describe()}: {brief(text)}"


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
