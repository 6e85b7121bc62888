"""Held-out sequence without windows that train has, too, by k-mers of both strands.

Val is held against train, test against train and val. What breaks the rule is dropped from val and from test,
and never from train.

Shapes: H minimisers of the held-out splits, sorted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.split.homology_tasks import Bits, Flags, Occur, Rule, Trim, places
from data_prep.split.intervals import HELD_OUT, Span
from data_prep.split.minimisers import Hashes, unique
from data_prep.split.passes import Gather, Partition, Passes, Read, Scan

MAX_HASHES = 32_000_000  # held-out minimisers looked up at a time: 256 MB, and as much for their filter
_TRAIN, _VAL = 1, 2
_WANTED = {"val": _TRAIN, "test": _TRAIN | _VAL}
_FILTER = 8  # places for each minimiser
_CHANCE = 0.025  # the share of a held-out window's k-mers that may stand in train by chance


@dataclass(frozen=True)
class Trimmed:
    """What is left of a held-out split; of how many windows (each start counts) how many broke the rule."""

    spans: tuple[Span, ...]
    windows: int
    broken: int


def refuse_chance(k: int, train_bp: int) -> None:
    """ValueError if so many k-mers of ``k`` letters stand in ``train_bp`` by chance that windows would break
    the rule by it.
    """
    if train_bp / _canonical(k) > _CHANCE:
        enough = next((n for n in range(k, 32, 2) if train_bp / _canonical(n) <= _CHANCE), 31)
        raise ValueError(
            f"split.homology.k {k} is too small for {train_bp:,} bp of train: by chance alone "
            f"{min(1, train_bp / _canonical(k)):.1%} of all k-mers would stand there; take k {enough} or more"
        )


def _canonical(k: int) -> int:
    return 4**k // 2


def trim(
    parts: Mapping[str, Sequence[Any]],
    read: Read,
    *,
    rule: Rule,
    passes: Passes,
    bp: Mapping[str, int],
    max_hashes: int = MAX_HASHES,
) -> dict[str, Trimmed]:
    """Val and test of ``parts`` (split -> chunks, of ``bp`` letters) without what breaks ``rule``.

    The result does not depend on workers, on ``max_hashes``, or on the order of the chunks of train.
    """
    held_out = [(split, chunk) for split in HELD_OUT for chunk in parts.get(split, ())]
    others = [(_TRAIN, chunk) for chunk in parts.get("train", ())]
    if parts.get("test"):
        others += [(_VAL, chunk) for chunk in parts.get("val", ())]
    count = _partitions(bp, rule, max_hashes)
    found: list[tuple[Hashes, Flags]] = []
    for number in range(count):
        gather = [Gather(read, chunk, Partition(number, count), rule.k, rule.window) for _, chunk in held_out]
        hashes = unique(np.frombuffer(scan.data[0], np.uint64) for scan in passes.scan(gather))
        flags = np.zeros(len(hashes), np.uint8)
        occur = passes.scan(
            [Occur(read, chunk, rule) for _, chunk in others],
            shared=(hashes, _filter(hashes)),
            result_bytes=len(hashes) // 8,
        )
        for (flag, _), scan in zip(others, occur, strict=True):
            bits = np.unpackbits(np.frombuffer(scan.data[0], np.uint8), count=len(hashes))
            flags |= bits * np.uint8(flag)
        found.append((hashes[flags > 0], flags[flags > 0]))
    hashes = np.concatenate([own for own, _ in found])
    order = np.argsort(hashes)
    flags = np.concatenate([own for _, own in found])[order]
    tasks = [Trim(read, chunk, rule, _WANTED[split]) for split, chunk in held_out]
    scans = list(passes.scan(tasks, shared=(hashes[order], flags)))
    return {
        split: _joined(s for (of, _), s in zip(held_out, scans, strict=True) if of == split)
        for split in HELD_OUT
    }


def passes_bp(bp: Mapping[str, int], rule: Rule, *, max_hashes: int = MAX_HASHES) -> int:
    """What ``trim`` scans in all its passes, in bp."""
    held_out = sum(bp[split] for split in HELD_OUT)
    others = bp["train"] + (bp["val"] if bp["test"] else 0)
    return held_out + _partitions(bp, rule, max_hashes) * (held_out + others)


def _partitions(bp: Mapping[str, int], rule: Rule, max_hashes: int) -> int:
    return -(-2 * sum(bp[split] for split in HELD_OUT) // ((rule.window + 1) * max_hashes)) or 1


def _filter(hashes_H: Hashes) -> Bits:
    filter_F = np.zeros(1 << max(10, (_FILTER * len(hashes_H)).bit_length()), np.bool_)
    filter_F[places(hashes_H, len(filter_F))] = True
    return filter_F


def _joined(scans: Iterable[Scan]) -> Trimmed:
    there = list(scans)
    return Trimmed(
        tuple(span for scan in there for span in scan.spans),
        sum(scan.counts[0] for scan in there),
        sum(scan.counts[1] for scan in there),
    )
