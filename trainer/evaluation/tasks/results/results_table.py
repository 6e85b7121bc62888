"""Summaries of results as tables of text, one for each kind of task."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from trainer.evaluation.tasks.config import FLOORS
from trainer.evaluation.tasks.kinds.kind import Metric
from trainer.evaluation.tasks.kinds.registry import KINDS


@dataclass(frozen=True)
class ResultsTable:
    """The results of all tasks of one kind: mean ± sample standard deviation over the seeds."""

    kind: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def results_tables(summary: pd.DataFrame) -> list[ResultsTable]:
    """A table for each kind in a summary that ``summarise`` made."""
    return [_table(str(kind), part) for kind, part in summary.groupby("kind", sort=False)]


def as_text(summary: pd.DataFrame) -> str:
    """The tables for a terminal."""
    return "\n\n".join(_text(table) for table in results_tables(summary)) or "no results"


def _table(kind: str, summary: pd.DataFrame) -> ResultsTable:
    main, *others = KINDS[kind].metrics
    name = f"{main.heading} × 100" if main.percent else main.heading
    headings = (
        "task",
        "mode",
        "train rows",
        "seeds",
        f"test {name}",
        "floor",
        "above floor",
        *(metric.heading for metric in others),
        f"dev {name}",
    )
    rows = [
        (
            str(row["task"]),
            str(row["mode"]),
            str(row["train_rows"]),
            str(row["seeds"]),
            _spread(main, row["score"], row["score_sd"]),
            _floor(main, row),
            "" if row["mode"] in FLOORS else _number(main, row["score"] - row["floor"], sign="+"),
            *(_spread(metric, row[metric.name], row[f"{metric.name}_sd"]) for metric in others),
            _number(main, row["dev_score"]),
        )
        for row in summary.to_dict("records")
    ]
    return ResultsTable(kind, headings, rows)


def _number(metric: Metric, value: Any, *, sign: str = "") -> str:
    if pd.isna(value):
        return "not run"
    return format(100 * value, f"{sign}.1f") if metric.percent else format(value, f"{sign}.4g")


def _floor(metric: Metric, row: Mapping[Hashable, Any]) -> str:
    """The score of the better floor on dev, and which it is."""
    floor = _number(metric, row["floor"])
    return floor if pd.isna(row["floor"]) else f"{floor} ({row['floor_mode']})"


def _spread(metric: Metric, mean: Any, sd: Any) -> str:
    return _number(metric, mean) + ("" if pd.isna(sd) else f" ± {_number(metric, sd)}")


def _text(table: ResultsTable) -> str:
    rows = [table.headings, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.headings))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
