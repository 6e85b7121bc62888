"""Numbers that need no training, such as what an encoder says of a variant; which one, and whether more of it
means more, is chosen on dev.

Shapes: N rows.
"""

from collections.abc import Callable, Iterator, Mapping

from trainer.evaluation.tasks.fitting.linear import FittedModel
from trainer.evaluation.tasks.kinds.kind import Array, TaskKind
from trainer.evaluation.tasks.rows.data import Split

Numbers = Callable[[Split], Mapping[str, Array]]  # of a split: float64 [N] by name


def fit_scalar(dev: Split, *, numbers: Numbers, kind: TaskKind) -> FittedModel:
    """The number that is best on dev, as it is, by its size, or either with the other sign; of equals the
    first."""
    best: tuple[float, str, Array] | None = None
    for name, values_N in _readings(numbers(dev)):
        score = kind.main_score(dev.truth_N, values_N)
        if best is None or score > best[0]:
            best = score, name, values_N
    assert best is not None, "there is a number"
    _, chosen, dev_prediction = best

    def predict(split: Split) -> Array:
        return dict(_readings(numbers(split)))[chosen]

    return FittedModel(predict, dev_prediction, {"number": chosen})


def _readings(numbers: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    for name, values_N in numbers.items():
        yield name, values_N
        yield f"-{name}", -values_N
        if (values_N < 0).any():
            yield f"|{name}|", abs(values_N)
            yield f"-|{name}|", -abs(values_N)
