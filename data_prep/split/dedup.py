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
from itertools import groupby

import numpy as np

from data_prep.split.block_sets import BlockSets
from data_prep.split.intervals import Span

_FEWEST = 10  # minimisers of a block that can be judged


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
    uniques, inverse_M = np.unique(sets.hash_M, return_inverse=True)
    kept_U = np.zeros(len(uniques), np.bool_)  # whether a kept block has it
    del uniques
    ends = np.cumsum(sets.size_N)
    order = sorted(
        range(len(spans)),
        key=lambda i: (sha256[spans[i].assembly], spans[i].contig, spans[i].start, spans[i].assembly),
    )
    found: list[int] = []
    unjudged = 0
    of_N = [inverse_M[end - size : end] for end, size in zip(ends, sets.size_N, strict=True)]
    for i in order:
        if len(of_N[i]) < _FEWEST:
            unjudged += 1
        elif np.count_nonzero(kept_U[of_N[i]]) >= min_shared * len(of_N[i]):
            found.append(i)
            continue
        kept_U[of_N[i]] = True
    # Of which assembly the kept blocks have most of each duplicate.
    most, within = [-1] * len(found), [""] * len(found)  # minimisers; the assembly
    kept = sorted(set(order).difference(found), key=lambda i: spans[i].assembly)
    for name, blocks in groupby(kept, key=lambda i: spans[i].assembly):
        kept_U[:] = False
        for i in blocks:
            kept_U[of_N[i]] = True
        for at, i in enumerate(found):
            if (count := int(np.count_nonzero(kept_U[of_N[i]]))) > most[at]:
                most[at], within[at] = count, name
    pairs: dict[tuple[str, str], list[int]] = {}
    for i, other in zip(found, within, strict=True):
        pairs.setdefault((spans[i].assembly, other), []).append(spans[i].bp)
    return Duplicates(
        frozenset(spans[i] for i in found),
        tuple(Alike(*pair, len(bp), sum(bp)) for pair, bp in sorted(pairs.items())),
        unjudged,
        sets.sampled,
    )
