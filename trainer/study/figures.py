"""The pictures of a study."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.core import drawing
from trainer.core.drawing import COLOURS
from trainer.evaluation.tasks.config import FLOORS
from trainer.study.comparison import Comparison
from trainer.study.config import FLOOR, SCRATCH
from trainer.study.table import ALL, floors, means, numbers_of_rows

MOST_TASKS = 27  # panels of tasks in one picture, beside that of the mean


def forest(comparisons: Sequence[Comparison], *, interval: float) -> Figure | None:
    """The mean difference of each comparison with its interval; None where there is none."""
    if not comparisons:
        return None
    figure = Figure(figsize=(8.2, 1.1 + 0.34 * len(comparisons)), layout="constrained")
    axis = figure.subplots()
    for place, one in enumerate(reversed(comparisons)):
        colour = COLOURS[2] if one.low > 0 else COLOURS[1] if one.high < 0 else COLOURS[4]
        axis.plot([100 * one.low, 100 * one.high], [place, place], color=colour, linewidth=2)
        axis.plot(100 * one.mean, place, "o", color=colour, markersize=5)
    labels = [f"{one.first} − {one.second}: {one.mode}, {rows_in_words(one.rows)}" for one in comparisons]
    axis.set_yticks(range(len(labels)), labels[::-1], fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("difference of test scores × 100")
    drawing.dress(axis, f"mean over tasks, with its {interval:.0%} interval", steps=False)
    return figure


def by_task(comparisons: Sequence[Comparison]) -> Figure | None:
    """The difference in each task, a colour for each comparison; None where there is none."""
    shown = comparisons[: len(COLOURS)]
    if not shown:
        return None
    tasks = list(dict.fromkeys(task for one in shown for task in one.by_task))
    figure = Figure(figsize=(8.2, 1.3 + 0.3 * len(tasks)), layout="constrained")
    axis = figure.subplots()
    for colour, one in zip(COLOURS, shown, strict=False):
        places = [len(tasks) - 1 - tasks.index(task) for task in one.by_task]
        label = f"{one.first} − {one.second}: {one.mode}, {rows_in_words(one.rows)}"
        values = [100 * value for value in one.by_task.values()]
        axis.plot(values, places, "o", color=colour, label=label, alpha=0.8)
    axis.set_yticks(range(len(tasks)), tasks[::-1], fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("difference of test scores × 100")
    drawing.dress(axis, "by task", steps=False)
    return figure


class Curves(NamedTuple):
    """What ``by_rows`` draws.

    Attributes:
        lines: columns task, rows, arm, test: what is pretrained, scratch, the better floor.
        numbers: of training rows, with which an arm was scored, as text.
        tasks: those that an arm was scored on with several numbers.
        full: those of them that have all that any task has, so that means are of the same tasks.
    """

    lines: pd.DataFrame
    numbers: list[str]
    tasks: list[str]
    full: list[str]

    def means(self) -> pd.DataFrame:
        """Columns arm, rows, test: over the tasks in ``full``."""
        shared = self.lines[self.lines["task"].isin(self.full)]
        return shared.groupby(["arm", "rows"], sort=False)["test"].mean().reset_index()


def curves(table: pd.DataFrame, mode: str) -> Curves | None:
    """Test scores in ``mode`` by the number of training rows; None where no arm has several numbers. Floors
    are there for the numbers of the arms alone."""
    own = means(table)
    own = own[(own["mode"] == mode) | ((own["mode"] == SCRATCH) & (mode != "probe"))]
    own = own[["task", "rows", "arm", "test"]]
    several = own.groupby(["task", "arm"])["rows"].nunique().groupby("task").max()
    tasks = [task for task in dict.fromkeys(own["task"]) if several[task] > 1]
    if not tasks:
        return None
    numbers = list(numbers_of_rows(own))
    complete = own.groupby(["arm", "rows"]).ngroups
    full = [task for task in tasks if len(own[own["task"] == task]) == complete]
    floor = floors(table).assign(arm=FLOOR)[own.columns]
    lines = pd.concat([own, floor[floor["rows"].isin(numbers)]])
    return Curves(lines, numbers, tasks, full)


def by_rows(found: Curves) -> Figure:
    """The mean over tasks, then each task, at most ``MOST_TASKS`` of them."""
    tasks = found.tasks[:MOST_TASKS]
    figure, axes = drawing.panels(1 + len(tasks))
    _curve(axes[0], found.means(), found.numbers, f"mean of {len(found.full)} tasks")
    for axis, task in zip(axes[1:], tasks, strict=True):
        _curve(axis, found.lines[found.lines["task"] == task], found.numbers, task)
    return figure


def _curve(axis: Axes, lines: pd.DataFrame, numbers: Sequence[str], title: str) -> None:
    there = [rows for rows in numbers if (lines["rows"] == rows).any()]
    arms = [arm for arm in dict.fromkeys(lines["arm"]) if arm not in (FLOOR, SCRATCH)]
    for arm in dict.fromkeys(lines["arm"]):
        part = lines[lines["arm"] == arm].set_index("rows")["test"]
        values = [100 * part.get(rows, float("nan")) for rows in there]
        colour = "#444444" if arm == FLOOR else COLOURS[arms.index(arm) % 4] if arm in arms else COLOURS[4]
        style = "--" if arm in (*FLOORS, FLOOR) else "-"
        axis.plot(range(len(there)), values, style, marker="o", markersize=4, color=colour, label=arm)
    axis.set_xticks(range(len(there)), there)
    axis.set_xlabel("training rows")
    drawing.dress(axis, title, steps=False)


def rows_in_words(rows: str) -> str:
    """The number of training rows that was asked for, in words."""
    return "all rows" if rows == ALL else f"{int(rows):,} rows"
