"""The formats of files with labelled sequences. A new one is a file in this folder and a line here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.storage import store
from configs import redact
from trainer.inference.readers import bed, delimited, fasta, parquet
from trainer.inference.readers.rows import Batch, Wanted


@dataclass(frozen=True)
class Format:
    """``endings`` of a name that say it; ``unit``: what its numbers count, in messages."""

    endings: tuple[str, ...]
    unit: str
    read: Callable[[str, Wanted], Iterator[Batch]]


FORMATS = {
    "table": Format((".csv", ".tsv", ".txt"), "line", delimited.read),
    "parquet": Format((".parquet", ".pq"), "row", parquet.read),
    "fasta": Format((".fa", ".fasta", ".fna", ".fas", ".ffn"), "record", fasta.read),
    "bed": Format((".bed",), "line", bed.read),
}
_PACKED = (".gz", ".bgz", ".bgzf", ".bz2", ".xz", ".zst", ".zstd")


def format_of(uri: str, chosen: str | None = None) -> str:
    """A key of FORMATS: ``chosen``, else by the end of the name, in any case; "table" for other ends."""
    if chosen:
        return chosen
    name = store.basename(uri if store.is_local(uri) else redact(uri).partition("?")[0]).lower()
    for end in _PACKED:
        name = name.removesuffix(end)
    return next((key for key, form in FORMATS.items() if name.endswith(form.endings)), "table")
