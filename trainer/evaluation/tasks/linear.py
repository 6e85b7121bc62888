"""Linear models on fixed features, the penalty chosen on dev: k-mer counts, or embeddings of the backbone.

Shapes: N rows, F features.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import StandardScaler

from trainer.evaluation.tasks.data import Split
from trainer.evaluation.tasks.kind import Array, LinearModel, TaskKind


@dataclass(frozen=True)
class FittedModel:
    """A model that was made without the test split.

    Attributes:
        predict: its predictions for any split.
        dev_prediction: those for dev, by which it was chosen.
        chosen: the settings that were chosen on dev.
    """

    predict: Callable[[Split], Array]
    dev_prediction: Array
    chosen: dict[str, Any]


def kmer_counts(letters: Sequence[str], *, k: int) -> Any:
    """Sparse float [N, 4ᵏ]: how often each k-mer of A, C, G, T occurs, on the given strand."""
    vocabulary = ["".join(kmer) for kmer in itertools.product("ACGT", repeat=k)]
    counter = CountVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False, vocabulary=vocabulary)
    return counter.transform(letters).astype(np.float64)


def fit_linear(
    train: Split,
    dev: Split,
    *,
    features: Callable[[Split], Any],
    kind: TaskKind,
    grid: Sequence[float],
    seed: int,
) -> FittedModel:
    """The linear model that is best on dev over the ``grid`` of C; of equals the stronger penalty.

    Dense features are standardised; sparse ones, which are counts, are not. The solution is unique, so that
    seeds, which order the rows, differ by the solver's tolerance alone.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    train_NF, dev_NF = features(train)[order], features(dev)
    scaler = None if scipy.sparse.issparse(train_NF) else StandardScaler()
    if scaler:
        train_NF, dev_NF = scaler.fit_transform(train_NF), scaler.transform(dev_NF)
    best: tuple[float, float, LinearModel, Array] | None = None
    for c in sorted(grid):
        model = kind.fit_linear(train_NF, train.truth_N[order], c=c, seed=seed)
        dev_prediction = model(dev_NF)
        score = kind.main_score(dev.truth_N, dev_prediction)
        if best is None or score > best[0]:
            best = (score, c, model, dev_prediction)
    assert best is not None, "the config allows no empty grid"
    _, c, model, dev_prediction = best

    def predict(split: Split) -> Array:
        features_NF = features(split)
        return model(scaler.transform(features_NF) if scaler else features_NF)

    return FittedModel(predict, dev_prediction, {"C": c})
