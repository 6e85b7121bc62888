"""Linear models on fixed features, the penalty chosen on dev: k-mer counts, the letters by position, or
embeddings of the backbone.

Shapes: N rows, F features, K numbers that a model gives for a row.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import StandardScaler

from data_prep import alphabet
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures
from trainer.evaluation.tasks.fitting.task_network import TaskNetwork
from trainer.evaluation.tasks.kinds.kind import Array, LinearModel, TaskKind
from trainer.evaluation.tasks.rows.data import Split


@dataclass(frozen=True)
class FittedModel:
    """A model that was made without the test split.

    Attributes:
        predict: its predictions for any split.
        dev_prediction: those for dev, by which it was chosen.
        chosen: the settings that were chosen on dev.
        reader: what makes numbers of sequences, to be kept; None of k-mers and letters.
    """

    predict: Callable[[Split], Array]
    dev_prediction: Array
    chosen: dict[str, Any]
    reader: "TaskNetwork | ProbeHead | None" = None


_ROWS = 4096  # dense rows that are standardised at once


@dataclass(frozen=True)
class StandardisedLinear:
    """A linear model of dense features that are standardised first."""

    mean_F: Array
    scale_F: Array
    linear: LinearModel

    def __call__(self, features_NF: Array) -> Array:
        """fp64 [N, K], as LinearModel gives them; some rows at a time, because of the memory."""
        parts = range(0, max(1, len(features_NF)), _ROWS)
        return np.concatenate([self._of(features_NF[start : start + _ROWS]) for start in parts])

    def _of(self, features_NF: Array) -> Array:
        return self.linear((features_NF.astype(np.float64) - self.mean_F) / self.scale_F)


@dataclass(frozen=True)
class ProbeHead:
    """A linear model, and what it reads of an encoder."""

    features: ProbeFeatures
    linear: StandardisedLinear


@dataclass(frozen=True)
class FittedLinear(FittedModel):
    """``linear``: the model itself, of dense features."""

    linear: StandardisedLinear | None = None


def kmer_counts(letters: Sequence[str], *, k: int) -> Any:
    """Sparse float [N, 4ᵏ]: how often each k-mer of A, C, G, T occurs, on the given strand."""
    vocabulary = ["".join(kmer) for kmer in itertools.product("ACGT", repeat=k)]
    counter = CountVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False, vocabulary=vocabulary)
    return counter.transform(letters).astype(np.float64)


def onehot_letters(letters: Sequence[str], *, length: int) -> Any:
    """Sparse float [N, 4·length]: 1 where A, C, G or T stands at a position, counted from the first letter.

    N has no 1, nor has a position beyond the end. Letters beyond ``length`` are cut off.
    """
    codes = [alphabet.encode(each[:length].encode())[0] for each in letters]
    row_M = np.repeat(np.arange(len(codes)), [len(each) for each in codes])
    place_M = np.concatenate([np.arange(len(each)) for each in codes])
    code_M = np.concatenate(codes)
    known = code_M < alphabet.BASES
    column_M = place_M * alphabet.BASES + code_M
    ones = np.ones(int(known.sum()))
    shape = (len(codes), alphabet.BASES * length)
    return scipy.sparse.csr_matrix((ones, (row_M[known], column_M[known])), shape=shape)


def fit_linear(
    train: Split,
    dev: Split,
    *,
    features: Callable[[Split], Any],
    kind: TaskKind,
    grid: Sequence[float],
    seed: int,
) -> FittedLinear:
    """The linear model that is best on dev over the ``grid`` of C; of equals the stronger penalty.

    Dense features are standardised; sparse ones, counts and letters, are not. The solution is unique, so that
    seeds, which order the rows, differ by the solver's tolerance alone.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    train_NF, dev_NF = features(train)[order], features(dev)
    scaler = None if scipy.sparse.issparse(train_NF) else StandardScaler(copy=False).fit(train_NF)
    if scaler:
        train_NF = scaler.transform(train_NF)  # in place: it is a copy already
    best: tuple[float, float, LinearModel | StandardisedLinear, Array] | None = None
    ascending = sorted(grid)
    for c, linear in zip(
        ascending,
        kind.fit_linears(train_NF, train.truth_N[order], grid=ascending, seed=seed),
        strict=True,
    ):
        model = StandardisedLinear(scaler.mean_, scaler.scale_, linear) if scaler else linear
        dev_prediction = kind.predict(torch.from_numpy(model(dev_NF)))
        score = kind.main_score(dev.truth_N, dev_prediction)
        if best is None or score > best[0]:
            best = (score, c, model, dev_prediction)
    assert best is not None, "the config allows no empty grid"
    _, c, model, dev_prediction = best

    def predict(split: Split) -> Array:
        return kind.predict(torch.from_numpy(model(features(split))))

    dense = model if isinstance(model, StandardisedLinear) else None
    return FittedLinear(predict, dev_prediction, {"C": c}, linear=dense)


def fit_probe(
    train: Split,
    dev: Split,
    *,
    features: Callable[[Split], Mapping[ProbeFeatures, Any]],
    kind: TaskKind,
    grid: Sequence[float],
    seed: int,
) -> FittedModel:
    """The best on dev over what may be read of an encoder and over the ``grid`` of C; of equals the first.

    ``features``: of a split float [N, F] of each that may be read.
    """
    best: tuple[float, FittedModel] | None = None
    for read in features(train):

        def of_one(split: Split, read: ProbeFeatures = read) -> Any:
            return features(split)[read]

        fitted = fit_linear(train, dev, features=of_one, kind=kind, grid=grid, seed=seed)
        score = kind.main_score(dev.truth_N, fitted.dev_prediction)
        if best is None or score > best[0]:
            assert fitted.linear, "what an encoder gives is dense"
            chosen, head = fitted.chosen | {"pooling": read.pooling}, ProbeHead(read, fitted.linear)
            best = score, FittedModel(fitted.predict, fitted.dev_prediction, chosen, head)
    assert best is not None, "the config allows no empty list"
    return best[1]
