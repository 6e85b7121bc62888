"""Variants: each row is a change of a reference genome, whose effect was measured: a number, or yes and no.

The modes of this kind train nothing, or a linear model: what an encoder or a floor says of a variant is one
number, which should order the variants as their effects do.

Shapes: N rows.
"""

from typing import Any

import numpy as np
import scipy.stats
from sklearn.metrics import roc_auc_score

from trainer.evaluation.tasks.kinds.kind import Array, Metric
from trainer.evaluation.tasks.kinds.regression import Regression


class Variants(Regression):
    """A prediction is a number, [N]. With two ``labels`` the effect is 0 for the first, 1 for the second."""

    metrics = (Metric("spearman", "Spearman ρ"), Metric("auroc", "AUROC"))
    modes = ("kmer", "centre", "zeroshot", "probe")
    reads_variants = True

    def __init__(self, labels: tuple[str, ...]) -> None:
        if labels and len(labels) != 2:
            raise ValueError(
                f"labels: effects of variants are numbers, without labels, or two labels, not {list(labels)}"
            )
        self._labels = labels

    def parse(self, text: str) -> float:
        return float(self._labels.index(text)) if self._labels else super().parse(text)

    def statistics(self, truth_N: Array, *, balanced: bool) -> dict[str, Any]:
        """Effects above ``threshold`` are the positives of AUROC: of two labels the second one."""
        threshold = 0.5 if self._labels else float(np.median(truth_N))
        return super().statistics(truth_N, balanced=balanced) | {"threshold": threshold}

    def score(self, truth_N: Array, prediction_N: Array) -> dict[str, float]:
        """Predictions that are all equal tell nothing apart: 0 and 0.5."""
        positive_N = truth_N > self.state["threshold"]
        orders = len(np.unique(prediction_N)) > 1 and len(np.unique(truth_N)) > 1
        decides = len(np.unique(positive_N)) > 1
        return {
            "spearman": float(scipy.stats.spearmanr(truth_N, prediction_N).statistic) if orders else 0.0,
            "auroc": float(roc_auc_score(positive_N, prediction_N)) if decides else 0.5,
        }
