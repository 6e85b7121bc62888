"""Logistic regression on dense features, for many penalties at the price of little more than one.

The problem is scikit-learn's: C · the sum of losses + |w|² / 2 is least, the bias without penalty. Dense
features are correlated, so that L-BFGS alone takes thousands of steps, and Newton's method makes the matrix
of second derivatives, which is the dear part, anew at each step. Here the products of the features are made
once. They bound the second derivatives (Böhning, 1992), and L-BFGS in the coordinates of that bound takes
tens of steps, each of which reads the features twice. Each penalty starts where the one before it ended.

Shapes: N rows, F features, K outputs: 1 of two classes, else as many as classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

from trainer.evaluation.tasks.kinds.kind import Array, LinearModel

_GRADIENT = 1e-5  # of the mean loss, in the coordinates of the bound: smaller ends the search
_STEPS = 500
_ROWS = 4096  # whose products are made at once


def logistic_path(
    features_NF: Array, class_N: Array, *, grid: Sequence[float], weights: Sequence[float] | None
) -> Iterator[LinearModel]:
    """A model for each C of ``grid``, fitted to classes numbered from 0, with ``weights`` of the classes.

    The features should be centred: then the bound is close.
    """
    if features_NF.shape[1] > features_NF.shape[0]:
        # The best weights are sums of rows: as many coordinates as rows are enough.
        basis_FN, rows_NN = scipy.linalg.qr(features_NF.T, mode="economic", check_finite=False)
        for model in logistic_path(rows_NN.T, class_N, grid=grid, weights=weights):
            yield LinearModel(model.weight_KF @ basis_FN.T, model.bias_K)
        return
    classes = int(class_N.max()) + 1
    weight_N = np.ones(len(class_N)) if weights is None else np.asarray(weights)[class_N]
    target_NK = np.eye(classes)[class_N] if classes > 2 else class_N[:, None].astype(float)
    problem = _Problem(features_NF, target_NK, weight_N / len(class_N))
    products_FF = problem.products()
    solution = np.zeros((features_NF.shape[1] + 1, target_NK.shape[1]))  # the last row is the bias
    for c in grid:
        solution = problem.solve(solution, products_FF, penalty=1 / (c * len(class_N)))
        yield as_outputs(solution[:-1].T, solution[-1])


def as_outputs(weight_KF: Array, bias_K: Array) -> LinearModel:
    """With an output for each class: of two classes a logistic regression has one row, and the output of the
    first is 0."""
    if len(weight_KF) == 1:
        weight_KF, bias_K = np.concatenate([0 * weight_KF, weight_KF]), np.concatenate([0 * bias_K, bias_K])
    return LinearModel(np.ascontiguousarray(weight_KF), bias_K)


@dataclass(frozen=True)
class _Problem:
    features_NF: Array
    target_NK: Array
    weight_N: Array

    def products(self) -> Array:
        """fp64 [F, F]: the weighted sum over the rows of the products of their features."""
        size = self.features_NF.shape[1]
        sum_FF = np.zeros((size, size))
        for start in range(0, len(self.features_NF), _ROWS):
            part = slice(start, start + _ROWS)
            root_N1 = np.sqrt(self.weight_N[part])[:, None].astype(self.features_NF.dtype)
            rooted_NF = self.features_NF[part] * root_N1
            sum_FF += rooted_NF.T @ rooted_NF
        return sum_FF

    def solve(self, start: Array, products_FF: Array, *, penalty: float) -> Array:
        """[F + 1, K]: where the sum of weighted losses + ``penalty`` · |w|² / 2 is least."""
        features, outputs = start[:-1].shape
        curve = 0.25 if outputs == 1 else 0.5  # the most that a loss curves
        bound_FF = curve * products_FF
        bound_FF[np.diag_indices(features)] += penalty
        root_FF = scipy.linalg.cholesky(bound_FF, overwrite_a=True, check_finite=False)
        bias_root = np.sqrt(curve * self.weight_N.sum())

        def weights_of(point: Array) -> Array:
            moved = point.reshape(start.shape)
            solved_FK = scipy.linalg.solve_triangular(root_FF, moved[:-1], check_finite=False)
            return np.concatenate([solved_FK, moved[-1:] / bias_root])

        def value_and_gradient(point: Array) -> tuple[float, Array]:
            weights = weights_of(point)
            value, gradient = self._loss(weights)
            value += penalty * float((weights[:-1] ** 2).sum()) / 2
            gradient[:-1] += penalty * weights[:-1]
            solved_FK = scipy.linalg.solve_triangular(root_FF, gradient[:-1], trans="T", check_finite=False)
            return value, np.concatenate([solved_FK, gradient[-1:] / bias_root]).ravel()

        first = np.concatenate([root_FF @ start[:-1], start[-1:] * bias_root]).ravel()
        found = scipy.optimize.minimize(
            value_and_gradient,
            first,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _STEPS, "maxcor": 20, "gtol": _GRADIENT, "ftol": 0.0},
        )
        return weights_of(found.x)

    def _loss(self, weights: Array) -> tuple[float, Array]:
        """The sum of weighted losses, and its gradient."""
        weight_FK, bias_K = weights[:-1], weights[-1]
        dtype = self.features_NF.dtype
        output_NK = (self.features_NF @ weight_FK.astype(dtype)).astype(np.float64) + bias_K
        if output_NK.shape[1] == 1:
            loss_N = (np.logaddexp(0, output_NK) - self.target_NK * output_NK)[:, 0]
            guess_NK = scipy.special.expit(output_NK)
        else:
            log_NK = scipy.special.log_softmax(output_NK, axis=1)
            loss_N, guess_NK = -(self.target_NK * log_NK).sum(1), np.exp(log_NK)
        slope_NK = self.weight_N[:, None] * (guess_NK - self.target_NK)
        slope_FK = (self.features_NF.T @ slope_NK.astype(dtype)).astype(np.float64)
        return float(self.weight_N @ loss_N), np.concatenate([slope_FK, slope_NK.sum(0)[None]])
