"""Parameters that are partitioned over ranks: where each lies, and how saved parts are put together again.

A fragment is a run of entries of one flattened parameter. Fragments that were saved on any number of ranks
under any ZeRO stage fill the partition of any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.core import collectives
from trainer.core.collectives import Group


class Piece(NamedTuple):
    """``length`` entries of parameter ``name`` from its entry ``at`` on; they begin at ``offset`` of the
    shard."""

    name: str
    at: int
    offset: int
    length: int


@dataclass(frozen=True)
class FlatGroup:
    """One or more parameters as one flat vector of ``numel`` entries, of which each of W ranks has 1/W.

    ``slots``: name -> (offset in the flat vector, shape). ``masters``: (offset in this rank's partition, 1-D
    tensor), the student's masters. They cover the partition except for padding; at least one, which may be
    empty.
    """

    numel: int
    slots: dict[str, tuple[int, torch.Size]]
    masters: list[tuple[int, Tensor]]

    def pieces(self, group: Group) -> Iterator[Piece]:
        """The part of each parameter that lies in this rank's partition; padding belongs to none."""
        size = self.numel // group.size
        start = group.rank * size
        for name, (offset, shape) in self.slots.items():
            low, high = max(offset, start), min(offset + shape.numel(), start + size)
            if low < high:
                yield Piece(name, low - offset, low - start, high - low)

    def empty_shard(self, group: Group, *, device: torch.device | None = None) -> Tensor:
        """fp32 zeros, one for each entry of this rank's partition; by default on the masters' device."""
        return self.masters[0][1].new_zeros(self.numel // group.size, dtype=torch.float32, device=device)

    def master_pieces(self, group: Group) -> Iterator[tuple[str, int, Tensor]]:
        """(name, first entry, this rank's masters of it from there on), views that cover all but padding."""
        for piece in self.pieces(group):
            for offset, master in self.masters:
                low = max(piece.offset, offset)
                high = min(piece.offset + piece.length, offset + master.numel())
                if low < high:
                    yield piece.name, piece.at + low - piece.offset, master[low - offset : high - offset]

    def shard(self, group: Group) -> Tensor:
        """fp32, a copy of this rank's partition: the masters as they are now, zeros at padding."""
        shard = self.empty_shard(group)
        for offset, master in self.masters:
            shard[offset : offset + master.numel()] = master.detach()
        return shard


Fragments = Mapping[str, Sequence[tuple[int, Tensor]]]
"""name -> [(first entry, fp32 1-D tensor)]: parts of flattened parameters, from any number of ranks."""


def even_partition(masters: Mapping[str, Tensor], group: Group) -> FlatGroup:
    """The group of ``masters`` that every rank keeps whole: their concatenation, cut into equal parts."""
    size = -(-sum(master.numel() for master in masters.values()) // group.size)
    start = group.rank * size
    slots: dict[str, tuple[int, torch.Size]] = {}
    offset = 0
    # An empty one, so that a rank that has padding alone still knows the device.
    pieces = [(0, next(iter(masters.values())).view(-1)[:0])]
    for name, master in masters.items():
        slots[name] = (offset, master.shape)
        low, high = max(offset, start), min(offset + master.numel(), start + size)
        if low < high:
            pieces.append((low - start, master.view(-1)[low - offset : high - offset]))
        offset += master.numel()
    return FlatGroup(size * group.size, slots, pieces)


def shapes_of(groups: Sequence[FlatGroup]) -> dict[str, torch.Size]:
    """The shape of every parameter."""
    return {name: shape for flat_group in groups for name, (_, shape) in flat_group.slots.items()}


def whole_tensors(
    shards: Sequence[Tensor],
    groups: Sequence[FlatGroup],
    group: Group,
    *,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter, one whole fp32 tensor at a time, on every rank.

    A collective: all ranks must exhaust it. ``names``: all parameters in the order to take, by default that
    of the groups.
    """
    mine = {
        piece.name: shard[piece.offset : piece.offset + piece.length].view(torch.int32)
        for shard, flat_group in zip(shards, groups, strict=True)
        for piece in flat_group.pieces(group)
    }
    begins = {piece.name: piece.at for flat_group in groups for piece in flat_group.pieces(group)}
    shapes, device = shapes_of(groups), shards[0].device
    for name in shapes if names is None else names:
        # Bits are summed as integers: of each, all ranks but one have zeros, so that the sum is exact, signed
        # zeros too.
        bits = torch.zeros(shapes[name].numel(), dtype=torch.int32, device=device)
        if name in mine:
            bits[begins[name] : begins[name] + len(mine[name])] = mine[name]
        yield name, collectives.sum_over_ranks(group, bits).view(torch.float32).view(shapes[name])


def fragments_of(
    shards: Sequence[Tensor], groups: Sequence[FlatGroup], group: Group
) -> dict[str, list[tuple[int, Tensor]]]:
    """This rank's fragments, views into its ``shards`` (one for each of ``groups``), without padding."""
    return {
        piece.name: [(piece.at, shard[piece.offset : piece.offset + piece.length])]
        for shard, flat_group in zip(shards, groups, strict=True)
        for piece in flat_group.pieces(group)
    }


def fill_shards(
    shards: Sequence[Tensor],
    groups: Sequence[FlatGroup],
    saved: Fragments,
    group: Group,
    *,
    what: str = "teacher",
) -> str | None:
    """Write the entries of this rank's partition from ``saved`` to ``shards``; return a fault as a sentence.

    Entries may be given twice, with the same bits, and there may be more than this rank needs. ``what``: what
    the sentence calls the saved tensors.
    """
    fault = _invalid(saved, groups, what)
    for shard, flat_group in zip(shards, groups, strict=True):
        for piece in flat_group.pieces(group):
            part = shard[piece.offset : piece.offset + piece.length]
            fault = fault or _fill_piece(part, piece, saved.get(piece.name, ()), what)
    return fault


def check_cover(wanted: Mapping[str, torch.Size], groups: Sequence[FlatGroup]) -> None:
    """ValueError if ``groups`` do not have each of the ``wanted`` parameters once, by name and shape."""
    given: dict[str, torch.Size] = {}
    for flat_group in groups:
        for name, (_, shape) in flat_group.slots.items():
            if name in given:
                raise ValueError(f"parameter {name} stands in two optimiser groups")
            given[name] = shape
    if wanted != given:
        wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise ValueError(f"network and optimiser differ in {len(wrong)} parameters: {', '.join(wrong[:5])}")


def _invalid(saved: Fragments, groups: Sequence[FlatGroup], what: str) -> str | None:
    """The first fragment that cannot be part of ``groups``, as a sentence; None if all can."""
    entries = {name: shape.numel() for flat_group in groups for name, (_, shape) in flat_group.slots.items()}
    if unknown := sorted(saved.keys() - entries.keys()):
        return (
            f"the saved {what} has {len(unknown)} parameters that this one has not: "
            f"{', '.join(unknown[:5])}; build "
            "the network that it was saved from"
        )
    for name, fragments in saved.items():
        for start, values in fragments:
            if values.dtype != torch.float32 or values.ndim != 1:
                return (
                    f"the saved {what} has {name} from {start} on as {values.dtype} of shape "
                    f"{tuple(values.shape)}; give it as torch.float32 with one dimension"
                )
            if start < 0 or start + values.numel() > entries[name]:
                return (
                    f"the saved {what} has entries {start} to {start + values.numel()} of {name}, which has "
                    f"0 to {entries[name]} here; build the network that it was saved from"
                )
    return None


def _fill_piece(part: Tensor, piece: Piece, fragments: Sequence[tuple[int, Tensor]], what: str) -> str | None:
    """Write the entries of ``piece`` from ``fragments`` to its ``part`` of the shard; return a fault as a
    sentence."""
    bits, filled = part.view(torch.int32), torch.zeros_like(part, dtype=torch.bool)
    for start, values in fragments:
        low, high = max(start, piece.at), min(start + values.numel(), piece.at + piece.length)
        if low < high:
            place = slice(low - piece.at, high - piece.at)
            given = values[low - start : high - start].to(part.device).view(torch.int32)
            if differing := int((filled[place] & (bits[place] != given)).sum()):
                return (
                    f"the saved {what} has two values for {differing} entries of {piece.name} within {low} "
                    f"to {high}; load the fragments of one save"
                )
            bits[place], filled[place] = given, True
    if missing := piece.length - int(filled.sum()):
        return (
            f"the saved {what} lacks {missing} of {piece.length} entries of {piece.name} from {piece.at} on; "
            "load the fragments of every rank that saved"
        )
    return None


def no_memory(
    like: Tensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """A tensor of the same shape (and dtype and device, unless given) that takes one entry of memory."""
    return torch.zeros((), dtype=dtype or like.dtype, device=device or like.device).expand(like.shape)
