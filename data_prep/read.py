"""Datasets read back: the manifest, and the samples of a shard through webdataset. The trainer has its own reader."""

import tarfile
from collections.abc import Iterator
from typing import IO

from webdataset.tariterators import group_by_keys, tar_file_expander

from cluster import store
from data_prep.alphabet import Codes, Mask
from data_prep.shards import HEADER_EXT, MANIFEST, PAYLOAD_EXT, Block, FormatError, Manifest, unpack


def load_manifest(uri: str) -> Manifest:
    """The manifest of the dataset at ``uri``. StoreError if there is none, FormatError if it cannot be used."""
    where = store.join(uri, MANIFEST)
    if not store.exists(where):
        raise store.StoreError(f"{uri} is not a dataset: it has no {MANIFEST}; a build writes it last")
    try:
        return Manifest.from_bytes(store.read_bytes(where))
    except FormatError as fault:
        raise FormatError(f"{where}: {fault}") from fault


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


def blocks(uri: str, manifest: Manifest, split: str) -> Iterator[tuple[Block, Codes, Mask]]:
    """Every block of ``split`` of the dataset at ``uri``, in the manifest's order, with its codes and soft mask."""
    for shard in manifest.shards[split]:
        where = store.join(uri, shard.name)
        with store.open_read(where) as file:
            count = 0
            for block, (_, payload) in zip(shard.blocks, samples(file, name=where), strict=False):
                try:
                    codes, soft_mask = unpack(payload)
                except FormatError as fault:
                    raise FormatError(f"{where}, block {count}: {fault}; run verify") from fault
                count += 1
                yield block, codes, soft_mask
        if count != len(shard.blocks):
            raise FormatError(f"{where} holds {count} blocks, the manifest says {len(shard.blocks)}; run verify")
