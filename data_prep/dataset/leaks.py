"""Leakage of a plan, before its shards are written, and of a dataset, from its shards."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from cluster.process import host
from cluster.process.progress import OnProgress, Stage, silent
from cluster.storage import store
from cluster.tasks import jobs, ray_session
from data_prep.config import DataConfig, SplitConfig
from data_prep.dataset.plan import Plan, with_parts
from data_prep.dataset.read import load_manifest, shard_codes
from data_prep.dataset.references import ReferenceSpans, reference_codes
from data_prep.dataset.runner import Runner
from data_prep.shards import BUILD_INFO, SPLITS, Manifest
from data_prep.sources.survey import Reference
from data_prep.split.intervals import HELD_OUT, Span
from data_prep.split.leakage import Leakage, leakage, passes_bp, without


@dataclass(frozen=True)
class CheckedPlan:
    """The plan to write, the leakage report on what was planned first, and the bp that were dropped since."""

    plan: Plan
    report: Leakage | None = None
    dropped_bp: int = 0


def wants_report(plan: Plan, split: SplitConfig) -> bool:
    """Whether a leakage report is wanted and there is anything to compare."""
    held_out = split.by == "homology" or any(plan.parts[name] for name in HELD_OUT)
    return split.leakage != "off" and (held_out or len(plan.manifest.sources) > 1)


def check_plan(
    plan: Plan, config: DataConfig, references: Mapping[str, Reference], runner: Runner
) -> CheckedPlan:
    """``plan`` with its leakage report, and without what leaks where ``split`` says drop.

    Raises:
        ValueError: dropping leaves nothing of val or of test.
    """
    split = config.split
    if not wants_report(plan, split):
        return CheckedPlan(plan)
    tasks: dict[str, list[ReferenceSpans]] = {name: [] for name in SPLITS}
    for chunk in plan.chunks():
        tasks[chunk.split].append(ReferenceSpans(references[chunk.assembly].handle, chunk.spans))
    run = partial(
        jobs.run,
        on_retry=lambda _, reason: runner.on_retry(f"leakage: {reason}"),
        near=runner.near(lambda task: task.chunk.handle.uri),
    )
    stage = Stage(runner.on_progress, "leakage", passes_bp(plan.parts))
    clades = {reference.name: reference.clade for reference in config.assemblies() if reference.clade}
    report = leakage(
        tasks, reference_codes, run=run, workers=runner.workers, on_scanned=stage.advance, clades=clades
    )
    if split.leakage == "report":
        return CheckedPlan(plan, report)
    kept = {name: without(plan.parts[name], report.stretches[name], min_bp=split.min_bp) for name in HELD_OUT}
    for name in HELD_OUT:
        if plan.parts[name] and not kept[name]:
            raise ValueError(_nothing_left(name, report, split.min_bp))
    before, after = (
        sum(span.bp for name in HELD_OUT for span in parts[name]) for parts in (plan.parts, kept)
    )
    return CheckedPlan(with_parts(plan, plan.parts | kept, references), report, before - after)


def _nothing_left(name: str, report: Leakage, min_bp: int) -> str:
    pair = next(pair for pair in report.pairs if (pair.of, pair.within) == (name, "train"))
    several = "; of assemblies that are alike hold out the same contigs, which names without an assembly do"
    return (
        f"split.leakage drop leaves nothing of {name}: {pair.shared_bases:,} of its {pair.bases:,} bp "
        f"({pair.share:.2%}) also stand in train, and no piece of split.min_bp {min_bp} is left; hold out "
        f"what is less alike, or set leakage to report{several if len(report.assemblies) > 1 else ''}"
    )


def dataset_leakage(uri: str, *, workers: int | None = None, on_progress: OnProgress = silent) -> Leakage:
    """The leakage report on the dataset at ``uri``, from reading its shards with ``workers`` processes
    (default: all cores).

    Raises:
        StoreError, FormatError: it cannot be read, or is damaged.
    """
    uri = store.absolute(uri)  # workers have another working directory
    manifest = load_manifest(uri)
    workers = workers or host.usable()
    chunks = {
        split: [(store.join(uri, shard.name), shard) for shard in manifest.shards[split]] for split in SPLITS
    }
    spans = {split: [Span.of(block) for _, block in manifest.blocks(split)] for split in SPLITS}
    stage = Stage(on_progress, "leakage", passes_bp(spans))
    clades = _clades_of(uri, manifest)
    with ray_session.session(workers):
        return leakage(chunks, shard_codes, workers=workers, on_scanned=stage.advance, clades=clades)


def _clades_of(uri: str, manifest: Manifest) -> dict[str, str]:
    """The clades of the assemblies by the config in build.json; none where that was removed, or is older. A
    haplotype has that of its reference."""
    with contextlib.suppress(store.StoreError, ValueError, KeyError, TypeError):
        config = json.loads(store.read_bytes(store.join(uri, BUILD_INFO)))["config"]
        clades = {reference["name"]: reference.get("clade") for reference in config["references"]}
        named = {s.name: s.filters.get("haplotype", {}).get("reference", s.name) for s in manifest.sources}
        return {name: clade for name, of in named.items() if (clade := clades.get(of))}
    return {}
