"""References -> a dataset: plan, look for leakage, one Ray task per shard, the manifest last."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from cluster.storage import store
from cluster.tasks import jobs, ray_session
from configs import dump, redact
from data_prep.alphabet import Codes, Mask, encode
from data_prep.config import DataConfig, ReferenceConfig, SplitConfig
from data_prep.dataset.output import Output
from data_prep.dataset.plan import Chunk, Plan, make_plan, with_parts
from data_prep.dataset.write import keep_or_write_shard, write_shard
from data_prep.shards import SPLITS, Manifest, Shard, pack
from data_prep.sources.reference import Handle, Progress, changed, fetch
from data_prep.sources.survey import Reference, prepare
from data_prep.split.intervals import Span
from data_prep.split.leakage import Leakage, leakage, passes_bp, without

HELD_OUT = ("val", "test")

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
    warnings: tuple[str, ...] = ()  # as in Plan


class BuildStoppedError(RuntimeError):
    """A build failed after its first shard; the message says why, and how much is there."""


def build(
    config: DataConfig, *, on_progress: Progress | None = None, on_retry: Callable[[str], None] | None = None
) -> Built:
    """The dataset of ``config``, written to ``config.output``; shards that are there and whole are not
    written again.

    Every letter is read once before the first byte is written: a fault of the input leaves the output as it
    was.

    Raises:
        ValueError: an input or a filter that cannot be used, no train block, or an output that holds
        something else.
        StoreError: a source cannot be read.
        BuildStoppedError: shards cannot be written; those that are finished stay, without a manifest.
    """
    began = time.monotonic()
    progress, retry = on_progress or (lambda stage, done, total: None), on_retry or (lambda reason: None)
    output = Output(store.absolute(config.output), overwrite=config.overwrite)  # a bad one is said at once
    several = len(config.references) > 1
    with (
        output.alone(),
        ray_session.session(config.workers) if several else contextlib.nullcontext(),
    ):  # one needs no Ray
        references = _prepare(config, progress, retry)
        plan = make_plan(config, references)
        if manifest := output.finished(plan, report=_looks_for_leakage(plan, config.split)):
            return Built(manifest, False, time.monotonic() - began, warnings=plan.warnings)
        with ray_session.session(config.workers) as workers:
            run = _Run(references, config.workers, progress, retry)
            plan, report, leaked_bp = run.look_for_leakage(plan, config.split)
            if manifest := output.finished(plan, report=bool(report)):  # by a build elsewhere, while we read
                return Built(manifest, False, time.monotonic() - began, warnings=plan.warnings)
            info = {
                "config": dump(config),
                "output": output.uri,
                "uris": [r.handle.uri for r in references.values()],
                "workers": workers,
                "host": socket.gethostname(),
                "started": _now(),
            }
            shards = run.write(plan, output, output.claim(plan, info))
        _refuse_changed(references)
        seconds = time.monotonic() - began
        info |= {"finished": _now(), "seconds": round(seconds, 3)}
        manifest = output.finish(plan, shards, report, info)
    return Built(
        manifest,
        True,
        seconds,
        run.found,
        plan.dropped,
        leaked_bp,
        sum(r.empty_records for r in references.values()),
        report,
        plan.warnings,
    )


def _looks_for_leakage(plan: Plan, split: SplitConfig) -> bool:
    """Whether there is anything to compare, and it is wanted."""
    held_out = any(plan.parts[name] for name in HELD_OUT)
    return split.leakage != "off" and (held_out or len(plan.manifest.sources) > 1)


@dataclass
class _Run:
    """The parts of a build that go to the workers."""

    references: dict[str, Reference]
    workers: int | None
    progress: Progress
    on_retry: Callable[[str], None]
    found: int = 0

    def look_for_leakage(self, plan: Plan, split: SplitConfig) -> tuple[Plan, Leakage | None, int]:
        """The plan (without what leaks, if ``split`` says drop), the report, and the bp dropped."""
        if not _looks_for_leakage(plan, split):
            return plan, None, 0
        held_out = [span for name in HELD_OUT for span in plan.parts[name]]
        chunks = plan.chunks()
        tasks = {name: [self._task(chunk) for chunk in chunks if chunk.split == name] for name in SPLITS}
        total, scanned = passes_bp(plan.parts), 0

        def on_result(_: int, bp: int) -> None:
            nonlocal scanned
            scanned += bp
            self.progress("leakage", scanned, total)

        run = partial(jobs.run, on_retry=lambda _, reason: self.on_retry(f"leakage: {reason}"))
        report = leakage(tasks, read_codes, run=run, workers=self.workers, on_result=on_result)
        if split.leakage == "report":
            return plan, report, 0
        parts = plan.parts | {
            name: without(plan.parts[name], report.stretches[name], min_bp=split.min_bp) for name in HELD_OUT
        }
        for name in HELD_OUT:
            if plan.parts[name] and not parts[name]:
                raise ValueError(_all_leaks(name, report, split.min_bp))
        left = sum(span.bp for name in HELD_OUT for span in parts[name])
        return with_parts(plan, parts, self.references), report, sum(span.bp for span in held_out) - left

    def write(self, plan: Plan, output: Output, found: set[str]) -> dict[str, tuple[Shard, ...]]:
        chunks = plan.chunks()
        total, done, ended = sum(chunk.bp for chunk in chunks), 0, 0

        def on_result(index: int, result: tuple[Shard, bool]) -> None:
            nonlocal done, ended
            done, ended = done + chunks[index].bp, ended + 1
            self.found += result[1]
            self.progress("write", done, total)

        tasks = [
            (self._task(chunk), store.join(output.uri, chunk.name), chunk.name in found) for chunk in chunks
        ]
        try:
            results = jobs.run(
                _shard,
                tasks,
                workers=self.workers,
                on_result=on_result,
                on_retry=lambda index, reason: self.on_retry(f"{chunks[index].name}: {reason}"),
            )
            shards = [shard for shard, _ in results]
            output.settle(shards)
        except (OSError, ValueError, RuntimeError) as fault:
            raise BuildStoppedError(
                f"{fault}; {ended} of {len(chunks)} shards are done and stay, there is no manifest "
                "yet, and the same command goes on from them"
            ) from fault
        return {
            split: tuple(s for s, c in zip(shards, chunks, strict=True) if c.split == split)
            for split in SPLITS
        }

    def _task(self, chunk: Chunk) -> Task:
        return self.references[chunk.spans[0].assembly].handle, chunk.spans


def _all_leaks(name: str, report: Leakage, min_bp: int) -> str:
    pair = next(pair for pair in report.pairs if (pair.of, pair.within) == (name, "train"))
    several = "; of assemblies that are alike hold out the same contigs, which names without an assembly do"
    return (
        f"split.leakage drop leaves nothing of {name}: {pair.shared_bases:,} of its {pair.bases:,} bp "
        f"({pair.share:.2%}) also stand in train, and no piece of split.min_bp {min_bp} is left; hold out "
        f"what is "
        f"less alike, or set leakage to report{several if len(report.assemblies) > 1 else ''}"
    )


def read_codes(task: Task) -> Iterator[tuple[Span, Codes]]:
    """On a worker: every span of ``task`` with its codes uint8 [bp], from the reference."""
    handle, spans = task
    return ((span, _encode(handle, span)[0]) for span in spans)


def _prepare(config: DataConfig, progress: Progress, on_retry: Callable[[str], None]) -> dict[str, Reference]:
    uris = [_first_there(reference) for reference in config.references]
    if len(uris) > 1:
        done = 0

        def on_result(_: int, reference: Reference) -> None:
            nonlocal done
            done += sum(reference.contigs.values())
            progress("index", done, 0)

        found = jobs.run(
            prepare,
            uris,
            workers=config.workers,
            on_result=on_result,
            on_retry=lambda index, reason: on_retry(f"{redact(uris[index])}: {reason}"),
        )
    else:
        found = [prepare(uri, on_progress=progress) for uri in uris]
    return {wanted.name: reference for wanted, reference in zip(config.references, found, strict=True)}


def _first_there(reference: ReferenceConfig) -> str:
    """Its URI, in a form that means the same on a worker, whose working directory is another."""
    uris = [store.absolute(uri) for uri in reference.uri]
    if len(uris) == 1:
        return uris[0]
    faults = []
    for uri in uris:
        try:
            if store.exists(uri):
                return uri
            faults.append(f"{uri} does not exist")
        except store.StoreError as fault:  # the next one may be in reach
            faults.append(str(fault))
    raise ValueError(f"reference {reference.name}: none of its files can be had: {'; '.join(faults)}")


def _refuse_changed(references: dict[str, Reference]) -> None:
    for reference in references.values():
        if changed(reference):
            raise BuildStoppedError(
                f"{reference.handle.uri} changed while it was read, so no manifest was written; "
                "build again with overwrite=true"
            )


def _shard(task: tuple[Task, str, bool]) -> tuple[Shard, bool]:
    """On a worker: one shard, read, packed and published, and whether it was there already, to the last
    byte."""
    (handle, spans), uri, look = task
    blocks = ((span, pack(*_encode(handle, span)[:2])) for span in spans)
    return keep_or_write_shard(uri, blocks) if look else (write_shard(uri, blocks), False)


def _encode(handle: Handle, span: Span) -> tuple[Codes, Mask, int]:
    letters = fetch(handle, span.contig, span.start, span.end)
    try:
        return encode(letters, origin=span.start)
    except ValueError as fault:
        raise ValueError(f"{handle.uri}: contig {span.contig}: {fault}") from fault


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
