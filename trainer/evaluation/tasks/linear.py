"""Linear models over fixed features, the penalty chosen on dev: k-mer counts (the floor) and the frozen
backbone."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainer.evaluation.tasks.classification import Array, Classification
from trainer.evaluation.tasks.data import Split


@dataclass(frozen=True)
class Fitted:
    """What a mode learned without seeing test: class probabilities of any split, those of dev, and what was
    chosen."""

    predict: Callable[[Split], Array]
    dev_NK: Array
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
    kind: Classification,
    grid: Sequence[float],
    scale: bool,
    seed: int,
) -> Fitted:
    """The best logistic regression on dev over the ``grid`` of C; of equals the one with the stronger
    penalty.

    The solution is unique, so that seeds (the order of the rows) differ by the solver's tolerance alone.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    scaler = StandardScaler() if scale else None
    train_NF, dev_NF = features(train)[order], features(dev)
    if scaler:
        train_NF, dev_NF = scaler.fit_transform(train_NF), scaler.transform(dev_NF)
    best: tuple[float, float, Any, Array] | None = None
    for c in sorted(grid):
        model = kind.fit_linear(train_NF, train.truth_N[order], c=c, seed=seed)
        dev_NK = model.predict_proba(dev_NF)
        score = kind.metrics(dev.truth_N, dev_NK)[kind.selects_by]
        if best is None or score > best[0]:
            best = (score, c, model, dev_NK)
    assert best is not None, "the config allows no empty grid"
    _, c, model, dev_NK = best
    pipeline = make_pipeline(scaler, model) if scaler else model
    return Fitted(lambda split: pipeline.predict_proba(features(split)), dev_NK, {"C": c})
