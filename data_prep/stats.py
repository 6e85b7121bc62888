"""What a dataset holds, counted from its shards."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.alphabet import SIZE, C, G, N
from data_prep.read import blocks, load_manifest
from data_prep.shards import SPLITS


@dataclass(frozen=True)
class SplitStats:
    """Counts of one split; shares are of its bp, but ``gc`` of its A, C, G and T."""

    contigs: int
    blocks: int
    shards: int
    bp: int
    n_share: float
    soft_mask_share: float
    gc: float
    letters: dict[str, float]  # of A, C, G and T: the largest is what a majority guess scores


@dataclass(frozen=True)
class Stats:
    """A dataset in numbers. ``bytes`` is the shards' size on disk."""

    sources: dict[str, dict[str, Any]]
    splits: dict[str, SplitStats]
    bp: int
    bytes: int
    bytes_per_bp: float


def stats(uri: str) -> Stats:
    """The numbers of the dataset at ``uri``, from reading every shard."""
    manifest = load_manifest(uri)
    splits = {}
    for split in SPLITS:
        counts, soft, contigs = np.zeros(SIZE, np.int64), 0, set()
        for block, codes, soft_mask in blocks(uri, manifest, split):
            counts += np.bincount(codes, minlength=SIZE)
            soft += int(np.count_nonzero(soft_mask))
            contigs.add((block.assembly, block.contig))
        bp, known = int(counts.sum()), int(counts[:N].sum())
        splits[split] = SplitStats(
            contigs=len(contigs), blocks=len(manifest.blocks(split)), shards=len(manifest.shards[split]), bp=bp,
            n_share=_share(counts[N], bp), soft_mask_share=_share(soft, bp), gc=_share(counts[C] + counts[G], known),
            letters={letter: _share(counts[code], known) for code, letter in enumerate("ACGT")})
    size = sum(shard.bytes for split in SPLITS for shard in manifest.shards[split])
    bp = sum(part.bp for part in splits.values())
    sources = {source.name: {"contigs": len(source.contigs), "bp": sum(source.contigs.values()),
                             "weight": source.weight, "iupac_to_n": source.iupac_to_n, "sha256": source.sha256}
               for source in manifest.sources}
    return Stats(sources, splits, bp, size, _share(size, bp))


def table(numbers: Stats) -> str:
    """``numbers`` as text for a terminal."""
    lines = [f"{name}: {source['bp']:,} bp in {source['contigs']} contigs, {source['iupac_to_n']} IUPAC letters to N, "
             f"weight {source['weight']:g}" for name, source in numbers.sources.items()]
    lines.append(f"{'split':6}{'contigs':>9}{'blocks':>8}{'shards':>8}{'bp':>16}{'N':>9}{'soft':>9}{'GC':>9}")
    lines += [f"{name:6}{part.contigs:>9}{part.blocks:>8}{part.shards:>8}{part.bp:>16,}{part.n_share:>9.2%}"
              f"{part.soft_mask_share:>9.2%}{part.gc:>9.2%}" for name, part in numbers.splits.items()]
    lines.append(f"in all {numbers.bp:,} bp, {numbers.bytes:,} bytes, {numbers.bytes_per_bp:.4f} bytes/bp")
    return "\n".join(lines)


def _share(part: float, whole: float) -> float:
    return float(part) / whole if whole else 0.0
