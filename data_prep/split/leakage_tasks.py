"""What the workers of a leakage scan do: each task reads one chunk of a split and sends back a ``Scan``.

Shapes: M hashes of the held-out splits, sorted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.alphabet import N
from data_prep.split.intervals import Span
from data_prep.split.minimisers import Hashes, Sketch, cover, find, minimisers, unique
from data_prep.split.passes import Partition, Read, Scan

Flags = np.ndarray[Any, np.dtype[np.uint8]]
_Bits = np.ndarray[Any, np.dtype[np.bool_]]

TRAIN, VAL, TEST = 1, 2, 4  # the flags of a hash: the splits that have it
HELD_OUT_OF = "held out\t"  # before an assembly's name: the sketch of what is held out of it
_BATCH = 1 << 21  # hashes looked up together: sorted, 2 M at a time cost a sixth of 16,000 at a time


@dataclass(frozen=True)
class Survey:
    """Counts the A, C, G and T of a held-out chunk, and sketches its hashes (``room`` of them)."""

    read: Read
    chunk: Any
    room: int

    def scan(self) -> Scan:
        sketch, bp, bases = Sketch(self.room), 0, 0
        for span, codes in self.read(self.chunk):
            sketch.add(HELD_OUT_OF + span.assembly, minimisers(codes)[0])
            bp, bases = bp + len(codes), bases + int(np.count_nonzero(codes < N))
        return Scan(bp, counts=(bases,), sketch=sketch.result())


@dataclass(frozen=True)
class Occur:
    """Finds which held-out hashes a training chunk has: one bit each. Sketches its own, if ``room``."""

    read: Read
    chunk: Any
    partition: Partition
    room: int

    def scan(self, hashes_M: Hashes) -> Scan:
        sketch, bp, waiting = Sketch(self.room), 0, list[Hashes]()
        occurs_M = np.zeros(len(hashes_M), np.bool_)
        for span, codes in self.read(self.chunk):
            hashes, _ = minimisers(codes)
            if self.room:
                sketch.add(span.assembly, hashes)
            waiting.append(self.partition.of(hashes))
            bp += len(codes)
            if sum(map(len, waiting)) >= _BATCH:
                _mark(occurs_M, hashes_M, waiting)
        _mark(occurs_M, hashes_M, waiting)
        return Scan(bp, (np.packbits(occurs_M).tobytes(),), sketch=sketch.result())


def _mark(occurs_M: _Bits, hashes_M: Hashes, waiting: list[Hashes]) -> None:
    """Sets ``occurs_M`` for the hashes that wait, and empties their list."""
    at, hit = find(hashes_M, unique(waiting))
    occurs_M[at[hit]] = True
    waiting.clear()


@dataclass(frozen=True)
class Cover:
    """Finds which minimisers of a held-out chunk stand in each of the ``wanted`` splits (flags): one bit for
    each minimiser and split, with those that earlier partitions found (``before``).

    The task of the ``last`` partition knows all of them: it counts the bases that they cover, for each split,
    and lists the intervals of the first split.
    """

    read: Read
    chunk: Any
    wanted: tuple[int, ...]
    before: tuple[bytes, ...]
    last: bool

    def scan(self, hashes_M: Hashes, flags_M: Flags) -> Scan:
        known = [np.unpackbits(np.frombuffer(bits, np.uint8)) for bits in self.before]
        marks: list[list[Flags]] = [[np.zeros(0, np.uint8)] for _ in self.wanted]
        bp, done, spans, counts = 0, 0, list[Span](), [0] * len(self.wanted)
        for span, codes in self.read(self.chunk):
            hashes, positions = minimisers(codes)
            flags = _flags_of(hashes, hashes_M, flags_M)
            for i, flag in enumerate(self.wanted):
                mark = (flags & flag > 0).view(np.uint8)
                if known:
                    mark |= known[i][done : done + len(hashes)]
                marks[i].append(mark)
                if not self.last:
                    continue
                covered = cover(positions[mark > 0])
                counts[i] += sum(end - start for start, end in covered)
                if i == 0:
                    spans += [
                        Span(span.assembly, span.contig, span.start + start, span.start + end)
                        for start, end in covered
                    ]
            bp, done = bp + len(codes), done + len(hashes)
        bits = () if self.last else tuple(np.packbits(np.concatenate(mark)).tobytes() for mark in marks)
        return Scan(bp, bits, tuple(counts), tuple(spans))


def _flags_of(hashes: Hashes, hashes_M: Hashes, flags_M: Flags) -> Flags:
    """uint8 [m]: the flags of each of ``hashes`` [m], 0 of those that ``hashes_M`` has not."""
    order = np.argsort(hashes)  # sorted ones are found faster
    at, hit = find(hashes_M, hashes[order])
    flags = np.zeros(len(hashes), np.uint8)
    flags[order[hit]] = flags_M[at[hit]]
    return flags
