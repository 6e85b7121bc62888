"""A dataset held against its manifest, byte for byte."""

import hashlib
import io
import re

from cluster import store
from data_prep.intervals import Span, bed_bytes
from data_prep.read import load_manifest, samples
from data_prep.shards import SPLITS, BlockHeader, FormatError, Manifest, Shard, unpack

_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


def verify(uri: str) -> list[str]:
    """The faults of the dataset at ``uri``, a sentence each that names the file; empty if it is what its manifest says.

    Raises:
        StoreError, FormatError: there is no manifest to hold it against.
    """
    manifest = load_manifest(uri)
    there = set(store.list_files(uri))
    faults = []
    for split in SPLITS:
        for shard in manifest.shards[split]:
            faults += _shard_faults(uri, manifest, shard) if shard.name in there else [f"{shard.name} is missing"]
        faults += _bed_faults(uri, manifest, split, there)
    known = {shard.name for split in SPLITS for shard in manifest.shards[split]}
    strays = (name for name in there - known if _SHARD_NAME.fullmatch(name))
    return faults + [f"{name} is not in the manifest; another build left it" for name in sorted(strays)]


def _shard_faults(uri: str, manifest: Manifest, shard: Shard) -> list[str]:
    name = shard.name
    try:
        data = store.read_bytes(store.join(uri, name))
    except store.StoreError as fault:
        return [str(fault)]
    faults = []
    if len(data) != shard.bytes:
        faults.append(f"{name} has {len(data)} bytes, the manifest says {shard.bytes}")
    elif (found := hashlib.sha256(data).hexdigest()) != shard.sha256:
        faults.append(f"{name} has sha256 {found[:12]}, the manifest says {shard.sha256[:12]}")
    count = 0
    try:
        for header, payload in samples(io.BytesIO(data), name=name):
            if count < len(shard.blocks):
                faults += _block_faults(manifest, shard, count, data, header, payload)
            count += 1
    except FormatError as fault:
        faults.append(str(fault))
    if count != len(shard.blocks):
        faults.append(f"{name} holds {count} whole blocks, the manifest says {len(shard.blocks)}")
    return faults


def _block_faults(manifest: Manifest, shard: Shard, index: int, data: bytes, header: bytes,
                  payload: bytes) -> list[str]:
    block = shard.blocks[index]
    where = f"{shard.name}, block {index} ({block.assembly}:{block.contig}:{block.start}-{block.end})"
    faults = []
    wanted = BlockHeader(manifest.format_version, block.assembly, block.contig, block.start, block.end).to_bytes()
    if header != wanted:
        faults.append(f"{where}: its header says {header[:200]!r}, the manifest {wanted!r}")
    if data[block.offset : block.offset + block.size] != payload:
        faults.append(f"{where}: the payload is not at bytes {block.offset} to {block.offset + block.size}")
    try:
        codes, _ = unpack(payload)
        if len(codes) != block.bp:
            faults.append(f"{where}: {len(codes)} bases, the manifest says {block.bp}")
    except FormatError as fault:
        faults.append(f"{where}: {fault}")
    return faults


def _bed_faults(uri: str, manifest: Manifest, split: str, there: set[str]) -> list[str]:
    name = f"{split}.bed"
    if name not in there:
        return [f"{name} is missing"]
    wanted = bed_bytes(Span(b.assembly, b.contig, b.start, b.end) for _, b in manifest.blocks(split))
    same = store.read_bytes(store.join(uri, name)) == wanted
    return [] if same else [f"{name} lists other intervals than the manifest"]
