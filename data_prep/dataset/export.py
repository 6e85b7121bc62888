"""Shards -> FASTA: the sequence as it was."""

import contextlib
import gzip
import re
from typing import IO

from cluster.storage import store
from data_prep.alphabet import decode
from data_prep.dataset import output
from data_prep.dataset.read import blocks, load_manifest

_WIDTH = 80
_OTHER_FORMATS = re.compile(
    r"\.(bz2|xz|zst|zip|bgz|2bit|tar|tgz|fastq|fq|bed|gff3?|gtf|vcf|sam|bam|gbk?|csv|tsv|json|parquet|npy)(\.gz)?$",
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
    """Bases written: ``split`` of the dataset at ``uri`` as FASTA at ``fasta``, soft mask in lower case.

    A record is a run of contiguous blocks of one contig; its header ``assembly:contig:start-end`` is 0-based
    half-open. It is compressed where the name ends in .gz.
    """
    manifest = load_manifest(uri)
    if not manifest.shards[split]:
        raise ValueError(f"dataset {uri} has nothing in its {split} split")
    ends: dict[
        tuple[str, str, int], int
    ] = {}  # start of each run -> its end, known before its first line is written
    last = None
    for _, block in manifest.blocks(split):
        if last and (block.assembly, block.contig, block.start) == (*last[:2], ends[last]):
            ends[last] = block.end
        else:
            last = (block.assembly, block.contig, block.start)
            ends[last] = block.end
    written, carry = 0, b""
    with store.publish(fasta) as plain, _packed(plain, fasta) as file:
        for block, codes, soft_mask in blocks(uri, manifest, split):
            key = (block.assembly, block.contig, block.start)
            if key in ends:
                file.write(
                    (carry and carry + b"\n") + f">{':'.join(key[:2])}:{block.start}-{ends[key]}\n".encode()
                )
                carry = b""
            letters = carry + decode(codes, soft_mask)
            whole = len(letters) // _WIDTH * _WIDTH
            file.write(b"".join(letters[i : i + _WIDTH] + b"\n" for i in range(0, whole, _WIDTH)))
            carry = letters[whole:]
            written += block.bp
        file.write(carry and carry + b"\n")
    return written


def _packed(file: IO[bytes], name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if not name.lower().endswith(".gz"):
        return contextlib.nullcontext(file)
    return gzip.GzipFile("", "wb", fileobj=file, mtime=0)  # type: ignore[return-value]
