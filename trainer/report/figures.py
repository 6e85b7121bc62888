"""Pictures of a run, each a function from its data to a matplotlib figure, and a figure as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.evaluation.statistics import standard_error
from trainer.evaluation.tasks.config import FLOORS, MODES
from trainer.evaluation.tasks.registry import KINDS

# metric -> columns step, value; metrics that were not logged are absent
Histories = Mapping[str, pd.DataFrame]
# the title of each and its metrics, also those that were not logged
Panels = Sequence[tuple[str, Sequence[str]]]

_COLOURS = ("#1f5fa8", "#d1661b", "#2a8c5a", "#8a4fa3", "#7a7a7a")
_DPI = 110
_MANY = 9  # panels: more stand four in a row, and smaller
_MARKED = 100  # points: more are drawn without dots, which would run together


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes that hold no date and no address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def loss_panels(histories: Histories) -> Panels:
    """A panel for each loss of the run, the total first."""
    names = sorted(_names(histories, "loss/"), key=lambda name: (name != "total", name))
    return [(name, [f"loss/{name}"]) for name in names]


def health_panels(histories: Histories) -> Panels:
    """A panel for each reading, at validations and of the batch in one; first those that validations have."""
    held_out, batch = _names(histories, "health/"), _names(histories, "batch_health/")
    names = sorted(held_out | batch, key=lambda name: (name not in held_out, name))
    return [(name, [f"health/{name}", f"batch_health/{name}"]) for name in names]


def _names(histories: Histories, prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in histories if name.startswith(prefix)}


def curves(histories: Histories, panels: Panels, *, smooth: int = 1) -> Figure | None:
    """One panel for each (title, metrics) of which something was logged; None if nothing was.

    A metric's colour depends on its place among the panel's metrics, logged or not, so that the same kind has
    the same colour everywhere. With ``smooth`` above 1 the points are drawn faintly, and above them their
    running mean over a ``smooth``-th of the run.
    """
    coloured = [(title, list(zip(names, _COLOURS, strict=False))) for title, names in panels]
    logged = [(title, [pair for pair in pairs if pair[0] in histories]) for title, pairs in coloured]
    logged = [(title, pairs) for title, pairs in logged if pairs]
    if not logged:
        return None
    figure, axes = _panels(len(logged))
    for axis, (title, pairs) in zip(axes, logged, strict=True):
        for name, colour in reversed(pairs):  # the first on top
            label = name.removesuffix(f"/{title}") if len(pairs) > 1 else None
            _curve(axis, histories[name], colour=colour, label=label, smooth=smooth)
        are_flags = all(histories[name]["value"].isin([0, 1]).all() for name, _ in pairs)
        if are_flags:
            axis.set_ylim(-0.05, 1.05)
        _dress(axis, title)
    return figure


def _curve(axis: Axes, points: pd.DataFrame, *, colour: str, label: str | None, smooth: int) -> None:
    steps, values = points["step"], points["value"]
    window = len(points) // smooth if smooth > 1 else 1
    if window > 1:
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        mean = values.rolling(window, min_periods=1).mean()
        axis.plot(steps, mean, color=colour, linewidth=1.8, label=label)
    else:
        marker = "." if len(points) <= _MARKED else None
        axis.plot(steps, values, color=colour, linewidth=1.8, marker=marker, label=label)


def accuracy(histories: Histories, scored: float | None) -> Figure | None:
    """Held-out masked accuracy of teacher and student, ± 3 standard errors, against majority and Markov."""
    if "val/mlm_accuracy" not in histories:
        return None
    figure, (axis,) = _panels(1, wide=True)
    lines = (("val/mlm_accuracy", "teacher"), ("val/student_mlm_accuracy", "student"))
    for colour, (name, label) in zip(_COLOURS, lines, strict=False):
        if name not in histories:
            continue
        points = histories[name]
        value = points["value"].to_numpy()
        axis.plot(points["step"], value, color=colour, marker=".", linewidth=1.8, label=label)
        if scored:
            error = np.array([3 * standard_error(each, scored) for each in value])
            axis.fill_between(
                points["step"], value - error, value + error, color=colour, alpha=0.15, linewidth=0
            )
    baselines = (
        ("val/mlm_accuracy_majority", "majority letter", ":"),
        ("val/mlm_accuracy_markov", "4+4 Markov", "--"),
    )
    for name, label, style in baselines:
        if name in histories:
            level = float(histories[name]["value"].iloc[-1])
            axis.axhline(level, color="#444444", linestyle=style, linewidth=1.3, label=f"{label} {level:.3f}")
    _dress(axis, "masked accuracy, held out" + (" (bands: ± 3 standard errors)" if scored else ""))
    return figure


def transfer(summary: pd.DataFrame) -> Figure | None:
    """The main test score of each mode: mean and sample standard deviation over seeds. One panel for each
    task and settings."""
    groups = list(summary.groupby(["task", "settings"], sort=False))
    if not groups:
        return None
    figure, axes = _panels(len(groups))
    for axis, ((task, _), rows) in zip(axes, groups, strict=True):
        place = [MODES.index(mode) for mode in rows["mode"]]
        colours = ["#bbbbbb" if mode in FLOORS else _COLOURS[0] for mode in rows["mode"]]
        axis.bar(place, rows["score"], yerr=rows["score_sd"].fillna(0), color=colours, capsize=4, width=0.65)
        floor = rows["floor"].iloc[0]
        if not np.isnan(floor):
            label = f"floor {floor:.3f} ({rows['floor_mode'].iloc[0]})"
            axis.axhline(floor, color="#444444", linestyle="--", linewidth=1.2, label=label)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.2 * (high - low))  # room for the legend
        metric = KINDS[rows["kind"].iloc[0]].metrics[0].heading
        _dress(axis, f"{task}: test {metric} ({rows['train_rows'].iloc[0]:,} training rows)", steps=False)
        axis.set_xticks(place, list(rows["mode"]))
        axis.axhline(0, color="black", linewidth=0.8)
    return figure


def embedding(points_N2: Any, gc_N: Any, explained: Sequence[float]) -> Figure:
    """The first two principal components of held-out windows, coloured by their share of G and C."""
    figure, (axis,) = _panels(1, wide=True)
    dots = axis.scatter(points_N2[:, 0], points_N2[:, 1], c=gc_N, cmap="viridis", s=14, linewidths=0)
    figure.colorbar(dots, ax=axis, label="GC content")
    _dress(axis, f"embeddings of {len(gc_N)} held-out windows", steps=False)
    axis.set_xlabel(f"component 1 ({explained[0]:.1%} of the variance)")
    axis.set_ylabel(f"component 2 ({explained[1]:.1%})")
    return figure


def _panels(count: int, *, wide: bool = False) -> tuple[Figure, list[Axes]]:
    columns = 1 if wide else 2 if count == 4 else min(3, count) if count <= _MANY else 4
    rows = -(-count // columns)
    width, height = (7.2, 3.9) if wide else (3.9, 2.9) if count <= _MANY else (2.95, 2.3)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel())
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _dress(axis: Axes, title: str, *, steps: bool = True) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if steps:
        axis.set_xlabel("step")
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8, frameon=False)
