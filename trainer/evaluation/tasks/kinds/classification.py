"""Classification: each sequence has one of the task's labels.

Shapes: N rows, B of a batch, K classes, F features.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score
from torch import Tensor

from trainer.evaluation.tasks.kinds.kind import Array, LinearModel, Metric, TaskKind
from trainer.evaluation.tasks.kinds.logistic import as_outputs, logistic_path


class Classification(TaskKind):
    """Class k is the k-th label; a prediction is a probability for each class, [N, K]."""

    metrics = (
        Metric("mcc", "MCC"),
        Metric("accuracy", "accuracy"),
        Metric("f1_macro", "macro-F1"),
        Metric("auroc", "AUROC"),
    )
    balances = True
    dtype = np.int64

    def __init__(self, labels: tuple[str, ...]) -> None:
        if len(labels) < 2:
            raise ValueError(f"labels: at least 2 are needed, not {list(labels)}")
        self.labels, self.outputs = labels, len(labels)
        self._number = {label: number for number, label in enumerate(labels)}

    def parse(self, text: str) -> int:
        if text not in self._number:
            known = list(self.labels)
            raise ValueError(f"is not among the task's labels {known}; add it to labels, or remove the row")
        return self._number[text]

    def fault_of_split(self, truth_N: Array) -> str:
        for number, label in enumerate(self.labels):
            if not (truth_N == number).any():
                return f"has none with label {label!r}; every split needs every label"
        return ""

    def groups(self, truth_N: Array) -> Array:
        """Its classes."""
        return np.asarray(truth_N[:, None] == np.arange(self.outputs))

    def statistics(self, truth_N: Array, *, balanced: bool) -> dict[str, Any]:
        """The weight of each class: the mean number of rows of a class, over its own."""
        if not balanced:
            return {}
        rows_K = np.bincount(truth_N, minlength=self.outputs)
        return {"class_weights": (len(truth_N) / (self.outputs * rows_K)).tolist()}

    def loss(self, output_BK: Tensor, truth_B: Tensor) -> Tensor:
        """Cross-entropy; with weights of the classes the weighted mean."""
        return self.smooth_loss(output_BK, truth_B, smoothing=0.0)

    def smooth_loss(self, output_BK: Tensor, truth_B: Tensor, *, smoothing: float) -> Tensor:
        """Of ``smoothing`` every class has the same share."""
        weights = self.state.get("class_weights")
        weight_K = None if weights is None else output_BK.new_tensor(weights)
        return torch.nn.functional.cross_entropy(
            output_BK, truth_B, weight=weight_K, label_smoothing=smoothing
        )

    def predict(self, output_NK: Tensor) -> Array:
        probability_NK: Array = output_NK.double().softmax(-1).numpy()
        return probability_NK

    def sure(self, truth_N: Array) -> Array:
        """1 for the class, 0 for the others."""
        return np.asarray(truth_N[:, None] == np.arange(self.outputs), np.float64)

    def table(self, prediction_N: Array) -> dict[str, Array]:
        """``label``, the most probable one, and ``p_<label>`` of each."""
        names = np.array(self.labels, dtype=object)
        each = {f"p_{label}": prediction_N[:, number] for number, label in enumerate(self.labels)}
        return {"label": names[prediction_N.argmax(1)], **each}

    def fit_linear(self, features_NF: Any, truth_N: Array, *, c: float, seed: int) -> LinearModel:
        """Logistic regression."""
        return next(self.fit_linears(features_NF, truth_N, grid=[c], seed=seed))

    def fit_linears(
        self, features_NF: Any, truth_N: Array, *, grid: Sequence[float], seed: int
    ) -> Iterator[LinearModel]:
        weights = self.state.get("class_weights")
        return logistic_regressions(features_NF, truth_N, grid=grid, seed=seed, weights=weights)

    def score(self, truth_N: Array, prediction_N: Array) -> dict[str, float]:
        """auroc is that of class 1; with more than 2 classes one-vs-rest, macro average."""
        guess_N = prediction_N.argmax(1)
        classes = list(range(self.outputs))
        if self.outputs == 2:
            auroc = roc_auc_score(truth_N, prediction_N[:, 1])
        else:
            auroc = roc_auc_score(truth_N, prediction_N, multi_class="ovr", average="macro", labels=classes)
        f1 = f1_score(truth_N, guess_N, average="macro", labels=classes, zero_division=0)
        return {
            "mcc": float(matthews_corrcoef(truth_N, guess_N)),
            "accuracy": float(accuracy_score(truth_N, guess_N)),
            "f1_macro": float(f1),
            "auroc": float(auroc),
        }


def logistic_regressions(
    features_NF: Any,
    class_N: Array,
    *,
    grid: Sequence[float],
    seed: int,
    weights: Sequence[float] | None,
) -> Iterator[LinearModel]:
    """For each C of ``grid`` one fitted to classes numbered from 0, with ``weights`` of the classes, if any.
    Of two classes the output of the first is 0."""
    if not scipy.sparse.issparse(features_NF):
        yield from logistic_path(features_NF, class_N, grid=grid, weights=weights)
        return
    for c in grid:
        model = LogisticRegression(
            C=c,
            class_weight=None if weights is None else dict(enumerate(weights)),
            max_iter=2000,
            random_state=seed,
        ).fit(features_NF, class_N)
        yield as_outputs(model.coef_, model.intercept_)
