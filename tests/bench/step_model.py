"""A model of a step's time: FLOPs, bytes, the collectives and the links they travel.

A collective of ``bytes`` (of the whole vector: what an all-reduce sums, what an all-gather gives, what a
reduce-scatter takes) over W ranks in a ring moves 2(W-1)/W of them through each rank's link for an
all-reduce, (W-1)/W for the other two, in 2(W-1) and W-1 hops. In a cluster the ring runs within each node
and the nodes exchange their parts: each rank's own link to the network carries 1/8 of the bytes in a node of
8.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Collective(NamedTuple):
    kind: str
    bytes: float
    dtype: str = ""


@dataclass(frozen=True)
class Link:
    """Of one rank in one direction: bytes a second, and seconds of one hop."""

    bytes_per_s: float
    hop_s: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of ``per_node`` ranks with a link inside and one for each rank to the other nodes; FLOP/s that a
    step sustains, and bytes a second of a rank's own memory."""

    per_node: int
    inside: Link
    between: Link
    flops_per_s: float
    memory_bytes_per_s: float


def wire_bytes(collective: Collective, ranks: int) -> float:
    """Bytes that each rank sends in a ring."""
    share = (ranks - 1) / ranks
    factors = {"all_reduce": 2 * share, "all_gather": share, "reduce_scatter": share}
    return collective.bytes * factors.get(collective.kind, 1.0 if ranks > 1 else 0.0)


def hops(collective: Collective, ranks: int) -> float:
    """Messages one after the other: a ring's, or a tree's where an all-reduce has fewer so."""
    ring = {"all_reduce": 2 * (ranks - 1), "all_gather": ranks - 1, "reduce_scatter": ranks - 1}
    tree = math.ceil(math.log2(ranks)) if ranks > 1 else 0
    if collective.kind == "all_reduce":
        return min(ring["all_reduce"], 2 * tree)
    return ring.get(collective.kind, tree)


def seconds_on(link: Link, collective: Collective, ranks: int) -> float:
    """On equal links between all ranks."""
    return wire_bytes(collective, ranks) / link.bytes_per_s + hops(collective, ranks) * link.hop_s


def seconds_in(cluster: Cluster, collective: Collective, ranks: int) -> float:
    """Within the nodes, then between them."""
    here = min(ranks, cluster.per_node)
    nodes = -(-ranks // cluster.per_node)
    part = Collective(collective.kind, collective.bytes / here)
    return seconds_on(cluster.inside, collective, here) + seconds_on(cluster.between, part, nodes)


def engine_collectives(parameters: int, *, stage: int, precision: str) -> list[Collective]:
    """What student and teacher exchange in a step, whatever the batch: gradients, new weights, the teacher's.

    Gradients travel in fp32. Under ZeRO-3 each forward gathers the weights, and the student's backward again
    where DeepSpeed has let go of them, that is above 1e9 parameters (its stage3_max_reuse_distance); masters
    become weights without a further collective.
    """
    whole = parameters * (4 if precision == "fp32" else 2)
    gather = Collective("all_gather", whole)
    if stage == 3:
        return [Collective("reduce_scatter", parameters * 4)] + [gather] * (3 if parameters > 1e9 else 2)
    return [Collective("all_reduce", parameters * 4)] + [gather] * (2 if stage else 1)


def totals(collectives: Iterable[Collective]) -> dict[str, float]:
    """Bytes by kind."""
    found: dict[str, float] = {}
    for collective in collectives:
        found[collective.kind] = found.get(collective.kind, 0) + collective.bytes
    return found


@dataclass(frozen=True)
class Step:
    """The parts of a step's time on ``ranks`` ranks, in seconds, by name."""

    ranks: int
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def largest(self, *, but: Sequence[str]) -> str:
        return max((name for name in self.parts if name not in but), key=self.parts.__getitem__)
