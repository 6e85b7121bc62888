"""References -> a dataset: plan, leakage report, one task per shard, the manifest last."""

import contextlib
import socket
import time
from dataclasses import dataclass, replace
from typing import Any

from cluster.process.progress import OnProgress, Stage, silent
from cluster.storage import store
from cluster.storage.uri import resolve_to_write
from cluster.tasks import ray_session
from configs import dump
from data_prep.blocks import pack
from data_prep.config import DataConfig
from data_prep.dataset.annotation import Annotation, annotated
from data_prep.dataset.families import Divided, divide
from data_prep.dataset.growth import Grown, grown
from data_prep.dataset.leaks import check_plan, wants_report
from data_prep.dataset.output import Files, Output
from data_prep.dataset.partners import make_partners
from data_prep.dataset.plan import Plan, make_plan
from data_prep.dataset.references import ReferenceSpans, first_changed, prepare_all
from data_prep.dataset.runner import OnRetry, Runner
from data_prep.dataset.weights import with_weights
from data_prep.dataset.write import keep_or_write_shard, write_shard
from data_prep.partners import PartnerTable
from data_prep.shards import SPLITS, Manifest, Shard
from data_prep.sources.survey import Reference
from data_prep.split.leakage import Leakage


@dataclass(frozen=True)
class Built:
    """What a build left at its output. ``fresh`` is False where the same dataset was there already."""

    manifest: Manifest
    fresh: bool
    seconds: float
    found_shards: int = 0  # of an earlier build that was cut short, checked and kept
    dropped_blocks: int = 0  # with too many N
    dropped_bp: int = 0  # of val and test, because they also stand in train
    empty_records: int = 0
    divided: Divided | None = None  # what homology and dedup did
    leakage: Leakage | None = None
    partners: PartnerTable | None = None
    warnings: tuple[str, ...] = ()  # as in Plan
    licensed: bool = False  # other licences were written down, of a dataset that is not ``fresh``
    grown: Grown | None = None  # where a dataset was there and grew


class BuildStoppedError(RuntimeError):
    """A build failed after its first shard; the message says why, and how much is there."""


def build(
    config: DataConfig, *, on_progress: OnProgress = silent, on_retry: OnRetry = lambda reason: None
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
    runner = Runner(config.workers, on_progress, on_retry)
    resolve_to_write(store.absolute(config.output))  # where nothing can be written, at once
    output = Output(
        store.absolute(config.output), overwrite=config.overwrite, grow=config.grow
    )  # a wrong one is refused at once
    with output.alone(), contextlib.ExitStack() as stack:
        references = prepare_all(
            config.references,
            runner,
            start=lambda: stack.enter_context(
                ray_session.session(config.workers)
            ),  # one Ray for all that follows
        )
        plan = replace(make_plan(config, references), base=output.base())
        told = ["dedup"] * (config.dedup.mode == "report")
        if manifest := output.finished(plan, report=wants_report(plan, config.split), told=told):
            return Built(
                manifest,
                fresh=False,
                seconds=time.monotonic() - began,
                warnings=plan.warnings,
                licensed=output.write_licences({one.name: one.licence for one in config.references}),
            )
        if config.overwrite and (earlier := output.earlier_manifests()):
            warning = (
                f"{output.uri}: {earlier} earlier manifests go, and runs that began with them cannot go on"
            )
            plan = replace(plan, warnings=(*plan.warnings, warning))
        with ray_session.session(config.workers) as workers:
            divided = divide(plan, config, references, runner)
            checked = check_plan(divided.plan, config, references, runner)
            checked = replace(checked, plan=with_weights(checked.plan))
            # Another machine may have built it meanwhile.
            if manifest := output.finished(checked.plan, report=bool(checked.report), told=told):
                return Built(manifest, fresh=False, seconds=time.monotonic() - began, warnings=plan.warnings)
            info = _info(config, output, references, workers) | divided.info()
            found = output.claim(checked.plan, info)
            written = _write_shards(checked.plan, output, found, references, runner)
            partners = make_partners(checked.plan, references, runner)
        if uri := first_changed(references) or checked.plan.changed_file():
            advice = "build again" if plan.base else "build again with overwrite=true"
            raise BuildStoppedError(f"{uri} changed while it was read, so no manifest was written; {advice}")
        seconds = time.monotonic() - began
        info |= {"finished": _now(), "seconds": round(seconds, 3)}
        files = Files(written.shards, checked.report, None if partners is None else partners.to_bytes())
        manifest = output.finish(checked.plan, files, info)
    return Built(
        manifest,
        fresh=True,
        seconds=seconds,
        found_shards=written.found,
        dropped_blocks=checked.plan.dropped,
        dropped_bp=checked.dropped_bp,
        empty_records=sum(reference.empty_records for reference in references.values()),
        divided=divided,
        leakage=checked.report,
        partners=partners,
        warnings=checked.plan.warnings,
        grown=grown(plan.base, manifest) if plan.base else None,
    )


def _info(
    config: DataConfig, output: Output, references: dict[str, Reference], workers: int
) -> dict[str, Any]:
    """What build.json tells beside the plan, and determines nothing."""
    return {
        "config": dump(config),
        "output": output.uri,
        "uris": [reference.handle.uri for reference in references.values()],
        "workers": workers,
        "host": socket.gethostname(),
        "started": _now(),
    }


@dataclass(frozen=True)
class _Written:
    """The shards by split, and how many of them an earlier build had written."""

    shards: dict[str, tuple[Shard, ...]]
    found: int


@dataclass(frozen=True)
class _ShardTask:
    """One shard to write to ``uri``; ``is_there``: a file of this name is there and may be whole."""

    source: ReferenceSpans
    annotation: Annotation
    uri: str
    is_there: bool


def _write_shards(
    plan: Plan, output: Output, found: set[str], references: dict[str, Reference], runner: Runner
) -> _Written:
    chunks, kept = plan.chunks(), output.kept(plan)
    missing = [chunk for chunk in chunks if chunk.name not in kept]
    tasks = [
        _ShardTask(
            ReferenceSpans(references[chunk.assembly].handle, chunk.spans),
            plan.annotations[chunk.assembly].only({span.contig for span in chunk.spans}),
            store.join(output.uri, chunk.name),
            chunk.name in found,
        )
        for chunk in missing
    ]
    stage, ended = Stage(runner.on_progress, "write", sum(chunk.bp for chunk in missing)), set[int]()

    def on_result(index: int, _: tuple[Shard, bool]) -> None:
        ended.add(index)
        stage.advance(missing[index].bp)

    try:
        results = runner.run(
            _shard,
            tasks,
            names=[chunk.name for chunk in missing],
            uri=lambda task: task.source.handle.uri,
            on_result=on_result,
        )
        written = {shard.name: shard for shard, _ in results}
        output.settle([*kept.values(), *written.values()])
    except (OSError, ValueError, RuntimeError) as fault:
        raise BuildStoppedError(
            f"{fault}; {len(ended)} of {len(missing)} shards are done and stay, "
            + ("the manifest is the one before" if plan.base else "there is no manifest yet")
            + ", and the same command goes on from them"
        ) from fault
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for chunk in chunks:
        shards[chunk.split].append((kept | written)[chunk.name])
    return _Written(
        {split: tuple(own) for split, own in shards.items()}, sum(was_there for _, was_there in results)
    )


def _shard(task: _ShardTask) -> tuple[Shard, bool]:
    """On a worker: one shard, read, packed and published, and whether it was there already, to the last
    byte."""
    annotation = task.annotation
    blocks = (
        (span, pack(codes, *annotated(annotation, task.source.handle, span, lower_case)))
        for span, codes, lower_case in task.source.read()
    )
    return keep_or_write_shard(task.uri, blocks) if task.is_there else (write_shard(task.uri, blocks), False)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
