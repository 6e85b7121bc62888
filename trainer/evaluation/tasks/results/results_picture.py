"""Results of labelled tasks as a picture."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from trainer.core import drawing
from trainer.core.drawing import COLOURS
from trainer.evaluation.tasks.config import FLOORS, MODES
from trainer.evaluation.tasks.kinds.registry import KINDS


def by_training_rows(summary: pd.DataFrame) -> Figure | None:
    """The main test score against the number of training rows, a line for each mode: mean and sample standard
    deviation over seeds. One panel for each task that was scored with several numbers; None if none was."""
    groups = [
        (task, rows)
        for task, rows in summary.groupby("task", sort=False)
        if rows.groupby("mode")["train_rows"].nunique().max() > 1
    ]
    if not groups:
        return None
    figure, axes = drawing.panels(len(groups), wide=len(groups) == 1)
    for axis, (task, rows) in zip(axes, groups, strict=True):
        for number, mode in enumerate(MODES):
            # Of several settings with as many rows, the mean: the line has one point for each number.
            line = rows[rows["mode"] == mode].groupby("train_rows")[["score", "score_sd"]].mean()
            if not line.empty:
                axis.errorbar(
                    line.index,
                    line["score"],
                    yerr=line["score_sd"].fillna(0),
                    label=f"{mode} (floor)" if mode in FLOORS else mode,
                    color=COLOURS[number % len(COLOURS)],
                    linestyle="--" if mode in FLOORS else "-",
                    marker="o",
                    markersize=4,
                    capsize=3,
                )
        numbers = sorted(rows["train_rows"].unique())
        axis.set_xscale("log")
        axis.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axis.minorticks_off()
        axis.set_xlabel("training rows")
        drawing.dress(axis, f"{task}: test {KINDS[rows['kind'].iloc[0]].metrics[0].heading}", steps=False)
    return figure


def scores(summary: pd.DataFrame) -> Figure | None:
    """The main test score of each mode: mean and sample standard deviation over seeds. One panel for each
    task and settings."""
    groups = list(summary.groupby(["task", "settings"], sort=False))
    if not groups:
        return None
    figure, axes = drawing.panels(len(groups))
    for axis, ((task, _), rows) in zip(axes, groups, strict=True):
        place = [MODES.index(mode) for mode in rows["mode"]]
        colours = ["#bbbbbb" if mode in FLOORS else COLOURS[0] for mode in rows["mode"]]
        axis.bar(place, rows["score"], yerr=rows["score_sd"].fillna(0), color=colours, capsize=4, width=0.65)
        floor = rows["floor"].iloc[0]
        if not np.isnan(floor):
            label = f"floor {floor:.3f} ({rows['floor_mode'].iloc[0]})"
            axis.axhline(floor, color="#444444", linestyle="--", linewidth=1.2, label=label)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.2 * (high - low))  # room for the legend
        metric = KINDS[rows["kind"].iloc[0]].metrics[0].heading
        title = f"{task}: test {metric} ({rows['train_rows'].iloc[0]:,} training rows)"
        drawing.dress(axis, title, steps=False)
        axis.set_xticks(place, list(rows["mode"]))
        axis.axhline(0, color="black", linewidth=0.8)
    return figure
