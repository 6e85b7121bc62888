"""One shard written: a WebDataset tar whose bytes depend on its blocks alone. Or found written, to the last byte."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from typing import IO

import webdataset

from cluster import store
from data_prep.intervals import Span
from data_prep.read import samples
from data_prep.shards import (
    FORMAT_VERSION,
    HEADER_EXT,
    PAYLOAD_EXT,
    Block,
    BlockHeader,
    FormatError,
    PackedBlock,
    Shard,
    pack,
)

_TAR_HEADER = 512


def write_shard(uri: str, blocks: Iterable[tuple[Span, bytes]]) -> Shard:
    """The shard published at ``uri``: a sample per (span, payload), with the offset of each payload in the tar."""
    with store.publish(uri) as file:
        return _write(file, store.basename(uri), blocks)


def found_shard(uri: str, spans: Sequence[Span]) -> Shard:
    """The shard at ``uri``, if it is byte for byte what ``write_shard`` makes of its letters and ``spans``.

    Raises:
        FormatError: it is damaged, or of other blocks.
        StoreError: it cannot be read.
    """
    data = store.read_bytes(uri)
    payloads = [payload for _, payload in samples(io.BytesIO(data), name=uri)]
    if len(payloads) != len(spans):
        raise FormatError(f"{uri} holds {len(payloads)} blocks, not {len(spans)}")
    for span, payload in zip(spans, payloads, strict=True):
        packed = PackedBlock(payload)
        whole = (0, packed.bases)
        if packed.bases != span.bp or pack(packed.codes(*whole), packed.soft_mask(*whole)) != payload:
            raise FormatError(f"{uri}: the block at {span.contig}:{span.start}-{span.end} is another")
    again = io.BytesIO()
    shard = _write(again, store.basename(uri), zip(spans, payloads, strict=True))
    if again.getvalue() != data:
        raise FormatError(f"{uri} is not the tar that is written of its blocks")
    return shard


def _write(file: IO[bytes], name: str, blocks: Iterable[tuple[Span, bytes]]) -> Shard:
    placed = []
    # webdataset stamps the time unless told otherwise; owner and mode are fixed for the same reason.
    fixed = {"user": "dna", "group": "dna", "mode": 0o444, "mtime": 0}
    with webdataset.TarWriter(file, encoder=False, compress=False, **fixed) as tar:
        for index, (span, payload) in enumerate(blocks):
            header = BlockHeader(FORMAT_VERSION, span.assembly, span.contig, span.start, span.end)
            # Members go in by name, ".2bit" before ".json": the payload follows one tar header.
            offset = tar.tarstream.offset + _TAR_HEADER
            tar.write({"__key__": f"{index:06d}", HEADER_EXT: header.to_bytes(), PAYLOAD_EXT: payload})
            placed.append(Block(offset, len(payload), span.assembly, span.contig, span.start, span.end))
    size = file.tell()
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return Shard(name, size, digest.hexdigest(), tuple(placed))
