"""What a kind of task is: one class in a file of its own, and a line in KINDS. Nothing else knows a kind.

Shapes: N rows, B of a batch, K numbers that the network gives for a row, F features, G groups of rows.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LinearModel:
    """A linear model of features, which gives the numbers that a network would give: fp64 [N, K]."""

    weight_KF: Array
    bias_K: Array

    def __call__(self, features_NF: Any) -> Array:
        """Of dense or sparse features."""
        return np.asarray(features_NF @ self.weight_KF.T + self.bias_K)


@dataclass(frozen=True)
class Metric:
    """One score of a kind of task; in MLflow it is ``val/NAME`` and ``test/NAME``.

    Attributes:
        percent: tables give it times 100, as is usual for what is at most 1.
    """

    name: str
    heading: str
    percent: bool = True


class TaskKind(ABC):
    """One kind of task, made for the labels of one task.

    What it takes from the train split stands in ``state`` alone. So a kind with an equal state, made for the
    same labels, gives the same predictions: a kept model holds both.

    Attributes:
        metrics: all scores. The first is the main one, higher is better: it chooses the epoch, the learning
            rate and the penalty on dev, and the champion.
        modes: the modes that it can be run in; by default, all that read single sequences.
        reads_variants: whether its rows are variants of a genome, and not sequences.
        balances: whether ``class_weights: balanced`` means something to it.
        reads_columns: whether ``label_column`` may be several columns of 0 and 1; the text of a row is then
            the names of those with 1, joined by ``,``.
        outputs: K.
        dtype: of the truth of a row.
        state: what was taken from the train split, as JSON holds it; empty before ``fit``.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    modes: ClassVar[tuple[str, ...]] = ("kmer", "onehot", "probe", "finetune", "scratch")
    reads_variants: ClassVar[bool] = False
    balances: ClassVar[bool] = False
    reads_columns: ClassVar[bool] = False
    dtype: ClassVar[Any]
    outputs: int
    state: Mapping[str, Any] = {}

    @abstractmethod
    def __init__(self, labels: tuple[str, ...]) -> None:
        """ValueError, a sentence that begins with ``labels:``, if the kind takes no such labels."""

    @abstractmethod
    def parse(self, text: str) -> Any:
        """The truth of one row, from the text in the label column.

        Raises:
            ValueError: what is wrong, to follow ``label 'TEXT'``. It does not repeat the text.
        """

    def truth(self, texts: Sequence[str]) -> Array:
        """The truth of some rows, [N] or [N, …]."""
        return np.array([self.parse(text) for text in texts], dtype=self.dtype)

    @abstractmethod
    def fault_of_split(self, truth_N: Array) -> str:
        """Why these rows cannot be learned from or scored, to follow ``its dev split of 9 rows``; else ""."""

    def groups(self, truth_N: Array) -> Array:
        """bool [N, G]: groups of rows of which a small train split needs one each; none by default."""
        return np.zeros((len(truth_N), 0), bool)

    def statistics(self, truth_N: Array, *, balanced: bool) -> dict[str, Any]:
        """The ``state`` that the loss and the predictions need of the train split; nothing by default.

        Args:
            balanced: every class counts as much as any other, in the loss and in linear models.
        """
        return {}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """This kind with the ``state`` of another of the same labels."""
        kind = copy.copy(self)
        kind.state = dict(state)
        return kind

    def fit(self, truth_N: Array, *, balanced: bool = False) -> Self:
        """This kind with what it takes from the train split, whose truth is given."""
        return self.with_state(self.statistics(truth_N, balanced=balanced))

    @abstractmethod
    def loss(self, output_BK: Tensor, truth_B: Tensor) -> Tensor:
        """The mean loss of a batch; ``output_BK`` is fp32. Here and below the kind is fitted."""

    def smooth_loss(self, output_BK: Tensor, truth_B: Tensor, *, smoothing: float) -> Tensor:
        """``loss`` with labels that are sure to 1 - ``smoothing`` only; without labels it is the loss."""
        return self.loss(output_BK, truth_B)

    @abstractmethod
    def predict(self, output_NK: Tensor) -> Array:
        """Predictions from the numbers of a network or linear model, not finite where those are not."""

    def sure(self, truth_N: Array) -> Array:
        """The prediction that says just this truth; what nearest neighbours take the mean of."""
        return np.asarray(truth_N, np.float64)

    @abstractmethod
    def table(self, prediction_N: Array) -> dict[str, Array]:
        """Predictions as columns for users, by name: text (an array of str objects) or float64, [N] each.

        It takes no rows, too, so that names and types are known before any.
        """

    @abstractmethod
    def fit_linear(self, features_NF: Any, truth_N: Array, *, c: float, seed: int) -> LinearModel:
        """A linear model fitted to features, dense or sparse; ``c`` is the inverse of its L2 penalty."""

    def fit_linears(
        self, features_NF: Any, truth_N: Array, *, grid: Sequence[float], seed: int
    ) -> Iterator[LinearModel]:
        """``fit_linear`` for each C of ``grid``, the smallest first; a kind may share work between them."""
        for c in grid:
            yield self.fit_linear(features_NF, truth_N, c=c, seed=seed)

    @abstractmethod
    def score(self, truth_N: Array, prediction_N: Array) -> dict[str, float]:
        """Every metric by its name."""

    def main_score(self, truth_N: Array, prediction_N: Array) -> float:
        return self.score(truth_N, prediction_N)[self.metrics[0].name]
