"""What a dataset holds, counted from its shards."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.process.progress import OnProgress, Stage, silent
from cluster.storage import store
from cluster.tasks import jobs
from data_prep.alphabet import SIZE, C, G, N
from data_prep.dataset.partner_checks import PartnerStats, partner_stats, partner_table_text, read_table
from data_prep.dataset.read import load_manifest, packed_blocks, readers
from data_prep.dataset.shares import AssemblyShare, shares, shares_table
from data_prep.levels import MAX_LEVEL
from data_prep.shards import SPLITS, Block, Manifest, Shard, Source


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
    track_share: float  # of its bp, those of assemblies with a track
    mean_weight: float  # of these; 0 where there are none


@dataclass(frozen=True)
class BlockStats:
    """One block: where it lies, and shares as in SplitStats (``gc`` is 0 where all is N)."""

    assembly: str
    contig: str
    start: int
    end: int
    split: str
    gc: float
    n_share: float
    soft_mask_share: float


@dataclass(frozen=True)
class Stats:
    """A dataset in numbers. ``bytes`` is the shards' size on disk."""

    sources: dict[str, dict[str, Any]]
    splits: dict[str, SplitStats]
    bp: int
    bytes: int
    bytes_per_bp: float
    assemblies: tuple[AssemblyShare, ...] = ()
    partners: PartnerStats | None = None


# [SIZE + 3]: of each code, of soft-masked bases, of bases with a weight, and the sum of their levels
_Counts = np.ndarray[Any, np.dtype[np.int64]]
_SOFT, _WEIGHTED, _LEVELS = SIZE, SIZE + 1, SIZE + 2


def stats(
    uri: str, *, workers: int | None = None, on_progress: OnProgress = silent
) -> tuple[Stats, list[BlockStats]]:
    """The numbers of the dataset at ``uri``, in all and by block, from reading every shard with ``workers``
    processes (default: one, or all cores if the dataset is large).

    Raises:
        StoreError, FormatError: it cannot be read, or is damaged.
    """
    uri = store.absolute(uri)  # workers have another working directory
    manifest = load_manifest(uri)
    shards = [shard for split in SPLITS for shard in manifest.shards[split]]
    bp, size = sum(map(manifest.bp, SPLITS)), sum(shard.bytes for shard in shards)
    stage = Stage(on_progress, "stats", bp)
    counts = jobs.run_here_or_there(
        _count,
        [(uri, shard) for shard in shards],
        workers=workers or readers(manifest),
        on_result=lambda index, _: stage.advance(shards[index].bp),
    )
    counted = iter(block_counts for shard_counts in counts for block_counts in shard_counts)
    splits, blocks = dict[str, SplitStats](), list[BlockStats]()
    for split in SPLITS:
        own = [(block, np.array(next(counted))) for _, block in manifest.blocks(split)]
        blocks += [_block_stats(block, split, row) for block, row in own]
        splits[split] = _split_stats(manifest, split, (row for _, row in own))
    sources = {source.name: _source_stats(source) for source in manifest.sources}
    partners = read_table(uri, manifest)
    found = None if partners is None else partner_stats(partners, manifest)
    assemblies = tuple(shares([("", manifest, 1.0)]))
    return Stats(sources, splits, bp, size, _share(size, bp), assemblies, found), blocks


def _block_stats(block: Block, split: str, counts: _Counts) -> BlockStats:
    return BlockStats(
        assembly=block.assembly,
        contig=block.contig,
        start=block.start,
        end=block.end,
        split=split,
        gc=_share(counts[C] + counts[G], counts[:N].sum()),
        n_share=_share(counts[N], block.bp),
        soft_mask_share=_share(counts[_SOFT], block.bp),
    )


def _split_stats(manifest: Manifest, split: str, rows: Iterable[_Counts]) -> SplitStats:
    counts = sum(rows, np.zeros(SIZE + 3, np.int64))
    bp, known = int(counts[:SIZE].sum()), int(counts[:N].sum())
    blocks = [block for _, block in manifest.blocks(split)]
    return SplitStats(
        contigs=len({(block.assembly, block.contig) for block in blocks}),
        blocks=len(blocks),
        shards=len(manifest.shards[split]),
        bp=bp,
        n_share=_share(counts[N], bp),
        soft_mask_share=_share(counts[_SOFT], bp),
        gc=_share(counts[C] + counts[G], known),
        letters={letter: _share(counts[code], known) for code, letter in enumerate("ACGT")},
        track_share=_share(counts[_WEIGHTED], bp),
        mean_weight=_share(counts[_LEVELS], MAX_LEVEL * counts[_WEIGHTED]),
    )


def _source_stats(source: Source) -> dict[str, Any]:
    return {
        "contigs": len(source.contigs),
        "bp": sum(source.contigs.values()),
        "weight": source.weight,
        "iupac_to_n": source.iupac_to_n,
        "sha256": source.sha256,
    }


def table(numbers: Stats) -> str:
    """``numbers`` as text for a terminal."""
    lines = [
        f"{name}: a source of {source['bp']:,} bp in {source['contigs']} contigs, "
        f"{source['iupac_to_n']} IUPAC letters to N, weight {source['weight']:g}"
        for name, source in numbers.sources.items()
    ]
    lines.append(f"{'split':6}{'contigs':>9}{'blocks':>8}{'shards':>8}{'bp':>16}{'N':>9}{'soft':>9}{'GC':>9}")
    lines += [
        f"{name:6}{part.contigs:>9}{part.blocks:>8}{part.shards:>8}{part.bp:>16,}{part.n_share:>9.2%}"
        f"{part.soft_mask_share:>9.2%}{part.gc:>9.2%}"
        for name, part in numbers.splits.items()
    ]
    lines += [
        f"{name}: {part.track_share:.2%} of the letters have a track; mean weight {part.mean_weight:.4f}"
        for name, part in numbers.splits.items()
        if part.track_share
    ]
    if len(numbers.assemblies) > 1:
        lines.append(shares_table(numbers.assemblies))
    lines.append(f"in all {numbers.bp:,} bp, {numbers.bytes:,} bytes, {numbers.bytes_per_bp:.4f} bytes/bp")
    if numbers.partners:
        lines.append(partner_table_text(numbers.partners))
    return "\n".join(lines)


def _count(task: tuple[str, Shard]) -> list[list[int]]:
    """On a worker: the counts of each block of a shard."""
    uri, shard = task
    rows = []
    for _, packed in packed_blocks(store.join(uri, shard.name), shard):
        counts = np.bincount(packed.codes(0, packed.bases), minlength=SIZE).tolist()
        soft = int(np.count_nonzero(packed.soft_mask(0, packed.bases)))
        levels = packed.weights(0, packed.bases)
        weighted, level_sum = (0, 0) if levels is None else (len(levels), int(levels.sum(dtype=np.int64)))
        rows.append([*counts, soft, weighted, level_sum])
    return rows


def _share(part: float, whole: float) -> float:
    return float(part) / whole if whole else 0.0
