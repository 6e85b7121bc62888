"""The contrastive losses for a global batch that no rank could hold: keys travel from rank to rank.

W - 1 times each rank passes the keys that it reads on to the next, with their ids; two ranks' keys are held
at a time. For two views a second round follows, on which the rows' softmax travels along. Point to point and
in the forward alone: gradients are ready when it ends. Ranks must have the same number of rows. Formulas and
notation in contrastive.py.

Shapes: B rows of each rank, E embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.core.collectives import Group
from trainer.data.locus import Loci
from trainer.losses.streaming_softmax import Rows, both_ways, one_way, wants_gradient, with_gradients


@dataclass(frozen=True)
class RingContrast:
    """B local queries and B local keys; the positive of a query is the key of its row."""

    query_BE: Tensor  # the student's unit vectors
    key_BE: Tensor  # the teacher's unit vectors, no gradient
    scale: Tensor  # 0-d fp32, the inverse temperature
    group: Group
    rows_total: int  # queries of the global batch, all views
    locus_B: Loci | None = None  # where given, on every rank, keys of the query's place are no negatives
    block: int | None = None  # keys at once, in whole 64s; None: what suits the device


@dataclass(frozen=True)
class RingSymmetricContrast:
    """Two views of the B rows of this rank."""

    first_BE: Tensor  # the student's unit vectors of one view
    second_BE: Tensor  # and of the other
    scale: Tensor  # 0-d fp32, the inverse temperature
    group: Group
    rows_total: int  # rows of the global batch
    locus_B: Loci | None = None  # where given, on every rank, rows of the same place are no negatives
    block: int | None = None  # keys at once, in whole 64s; None: what suits the device


def ring_info_nce(contrast: RingContrast) -> Tensor:
    """``contrastive.info_nce`` of all ranks' rows, without ever gathering them: this rank's share."""
    query_BE, key_BE = contrast.query_BE.float(), contrast.key_BE.detach().float()
    own_B = torch.arange(len(query_BE), device=query_BE.device)
    weigh = wants_gradient(query_BE, contrast.scale)
    with torch.no_grad(), torch.autocast(query_BE.device.type, enabled=False):
        rows = Rows(query_BE, contrast.scale, block=contrast.block, weigh=weigh)
        for hop, (keys_BE, *places) in enumerate(
            around(contrast.group, [key_BE, *_places(contrast.locus_B)])
        ):
            rows.read(keys_BE, own_B if hop == 0 else None, contrast.locus_B, *map(Loci, places))
        loss, gradients = one_way(rows, key_BE, contrast.rows_total)
    return with_gradients(loss, [query_BE, contrast.scale], gradients)


def ring_symmetric_info_nce(contrast: RingSymmetricContrast) -> Tensor:
    """``contrastive.symmetric_info_nce`` of all ranks' rows, without ever gathering them: this rank's
    share."""
    first_BE, second_BE, locus_B = contrast.first_BE.float(), contrast.second_BE.float(), contrast.locus_B
    own_B = torch.arange(len(first_BE), device=first_BE.device)
    weigh = wants_gradient(first_BE, second_BE, contrast.scale)
    with torch.no_grad(), torch.autocast(first_BE.device.type, enabled=False):
        sides = [Rows(view_BE, contrast.scale, block=contrast.block) for view_BE in (first_BE, second_BE)]
        parts = [first_BE.detach(), second_BE.detach(), *_places(locus_B)]
        for hop, (firsts_BE, seconds_BE, *places) in enumerate(around(contrast.group, parts)):
            own, loci = own_B if hop == 0 else None, tuple(map(Loci, places))
            sides[0].read(seconds_BE, own, locus_B, *loci)
            sides[1].read(firsts_BE, own, locus_B, *loci)
        if weigh:
            parts = [*parts[:2], *(side.softmax() for side in sides), *parts[2:]]
            passing = enumerate(around(contrast.group, parts))
            for hop, (firsts_BE, seconds_BE, firsts_B2, seconds_B2, *places) in passing:
                own, loci = own_B if hop == 0 else None, tuple(map(Loci, places))
                sides[0].read_both_ways(seconds_BE, seconds_B2, own, locus_B, *loci)
                sides[1].read_both_ways(firsts_BE, firsts_B2, own, locus_B, *loci)
        loss, gradients = both_ways(sides, [parts[1], parts[0]], contrast.rows_total)
    return with_gradients(loss, [first_BE, second_BE, contrast.scale], gradients)


def _places(locus_B: Loci | None) -> list[Tensor]:
    return [] if locus_B is None else [locus_B.place_N4]


def around(group: Group, parts: list[Tensor]) -> Iterator[list[Tensor]]:
    """This rank's tensors, then those of the rank before it, and so on through all; shapes must agree over
    ranks.

    The next are under way while the ones given out are read, which must not be changed.
    """
    parts = [part.contiguous() for part in parts]
    for left in reversed(range(group.size)):
        if not left:
            yield parts
            return
        arriving, transfers = pass_around(group, parts)
        yield parts
        for transfer in transfers:
            transfer.wait()
        parts = arriving


def pass_around(group: Group, parts: list[Tensor]) -> tuple[list[Tensor], list[dist.Work]]:
    """(buffers for the previous rank's tensors, transfers to wait for); the given, contiguous, go to the next
    rank."""
    received = [torch.empty_like(part) for part in parts]
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    operations = [
        dist.P2POp(function, part, group=group.handle, group_peer=peer, tag=i)
        for function, peer, tensors in ((dist.isend, after, parts), (dist.irecv, before, received))
        for i, part in enumerate(tensors)
    ]
    return received, dist.batch_isend_irecv(operations)
