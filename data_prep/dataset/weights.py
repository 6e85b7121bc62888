"""How often training reads each assembly: its weight as given, by size, or by clade.

An epoch reads an assembly of b bp with weight w about w · b bp of it. So that assembly i has the share s_i of
an epoch, its weight is s_i · B / b_i, where B are the bp of all: the mean of the weights over bp is 1.

    size     s_i ∝ given_i · b_i ** alpha
    clade    each clade has the same share; within it as with size
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from data_prep.config import WEIGHTS
from data_prep.dataset.plan import Plan
from data_prep.shards import Source

_DIGITS = 9  # of a weight: enough for any share, and the same in every build


def with_weights(plan: Plan) -> Plan:
    """``plan`` with the weights of its assemblies, which their filters ask for, by what is in train."""
    bp = Counter[str]()
    for span in plan.parts["train"]:
        bp[span.assembly] += span.bp
    found = weights(plan.manifest.sources, bp)
    sources = tuple(
        replace(source, weight=found.get(source.name, source.weight)) for source in plan.manifest.sources
    )
    return replace(plan, manifest=replace(plan.manifest, sources=sources))


def weights(sources: Sequence[Source], bp: Mapping[str, int]) -> dict[str, float]:
    """name -> weight of each of ``sources`` that has ``bp`` in train, and asks for another than was given."""
    asking = {s.name: s.filters[WEIGHTS] for s in sources if WEIGHTS in s.filters and bp[s.name]}
    parts = {name: of["given"] * bp[name] ** of["alpha"] for name, of in asking.items()}
    totals = dict[str, float]()
    for name, of in asking.items():
        clade = of.get("clade", "")
        totals[clade] = totals.get(clade, 0.0) + parts[name]
    shares = {name: part / totals[asking[name].get("clade", "")] for name, part in parts.items()}
    per_bp = sum(bp[name] for name in shares) / len(totals) if totals else 0.0
    return {name: float(f"{share * per_bp / bp[name]:.{_DIGITS}g}") for name, share in shares.items()}
