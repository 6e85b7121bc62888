"""The partner table of a plan: made by workers before the manifest, from what the plan gives to train."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from cluster.process.progress import Stage
from cluster.tasks import jobs
from data_prep.dataset.plan import Plan
from data_prep.dataset.references import ReferenceSpans, reference_codes
from data_prep.dataset.runner import Runner
from data_prep.partners import Numbers, PartnerTable
from data_prep.shards import Manifest
from data_prep.sources.survey import Reference
from data_prep.split.chains import MOST_GAP, Chaining, Chains, Sketched, chains, sketch
from data_prep.split.exact_chains import Member, exact_chains, joined, related
from data_prep.split.intervals import Place, Zones, by_place

_ROOM = MOST_GAP + 1  # between two contigs, so that no chain crosses


@dataclass(frozen=True)
class Layout:
    """Where the contigs of each assembly begin, counted along the assembly."""

    starts: Mapping[str, Mapping[str, int]]
    bp: Mapping[str, int]

    @classmethod
    def of(cls, manifest: Manifest) -> "Layout":
        starts, bp = dict[str, dict[str, int]](), dict[str, int]()
        for source in manifest.sources:
            at, starts[source.name] = 0, {}
            for contig, length in source.contigs.items():
                starts[source.name][contig] = at
                at += length + _ROOM
            bp[source.name] = at
        return cls(starts, bp)

    def contig_of(self, assembly: str, position: Numbers) -> tuple[Numbers, Numbers]:
        """(number of the contig, position in it) of positions along ``assembly``."""
        starts = np.array(list(self.starts[assembly].values()))
        number = np.searchsorted(starts, position, "right") - 1
        return number, position - starts[number]


@dataclass(frozen=True)
class _Assembly:
    """What of one assembly is in train."""

    sources: tuple[ReferenceSpans, ...]
    starts: Mapping[str, int]
    bp: int
    chaining: Chaining

    @property
    def train_bp(self) -> int:
        return sum(span.bp for source in self.sources for span in source.spans)


def make_partners(plan: Plan, references: Mapping[str, Reference], runner: Runner) -> PartnerTable | None:
    """The table of the assemblies that the plan names; None if it names none. It depends on neither the
    number of workers nor the blocks' size beyond their edges."""
    settings = plan.manifest.partners
    if settings is None:
        return None
    chaining = Chaining(**{name: settings[name] for name in Chaining.__dataclass_fields__})
    layout = Layout.of(plan.manifest)
    assemblies = {
        name: _Assembly(
            tuple(
                ReferenceSpans(references[name].handle, chunk.spans)
                for chunk in plan.chunks()
                if chunk.split == "train" and chunk.assembly == name
            ),
            layout.starts[name],
            layout.bp[name],
            chaining,
        )
        for name in settings["between"]
    }
    run = partial(
        jobs.run, workers=runner.workers, on_retry=lambda _, reason: runner.on_retry(f"partners: {reason}")
    )
    pairs = list(combinations(assemblies, 2))
    searched = [pair for pair in pairs if not related(*(references[name] for name in pair))]
    # Of a reference and its haplotypes it is known what belongs together.
    assemblies = {name: own for name, own in assemblies.items() if any(name in pair for pair in searched)}
    sizes = [assembly.train_bp for assembly in assemblies.values()]
    stage = Stage(runner.on_progress, "minimisers", sum(sizes))
    sketches = dict(
        zip(
            assemblies,
            run(
                _sketch,
                list(assemblies.values()),
                on_result=lambda i, _: stage.advance(sizes[i]),
                near=runner.near(lambda task: task.sources[0].handle.uri if task.sources else ""),
            ),
            strict=True,
        )
    )
    bp = {name: assembly.train_bp for name, assembly in assemblies.items()}
    work = [bp[one] + bp[other] for one, other in searched]
    stage = Stage(runner.on_progress, "partners", sum(work))
    tasks = [(pair, chaining) for pair in searched]
    results = run(_chains, tasks, shared=sketches, on_result=lambda i, _: stage.advance(work[i]))
    found = dict(zip(searched, results, strict=True))
    train = by_place(plan.parts["train"])
    for pair in set(pairs) - found.keys():
        found[pair] = _exact(pair, references, layout, train)
    return _table(plan, layout, pairs, [found[pair] for pair in pairs])


def _exact(
    pair: tuple[str, str], references: Mapping[str, Reference], layout: Layout, train: Zones
) -> Chains:
    """The chains of a pair of a reference and its haplotypes."""
    contigs = [
        contig
        for contig in layout.starts[pair[0]]
        if contig in layout.starts[pair[1]] and all((name, contig) in train for name in pair)
    ]
    return joined(
        [
            exact_chains(
                *(
                    Member(references[name], contig, train[name, contig], layout.starts[name][contig])
                    for name in pair
                )
            )
            for contig in contigs
        ]
    )


def _sketch(assembly: _Assembly) -> Sketched:
    """On a worker: the minimisers of an assembly."""
    parts = (
        (assembly.starts[span.contig] + span.start, codes)
        for source in assembly.sources
        for span, codes in reference_codes(source)
    )
    return sketch(parts, assembly.bp, assembly.chaining)


def _chains(task: tuple[tuple[str, str], Chaining], sketches: Mapping[str, Sketched]) -> Chains:
    """On a worker: the chains of a pair."""
    (one, other), chaining = task
    return chains(sketches[one], sketches[other], chaining)


def _table(
    plan: Plan, layout: Layout, pairs: Sequence[tuple[str, str]], found: Sequence[Chains]
) -> PartnerTable:
    """The table of the chains of all pairs, by contigs; only those of train are places."""
    named = {name for pair in pairs for name in pair}
    places = sorted(place for place in by_place(plan.parts["train"]) if place[0] in named)
    numbers: dict[Place, int] = {place: number for number, place in enumerate(places)}
    columns: dict[str, list[Numbers]] = {
        name: [np.zeros(0, np.int64)]
        for name in ("place", "partner", "reversed", "identity", "anchors", "at", "partner_at")
    }
    for pair, part in zip(pairs, found, strict=True):
        first_C = np.cumsum(part.anchors_C) - part.anchors_C
        for assembly, at_N, name in zip(
            pair, (part.at_N, part.partner_at_N), ("place", "partner"), strict=True
        ):
            contig_N, inside_N = layout.contig_of(assembly, at_N)
            names = list(layout.starts[assembly])
            # A chain lies in one contig, of which train has a part; others have no number.
            number_of = np.array([numbers.get((assembly, contig), -1) for contig in names], np.int64)
            columns[name].append(number_of[contig_N[first_C]])
            columns["at" if name == "place" else "partner_at"].append(inside_N)
        columns["reversed"].append(part.reversed_C)
        columns["identity"].append(part.identity_C)
        columns["anchors"].append(part.anchors_C)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    assert plan.manifest.partners, "the plan has partners"
    return PartnerTable(
        plan.manifest.partners["k"],
        tuple(places),
        joined["place"],
        joined["partner"],
        joined["reversed"],
        joined["identity"],
        joined["anchors"],
        joined["at"],
        joined["partner_at"],
    )
