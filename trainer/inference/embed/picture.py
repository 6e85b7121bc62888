"""Embeddings as a picture: two principal components, or UMAP, coloured by a column of the input.

Shapes: R rows, P points, V numbers of a row.
"""

import contextlib
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch

from cluster.storage import store
from configs import ConfigError, redact
from trainer.core.drawing import COLOURS, dress, panels, plain_text, png
from trainer.inference import output_format
from trainer.inference.embed.rows import Rows

Projection = Literal["pca", "umap"]
_MOST_POINTS = 20_000
_MOST_WORDS = 9  # that have a colour of their own
Array = np.ndarray[Any, Any]


def refuse_picture(uri: str, projection: Projection) -> None:
    """ConfigError, before any work, where no picture can be written to ``uri`` or made."""
    output_format.refuse_folder(uri, "embeddings.png")
    if not uri.lower().endswith(".png"):
        raise ConfigError(f"--picture {redact(uri)} says another format; a PNG is written, name it .png")
    if projection == "umap" and find_spec("umap") is None:
        raise ConfigError(
            "--projection umap needs umap-learn, which is not installed; pip install umap-learn"
        )


class Points:
    """At most _MOST_POINTS of ``rows`` rows, each so many rows after the one before."""

    def __init__(self, colour: str | None, *, rows: int) -> None:
        self.colour, self._stride, self._seen = colour, -(-rows // _MOST_POINTS), 0
        self._vectors: list[Array] = []
        self._values: list[Any] = []

    def add(self, rows: Rows) -> None:
        """The next rows of the result."""
        chosen = np.arange(-self._seen % self._stride, len(rows), self._stride)
        self._seen += len(rows)
        self._vectors.append(rows.vectors_RV[chosen])
        if self.colour:
            self._values += rows.others.column(self.colour).take(chosen).to_pylist()

    def vectors(self) -> Array:
        """fp64 [P, V]."""
        return np.concatenate(self._vectors).astype(np.float64)

    def values(self) -> Array | list[str]:
        """What colours each point: numbers, where all are, or words."""
        if not any(isinstance(value, bool) for value in self._values):
            with contextlib.suppress(TypeError, ValueError):
                return np.array([np.nan if value in (None, "") else float(value) for value in self._values])
        return ["" if value is None else str(value) for value in self._values]


@plain_text()
def draw(uri: str, points: Points, *, projection: Projection, title: str) -> None:
    """Writes the picture of ``points``. StoreError: it cannot be written."""
    vectors_PV = points.vectors()
    if projection == "umap":
        place_P2 = import_module("umap").UMAP(random_state=0).fit_transform(vectors_PV)
        names = ("UMAP 1", "UMAP 2")
    else:
        place_P2, shares = principal(vectors_PV)
        names = (f"component 1 ({shares[0]:.0%})", f"component 2 ({shares[1]:.0%})")
    figure, (axis,) = panels(1, wide=True)
    (x_P, y_P), size = place_P2.T, 30 if len(place_P2) < 300 else 4
    if points.colour is None:
        axis.scatter(x_P, y_P, s=size, c=COLOURS[0])
    elif isinstance(values := points.values(), np.ndarray):
        drawn = axis.scatter(x_P, y_P, s=size, c=values, cmap="viridis", plotnonfinite=True)
        figure.colorbar(drawn, ax=axis, label=points.colour)
    else:
        for label, colour, chosen in groups(values):
            axis.scatter(x_P[chosen], y_P[chosen], s=size, c=colour, label=label)
    dress(axis, f"{len(place_P2):,} embeddings, {title}", steps=False)
    if points.colour is not None and (legend := axis.get_legend()):
        legend.set_title(points.colour)
    axis.set_xlabel(names[0])
    axis.set_ylabel(names[1])
    store.write_bytes(uri, png(figure))


def principal(vectors_PV: Array) -> tuple[Array, Array]:
    """[P, 2]: the first two principal components; [2]: which share of the variance lies along each."""
    centred_PV = torch.from_numpy(vectors_PV - vectors_PV.mean(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, axes_VK = torch.pca_lowrank(centred_PV, q=min(10, *centred_PV.shape), center=False, niter=4)
    axes_V2 = torch.zeros(len(axes_VK), 2, dtype=axes_VK.dtype)
    axes_V2[:, : axes_VK.shape[1]] = axes_VK[:, :2]
    largest_2 = axes_V2.abs().argmax(0)
    axes_V2 *= axes_V2[largest_2, torch.arange(2)].sign()  # which of the two directions comes is by chance
    place_P2 = centred_PV @ axes_V2
    share_2 = place_P2.square().sum(0) / centred_PV.square().sum().clamp_min(1e-30)
    return place_P2.numpy(), share_2.numpy()


def _label(word: str) -> str:
    """A legend leaves out what begins with _."""
    return f" {word}" if word.startswith("_") else word or "(none)"


def groups(words: list[str]) -> list[tuple[str, str, Array]]:
    """A label, a colour and the places of each of the most frequent ``words``; the others are grey."""
    counted = [word for word, _ in Counter(words).most_common()]
    coloured, rest = counted[:_MOST_WORDS], counted[_MOST_WORDS:]
    array = np.array(words, object)
    found = [(_label(word), f"C{i}", np.flatnonzero(array == word)) for i, word in enumerate(coloured)]
    if rest:
        found.insert(0, (f"{len(rest):,} others", "0.75", np.flatnonzero(~np.isin(array, coloured))))
    return found
