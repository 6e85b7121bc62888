"""Classification: the loss, the linear model, and the four figures by which every mode is judged.

Shapes: N rows, K classes, F features.
"""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score
from torch import Tensor

Array = np.ndarray[Any, Any]


class Classification:
    """One of ``labels`` for each sequence; class k is the k-th label."""

    selects_by = "mcc"  # on the dev split, higher is better

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.outputs = len(labels)

    def metrics(self, truth_N: Array, probability_NK: Array) -> dict[str, float]:
        """mcc, accuracy, f1_macro, auroc (of class 1; with more than 2 classes one-vs-rest, macro
        average)."""
        guess_N = probability_NK.argmax(1)
        classes = range(self.outputs)
        auroc = (
            roc_auc_score(truth_N, probability_NK[:, 1])
            if self.outputs == 2
            else roc_auc_score(
                truth_N, probability_NK, multi_class="ovr", average="macro", labels=list(classes)
            )
        )
        return {
            "mcc": float(matthews_corrcoef(truth_N, guess_N)),
            "accuracy": float(accuracy_score(truth_N, guess_N)),
            "f1_macro": float(
                f1_score(truth_N, guess_N, average="macro", labels=list(classes), zero_division=0)
            ),
            "auroc": float(auroc),
        }

    def loss(self, logits_BK: Tensor, truth_B: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits_BK, truth_B)

    def probabilities(self, logits_NK: Tensor) -> Array:
        probability: Array = logits_NK.double().softmax(-1).numpy()
        return probability

    def fit_linear(self, features_NF: Any, truth_N: Array, *, c: float, seed: int) -> LogisticRegression:
        """A fitted logistic regression; it has ``predict_proba``. ``c`` is the inverse of the L2 penalty."""
        # Dense features are few and correlated: Newton takes tens of steps where L-BFGS takes thousands.
        solver = "lbfgs" if scipy.sparse.issparse(features_NF) else "newton-cholesky"
        return LogisticRegression(C=c, solver=solver, max_iter=2000, random_state=seed).fit(
            features_NF, truth_N
        )
