"""trainer.evaluation.tasks.kinds.multilabel: scores and linear models are sklearn's, label by label."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.evaluation.tasks.kinds.multilabel import MultiLabel

LABELS = ("promoter", "enhancer", "CTCF site")
RNG = np.random.default_rng(0)
TRUTH = (RNG.random((60, 3)) < [0.5, 0.2, 0.8]).astype(np.float32)
FEATURES = TRUTH + RNG.normal(size=(60, 3))
KIND = MultiLabel(LABELS)


def test_metrics_are_the_means_of_sklearns() -> None:
    prediction = RNG.random((60, 3))
    pairs = [(TRUTH[:, k], prediction[:, k]) for k in range(3)]
    assert KIND.score(TRUTH, prediction) == pytest.approx(
        {
            "auroc": np.mean([roc_auc_score(*pair) for pair in pairs]),
            "auprc": np.mean([average_precision_score(*pair) for pair in pairs]),
        }
    )


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_the_naive_one(balanced: bool) -> None:
    kind = KIND.fit(TRUTH, balanced=balanced)
    output = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    total = weights = 0.0
    for row in range(60):
        for k in range(3):
            p = 1 / (1 + math.exp(-output[row, k].item()))
            positive = TRUTH[row, k] == 1
            same = sum(TRUTH[:, k] == TRUTH[row, k])
            weight = 60 / (2 * same) if balanced else 1
            total += weight * -math.log(p if positive else 1 - p)
            weights += weight
    assert kind.loss(output, torch.from_numpy(TRUTH)).item() == pytest.approx(total / weights, rel=1e-5)


@pytest.mark.parametrize("weight", [None, "balanced"])
def test_the_linear_model_is_one_logistic_regression_a_label(weight: str | None) -> None:
    kind = KIND.fit(TRUTH, balanced=weight is not None)
    found = kind.predict(torch.from_numpy(kind.fit_linear(FEATURES, TRUTH, c=0.1, seed=0)(FEATURES)))
    for k in range(3):
        model = LogisticRegression(C=0.1, class_weight=weight, tol=1e-8).fit(FEATURES, TRUTH[:, k])
        assert found[:, k] == pytest.approx(model.predict_proba(FEATURES)[:, 1], abs=1e-4)


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("", [0, 0, 0]),
        ("enhancer", [0, 1, 0]),
        ("CTCF site,promoter", [1, 0, 1]),
        ("promoter; enhancer", [1, 1, 0]),
        ("promoter|CTCF site", [1, 0, 1]),
    ],
)
def test_labels_of_one_cell(text: str, truth: list[int]) -> None:
    assert KIND.parse(text).tolist() == truth


@pytest.mark.parametrize(("text", "name"), [("promoter,", "''"), ("promoter CTCF", "'promoter CTCF'")])
def test_what_is_no_label_is_refused(text: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"has {name}, which is not among the task's labels"):
        KIND.parse(text)


def test_labels_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="labels: at least 1 is needed, or label_column as a list"):
        MultiLabel(())
    with pytest.raises(ValueError, match=r"labels: none may hold a comma, .* as \['a,b'\] do"):
        MultiLabel(("a,b", "c"))


def test_a_split_needs_rows_with_and_without_each_label() -> None:
    assert KIND.fault_of_split(TRUTH) == ""
    none, all_ = TRUTH.copy(), TRUTH.copy()
    none[:, 1], all_[:, 2] = 0, 1
    assert KIND.fault_of_split(none) == (
        "has no rows with label 'enhancer'; every split needs some with and some without: leave the label "
        "out, or give more rows"
    )
    assert "has only rows with label 'CTCF site'" in KIND.fault_of_split(all_)


def test_predictions_as_columns_and_the_state_as_json() -> None:
    kind = KIND.with_state(json.loads(json.dumps(KIND.fit(TRUTH, balanced=True).state)))
    table = kind.table(kind.predict(torch.tensor([[9.0, -9, 9], [-9, -9, -9]])))
    assert list(table) == ["label", "p_promoter", "p_enhancer", "p_CTCF site"]
    assert table["label"].tolist() == ["promoter,CTCF site", ""]
    empty = kind.table(kind.predict(torch.zeros(0, 3)))
    assert {name: column.dtype for name, column in empty.items()} == {
        name: column.dtype for name, column in table.items()
    }
