"""Pictures of a run, each a function from its data to a matplotlib figure, and a figure as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.core import drawing
from trainer.core.drawing import COLOURS
from trainer.evaluation.statistics import standard_error
from trainer.evaluation.tasks import curve_names

# metric -> columns step, value; metrics that were not logged are absent
Histories = Mapping[str, pd.DataFrame]
# the title of each and its metrics, also those that were not logged
Panels = Sequence[tuple[str, Sequence[str]]]

_MARKED = 100  # points: more are drawn without dots, which would run together


def loss_panels(histories: Histories) -> Panels:
    """A panel for each loss of the run, the total first."""
    names = sorted(_names(histories, "loss/"), key=lambda name: (name != "total", name))
    return [(name, [f"loss/{name}"]) for name in names]


def health_panels(histories: Histories) -> Panels:
    """A panel for each reading, at validations and of the batch in one; first those that validations have."""
    held_out, batch = _names(histories, "health/"), _names(histories, "batch_health/")
    names = sorted(held_out | batch, key=lambda name: (name not in held_out, name))
    return [(name, [f"health/{name}", f"batch_health/{name}"]) for name in names]


def downstream_panels(histories: Histories) -> Panels:
    """A panel for each task and metric that versions were scored by while the run trained: a curve a mode, on
    test."""
    panels: dict[tuple[str, str], list[str]] = {}
    for name in sorted(_names(histories, "downstream/")):
        if curve := curve_names.of_test(name, histories):
            panels.setdefault((curve.task, curve.metric), []).append(f"downstream/{name}")
    return [(f"{task}: test {metric}", names) for (task, metric), names in panels.items()]


def online(histories: Histories) -> Figure | None:
    """A panel for each task that the run reads itself: probe and neighbours on dev by step, and the floor."""
    panels = [
        (name, curve)
        for name in sorted(_names(histories, "downstream/"))
        if (curve := curve_names.of_online_probe(name))
    ]
    if not panels:
        return None
    figure, axes = drawing.panels(len(panels))
    for axis, (probe, (task, metric)) in zip(axes, panels, strict=True):
        names = (f"downstream/{probe}", curve_names.downstream(task, f"{curve_names.KNN}_{metric}"))
        for colour, name, label in zip(COLOURS, names, ("probe", "nearest neighbours"), strict=False):
            if name in histories:
                _curve(axis, histories[name], colour=colour, label=label, smooth=1)
        floor = histories.get(curve_names.downstream(task, f"{curve_names.FLOOR}_{metric}"))
        if floor is not None:
            level = float(floor["value"].iloc[-1])
            axis.axhline(level, color="#444444", linestyle="--", linewidth=1.3, label=f"floor {level:.3f}")
        drawing.dress(axis, f"{task}: dev {metric}")
    return figure


def _names(histories: Histories, prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in histories if name.startswith(prefix)}


def curves(histories: Histories, panels: Panels, *, smooth: int = 1) -> Figure | None:
    """One panel for each (title, metrics) of which something was logged; None if nothing was.

    A metric's colour depends on its place among the panel's metrics, logged or not, so that the same kind has
    the same colour everywhere. With ``smooth`` above 1 the points are drawn faintly, and above them their
    running mean over a ``smooth``-th of the run.
    """
    coloured = [(title, list(zip(names, COLOURS, strict=False))) for title, names in panels]
    logged = [(title, [pair for pair in pairs if pair[0] in histories]) for title, pairs in coloured]
    logged = [(title, pairs) for title, pairs in logged if pairs]
    if not logged:
        return None
    figure, axes = drawing.panels(len(logged))
    for axis, (title, pairs) in zip(axes, logged, strict=True):
        for name, colour in reversed(pairs):  # the first on top
            label = name.removesuffix(f"/{title}") if len(pairs) > 1 else None
            _curve(axis, histories[name], colour=colour, label=label, smooth=smooth)
        are_flags = all(histories[name]["value"].isin([0, 1]).all() for name, _ in pairs)
        if are_flags:
            axis.set_ylim(-0.05, 1.05)
        drawing.dress(axis, title)
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
    figure, (axis,) = drawing.panels(1, wide=True)
    lines = (("val/mlm_accuracy", "teacher"), ("val/student_mlm_accuracy", "student"))
    for colour, (name, label) in zip(COLOURS, lines, strict=False):
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
    drawing.dress(axis, "masked accuracy, held out" + (" (bands: ± 3 standard errors)" if scored else ""))
    return figure


def embedding(points_N2: Any, gc_N: Any, explained: Sequence[float]) -> Figure:
    """The first two principal components of held-out windows, coloured by their share of G and C."""
    figure, (axis,) = drawing.panels(1, wide=True)
    dots = axis.scatter(points_N2[:, 0], points_N2[:, 1], c=gc_N, cmap="viridis", s=14, linewidths=0)
    figure.colorbar(dots, ax=axis, label="GC content")
    drawing.dress(axis, f"embeddings of {len(gc_N)} held-out windows", steps=False)
    axis.set_xlabel(f"component 1 ({explained[0]:.1%} of the variance)")
    axis.set_ylabel(f"component 2 ({explained[1]:.1%})")
    return figure
