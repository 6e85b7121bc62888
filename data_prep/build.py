"""References -> a dataset: plan, survey, one Ray task per shard, the manifest last. No manifest, no dataset."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster import jobs, store
from configs import dump, redact
from data_prep.alphabet import Codes, Mask, N, encode
from data_prep.config import DataConfig, ReferenceConfig
from data_prep.intervals import Span, assign, bed_bytes, choose_contigs, group, read_bed, tile
from data_prep.read import load_manifest
from data_prep.reference import Reference, fetch, prepare
from data_prep.shards import FORMAT_VERSION, MANIFEST, SPLITS, Manifest, Shard, Source, pack
from data_prep.write import write_shard

BUILD_INFO = "build.json"
_OURS = re.compile(r"(train|val|test)(-\d{6}\.tar|\.bed)|build\.json|manifest\.json")

Progress = Callable[[str, int, int], None]  # (stage, bp done, bp in all)


@dataclass(frozen=True)
class Built:
    """What a build left at its output. ``fresh`` is False where the very same dataset was there already."""

    manifest: Manifest
    fresh: bool
    seconds: float
    dropped_blocks: int = 0
    empty_records: int = 0


def build(config: DataConfig, *, on_progress: Progress | None = None) -> Built:
    """The dataset of ``config``, written to ``config.output``; nothing is written if it is there already.

    Every letter is read once before the first byte is written: a fault of the input leaves the output as it was.

    Raises:
        ValueError: an input or a filter that cannot be used, no train block, or an output that holds something else.
        StoreError: a source cannot be read or the output cannot be written; what this build wrote is removed.
    """
    began = time.monotonic()
    progress = on_progress or (lambda stage, done, total: None)
    output = store.absolute(config.output)
    there = store.list_files(output)
    references = [prepare(_first_there(reference)) for reference in config.references]
    plan, spans = _plan(config, references)
    if there and not config.overwrite:
        manifest = _same(output, there, plan)
        return Built(manifest, False, time.monotonic() - began)
    by_name = {source.name: reference for source, reference in zip(plan.sources, references, strict=True)}
    with jobs.session(config.workers) as workers:
        parts, iupac = _survey(config, spans, by_name, workers=workers, progress=progress)
        sources = tuple(replace(source, iupac_to_n=iupac[source.name]) for source in plan.sources)
        with _whole_or_nothing(output, there):
            shards = _write(config, parts, by_name, output=output, workers=workers, progress=progress)
            for split in SPLITS:
                store.write_bytes(store.join(output, f"{split}.bed"), bed_bytes(parts[split]))
            seconds = time.monotonic() - began
            info = {"config": dump(config), "output": output, "uris": [r.uri for r in references], "workers": workers,
                    "seconds": round(seconds, 3), "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            store.write_bytes(store.join(output, BUILD_INFO), json.dumps(redact(info), indent=2).encode() + b"\n")
            manifest = replace(plan, sources=sources, shards=shards)
            store.write_bytes(store.join(output, MANIFEST), manifest.to_bytes())
    dropped = sum(map(len, spans.values())) - sum(map(len, parts.values()))
    return Built(manifest, True, seconds, dropped, sum(reference.empty_records for reference in references))


def _first_there(reference: ReferenceConfig) -> str:
    if len(reference.uri) == 1:
        return reference.uri[0]
    for uri in reference.uri:
        if store.exists(uri):
            return uri
    raise ValueError(f"reference {reference.name}: none of its files is there: {', '.join(reference.uri)}")


def _plan(config: DataConfig, references: Sequence[Reference]) -> tuple[Manifest, dict[str, list[Span]]]:
    """The manifest but for its shards and counts, and the blocks of each split before the N filter."""
    sources, spans = [], []
    for wanted, reference in zip(config.references, references, strict=True):
        where = f"reference {wanted.name}"
        contigs = choose_contigs(reference.contigs, wanted.contigs, where=where)
        include, exclude = ([read_bed(uri) for uri in uris] for uris in (wanted.include, wanted.exclude))
        for uri, bed in zip(wanted.include + wanted.exclude, include + exclude, strict=True):
            if not reference.contigs.keys() & bed.keys():
                theirs, ours = (", ".join(list(names)[:4]) for names in (bed, reference.contigs))
                raise ValueError(f"{where}: {uri} names no contig of it (the BED has {theirs}; the reference {ours})")
        filters = {"contigs": wanted.contigs and list(wanted.contigs),
                   "include": [_digest(uri) for uri in wanted.include],
                   "exclude": [_digest(uri) for uri in wanted.exclude]}
        sources.append(Source(wanted.name, reference.sha256, contigs, 0, filters, wanted.weight))
        spans += tile(wanted.name, contigs, block_bp=config.block_bp, include=include, exclude=exclude)
    split = config.split
    parts = assign(spans, val=split.val, test=split.test, seed=config.seed, gap=split.gap)
    manifest = Manifest(FORMAT_VERSION, tuple(sources), config.block_bp, config.shard_bp, config.max_n_fraction,
                        split.model_dump(mode="json"), config.seed, dict.fromkeys(SPLITS, ()))
    return manifest, parts


def _digest(uri: str) -> str:
    return hashlib.sha256(store.read_bytes(uri)).hexdigest()


def _same(output: str, there: Sequence[str], plan: Manifest) -> Manifest:
    """The manifest at ``output`` if it is of this very plan; ValueError otherwise."""
    advice = "pass overwrite=true to replace it, or another output"
    if MANIFEST not in there:
        raise ValueError(f"{output} is not empty and has no {MANIFEST} (a build cut short, or other files); {advice}")
    manifest = load_manifest(output)
    old = replace(manifest, shards=plan.shards, sources=tuple(replace(s, iupac_to_n=0) for s in manifest.sources))
    old_values, new_values = (json.loads(m.to_bytes()) for m in (old, plan))
    differing = [key for key in new_values if old_values[key] != new_values[key]]
    if differing:
        raise ValueError(f"{output} holds another dataset (it differs in {', '.join(differing)}); {advice}")
    return manifest


@contextlib.contextmanager
def _whole_or_nothing(output: str, there: Sequence[str]) -> Iterator[None]:
    """What an earlier build left goes first, its manifest before all; what this one wrote goes if the block raises."""
    for name in sorted(filter(_OURS.fullmatch, there), key=lambda name: name != MANIFEST):
        store.remove(store.join(output, name))
    fresh = not there and not (store.is_local(output) and store.local_path(output).exists())
    try:
        yield
    except BaseException:
        with contextlib.suppress(store.StoreError):
            left = store.list_files(output)
            for name in filter(_OURS.fullmatch, left):
                store.remove(store.join(output, name))
            if fresh and not store.list_files(output):
                store.remove(output)
        raise


def _survey(config: DataConfig, spans: dict[str, list[Span]], references: dict[str, Reference], *, workers: int,
            progress: Progress) -> tuple[dict[str, list[Span]], dict[str, int]]:
    """``spans`` without the blocks of too much N, and per source how many ambiguity letters became N in the rest."""
    chunks = {split: group(spans[split], shard_bp=config.shard_bp) for split in SPLITS}
    tasks = [(references[chunk[0].assembly], chunk) for split in SPLITS for chunk in chunks[split]]
    counted = iter(jobs.run(_count, tasks, workers=workers, on_result=_report(progress, "read", tasks)))
    kept: dict[str, list[Span]] = {split: [] for split in SPLITS}
    iupac = dict.fromkeys(references, 0)
    for split in SPLITS:
        for chunk in chunks[split]:
            for span, (n, ambiguous) in zip(chunk, next(counted), strict=True):
                if n <= config.max_n_fraction * span.bp:
                    kept[split].append(span)
                    iupac[span.assembly] += ambiguous
    if not kept["train"]:
        raise ValueError("nothing is left to train on: the filters, max_n_fraction, or the split take every block; "
                         f"of {sum(map(len, spans.values()))} blocks {len(spans['train'])} were meant for train")
    return kept, iupac


def _write(config: DataConfig, parts: dict[str, list[Span]], references: dict[str, Reference], *, output: str,
           workers: int, progress: Progress) -> dict[str, tuple[Shard, ...]]:
    tasks, owners = [], []
    for split in SPLITS:
        for index, chunk in enumerate(group(parts[split], shard_bp=config.shard_bp)):
            tasks.append((references[chunk[0].assembly], chunk))
            owners.append((split, store.join(output, f"{split}-{index:06d}.tar")))
    jobs_in = [(reference, chunk, uri) for (reference, chunk), (_, uri) in zip(tasks, owners, strict=True)]
    written = jobs.run(_shard, jobs_in, workers=workers, on_result=_report(progress, "write", tasks))
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for (split, _), shard in zip(owners, written, strict=True):
        shards[split].append(shard)
    missing = {shard.name for shard in written} - set(store.list_files(output))
    if missing:
        raise ValueError(f"{output}: {min(missing)} was written by a worker but is not seen from here; "
                         "workers and this process need one file system or an object store")
    return {split: tuple(shards[split]) for split in SPLITS}


def _report(progress: Progress, stage: str, tasks: Sequence[tuple[Any, list[Span]]]) -> Callable[[int, Any], None]:
    total = sum(span.bp for _, chunk in tasks for span in chunk)
    done = 0

    def on_result(index: int, _: Any) -> None:
        nonlocal done
        done += sum(span.bp for span in tasks[index][1])
        progress(stage, done, total)

    return on_result


def _count(task: tuple[Reference, list[Span]]) -> list[tuple[int, int]]:
    """On a worker: per block, how many N its codes have, and how many of them were ambiguity letters."""
    reference, spans = task
    encoded = (_encode(reference, span) for span in spans)
    return [(int(np.count_nonzero(codes == N)), ambiguous) for codes, _, ambiguous in encoded]


def _shard(task: tuple[Reference, list[Span], str]) -> Shard:
    """On a worker: one shard, read, packed and published."""
    reference, spans, uri = task
    return write_shard(uri, ((span, pack(*_encode(reference, span)[:2])) for span in spans))


def _encode(reference: Reference, span: Span) -> tuple[Codes, Mask, int]:
    letters = fetch(reference, span.contig, span.start, span.end)
    try:
        return encode(letters, origin=span.start)
    except ValueError as fault:
        raise ValueError(f"{reference.uri}: contig {span.contig}: {fault}") from fault
