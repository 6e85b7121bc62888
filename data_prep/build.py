"""References -> a dataset: plan, look for leakage, one Ray task per shard, the manifest last. No manifest, no dataset.

``build.json`` goes first and holds the plan: a build that was cut short goes on from the shards that are there, after
each has been read and checked; another plan is refused.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster import jobs, store
from configs import dump, redact
from data_prep.alphabet import Codes, Mask, encode
from data_prep.config import DataConfig, ReferenceConfig, SplitConfig
from data_prep.intervals import Span, bed_bytes
from data_prep.leakage import Leakage, leakage, passes_bp, without
from data_prep.plan import Chunk, Plan, make_plan, with_parts
from data_prep.read import load_manifest
from data_prep.reference import Handle, Progress, Reference, fetch, prepare
from data_prep.shards import MANIFEST, SPLITS, FormatError, Manifest, Shard, pack
from data_prep.write import found_shard, write_shard

BUILD_INFO = "build.json"
LEAKAGE = "leakage.json"
HELD_OUT = ("val", "test")
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")
_UNFINISHED = re.compile(rf"\.{_SHARD.pattern}\..+")  # as store.publish names what it writes
_OURS = re.compile(rf"{_UNFINISHED.pattern}|{_SHARD.pattern}|({'|'.join(SPLITS)})\.bed|(build|leakage|manifest)\.json")

Task = tuple[Handle, tuple[Span, ...]]


@dataclass(frozen=True)
class Built:
    """What a build left at its output. ``fresh`` is False where the very same dataset was there already."""

    manifest: Manifest
    fresh: bool
    seconds: float
    found_shards: int = 0  # of an earlier build that was cut short, checked and kept
    dropped_blocks: int = 0
    dropped_bp: int = 0  # of val and test, because they also stand in train
    empty_records: int = 0
    leakage: Leakage | None = None


class BuildStoppedError(RuntimeError):
    """A build failed after its first shard; the message says why, and how much is there."""


def build(config: DataConfig, *, on_progress: Progress | None = None,
          on_retry: Callable[[str], None] | None = None) -> Built:
    """The dataset of ``config``, written to ``config.output``; shards that are there and whole are not written again.

    Every letter is read once before the first byte is written: a fault of the input leaves the output as it was.

    Raises:
        ValueError: an input or a filter that cannot be used, no train block, or an output that holds something else.
        StoreError: a source cannot be read.
        BuildStoppedError: shards cannot be written; those that are finished stay, without a manifest.
    """
    began = time.monotonic()
    progress = on_progress or (lambda stage, done, total: None)
    output = store.absolute(config.output)
    several = len(config.references) > 1
    with jobs.session(config.workers) if several else contextlib.nullcontext():  # one is read here, without Ray
        there = store.sizes(output)  # first of all: an output that cannot be used is said at once
        references = _prepare(config, progress)
        plan = make_plan(config, references)
        if there and not config.overwrite:
            _refuse_another(output, there, plan.manifest)
            manifest = _finished(output, there)
            if manifest:
                return Built(manifest, False, time.monotonic() - began)
        with jobs.session(config.workers) as workers:
            run = _Run(references, workers, progress, on_retry or (lambda reason: None))
            plan, report, leaked_bp = run.look_for_leakage(plan, config.split)
            info = {"config": dump(config), "output": output, "uris": [r.handle.uri for r in references.values()],
                    "workers": workers, "started": _now()}
            found = _clear(output, there, plan, keep=not config.overwrite)
            _write_info(output, plan, info)
            shards = run.write(plan, output, found)
        for split in SPLITS:
            store.write_bytes(store.join(output, f"{split}.bed"), bed_bytes(plan.parts[split]))
        if report:
            store.write_bytes(store.join(output, LEAKAGE), report.to_bytes())
        _refuse_changed(references)
        seconds = time.monotonic() - began
        _write_info(output, plan, info | {"finished": _now(), "seconds": round(seconds, 3)})
        manifest = replace(plan.manifest, shards=shards)
        store.write_bytes(store.join(output, MANIFEST), manifest.to_bytes())
    return Built(manifest, True, seconds, run.found, plan.dropped, leaked_bp,
                 sum(r.empty_records for r in references.values()), report)


@dataclass
class _Run:
    """The parts of a build that go to the workers."""

    references: dict[str, Reference]
    workers: int
    progress: Progress
    on_retry: Callable[[str], None]
    found: int = 0

    def look_for_leakage(self, plan: Plan, split: SplitConfig) -> tuple[Plan, Leakage | None, int]:
        """The plan (without what leaks, if ``split`` says drop), the report, and the bp dropped."""
        held_out = [span for name in HELD_OUT for span in plan.parts[name]]
        if split.leakage == "off" or (not held_out and len(self.references) == 1):
            return plan, None, 0
        tasks = {name: [self._task(chunk) for chunk in plan.chunks() if chunk.split == name] for name in SPLITS}
        total, scanned = passes_bp(plan.parts), 0

        def on_result(_: int, bp: int) -> None:
            nonlocal scanned
            scanned += bp
            self.progress("leakage", scanned, total)

        report = leakage(tasks, read_codes, workers=self.workers, on_result=on_result)
        if split.leakage == "report":
            return plan, report, 0
        parts = plan.parts | {name: without(plan.parts[name], report.stretches[name], min_bp=split.min_bp)
                              for name in HELD_OUT}
        left = sum(span.bp for name in HELD_OUT for span in parts[name])
        return with_parts(plan, parts, self.references), report, sum(span.bp for span in held_out) - left

    def write(self, plan: Plan, output: str, found: set[str]) -> dict[str, tuple[Shard, ...]]:
        chunks = plan.chunks()
        total, done, ended = sum(chunk.bp for chunk in chunks), 0, 0

        def on_result(index: int, result: tuple[Shard, bool]) -> None:
            nonlocal done, ended
            done, ended = done + chunks[index].bp, ended + 1
            self.found += result[1]
            self.progress("write", done, total)

        tasks = [(self._task(chunk), store.join(output, chunk.name), chunk.name in found) for chunk in chunks]
        try:
            results = jobs.run(_shard, tasks, workers=self.workers, on_result=on_result,
                               on_retry=lambda index, reason: self.on_retry(f"{chunks[index].name}: {reason}"))
            shards = [shard for shard, _ in results]
            _settle(output, shards)
        except (OSError, ValueError, RuntimeError) as fault:
            raise BuildStoppedError(f"{fault}; {ended} of {len(chunks)} shards are done and stay, there is no manifest "
                                    "yet, and the same command goes on from them") from fault
        return {split: tuple(s for s, c in zip(shards, chunks, strict=True) if c.split == split) for split in SPLITS}

    def _task(self, chunk: Chunk) -> Task:
        return self.references[chunk.spans[0].assembly].handle, chunk.spans


def read_codes(task: Task) -> Iterator[tuple[Span, Codes]]:
    """On a worker: every span of ``task`` with its codes uint8 [bp], from the reference."""
    handle, spans = task
    return ((span, _encode(handle, span)[0]) for span in spans)


def _prepare(config: DataConfig, progress: Progress) -> dict[str, Reference]:
    uris = [_first_there(reference) for reference in config.references]
    if len(uris) > 1:
        found = jobs.run(prepare, uris, workers=config.workers,
                         on_result=lambda _, r: progress(f"index {store.basename(r.handle.uri)}",
                                                         *[sum(r.contigs.values())] * 2))
    else:
        found = [prepare(uri, on_progress=progress) for uri in uris]
    return {wanted.name: reference for wanted, reference in zip(config.references, found, strict=True)}


def _first_there(reference: ReferenceConfig) -> str:
    if len(reference.uri) == 1:
        return reference.uri[0]
    for uri in reference.uri:
        if store.exists(uri):
            return uri
    raise ValueError(f"reference {reference.name}: none of its files is there: {', '.join(reference.uri)}")


def _refuse_another(output: str, there: dict[str, int], plan: Manifest) -> None:
    """ValueError unless the manifest at ``output``, or the plan of a build cut short, is ``plan``."""
    advice = "pass overwrite=true to replace it, or another output"
    if MANIFEST in there:
        old, what = json.loads(load_manifest(output).to_bytes()), "another dataset"
    else:
        try:
            old = json.loads(store.read_bytes(store.join(output, BUILD_INFO)))["plan"] if BUILD_INFO in there else None
        except (ValueError, KeyError, TypeError):
            old = None
        what = "an unfinished build of another dataset"
    if not isinstance(old, dict):
        raise ValueError(f"{output} is not empty and has no {MANIFEST} (other files, or an older build); {advice}")
    new = _comparable(json.loads(plan.to_bytes()))
    old = _comparable(old)
    if differing := [key for key in sorted(new.keys() | old.keys()) if old.get(key) != new.get(key)]:
        raise ValueError(f"{output} holds {what} (it differs in {', '.join(differing)}); {advice}")


def _comparable(tree: dict[str, Any]) -> dict[str, Any]:
    """Without what follows from the rest: the shards, and counts, which dropping leaks changes."""
    sources = [{key: value for key, value in source.items() if key != "iupac_to_n"} for source in tree["sources"]]
    return tree | {"shards": None, "sources": sources}


def _finished(output: str, there: dict[str, int]) -> Manifest | None:
    """The manifest at ``output`` if all it names is there in full size."""
    if MANIFEST not in there:
        return None
    manifest = load_manifest(output)
    sizes = {shard.name: shard.bytes for split in SPLITS for shard in manifest.shards[split]}
    whole = all(there.get(name) == size for name, size in sizes.items())
    return manifest if whole and all(f"{split}.bed" in there for split in SPLITS) else None


def _clear(output: str, there: dict[str, int], plan: Plan, *, keep: bool) -> set[str]:
    """Names of the shards of ``plan`` that are there; of what else an earlier build left, its manifest goes first."""
    kept = {chunk.name for chunk in plan.chunks()} & there.keys() if keep else set()
    gone = [name for name in filter(_OURS.fullmatch, there) if name not in kept]
    for name in sorted(gone, key=lambda name: name != MANIFEST):
        store.remove(store.join(output, name))
    return kept


def _write_info(output: str, plan: Plan, info: dict[str, Any]) -> None:
    tree = redact(info) | {"plan": json.loads(plan.manifest.to_bytes())}
    store.write_bytes(store.join(output, BUILD_INFO), json.dumps(tree, indent=1).encode() + b"\n")


def _settle(output: str, shards: Sequence[Shard]) -> None:
    """A last look: every shard is there in full size, and what killed workers were writing goes."""
    there = store.sizes(output)
    for shard in shards:
        if shard.name not in there:
            raise ValueError(f"{output}: {shard.name} was written by a worker but is not seen from here; "
                             "workers and this process need one file system or an object store")
        if there[shard.name] != shard.bytes:
            raise ValueError(f"{output}: {shard.name} was written with {shard.bytes} bytes and has {there[shard.name]}")
    for name in filter(_UNFINISHED.fullmatch, there):
        store.remove(store.join(output, name))


def _refuse_changed(references: dict[str, Reference]) -> None:
    for reference in references.values():
        uri = reference.handle.uri
        if store.version(uri) != reference.version:
            raise BuildStoppedError(f"{uri} changed while it was read, so no manifest was written; build again with "
                                    "overwrite=true")


def _shard(task: tuple[Task, str, bool]) -> tuple[Shard, bool]:
    """On a worker: one shard, read, packed and published, or found whole at its place (then True)."""
    (handle, spans), uri, look = task
    if look:
        with contextlib.suppress(FormatError):  # damaged or of other blocks: written anew
            return found_shard(uri, spans), True
    return write_shard(uri, ((span, pack(*_encode(handle, span)[:2])) for span in spans)), False


def _encode(handle: Handle, span: Span) -> tuple[Codes, Mask, int]:
    letters = fetch(handle, span.contig, span.start, span.end)
    try:
        return encode(letters, origin=span.start)
    except ValueError as fault:
        raise ValueError(f"{handle.uri}: contig {span.contig}: {fault}") from fault


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
