"""Blocks -> a shard: a WebDataset tar whose bytes depend on the blocks alone."""

import contextlib
import hashlib
import io
from collections.abc import Iterable
from typing import IO

from cluster.storage import store
from data_prep.dataset.tar import TarWriter
from data_prep.shards import FORMAT_VERSION, HEADER_EXT, PAYLOAD_EXT, Block, BlockHeader, Shard
from data_prep.split.intervals import Span

_TAR_HEADER = 512


def write_shard(uri: str, blocks: Iterable[tuple[Span, bytes]]) -> Shard:
    """The shard published at ``uri``: a sample per (span, payload), with the offset of each payload in the
    tar."""
    with store.publish(uri) as file:
        return _write(file, store.basename(uri), blocks)


def keep_or_write_shard(uri: str, blocks: Iterable[tuple[Span, bytes]]) -> tuple[Shard, bool]:
    """The shard as of ``write_shard``, and whether ``uri`` held exactly its bytes already: then nothing is
    written."""
    made = io.BytesIO()
    shard = _write(made, store.basename(uri), blocks)
    data = made.getvalue()
    with contextlib.suppress(store.StoreError):  # what cannot be read is written again
        if store.read_bytes(uri) == data:
            return shard, True
    store.write_bytes(uri, data)
    return shard, False


def _write(file: IO[bytes], name: str, blocks: Iterable[tuple[Span, bytes]]) -> Shard:
    placed = []
    # By default webdataset writes the present time, owner and mode.
    fixed = {"user": "dna", "group": "dna", "mode": 0o444, "mtime": 0}
    with TarWriter(file, encoder=False, compress=False, **fixed) as tar:
        for index, (span, payload) in enumerate(blocks):
            header = BlockHeader(FORMAT_VERSION, span.assembly, span.contig, span.start, span.end)
            # Members are written by name, ".2bit" before ".json": the payload follows one tar header.
            offset = tar.tarstream.offset + _TAR_HEADER
            tar.write({"__key__": f"{index:06d}", HEADER_EXT: header.to_bytes(), PAYLOAD_EXT: payload})
            placed.append(Block(offset, len(payload), span.assembly, span.contig, span.start, span.end))
    size = file.tell()
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return Shard(name, size, digest.hexdigest(), tuple(placed))
