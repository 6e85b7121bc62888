"""One standard error of an accuracy, for validation, report and demo."""

import math

import numpy as np
import pytest

from trainer.evaluation.statistics import standard_error


@pytest.mark.parametrize(("accuracy", "positions"), [(0.3, 10_000), (0.5, 7), (0.99, 400)])
def test_it_is_the_spread_of_repeated_experiments(accuracy: float, positions: int) -> None:
    repeated = np.random.default_rng(0).binomial(positions, accuracy, 40_000) / positions
    assert standard_error(accuracy, positions) == pytest.approx(float(repeated.std()), rel=0.02)


def test_it_can_be_divided_by_where_all_or_nothing_is_right() -> None:
    for accuracy in (0.0, 1.0):
        assert 0 < standard_error(accuracy, 100) < 1e-6
        assert math.isfinite(1 / standard_error(accuracy, 100))
