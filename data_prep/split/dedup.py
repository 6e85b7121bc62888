"""Blocks that are almost contained in other blocks: near-identical sequence of assemblies, haplotypes,
copies.

Blocks are gone through in an order that depends on content alone: by the sha256 of their file, then by contig
and start. One whose minimisers are to ``min_shared`` in the union of those kept before it is a duplicate; it
is found wherever the cuts between blocks lie. Blocks of a file follow each other, so a file that is almost
another one goes as a whole, and not every second block of both.

Shapes: N blocks, M minimisers of all of them, U different ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_prep.split.block_sets import BlockSets
from data_prep.split.intervals import Span

_FEWEST = 10  # minimisers of a block that can be judged
_NOBODY = -1


@dataclass(frozen=True)
class Alike:
    """``blocks`` of ``assembly``, ``bp`` together, are duplicates, most of them of what ``within`` has."""

    assembly: str
    within: str
    blocks: int
    bp: int


@dataclass(frozen=True)
class Duplicates:
    """``spans``: the duplicates. ``unjudged``: blocks that have too few minimisers."""

    spans: frozenset[Span]
    pairs: tuple[Alike, ...]
    unjudged: int
    sampled: float

    @property
    def bp(self) -> int:
        return sum(pair.bp for pair in self.pairs)


def duplicates(sets: BlockSets, sha256: Mapping[str, str], *, min_shared: float) -> Duplicates:
    """The duplicates among ``sets``; ``sha256``: of the file of each assembly."""
    spans = sets.spans
    names = sorted({span.assembly for span in spans})
    number = {name: i for i, name in enumerate(names)}
    uniques, inverse_M = np.unique(sets.hash_M, return_inverse=True)
    owner_U = np.full(
        len(uniques), _NOBODY, np.int32
    )  # the assembly whose kept block was the first to have it
    del uniques
    ends = np.cumsum(sets.size_N)
    order = sorted(
        range(len(spans)),
        key=lambda i: (sha256[spans[i].assembly], spans[i].contig, spans[i].start, spans[i].assembly),
    )
    found: dict[int, int] = {}
    unjudged = 0
    for i in order:
        own = inverse_M[ends[i] - sets.size_N[i] : ends[i]]
        owners = owner_U[own]
        there = owners[owners != _NOBODY]
        if len(own) < _FEWEST:
            unjudged += 1
        elif len(there) >= min_shared * len(own):
            found[i] = int(np.bincount(there).argmax())
            continue
        owner_U[own[owners == _NOBODY]] = number[spans[i].assembly]
    pairs: dict[tuple[str, str], list[int]] = {}
    for i, within in found.items():
        pairs.setdefault((spans[i].assembly, names[within]), []).append(spans[i].bp)
    return Duplicates(
        frozenset(spans[i] for i in found),
        tuple(Alike(*pair, len(bp), sum(bp)) for pair, bp in sorted(pairs.items())),
        unjudged,
        sets.sampled,
    )
