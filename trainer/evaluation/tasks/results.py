"""What fine-tuning found: one row a seed and mode, and the table of means and spreads with the floor
beside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from trainer.evaluation.tasks.config import MODES

METRICS = ("mcc", "accuracy", "f1_macro", "auroc")
FLOOR = "kmer"


@dataclass(frozen=True)
class Result:
    """One (task, seed, mode) of one model version; ``settings`` tells apart results that must not be
    averaged."""

    model: str
    version: str
    task: str
    mode: str
    seed: int
    val: dict[str, float]
    test: dict[str, float]
    settings: str = ""
    train_rows: int = 0
    chosen: str = ""

    def flat(self) -> dict[str, Any]:
        """One row of a table: val/mcc, test/mcc, … beside the names."""
        scores = {
            f"{split}/{name}": value
            for split, part in (("val", self.val), ("test", self.test))
            for name, value in part.items()
        }
        names = ("model", "version", "task", "mode", "seed", "settings", "train_rows", "chosen")
        return {name: getattr(self, name) for name in names} | scores


def summarise(results: Sequence[Result]) -> pd.DataFrame:
    """A row for each (task, settings, mode): train_rows, seeds, val_mcc, and of test: mean, ``_sd`` (sample)
    of each.

    ``floor_mcc`` is the k-mer model's test MCC on the same rows; NaN where it was not run, as is the sd of
    one seed. Repeats of a (task, settings, mode, seed) count once, the last of them.
    """
    latest = {(r.task, r.settings, r.mode, r.seed): r for r in results}
    if not latest:
        return pd.DataFrame(
            columns=["task", "settings", "mode", "train_rows", "seeds", "val_mcc", "floor_mcc"]
        )
    table = pd.DataFrame([result.flat() for result in latest.values()])
    columns: dict[str, Any] = {
        "train_rows": ("train_rows", "first"),
        "seeds": ("seed", "nunique"),
        "val_mcc": ("val/mcc", "mean"),
    }
    for name in METRICS:
        columns |= {name: (f"test/{name}", "mean"), f"{name}_sd": (f"test/{name}", "std")}
    summary = table.groupby(["task", "settings", "mode"], sort=False).agg(**columns).reset_index()
    floor = summary[summary["mode"] == FLOOR].set_index(["task", "settings"])["mcc"].rename("floor_mcc")
    summary = summary.join(floor, on=["task", "settings"])
    order = summary["mode"].map({mode: i for i, mode in enumerate(MODES)})
    return summary.assign(order=order).sort_values(["task", "settings", "order"]).drop(columns="order")


HEADINGS = (
    "task",
    "mode",
    "train rows",
    "seeds",
    "test MCC × 100",
    "k-mer floor",
    "above floor",
    "accuracy",
    "macro-F1",
    "AUROC",
    "dev MCC × 100",
)


def readable(summary: pd.DataFrame) -> list[tuple[str, ...]]:
    """The summary as rows of text under HEADINGS: mean ± sample standard deviation over the seeds."""
    return [
        (
            str(row["task"]),
            str(row["mode"]),
            str(row["train_rows"]),
            str(row["seeds"]),
            _spread(row["mcc"], row["mcc_sd"]),
            _number(row["floor_mcc"]),
            "" if row["mode"] == FLOOR else _number(row["mcc"] - row["floor_mcc"], "+.1f"),
            *(_spread(row[name], row[f"{name}_sd"]) for name in METRICS[1:]),
            _number(row["val_mcc"]),
        )
        for row in summary.to_dict("records")
    ]


def _number(value: float, form: str = ".1f") -> str:
    return "not run" if pd.isna(value) else format(100 * value, form)


def _spread(mean: float, sd: float) -> str:
    return _number(mean) + ("" if pd.isna(sd) else f" ± {100 * sd:.1f}")


def as_text(summary: pd.DataFrame) -> str:
    """The table for a terminal."""
    rows = [HEADINGS, *readable(summary)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
