"""A dataset compared with its manifest, byte for byte."""

import hashlib
import io
import json
import re
from dataclasses import dataclass

from cluster.process.progress import OnProgress, Stage, silent
from cluster.storage import store
from cluster.tasks import jobs
from data_prep.blocks import PackedBlock
from data_prep.dataset.growth import GROWTH
from data_prep.dataset.partner_checks import partner_faults
from data_prep.dataset.read import load_manifest, readers, samples
from data_prep.manifests import files_of, is_kept
from data_prep.partners import settings_of
from data_prep.shards import BUILD_INFO, MANIFEST, SPLITS, BlockHeader, FormatError, Manifest, Shard
from data_prep.split.intervals import Span, bed_bytes

_SHOWN = 3  # faults of one shard; a swapped one has two a block
_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


@dataclass(frozen=True)
class _Task:
    """A shard of the dataset at ``uri``. The letters of the assemblies in ``weighted`` must have weights,
    others none."""

    uri: str
    version: int
    shard: Shard
    weighted: frozenset[str]


def verify(uri: str, *, workers: int | None = None, on_progress: OnProgress = silent) -> list[str]:
    """The faults of the dataset at ``uri``, a sentence each that names the file; empty if it is what its
    manifest says.

    Args:
        workers: above 1, shards are read by as many Ray workers; by default by all cores if the dataset is
            large.

    Raises:
        StoreError, FormatError: there is no manifest to compare it with.
    """
    uri = store.absolute(uri)  # workers have another working directory
    manifest = load_manifest(uri)
    there = set(store.list_files(uri))
    present = [shard for split in SPLITS for shard in manifest.shards[split] if shard.name in there]
    stage = Stage(on_progress, "verify", sum(shard.bp for shard in present))
    weighted = frozenset(source.name for source in manifest.sources if "track" in source.filters)
    results = jobs.run_here_or_there(
        _shard_faults,
        [_Task(uri, manifest.format_version, shard, weighted) for shard in present],
        workers=workers or readers(manifest),
        on_result=lambda index, _: stage.advance(present[index].bp),
    )
    found = {shard.name: faults for shard, faults in zip(present, results, strict=True)}
    faults = _plan_faults(uri, manifest, there)
    for split in SPLITS:
        for shard in manifest.shards[split]:
            more = found.get(shard.name, [f"{shard.name} is missing"])
            faults += more[:_SHOWN]
            if len(more) > _SHOWN:
                faults.append(f"{shard.name} has {len(more) - _SHOWN} more faults")
        faults += _bed_faults(uri, manifest, split, there)
    earlier = {kept: files_of(uri, kept) for kept in sorted(filter(is_kept, there))}
    for kept, names in earlier.items():
        faults += [f"{name} is missing, which {kept} names" for name in sorted(names - there)]
    if GROWTH in there:
        faults.append(f"{GROWTH}: a growth was cut short; the same build ends it")
    named = set().union(*earlier.values())
    faults += partner_faults(uri, manifest, there, earlier=named)
    return faults + _stray_faults(manifest, there, earlier=named)


def _stray_faults(manifest: Manifest, there: set[str], *, earlier: set[str]) -> list[str]:
    known = {shard.name for split in SPLITS for shard in manifest.shards[split]} | earlier
    strays = sorted(name for name in there - known if _SHARD_NAME.fullmatch(name))
    return [f"{name} is not in the manifest; another build left it" for name in strays]


def _shard_faults(task: _Task) -> list[str]:
    """On a worker: the faults of a shard."""
    shard = task.shard
    name = shard.name
    try:
        data = store.read_bytes(store.join(task.uri, name))
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
                faults += _block_faults(task, count, data, header, payload)
            count += 1
    except FormatError as fault:
        faults.append(str(fault))
    if count != len(shard.blocks):
        faults.append(f"{name} holds {count} whole blocks, the manifest says {len(shard.blocks)}")
    return faults


def _block_faults(task: _Task, index: int, data: bytes, header: bytes, payload: bytes) -> list[str]:
    shard, block = task.shard, task.shard.blocks[index]
    where = f"{shard.name}, block {index} ({block.assembly}:{block.contig}:{block.start}-{block.end})"
    faults = []
    wanted = BlockHeader(task.version, block.assembly, block.contig, block.start, block.end).to_bytes()
    if header != wanted:
        faults.append(f"{where}: its header says {header[:200]!r}, the manifest {wanted!r}")
    if data[block.offset : block.offset + block.size] != payload:
        faults.append(f"{where}: the payload is not at bytes {block.offset} to {block.offset + block.size}")
    try:
        packed = PackedBlock(payload)
        if packed.bases != block.bp:
            faults.append(f"{where}: {packed.bases} bases, the manifest says {block.bp}")
        if (packed.weights(0, packed.bases) is not None) != (block.assembly in task.weighted):
            found, said = ("", "no ") if packed.has_weights else ("no ", "")
            faults.append(f"{where}: its letters have {found}weights, the manifest says {said}track")
    except FormatError as fault:
        faults.append(f"{where}: {fault}")
    return faults


def _plan_faults(uri: str, manifest: Manifest, there: set[str]) -> list[str]:
    """Where the manifest differs from the plan of its build, which is in build.json."""
    if BUILD_INFO not in there:
        return []  # it may be removed: it determines nothing
    try:
        plan = json.loads(store.read_bytes(store.join(uri, BUILD_INFO)))["plan"]
    except (ValueError, KeyError, TypeError):
        return [f"{BUILD_INFO} is damaged, or of an older build"]
    written = json.loads(manifest.to_bytes())
    for tree in (written, plan):
        tree["partners"] = settings_of(tree.get("partners"))
    keys = sorted(key for key in written.keys() - {"shards"} if written[key] != plan.get(key))
    return [f"{MANIFEST} differs from the plan in {BUILD_INFO} in {', '.join(keys)}"] if keys else []


def _bed_faults(uri: str, manifest: Manifest, split: str, there: set[str]) -> list[str]:
    name = f"{split}.bed"
    if name not in there:
        return [f"{name} is missing"]
    wanted = bed_bytes(Span.of(block) for _, block in manifest.blocks(split))
    same = store.read_bytes(store.join(uri, name)) == wanted
    return [] if same else [f"{name} lists other intervals than the manifest"]
