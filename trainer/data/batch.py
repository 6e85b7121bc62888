"""What a rank reads in a step."""

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from torch import Tensor

from trainer.data.windows import Windows


@dataclass(frozen=True)
class Batch:
    """Rows of one rank for one step, in sample order; ``ids_B4`` are (leaf, epoch, block, window), where the
    leaf is the dataset if no BED file chose the window (leaves.py).

    ``tags_B``: int64, the number of the BED in data.regions.beds that did; NO_TAG for windows from anywhere.
    ``skipped``: (leaf, epoch, block) of the damaged blocks that rows should have come from. ``prepared``:
    what the reader was asked to make of it.
    """

    windows: Windows
    ids_B4: Tensor
    tags_B: Tensor
    skipped: frozenset[tuple[int, int, int]] = frozenset()
    prepared: Any = None

    def split(self, rows: int) -> list[Windows]:
        """Micro-batches of ``rows`` rows."""
        firsts = range(0, len(self.ids_B4), rows)
        return [self.windows.each(itemgetter(slice(first, first + rows))) for first in firsts]
