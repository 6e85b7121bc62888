"""What an encoder says of the variants of a split, without training.

Shapes: N variants, D hidden.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trainer.evaluation.tasks.kinds.kind import Array
from trainer.evaluation.tasks.rows.variant import VariantRow
from trainer.inference.embedding import Strand
from trainer.inference.precision import Resolved
from trainer.inference.variants.changes import changes
from trainer.inference.variants.forward import Forward
from trainer.inference.variants.likelihood import log_ratios
from trainer.models.network import Network

_AT_ONCE = 512  # variants


class VariantEffects(NamedTuple):
    """The scores of ``trainer.variants`` by name, float64 [N]; and how the mean state of the window moves."""

    by_name: Mapping[str, Array]
    difference_ND: Array


def variant_effects(
    network: Network, rows: Sequence[VariantRow], *, length: int, precision: Resolved, strand: Strand
) -> VariantEffects:
    """The effects of the variants of ``rows``, in order, computed where ``network`` is. ``length``: what was
    asked for as that of their windows.

    Raises:
        MemoryError: a window is too long for the device.
    """
    forward = Forward(network, length, "both" if strand == "both" else "forward", precision)
    ratios, differences, largest = [], [], []
    for start in range(0, len(rows), _AT_ONCE):
        placed = [row.placed for row in rows[start : start + _AT_ONCE]]
        ratios.append(log_ratios(forward, placed))
        changed = changes(forward, placed, local=True)
        differences.append(changed.difference_ND.double().numpy())
        largest.append(changed.largest_N.double().numpy())
    difference_ND = np.concatenate(differences)
    by_name = {
        "llr": np.concatenate(ratios),
        "embedding_distance": np.linalg.norm(difference_ND, axis=1),
        "max_local_change": np.concatenate(largest),
    }
    return VariantEffects(by_name, difference_ND)
