"""Regression: each sequence has a number.

Networks and linear models learn the number standardised by the mean and standard deviation of the train
split, so that its unit does not matter; predictions and scores are in the unit of the files.

Shapes: N rows, B of a batch, K = 1, F features.
"""

import math
from typing import Any, ClassVar

import numpy as np
import scipy.stats
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import Tensor

from trainer.evaluation.tasks.kinds.kind import Array, LinearModel, Metric, TaskKind


class Regression(TaskKind):
    """A prediction is a number, [N]. Truth is float64: a sum of large numbers may be told from the next."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("pearson", "Pearson r"),
        Metric("spearman", "Spearman ρ"),
        Metric("r2", "R²"),
    )
    dtype = np.float64
    outputs = 1

    def __init__(self, labels: tuple[str, ...]) -> None:
        if labels:
            raise ValueError(f"labels: a regression has none, not {list(labels)}; remove the key")

    def parse(self, text: str) -> float:
        try:
            value = math.nan if "_" in text else float(text)  # Python alone reads 1_000
        except ValueError:
            value = math.nan
            if "," in text:
                raise ValueError("is no number; write decimals with a point") from None
        if not math.isfinite(value):
            raise ValueError("is no finite number; correct it or remove the row")
        return value

    def fault_of_split(self, truth_N: Array) -> str:
        if len(np.unique(truth_N)) > 1:
            return ""
        return "has one and the same number in every row, from which nothing can be learned or scored"

    def statistics(self, truth_N: Array, *, balanced: bool) -> dict[str, Any]:
        return {"mean": float(truth_N.mean()), "sd": float(truth_N.std())}

    def loss(self, output_BK: Tensor, truth_B: Tensor) -> Tensor:
        """Mean squared error of the standardised numbers."""
        target_B = ((truth_B - self.state["mean"]) / self.state["sd"]).to(output_BK.dtype)
        return torch.nn.functional.mse_loss(output_BK[:, 0], target_B)

    def predict(self, output_NK: Tensor) -> Array:
        return np.asarray(output_NK[:, 0].double().numpy() * self.state["sd"] + self.state["mean"])

    def table(self, prediction_N: Array) -> dict[str, Array]:
        """``value``."""
        return {"value": prediction_N}

    def fit_linear(self, features_NF: Any, truth_N: Array, *, c: float, seed: int) -> LinearModel:
        """Ridge regression: |w|² / 2 + c · the sum of squared errors is least, of standardised numbers."""
        target_N = (truth_N - self.state["mean"]) / self.state["sd"]
        model = Ridge(alpha=1 / (2 * c), random_state=seed).fit(features_NF, target_N)
        return LinearModel(model.coef_[None], np.array([model.intercept_]))

    def score(self, truth_N: Array, prediction_N: Array) -> dict[str, float]:
        """Correlations with predictions that are all equal are 0, as nothing is told apart."""
        constant = len(np.unique(prediction_N)) < 2
        return {
            "pearson": 0.0 if constant else float(scipy.stats.pearsonr(truth_N, prediction_N).statistic),
            "spearman": 0.0 if constant else float(scipy.stats.spearmanr(truth_N, prediction_N).statistic),
            "r2": float(r2_score(truth_N, prediction_N)),
        }
