"""trainer.evaluation.tasks.kinds.regression: scores are scipy's and sklearn's; units do not matter."""

import json
import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from trainer.evaluation.tasks.kinds.regression import Regression

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(3, 2, 50)
FEATURES = np.c_[TRUTH, RNG.normal(size=50)] + RNG.normal(size=(50, 2))
KIND = Regression(()).fit(TRUTH)


def test_metrics_are_scipys_and_sklearns() -> None:
    prediction = FEATURES[:, 0]
    assert KIND.score(TRUTH, prediction) == pytest.approx(
        {
            "pearson": scipy.stats.pearsonr(TRUTH, prediction).statistic,
            "spearman": scipy.stats.spearmanr(TRUTH, prediction).statistic,
            "r2": r2_score(TRUTH, prediction),
        }
    )
    flat = KIND.score(TRUTH, np.full(50, 3.0))
    assert (flat["pearson"], flat["spearman"]) == (0, 0)


def test_the_loss_is_the_naive_one_of_standardised_numbers() -> None:
    output = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    mean, sd = sum(TRUTH) / 50, np.sqrt(sum((TRUTH - TRUTH.mean()) ** 2) / 50)
    naive = sum((o - (t - mean) / sd) ** 2 for o, t in zip(output[:, 0].tolist(), TRUTH, strict=True)) / 50
    assert KIND.loss(output, torch.from_numpy(TRUTH)).item() == pytest.approx(naive, rel=1e-6)
    assert KIND.predict(output) == pytest.approx(output[:, 0].numpy() * sd + mean, rel=1e-6)


@pytest.mark.parametrize(("factor", "shift"), [(-3.0, 1e6), (1e-4, 0.0), (1e7, -5.0)])
def test_an_affine_change_of_the_numbers_changes_predictions_alike(factor: float, shift: float) -> None:
    changed = factor * TRUTH + shift
    other = Regression(()).fit(changed)
    output = torch.linspace(-2, 2, 50)[:, None]
    sign = np.sign(factor)
    assert other.loss(sign * output, torch.from_numpy(changed)).item() == pytest.approx(
        KIND.loss(output, torch.from_numpy(TRUTH)).item(), rel=1e-5
    )
    assert other.predict(sign * output) == pytest.approx(factor * KIND.predict(output) + shift, rel=1e-6)
    ours, theirs = (
        kind.predict(torch.from_numpy(kind.fit_linear(FEATURES, truth, c=0.1, seed=0)(FEATURES)))
        for kind, truth in ((KIND, TRUTH), (other, changed))
    )
    assert theirs == pytest.approx(factor * ours + shift, rel=1e-6)


def test_the_linear_model_is_sklearns_ridge() -> None:
    model = KIND.fit_linear(FEATURES, TRUTH, c=0.01, seed=0)
    ridge = Ridge(alpha=50).fit(FEATURES, TRUTH)
    prediction = KIND.predict(torch.from_numpy(model(FEATURES)))
    assert prediction == pytest.approx(ridge.predict(FEATURES))


def test_a_fitted_kind_is_its_state() -> None:
    again = Regression(()).with_state(json.loads(json.dumps(KIND.state)))
    output = torch.ones(2, 1)
    assert (again.predict(output) == KIND.predict(output)).all()
    assert (pickle.loads(pickle.dumps(KIND)).predict(output) == KIND.predict(output)).all()
    assert not Regression(()).state, "fitting one changes no other"
    assert KIND.table(KIND.predict(output)).keys() == {"value"}


@pytest.mark.parametrize(("text", "value"), [("1", 1.0), (" -2.5e3", -2500.0), ("1.", 1.0)])
def test_numbers_are_read(text: str, value: float) -> None:
    assert KIND.parse(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no finite number"),
        ("nan", "is no finite number; correct it or remove the row"),
        ("-inf", "is no finite number"),
        ("1e999", "is no finite number"),
        ("high", "is no finite number"),
        ("1_000", "is no finite number"),
        ("0,5", "is no number; write decimals with a point"),
    ],
)
def test_what_is_no_number_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KIND.parse(text)


def test_a_split_of_one_number_is_refused() -> None:
    assert "one and the same number in every row" in KIND.fault_of_split(np.ones(4))
    assert "one and the same number" in KIND.fault_of_split(np.ones(0))
    assert KIND.fault_of_split(np.array([1.0, 2.0])) == ""
