"""Shards -> FASTA: the sequence as it was."""

import re

from cluster.storage import store
from data_prep.alphabet import decode
from data_prep.dataset import output
from data_prep.dataset.read import blocks, load_manifest
from data_prep.shards import Manifest
from data_prep.sources.fasta import Writer

_WIDTH = 80
_OTHER_FORMATS = re.compile(
    r"\.(bz2|xz|zst|zip|bgz|tar|tgz|2bit|fastq|fq|bed|gff3?|gtf|vcf|sam|bam|gbk?"
    r"|csv|tsv|json|parquet|npy)(\.gz)?$",
    re.IGNORECASE,
)


def check_name(uri: str) -> str:
    """``uri``, if its name fits a FASTA. ValueError for a folder, or the name of another format."""
    output.refuse_folder(uri)
    if _OTHER_FORMATS.search(uri):
        raise ValueError(
            f"{uri} says another format; a FASTA is written as text, or as gzip to a name that ends in .gz"
        )
    return uri


def export(uri: str, *, split: str, fasta: str) -> int:
    """The number of bases written: ``split`` of the dataset at ``uri``, as FASTA at ``fasta``; soft-masked
    letters are in lower case.

    A record is a run of contiguous blocks of one contig; its header is ``assembly:contig:start-end``, 0-based
    half-open. The file is gzip where its name ends in .gz.
    """
    manifest = load_manifest(uri)
    if not manifest.shards[split]:
        raise ValueError(f"dataset {uri} has nothing in its {split} split")
    ends = _runs(manifest, split)
    written = 0
    with store.publish(fasta) as plain, output.compressed(plain, fasta) as file:
        writer = Writer(file, width=_WIDTH)
        for block, codes, soft_mask in blocks(uri, manifest, split):
            if (block.assembly, block.contig, block.start) in ends:
                end = ends[block.assembly, block.contig, block.start]
                writer.start(f"{block.assembly}:{block.contig}:{block.start}-{end}")
            writer.write(decode(codes, soft_mask))
            written += block.bp
        writer.finish()
    return written


def _runs(manifest: Manifest, split: str) -> dict[tuple[str, str, int], int]:
    """(assembly, contig, start) -> end of each run of contiguous blocks."""
    ends: dict[tuple[str, str, int], int] = {}
    run = ("", "", 0)
    for _, block in manifest.blocks(split):
        if (block.assembly, block.contig, block.start) != (*run[:2], ends.get(run)):
            run = (block.assembly, block.contig, block.start)
        ends[run] = block.end
    return ends
