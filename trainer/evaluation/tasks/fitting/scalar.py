"""Numbers that need no training, such as what an encoder says of a variant; which one, and whether more of it
means more, is chosen on dev.

Shapes: N rows.
"""

from collections.abc import Callable, Mapping

from trainer.evaluation.tasks.fitting.linear import FittedModel
from trainer.evaluation.tasks.kinds.kind import Array, TaskKind
from trainer.evaluation.tasks.rows.data import Split

Numbers = Callable[[Split], Mapping[str, Array]]  # of a split: float64 [N] by name
READINGS: dict[str, Callable[[Array], Array]] = {
    "x": lambda values_N: values_N,
    "-x": lambda values_N: -values_N,
    "|x|": lambda values_N: abs(values_N),
    "-|x|": lambda values_N: -abs(values_N),
}


def fit_scalar(dev: Split, *, numbers: Numbers, kind: TaskKind) -> FittedModel:
    """The number that is best on dev, as it is, by its size, or either with the other sign; of equals the
    first."""
    best: tuple[float, str, str, Array] | None = None
    for name, values_N in numbers(dev).items():
        for shown, reading in READINGS.items():
            read_N = reading(values_N)
            score = kind.main_score(dev.truth_N, read_N)
            if best is None or score > best[0]:
                best = score, name, shown, read_N
    assert best is not None, "there is a number"
    _, chosen, shown, dev_prediction = best

    def predict(split: Split) -> Array:
        return READINGS[shown](numbers(split)[chosen])

    return FittedModel(predict, dev_prediction, {"number": shown.replace("x", chosen)})
