"""The ways to order variants by their effects: floors, what the encoder says without training, and a linear
model of it.

Shapes: N variants, F features.
"""

from collections.abc import Callable, Mapping

import numpy as np

from trainer.evaluation.tasks.fitting.kmer_change import kmer_changes, log_frequencies
from trainer.evaluation.tasks.fitting.linear import FittedModel, fit_linear
from trainer.evaluation.tasks.fitting.prepared import PreparedTask
from trainer.evaluation.tasks.fitting.scalar import fit_scalar
from trainer.evaluation.tasks.kinds.kind import Array
from trainer.evaluation.tasks.rows.data import Split


def _kmer(prepared: PreparedTask, seed: int) -> FittedModel:
    """How much more common its k-mers are; as common as in the windows of the train split."""
    k = prepared.task.kmer.k
    log_frequency_K = log_frequencies(prepared.data.train.letters, k=k)

    def numbers(split: Split) -> Mapping[str, Array]:
        return {"change": kmer_changes(split.variants, log_frequency_K, k=k)}

    return fit_scalar(prepared.data.dev, numbers=numbers, kind=prepared.kind)


def _centre(prepared: PreparedTask, seed: int) -> FittedModel:
    """How far it lies from the centre of the window that was measured."""

    def numbers(split: Split) -> Mapping[str, Array]:
        return {"distance": np.array([row.from_centre for row in split.variants])}

    return fit_scalar(prepared.data.dev, numbers=numbers, kind=prepared.kind)


def _zeroshot(prepared: PreparedTask, seed: int) -> FittedModel:
    """One of the scores of ``trainer.variants``."""

    def numbers(split: Split) -> Mapping[str, Array]:
        return prepared.features.variant_effects(split).by_name

    return fit_scalar(prepared.data.dev, numbers=numbers, kind=prepared.kind)


def _probe(prepared: PreparedTask, seed: int) -> FittedModel:
    """A linear model of all scores and of the difference that the variant makes to the mean embedding."""

    def features(split: Split) -> Array:
        effects = prepared.features.variant_effects(split)
        return np.column_stack([*effects.by_name.values(), effects.difference_ND])

    data, grid = prepared.data, prepared.task.probe.C
    return fit_linear(data.train, data.dev, features=features, kind=prepared.kind, grid=grid, seed=seed)


MODES: dict[str, Callable[[PreparedTask, int], FittedModel]] = {
    "kmer": _kmer,
    "centre": _centre,
    "zeroshot": _zeroshot,
    "probe": _probe,
}
