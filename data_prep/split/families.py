"""Families of blocks: blocks that are alike, by descent or by copying, and which of them are held out.

Two blocks are linked if they share at least ``min_link`` of the minimisers of the smaller one. A minimiser
that c blocks of a assemblies have counts (a / c)^3: fully where each assembly has it in one block, as genes
have, an eighth where each has it in two. One that stands in more than ``max_copies`` blocks of an assembly,
on average of those that have it, is a repeat and links nothing. A family is a connected component of blocks
and links.

Blocks of several species are staggered, so their links chain a whole chromosome into one family. A family
that is larger than all that is wanted is therefore cut: a ball around a block is held out, and what is linked
with the ball, but outside of it, is in no split. The ball takes next the block most of whose links lead into
it.

Nothing depends on the order or the names of references: blocks are drawn by hashes of the seed and their
letters.

Shapes: N blocks, M minimisers of all of them, L links, each in both directions, sorted by block.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.split.block_sets import BlockSets
from data_prep.split.minimisers import Hashes, Positions

_UNIT = 1024  # of weights: whole numbers, whose sum does not depend on the order
_FEWEST = 3  # minimisers that two linked blocks share at least: short ones share one by chance
_ENOUGH = 0.05  # of what is wanted may be missing: the last bit of it would cost another cut
_PAIRS = 4_000_000  # pairs of blocks counted at a time


@dataclass(frozen=True, eq=False)
class Graph:
    """``first_N1`` [N + 1]: the links of block i are at [first_N1[i], first_N1[i + 1]). ``repeats``:
    minimisers that link nothing, since too many blocks have them.
    """

    first_N1: Positions
    to_L: Positions
    weight_L: Positions
    repeats: int

    def neighbours(self, block: int) -> Iterator[tuple[int, int]]:
        """(block, weight of the link) of each link of ``block``."""
        links = slice(self.first_N1[block], self.first_N1[block + 1])
        return zip(self.to_L[links].tolist(), self.weight_L[links].tolist(), strict=True)


@dataclass(frozen=True)
class HeldOut:
    """Blocks of one split. ``families``: those held out whole, ``cut``: those of which it is a part, and
    ``buffer``: blocks linked with such a part, which go nowhere."""

    wanted_bp: int
    blocks: tuple[int, ...]
    families: int
    cut: int
    buffer: frozenset[int]


def canonical(sets: BlockSets, sha256: dict[str, str]) -> list[int]:
    """The numbers of the blocks of ``sets`` by their letters, where equal by the place in their file
    (``sha256``: of each assembly's)."""
    spans, digests = sets.spans, sets.digests
    return sorted(
        range(len(spans)),
        key=lambda i: (
            digests[i],
            sha256[spans[i].assembly],
            spans[i].contig,
            spans[i].start,
            spans[i].assembly,
        ),
    )


def links(sets: BlockSets, *, min_link: float, max_copies: int) -> Graph:
    """The graph of ``sets``."""
    count = len(sets.spans)
    names = sorted({span.assembly for span in sets.spans})
    number = {name: i for i, name in enumerate(names)}
    assembly_N = np.array([number[span.assembly] for span in sets.spans], np.int64)
    order = np.argsort(sets.hash_M)
    hash_M, block_M = sets.hash_M[order], np.repeat(np.arange(count), sets.size_N)[order]
    del order
    starts = _starts(hash_M)
    sizes = np.diff(np.concatenate([starts, [len(hash_M)]]))
    several = np.flatnonzero(sizes > 1)
    starts, sizes = starts[several], sizes[several]
    assemblies = _assemblies(block_M, assembly_N, starts, sizes, len(names))
    repeat = sizes > max_copies * assemblies
    weights = np.maximum(1, _UNIT * assemblies**3 // sizes**3)
    pairs, sums = _pair_sums(block_M, starts[~repeat], sizes[~repeat], weights[~repeat], count)
    smaller = np.minimum(sets.size_N[pairs // count], sets.size_N[pairs % count])
    kept = sums >= _UNIT * np.maximum(_FEWEST, min_link * smaller)
    pairs, sums = pairs[kept], sums[kept]
    both_L = np.concatenate([pairs, pairs % count * count + pairs // count])  # from * count + to
    order = np.argsort(both_L, kind="stable")
    both_L, weight_L = both_L[order], np.concatenate([sums, sums])[order]
    first_N1 = np.searchsorted(both_L, np.arange(count + 1) * count).astype(np.int64)
    return Graph(first_N1, both_L % count, weight_L, int(repeat.sum()))


def _assemblies(
    block_M: Positions, assembly_N: Positions, starts: Positions, sizes: Positions, count: int
) -> Positions:
    """int64: of how many assemblies each group of ``block_M`` is."""
    found = np.zeros(len(starts), np.int64)
    for size in np.unique(sizes).tolist():
        chosen = np.flatnonzero(sizes == size)
        for part in np.array_split(chosen, len(chosen) * size // _PAIRS + 1):
            own = np.sort(assembly_N[block_M[starts[part][:, None] + np.arange(size)]], axis=1)
            found[part] = 1 + (own[:, 1:] != own[:, :-1]).sum(1)
    return found


def _pair_sums(
    block_M: Positions, starts: Positions, sizes: Positions, weights: Positions, count: int
) -> tuple[Positions, Positions]:
    """Each pair (i, j), i < j, of blocks that a group has, as i * count + j, sorted; and the sum of the
    weights of its groups.
    """
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for size in np.unique(sizes).tolist():
        left, right = np.triu_indices(size, 1)
        chosen = np.flatnonzero(sizes == size)
        for part in np.array_split(chosen, len(chosen) * len(left) // _PAIRS + 1):
            member = np.sort(block_M[starts[part][:, None] + np.arange(size)], axis=1)
            found = (member[:, left] * count + member[:, right]).ravel()
            parts.append(_summed([(found, np.repeat(weights[part], len(left)))]))
            # Only those of like size are merged: a pair is sorted a few times, and not once for each part.
            while len(parts) > 1 and len(parts[-2][0]) < 2 * len(parts[-1][0]):
                parts[-2:] = [_summed(parts[-2:])]
    return _summed(parts)


def _summed(parts: Sequence[tuple[Positions, Positions]]) -> tuple[Positions, Positions]:
    """All pairs of ``parts``, each once, sorted, and the sums of their weights."""
    pairs, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(pairs, kind="stable")  # quick where parts are sorted already
    pairs = pairs[order]  # one after the other: they may be large
    weights = weights[order]
    del order
    first = _starts(pairs)
    return pairs[first], np.add.reduceat(weights, first)


def _starts(sorted_M: Hashes | Positions) -> Positions:
    """int64: where each run of equal values begins."""
    return np.flatnonzero(np.append(True, sorted_M[1:] != sorted_M[:-1])[: len(sorted_M)])


def components(graph: Graph, free: Iterable[int]) -> list[list[int]]:
    """The families among the ``free`` blocks, in the order of their first ones."""
    left, found = dict.fromkeys(free), []
    while left:
        family = [next(iter(left))]
        del left[family[0]]
        for block in family:  # grows while it is read
            for other, _ in graph.neighbours(block):
                if other in left:
                    del left[other]
                    family.append(other)
        found.append(family)
    return found


def draws(digests: Sequence[bytes], seed: int) -> list[int]:
    """Of each block, the number that decides when it is drawn: a hash of ``seed`` and its letters."""
    return [
        int.from_bytes(hashlib.blake2b(f"{seed}\t".encode() + digest, digest_size=8).digest(), "big")
        for digest in digests
    ]


def hold_out(graph: Graph, bp_N: Sequence[int], order: Sequence[int], *, wanted_bp: int) -> HeldOut:
    """About ``wanted_bp``, never more unless one block is, of the free blocks ``order``, drawn in this order.

    The family of a drawn block is held out whole if it fits into what is still wanted. One that is larger
    than ``wanted_bp`` is cut. One between the two waits: others may fit.
    """
    families = components(graph, order)
    family_of = {block: number for number, family in enumerate(families) for block in family}
    sizes = [sum(bp_N[block] for block in family) for family in families]
    rank = {block: i for i, block in enumerate(order)}
    taken, buffer, whole, cut = dict[int, None](), set[int](), 0, 0
    room = wanted_bp
    for block in order:
        if taken and room < wanted_bp * _ENOUGH:
            break
        if block in taken or block in buffer:
            continue
        number = family_of[block]
        if sizes[number] <= room:
            new, whole = families[number], whole + 1
        elif sizes[number] > wanted_bp and (bp_N[block] <= room or not taken):
            free = {i: rank[i] for i in families[number] if i not in taken and i not in buffer}
            new, cut = _ball(graph, bp_N, block, room, free), cut + 1
        else:
            continue
        taken |= dict.fromkeys(new)
        room -= sum(bp_N[i] for i in new)
        near = {other for i in new for other, _ in graph.neighbours(i) if other in family_of}
        buffer |= near - taken.keys()
    return HeldOut(wanted_bp, tuple(sorted(taken)), whole, cut, frozenset(buffer))


def _ball(graph: Graph, bp_N: Sequence[int], seed: int, room: int, free: dict[int, int]) -> list[int]:
    """``seed`` and free blocks around it, up to ``room`` bp; ``free``: block -> its rank among equals."""
    ball, inside = list[int](), {seed: 0}
    total = dict[int, int]()
    heap = [(0.0, free[seed], seed)]
    done = set[int]()
    while heap:
        share, _, block = heapq.heappop(heap)
        if block in done or (ball and -share != inside[block] / total[block]):
            continue  # an older entry: more of its links lead into the ball by now
        if ball and bp_N[block] > room:
            break
        ball.append(block)
        done.add(block)
        room -= bp_N[block]
        for other, weight in graph.neighbours(block):
            if other in free and other not in done:
                inside[other] = inside.get(other, 0) + weight
                if other not in total:
                    total[other] = sum(more for third, more in graph.neighbours(other) if third in free)
                heapq.heappush(heap, (-inside[other] / total[other], free[other], other))
    return ball
