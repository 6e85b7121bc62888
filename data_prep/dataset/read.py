"""Datasets -> blocks: the manifest, and the samples of a shard through webdataset. The trainer has its own
reader."""

import tarfile
from collections.abc import Iterator
from typing import IO

from cluster.process import host
from cluster.storage import store
from data_prep.alphabet import Codes, Mask
from data_prep.blocks import PackedBlock
from data_prep.dataset.tar import group_by_keys, tar_file_expander
from data_prep.manifests import open_manifest
from data_prep.shards import (
    HEADER_EXT,
    PAYLOAD_EXT,
    SPLITS,
    Block,
    FormatError,
    Manifest,
    Shard,
)
from data_prep.split.intervals import Span

_LARGE = 1 << 30  # bp


def load_manifest(uri: str) -> Manifest:
    """The manifest of the dataset at ``uri``. StoreError if there is none, FormatError if it cannot be
    used."""
    return open_manifest(uri).manifest


def readers(manifest: Manifest) -> int:
    """How many processes should read all of a dataset: one, or all cores if it is large, since Ray takes time
    to start."""
    return host.usable() if sum(map(manifest.bp, SPLITS)) >= _LARGE else 1


def samples(shard: IO[bytes], *, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Header and payload bytes of every sample of the open ``shard``, in order.

    Raises:
        FormatError: not a tar, cut short, or a sample without one of its two members.
    """
    try:
        for sample in group_by_keys(tar_file_expander([{"url": name, "stream": shard}])):
            missing = [ext for ext in (HEADER_EXT, PAYLOAD_EXT) if ext not in sample]
            if missing:
                raise FormatError(f"{name}: sample {sample['__key__']} has no .{missing[0]}")
            yield sample[HEADER_EXT], sample[PAYLOAD_EXT]
    except (tarfile.TarError, EOFError) as fault:
        raise FormatError(f"{name} is not a whole tar: {fault.args[0] if fault.args else fault}") from fault


def packed_blocks(where: str, shard: Shard) -> Iterator[tuple[Block, PackedBlock]]:
    """Every block of ``shard``, whose tar is at ``where``, checked but still packed.

    Raises:
        FormatError: not a whole tar, a damaged block, or more or fewer blocks than ``shard`` has.
    """
    count = 0
    with store.open_read(where) as file:
        for _, payload in samples(file, name=where):
            if count < len(shard.blocks):
                try:
                    packed = PackedBlock(payload)
                except FormatError as fault:
                    raise FormatError(f"{where}, block {count}: {fault}; run verify") from fault
                if packed.bases != shard.blocks[count].bp:
                    raise FormatError(
                        f"{where}, block {count}: {packed.bases} bases, the manifest says "
                        f"{shard.blocks[count].bp}; run verify"
                    )
                yield shard.blocks[count], packed
            count += 1
    if count != len(shard.blocks):
        raise FormatError(f"{where} holds {count} blocks, the manifest says {len(shard.blocks)}; run verify")


def shard_codes(task: tuple[str, Shard]) -> Iterator[tuple[Span, Codes]]:
    """Every block of a shard with its codes; ``task``: the URI of its tar, and its entry in the manifest."""
    where, shard = task
    for block, packed in packed_blocks(where, shard):
        yield Span.of(block), packed.codes(0, packed.bases)


def blocks(uri: str, manifest: Manifest, split: str) -> Iterator[tuple[Block, Codes, Mask]]:
    """Every block of ``split`` of the dataset at ``uri``, in the manifest's order, with its codes and soft
    mask."""
    for shard in manifest.shards[split]:
        for block, packed in packed_blocks(store.join(uri, shard.name), shard):
            yield block, packed.codes(0, packed.bases), packed.soft_mask(0, packed.bases)
