"""The letters of a genome file as FASTA text, whatever the file is: FASTA, GenBank, or a package with one."""

import itertools
from collections.abc import Iterator

from cluster.storage import store
from configs import magic
from data_prep.sources import compression, fasta, genbank, packages


def text(uri: str) -> Iterator[bytes]:
    """The FASTA text of the genome at ``uri`` in pieces: of a FASTA its own, decompressed; of a GenBank file
    one that is made of it; of a zip archive that of the genome in it.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is empty, damaged, or none of these.
    """
    chunks = store.chunks(packages.file_of(uri))
    first = next(chunks, b"")
    kind = magic.format_of(first)
    if kind == magic.ZIP:
        plain = packages.text(uri)
    else:
        plain = compression.decompress(itertools.chain([first], chunks), kind=kind, uri=uri)
    start = next(plain, b"")
    plain = itertools.chain([start], plain)
    yield from genbank.text(plain, uri=uri) if genbank.is_genbank(start) else fasta.checked(plain, uri=uri)
