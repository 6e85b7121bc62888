"""tasks.kinds.classification: its scores and linear models are sklearn's, class weights too."""

import json
import math

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score

from trainer.evaluation.tasks.kinds.classification import Classification


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


TRUTH = np.array([0] * 30 + [1] * 6 + [2] * 4)
FEATURES = np.random.default_rng(0).normal(size=(40, 2)) + TRUTH[:, None] / 2


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_the_naive_one(balanced: bool) -> None:
    kind = Classification(("a", "b", "c")).fit(TRUTH, balanced=balanced)
    output = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    count = {0: 30, 1: 6, 2: 4}
    weights = [40 / (3 * count[k]) if balanced else 1 for k in TRUTH]
    rows = zip(output.tolist(), TRUTH, strict=True)
    losses = [math.log(sum(math.exp(o) for o in row)) - row[k] for row, k in rows]
    naive = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert kind.loss(output, torch.from_numpy(TRUTH)).item() == pytest.approx(naive, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_linear_model_is_sklearns(classes: int, weight: str | None, sparse: bool) -> None:
    truth = np.minimum(TRUTH, classes - 1)
    kind = Classification(tuple("abc"[:classes])).fit(truth, balanced=weight is not None)
    features = scipy.sparse.csr_matrix(FEATURES) if sparse else FEATURES
    model = LogisticRegression(C=0.1, class_weight=weight, tol=1e-8, max_iter=1000).fit(FEATURES, truth)
    found = kind.predict(torch.from_numpy(kind.fit_linear(features, truth, c=0.1, seed=0)(features)))
    assert found == pytest.approx(model.predict_proba(FEATURES), abs=2e-3)


def test_balanced_weights_find_more_of_the_rare_classes() -> None:
    guesses = []
    for balanced in (False, True):
        kind = Classification(("a", "b", "c")).fit(TRUTH, balanced=balanced)
        model = kind.fit_linear(FEATURES, TRUTH, c=1, seed=0)
        guesses.append(kind.predict(torch.from_numpy(model(FEATURES))).argmax(1))
    assert (guesses[1] > 0).sum() > (guesses[0] > 0).sum()


def test_predictions_as_columns_and_the_state_as_json() -> None:
    kind = Classification(("no", "yes"))
    again = kind.with_state(json.loads(json.dumps(kind.fit(np.minimum(TRUTH, 1), balanced=True).state)))
    assert again.state == {"class_weights": pytest.approx([40 / 60, 40 / 20])}
    assert kind.fit(np.minimum(TRUTH, 1)).state == {}
    table = again.table(again.predict(torch.tensor([[0.0, 9.0], [9.0, 0.0]])))
    assert table["label"].tolist() == ["yes", "no"]
    assert list(table) == ["label", "p_no", "p_yes"]
    assert table["p_yes"] == pytest.approx([1, 0], abs=1e-3)
