"""What of a plan needs every letter before its shards are written: families held out, windows trimmed,
duplicates.

Between ``plan.make_plan``, which reads no letter, and the leakage report.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from cluster.process.progress import Stage
from cluster.tasks import jobs
from data_prep.config import DataConfig
from data_prep.dataset.plan import Plan, refuse_empty, with_parts, without_n
from data_prep.dataset.references import ReferenceSpans, reference_codes
from data_prep.dataset.runner import Runner
from data_prep.shards import SPLITS
from data_prep.sources.survey import Reference
from data_prep.split.block_sets import BlockSets, block_sets
from data_prep.split.dedup import Duplicates, duplicates
from data_prep.split.families import Graph, canonical, components, draws, hold_out, links
from data_prep.split.homology import passes_bp, refuse_chance, trim
from data_prep.split.homology_tasks import Rule
from data_prep.split.intervals import HELD_OUT, Span, cut_out, group, with_gap
from data_prep.split.passes import Passes

Parts = dict[str, list[Span]]


@dataclass(frozen=True)
class Families:
    """The families of all blocks, two or more each; ``largest_bp``: of the largest. ``alone_bp``: of blocks
    that are like no other. ``repeats``: minimisers left out, of ``sampled`` of all.
    """

    blocks: int
    families: int
    largest_bp: int
    alone_bp: int
    repeats: int
    sampled: float


@dataclass(frozen=True)
class SplitHomology:
    """One held-out split. ``wanted_bp``: its share; None where it was not drawn. ``families`` were held out
    whole, ``cut`` in part, for which ``buffer_bp`` of train were dropped. ``trimmed_bp``: of the split, in
    windows that broke the rule: ``broken`` of ``windows``, each start counted."""

    wanted_bp: int | None
    drawn_bp: int
    families: int
    cut: int
    buffer_bp: int
    trimmed_bp: int
    kept_bp: int
    windows: int
    broken: int


@dataclass(frozen=True)
class Divided:
    """The plan with its blocks in their splits, and what was done for it."""

    plan: Plan
    families: Families | None = None
    splits: Mapping[str, SplitHomology] | None = None
    duplicates: Duplicates | None = None

    def info(self) -> dict[str, Any]:
        """What build.json tells of it."""
        told: dict[str, Any] = {}
        if self.splits is not None:
            told["homology"] = {
                "families": self.families and asdict(self.families),
                "splits": {split: asdict(done) for split, done in self.splits.items()},
            }
        if self.duplicates is not None:
            told["dedup"] = {
                "blocks": len(self.duplicates.spans),
                "bp": self.duplicates.bp,
                "pairs": [asdict(pair) for pair in self.duplicates.pairs],
                "unjudged": self.duplicates.unjudged,
                "sampled": self.duplicates.sampled,
            }
        return told


def divide(plan: Plan, config: DataConfig, references: Mapping[str, Reference], runner: Runner) -> Divided:
    """``plan`` with the homology split and without the duplicates that ``config`` wants.

    Raises:
        ValueError: nothing is left of a split, or k is too small for so much sequence.
    """
    if config.split.by != "homology" and config.dedup.mode == "off":
        return Divided(plan)
    work = _Work(config, references, runner)
    families, splits, parts = None, None, plan.parts
    if config.split.by == "homology":
        families, splits, parts = work.homology(parts)
    found = None
    if config.dedup.mode != "off":
        found = work.duplicates(parts["train"])
        if config.dedup.mode == "drop":
            parts = parts | {"train": [span for span in parts["train"] if span not in found.spans]}
    refuse_empty(parts, config, planned=plan.parts)
    return Divided(with_parts(plan, parts, references), families, splits, found)


class _Work:
    """The steps, which share config, references and runner."""

    def __init__(self, config: DataConfig, references: Mapping[str, Reference], runner: Runner) -> None:
        self._config, self._references, self._runner = config, references, runner
        self._sha256 = {name: reference.handle.sha256 for name, reference in references.items()}

    def homology(self, parts: Parts) -> tuple[Families | None, dict[str, SplitHomology], Parts]:
        """``parts`` with families drawn for val and test where a share is wanted, and what is left of it."""
        split = self._config.split
        shares = {
            name: value
            for name, value in (("val", split.val), ("test", split.test))
            if isinstance(value, float) and value
        }
        families, drawn = None, dict[str, _Drawn]()
        if shares:
            families, drawn, parts = self._draw(parts, shares)
        bp = {name: _bp(parts[name]) for name in SPLITS}
        rule = Rule(
            split.homology.k,
            split.homology.window,
            split.homology.window_bp,
            split.homology.max_shared,
            split.min_bp,
        )
        refuse_chance(rule.k, bp["train"])
        kept = trim(
            {name: self._chunks(parts[name]) for name in SPLITS},
            reference_codes,
            rule=rule,
            passes=self._passes("homology: windows", passes_bp(bp, rule)),
            bp=bp,
        )
        left = without_n(
            parts | {name: list(kept[name].spans) for name in HELD_OUT},
            self._references,
            self._config.max_n_fraction,
        )
        done = {}
        for name in HELD_OUT:
            if not parts[name]:
                continue
            own = drawn.get(name, _Drawn(None, 0, 0, 0))
            done[name] = SplitHomology(
                own.wanted_bp,
                bp[name],
                own.families,
                own.cut,
                own.buffer_bp,
                bp[name] - _bp(kept[name].spans),
                _bp(left[name]),
                kept[name].windows,
                kept[name].broken,
            )
        return families, done, left

    def duplicates(self, train: Sequence[Span]) -> Duplicates:
        """Those of the blocks of ``train``."""
        dedup = self._config.dedup
        sets = self._sets(train, "dedup", k=dedup.k, window=dedup.window)
        return duplicates(sets, self._sha256, min_shared=dedup.min_shared)

    def _draw(self, parts: Parts, shares: Mapping[str, float]) -> tuple[Families, dict[str, "_Drawn"], Parts]:
        """Families among the blocks that nothing else holds out."""
        settings = self._config.split.homology
        sets = self._sets(parts["train"], "homology: families", k=settings.k, window=settings.window)
        sets = sets.reordered(canonical(sets, self._sha256))
        graph = links(sets, min_link=settings.min_link, max_copies=settings.max_copies)
        bp_N = [span.bp for span in sets.spans]
        rank_N = draws(sets.digests, self._config.seed)
        free = sorted(range(len(bp_N)), key=rank_N.__getitem__)
        all_bp = sum(_bp(spans) for spans in parts.values())
        drawn, out = dict[str, _Drawn](), dict[str, list[Span]]()
        families = _families(graph, bp_N, sets.sampled)
        taken = set[int]()
        for name, share in shares.items():
            held = hold_out(graph, bp_N, free, wanted_bp=round(share * all_bp))
            gone = {*held.blocks, *held.buffer}
            free, taken = [block for block in free if block not in gone], taken | gone
            out[name] = [sets.spans[block] for block in held.blocks]
            buffer_bp = sum(bp_N[block] for block in held.buffer)
            drawn[name] = _Drawn(held.wanted_bp, held.families, held.cut, buffer_bp)
        gone_spans = {sets.spans[block] for block in taken}
        held_spans = {name: set(spans) for name, spans in out.items()}
        new = {
            name: [span for span in parts["train"] if span in held_spans[name]]
            if name in out
            else parts[name]
            for name in HELD_OUT
        }
        near = with_gap([span for spans in out.values() for span in spans], self._config.split.gap)
        new["train"] = cut_out([span for span in parts["train"] if span not in gone_spans], near)
        return families, drawn, without_n(new, self._references, self._config.max_n_fraction)

    def _sets(self, spans: Sequence[Span], stage: str, *, k: int, window: int) -> BlockSets:
        bp = _bp(spans)
        passes = self._passes(stage, bp)
        return block_sets(self._chunks(spans), reference_codes, bp=bp, k=k, window=window, passes=passes)

    def _chunks(self, spans: Iterable[Span]) -> list[ReferenceSpans]:
        return [
            ReferenceSpans(self._references[shard[0].assembly].handle, tuple(shard))
            for shard in group(spans, shard_bp=self._config.shard_bp)
        ]

    def _passes(self, name: str, bp: int) -> Passes:
        run = partial(
            jobs.run,
            on_retry=lambda _, reason: self._runner.on_retry(f"{name}: {reason}"),
            near=self._runner.near(lambda task: task.chunk.handle.uri),
        )
        return Passes(run, self._runner.workers, Stage(self._runner.on_progress, name, bp).advance)


@dataclass(frozen=True)
class _Drawn:
    wanted_bp: int | None
    families: int
    cut: int
    buffer_bp: int


def _families(graph: Graph, bp_N: Sequence[int], sampled: float) -> Families:
    found = components(graph, range(len(bp_N)))
    several = [sum(bp_N[block] for block in family) for family in found if len(family) > 1]
    alone_bp = sum(bp_N) - sum(several)
    return Families(len(bp_N), len(several), max(several, default=0), alone_bp, graph.repeats, sampled)


def _bp(spans: Iterable[Span]) -> int:
    return sum(span.bp for span in spans)
