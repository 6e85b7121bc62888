"""What one unit of work gives, and the table of means and spreads with the floor beside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from trainer.evaluation.tasks.config import FLOORS, MODES
from trainer.evaluation.tasks.kinds.kind import Metric
from trainer.evaluation.tasks.kinds.registry import DEFAULT_KIND, KINDS


@dataclass(frozen=True)
class Unit:
    """One unit of work: a mode and a seed of a task on a model version."""

    model: str
    version: str
    task: str
    mode: str
    seed: int


@dataclass(frozen=True)
class Result:
    """The scores of one unit.

    Attributes:
        val, test: every metric of the kind of task, on the dev and the test split.
        settings: a digest; results with different settings must not be averaged.
        rows: the number of rows of each split.
        chosen: what was chosen on dev.
        seconds: how long it took.
    """

    unit: Unit
    val: dict[str, float]
    test: dict[str, float]
    kind: str = DEFAULT_KIND
    settings: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    chosen: str = ""
    seconds: float = 0.0

    @property
    def metric(self) -> Metric:
        """The main metric."""
        return KINDS[self.kind].metrics[0]

    def scores(self) -> dict[str, float]:
        """Every score by its name in MLflow: val/mcc, test/mcc, …"""
        return {
            f"{split}/{name}": value
            for split, part in (("val", self.val), ("test", self.test))
            for name, value in part.items()
        }

    def flat(self) -> dict[str, Any]:
        """One row of a table: the scores beside the names."""
        names = {
            **vars(self.unit),
            "kind": self.kind,
            "settings": self.settings,
            "train_rows": self.rows.get("train", 0),
            "chosen": self.chosen,
        }
        return names | self.scores()


@dataclass(frozen=True)
class UnitOutcome:
    """What computing a unit gives; all of it can be sent to another process.

    ``model``: the files of the fitted model by name, where the unit's mode uses the encoder; else empty.
    """

    result: Result
    model: dict[str, bytes] = field(default_factory=dict)


def summarise(results: Sequence[Result]) -> pd.DataFrame:
    """A row for each (task, train_rows, settings, kind, mode), in this order: seeds, and of the main metric
    ``score`` and ``score_sd`` (on test), ``dev_score``, ``floor`` and ``floor_mode``.

    The floor is the score of the one of FLOORS that is better on dev, of the same task and settings; of
    equals the first. Scores are means over seeds, ``_sd`` is the sample standard deviation. The other metrics
    follow by name, each with its ``_sd``. NaN is what was not run, what another kind has, and the sd of one
    seed. Of several results of the same (task, settings, mode, seed) the last one counts.
    """
    latest = {(r.unit.task, r.settings, r.unit.mode, r.unit.seed): r for r in results}
    if not latest:
        columns = ["task", "settings", "kind", "mode", "train_rows", "seeds"]
        return pd.DataFrame(columns=[*columns, "score", "score_sd", "dev_score", "floor", "floor_mode"])
    table = pd.DataFrame([_row(result) for result in latest.values()])
    aggregates: dict[str, Any] = {
        "train_rows": ("train_rows", "first"),
        "seeds": ("seed", "nunique"),
        "score": ("score", "mean"),
        "score_sd": ("score", "std"),
        "dev_score": ("dev_score", "mean"),
    }
    for name in dict.fromkeys(name for result in latest.values() for name in result.test):
        aggregates |= {name: (f"test/{name}", "mean"), f"{name}_sd": (f"test/{name}", "std")}
    keys = ["task", "settings", "kind", "mode"]
    summary = table.groupby(keys, sort=False).agg(**aggregates).reset_index()
    order = summary["mode"].map({mode: i for i, mode in enumerate(MODES)})
    summary = summary.assign(order=order).sort_values(["task", "train_rows", "settings", "order"])
    return summary.drop(columns="order").join(_floors(summary), on=["task", "settings"])


def _floors(summary: pd.DataFrame) -> pd.DataFrame:
    """floor and floor_mode by (task, settings): the mode of FLOORS that is better on dev."""
    rows = summary[summary["mode"].isin(FLOORS)].sort_values("dev_score", ascending=False, kind="stable")
    best = rows.groupby(["task", "settings"], sort=False).first()
    return best[["score", "mode"]].set_axis(["floor", "floor_mode"], axis=1)


def _row(result: Result) -> dict[str, Any]:
    name = result.metric.name
    return result.flat() | {"score": result.test[name], "dev_score": result.val[name]}
