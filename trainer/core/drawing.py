"""What all pictures share: colours, panels in rows, their dress, and a figure as PNG bytes."""

import contextlib
import io
from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#d1661b", "#2a8c5a", "#8a4fa3", "#7a7a7a")
_DPI = 110
_MANY = 9  # panels: more stand four in a row, and smaller


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Text that is drawn in the block or function stands as it is: what lies between $ is no formula."""
    with matplotlib.rc_context({"text.parse_math": False}):
        yield


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes that hold no date and no address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def panels(count: int, *, wide: bool = False) -> tuple[Figure, list[Axes]]:
    columns = 1 if wide else 2 if count == 4 else min(3, count) if count <= _MANY else 4
    rows = -(-count // columns)
    width, height = (7.2, 3.9) if wide else (3.9, 2.9) if count <= _MANY else (2.95, 2.3)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel())
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def dress(axis: Axes, title: str, *, steps: bool = True) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if steps:
        axis.set_xlabel("step")
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8, frameon=False)
