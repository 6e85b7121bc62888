"""The parts that samples are mixed of: each dataset from anywhere, and the regions of each BED file in it."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from trainer.data.regions import Regions, RegionSet

NO_TAG = -1


class Leaf(NamedTuple):
    """One part of the mixture, a leaf of its tree: windows of ``dataset``, from ``regions`` or anywhere.

    ``number``: the first column of its samples' ids: the dataset's for windows from anywhere; those of the
    first BED follow, by dataset, and so on. ``tag``: the number of the BED, or NO_TAG.
    """

    number: int
    dataset: int
    tag: int
    weight: Fraction
    regions: Regions | None = None


def leaves_of(weights: Sequence[float], sets: Sequence[RegionSet], *, anywhere: float) -> list[Leaf]:
    """The leaves that have a share of the samples, in the order of their numbers.

    Without ``sets`` they are the datasets by their ``weights``. Else ``anywhere`` is the share of windows
    from anywhere, and the rest is divided among the sets by weight. Within each of these, datasets that have
    some of it are mixed by their weights.
    """
    exact = [Fraction(weight) for weight in weights]
    if not sets:
        return [Leaf(number, number, NO_TAG, weight) for number, weight in enumerate(exact)]
    found = [
        Leaf(number, number, NO_TAG, Fraction(anywhere) * weight / sum(exact))
        for number, weight in enumerate(exact)
        if anywhere
    ]
    total = sum(Fraction(of.weight) for of in sets)
    for tag, of in enumerate(sets):
        share = (1 - Fraction(anywhere)) * Fraction(of.weight) / total
        there = {number: regions for number, regions in enumerate(of.by_dataset) if regions is not None}
        among = sum(exact[number] for number in there)
        found += [
            Leaf((1 + tag) * len(exact) + number, number, tag, share * exact[number] / among, regions)
            for number, regions in there.items()
        ]
    return found
