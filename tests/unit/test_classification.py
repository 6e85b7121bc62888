"""trainer.evaluation.tasks.classification: its scores are sklearn's."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score

from trainer.evaluation.tasks.classification import Classification


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_are_sklearns(classes: int) -> None:
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, 90)
    probability = rng.dirichlet(np.ones(classes), 90)
    guess = probability.argmax(1)
    auroc = (
        roc_auc_score(truth, probability[:, 1])
        if classes == 2
        else roc_auc_score(truth, probability, multi_class="ovr", average="macro")
    )
    assert Classification(tuple("abc"[:classes])).score(truth, probability) == pytest.approx(
        {
            "mcc": matthews_corrcoef(truth, guess),
            "accuracy": accuracy_score(truth, guess),
            "f1_macro": f1_score(truth, guess, average="macro"),
            "auroc": auroc,
        }
    )
