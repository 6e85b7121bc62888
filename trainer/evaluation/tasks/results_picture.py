"""Results of labelled tasks as a picture."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from trainer.evaluation import drawing
from trainer.evaluation.drawing import COLOURS
from trainer.evaluation.tasks.config import FLOORS, MODES
from trainer.evaluation.tasks.registry import KINDS


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
