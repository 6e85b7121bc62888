"""What a kind of task is: one class in a file of its own, and a line in KINDS. Nothing else knows a kind.

Shapes: N rows, B of a batch, K numbers that the network gives for a row, F features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]
LinearModel = Callable[[Any], Array]  # features [N, F], dense or sparse -> predictions, as ``predict`` gives


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

    Attributes:
        metrics: all scores. The first is the main one, higher is better: it chooses the epoch, the learning
            rate and the penalty on dev, and the champion.
        outputs: K.
        dtype: of the truth of a row.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    dtype: ClassVar[Any]
    outputs: int

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

    @abstractmethod
    def loss(self, output_BK: Tensor, truth_B: Tensor) -> Tensor:
        """The mean loss of a batch; ``output_BK`` is fp32."""

    @abstractmethod
    def predict(self, output_NK: Tensor) -> Array:
        """Predictions from the network's numbers, fp32 on the CPU; not finite where those are not."""

    @abstractmethod
    def fit_linear(self, features_NF: Any, truth_N: Array, *, c: float, seed: int) -> LinearModel:
        """A linear model fitted to features, dense or sparse; ``c`` is the inverse of its L2 penalty."""

    @abstractmethod
    def score(self, truth_N: Array, prediction_N: Array) -> dict[str, float]:
        """Every metric by its name."""

    def main_score(self, truth_N: Array, prediction_N: Array) -> float:
        return self.score(truth_N, prediction_N)[self.metrics[0].name]
