"""Blocks as sets of minimisers: what families and duplicates are found by.

Of all minimisers those of the lowest hashes are kept, below one threshold, so that the sets of a dataset of
any size fit in memory and can still be compared (FracMinHash: Irber et al., bioRxiv 2022).

Shapes: N blocks, M minimisers of all of them, block after block.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.split.intervals import Span
from data_prep.split.minimisers import ALL, Hashes, Positions, minimisers, unique
from data_prep.split.passes import Passes, Read, Scan

# Minimisers of all blocks together: about 700 MB at the driver while they are sorted. The pairs of blocks
# that families.py makes of them come on top, and grow with the square of the assemblies that are related.
ROOM = 16_000_000
_DIGEST_BYTES = 16


@dataclass(frozen=True, eq=False)
class BlockSets:
    """``digests``: of the letters of each block. ``hash_M``: each block's minimisers below the threshold,
    each once; ``size_N``: how many. ``sampled``: the share of all hashes that is below it.
    """

    spans: tuple[Span, ...]
    digests: tuple[bytes, ...]
    size_N: Positions
    hash_M: Hashes
    sampled: float

    def reordered(self, order: Sequence[int]) -> "BlockSets":
        """The same with its blocks in ``order``."""
        ends = np.cumsum(self.size_N)
        own = [self.hash_M[ends[i] - self.size_N[i] : ends[i]] for i in order]
        return BlockSets(
            tuple(self.spans[i] for i in order),
            tuple(self.digests[i] for i in order),
            self.size_N[list(order)],
            np.concatenate([np.zeros(0, np.uint64), *own]),
            self.sampled,
        )


@dataclass(frozen=True)
class Sketch:
    """Task: digests and minimisers of the blocks of a chunk."""

    read: Read
    chunk: Any
    k: int
    window: int
    below: int

    def scan(self) -> Scan:
        bp, digests, sizes, hashes, spans = 0, list[bytes](), list[int](), list[Hashes](), list[Span]()
        for span, codes in self.read(self.chunk):
            found = unique([minimisers(codes, k=self.k, window=self.window)[0]])
            if self.below < ALL:
                found = found[: np.searchsorted(found, np.uint64(self.below))]
            digests.append(hashlib.blake2b(codes.tobytes(), digest_size=_DIGEST_BYTES).digest())
            sizes.append(len(found))
            hashes.append(found)
            spans.append(span)
            bp += len(codes)
        together = np.concatenate([np.zeros(0, np.uint64), *hashes])
        return Scan(bp, (b"".join(digests), together.tobytes()), tuple(sizes), tuple(spans))


def block_sets(
    chunks: Sequence[Any], read: Read, *, bp: int, k: int, window: int, passes: Passes, room: int = ROOM
) -> BlockSets:
    """The sets of all blocks of ``chunks``, of ``bp`` letters together: about ``room`` minimisers at most."""
    # 2 of w + 1 k-mers are minimisers. The threshold depends on the sizes alone, so on no order.
    below = min(ALL, ALL * room * (window + 1) // max(1, 2 * bp))
    spans, digests = list[Span](), list[bytes]()
    sizes, hashes = list[int](), [np.zeros(0, np.uint64)]
    for scan in passes.scan([Sketch(read, chunk, k, window, below) for chunk in chunks]):
        spans += scan.spans
        sizes += scan.counts
        digests += [scan.data[0][i : i + _DIGEST_BYTES] for i in range(0, len(scan.data[0]), _DIGEST_BYTES)]
        hashes.append(np.frombuffer(scan.data[1], np.uint64))
    return BlockSets(
        tuple(spans), tuple(digests), np.array(sizes, np.int64), np.concatenate(hashes), below / ALL
    )
