"""Multi-label: each sequence has any number of the task's labels, also none.

The labels of a row stand in one cell, separated by a comma, a semicolon or a bar, or in columns of 0 and 1,
of which the reader makes such a text. Every split needs rows with and rows without each label, because
otherwise there is neither an AUROC nor a model of the label: a split that has none is refused.

Shapes: N rows, B of a batch, K labels, F features.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from trainer.evaluation.tasks.kinds.classification import logistic_regressions
from trainer.evaluation.tasks.kinds.kind import Array, LinearModel, Metric, TaskKind

_SEPARATOR = re.compile("[,;|]")


class MultiLabel(TaskKind):
    """Truth is 0 or 1 for each label, [N, K]; a prediction is a probability for each, [N, K]."""

    metrics = (Metric("auroc", "mean AUROC"), Metric("auprc", "mean AUPRC"))
    balances = True
    reads_columns = True
    dtype = np.float32

    def __init__(self, labels: tuple[str, ...]) -> None:
        if not labels:
            raise ValueError("labels: at least 1 is needed, or label_column as a list of columns of 0 and 1")
        unclear = [label for label in labels if _SEPARATOR.search(label)]
        if unclear:
            raise ValueError(f"labels: none may hold a comma, a semicolon or a bar, as {unclear} do")
        self.labels, self.outputs = labels, len(labels)
        self._number = {label: number for number, label in enumerate(labels)}

    def parse(self, text: str) -> Array:
        truth_K = np.zeros(self.outputs, self.dtype)
        for name in (part.strip() for part in _SEPARATOR.split(text)) if text else ():
            if name not in self._number:
                raise ValueError(f"has {name!r}, which is not among the task's labels {list(self.labels)}")
            truth_K[self._number[name]] = 1
        return truth_K

    def fault_of_split(self, truth_N: Array) -> str:
        for label, truth in zip(self.labels, truth_N.T, strict=True):
            if not truth.any() or truth.all():
                which = "only" if truth.any() else "no"
                return (
                    f"has {which} rows with label {label!r}; every split needs some with and some without: "
                    "leave the label out, or give more rows"
                )
        return ""

    def groups(self, truth_N: Array) -> Array:
        """The rows with each label, and those without."""
        return np.concatenate([truth_N == 1, truth_N == 0], 1)

    def statistics(self, truth_N: Array, *, balanced: bool) -> dict[str, Any]:
        """For each label the weights of rows without and with it: half of all rows, over their number."""
        if not balanced:
            return {}
        with_K = truth_N.sum(0, dtype=np.int64)
        return {"class_weights": (len(truth_N) / (2 * np.stack([len(truth_N) - with_K, with_K], 1))).tolist()}

    def loss(self, output_BK: Tensor, truth_B: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over rows and labels; weighted, the weighted mean."""
        return self.smooth_loss(output_BK, truth_B, smoothing=0.0)

    def smooth_loss(self, output_BK: Tensor, truth_B: Tensor, *, smoothing: float) -> Tensor:
        """Of ``smoothing`` yes and no have one half each."""
        weight_BK = None
        if "class_weights" in self.state:
            without_K, with_K = output_BK.new_tensor(self.state["class_weights"]).T
            weight_BK = torch.where(truth_B == 1, with_K, without_K)
            weight_BK = weight_BK / weight_BK.mean()
        target_BK = truth_B * (1 - smoothing) + smoothing / 2
        return torch.nn.functional.binary_cross_entropy_with_logits(output_BK, target_BK, weight_BK)

    def predict(self, output_NK: Tensor) -> Array:
        probability_NK: Array = output_NK.double().sigmoid().numpy()
        return probability_NK

    def table(self, prediction_N: Array) -> dict[str, Array]:
        """``label``, those of a probability of at least 0.5, joined by commas, and ``p_<label>`` of each."""
        names = np.array(self.labels, dtype=object)
        joined = np.empty(len(prediction_N), object)
        joined[:] = [",".join(names[probability_K >= 0.5]) for probability_K in prediction_N]
        each = {f"p_{label}": prediction_N[:, number] for number, label in enumerate(self.labels)}
        return {"label": joined, **each}

    def fit_linear(self, features_NF: Any, truth_N: Array, *, c: float, seed: int) -> LinearModel:
        """One logistic regression for each label."""
        return next(self.fit_linears(features_NF, truth_N, grid=[c], seed=seed))

    def fit_linears(
        self, features_NF: Any, truth_N: Array, *, grid: Sequence[float], seed: int
    ) -> Iterator[LinearModel]:
        weights_K2 = self.state.get("class_weights", [None] * self.outputs)
        of_labels = [
            list(
                logistic_regressions(
                    features_NF, truth_N[:, number].astype(np.int64), grid=grid, seed=seed, weights=weights
                )
            )
            for number, weights in enumerate(weights_K2)
        ]
        for models in zip(*of_labels, strict=True):
            yield LinearModel(
                np.stack([model.weight_KF[1] for model in models]),
                np.stack([model.bias_K[1] for model in models]),
            )

    def score(self, truth_N: Array, prediction_N: Array) -> dict[str, float]:
        """Means over the labels, each as much as any other."""
        return {
            "auroc": float(roc_auc_score(truth_N, prediction_N, average="macro")),
            "auprc": float(average_precision_score(truth_N, prediction_N, average="macro")),
        }
