"""Regions as pictures: how much each substitution costs, and which letters the network expects.

Shapes: L letters of a region, V nucleotides.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from trainer.core import drawing
from trainer.inference.variants.sources import Region

MOST_REGIONS, MOST_LETTERS = 4, 120  # of a picture
_LETTERS = "ACGT"
_COLOURS = dict(zip(_LETTERS, (drawing.COLOURS[i] for i in (2, 0, 1, 3)), strict=True))
_THIN = 0.01  # of the logo's height: a letter below is not drawn

Letters = np.ndarray[Any, np.dtype[np.int64]]
Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Collector:
    """Keeps of a table of all substitutions what the picture of its first regions needs."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._all = len(regions)
        shown = [region for region in regions if region.end > region.start][:MOST_REGIONS]
        self._regions = [
            region._replace(end=min(region.end, region.start + MOST_LETTERS)) for region in shown
        ]
        self._whole = shown
        self._ratios = [np.full((region.end - region.start, 4), np.nan) for region in self._regions]
        self._refs = [np.full(len(ratio_LV), -1) for ratio_LV in self._ratios]
        self._at = 0  # the region that rows come of

    def add(self, table: pa.Table) -> None:
        """The next rows; they come region by region."""
        if self._at == len(self._regions):
            return
        columns = (table[name].to_pylist() for name in ("chrom", "pos", "ref", "alt", "llr"))
        for chrom, pos, ref, alt, ratio in zip(*columns, strict=True):
            while self._at < len(self._regions) and not self._takes(chrom, pos, alt):
                self._at += 1
            if self._at == len(self._regions):
                return
            place = pos - 1 - self._regions[self._at].start
            if place < len(self._ratios[self._at]):
                self._refs[self._at][place] = _LETTERS.index(ref)
                self._ratios[self._at][place, [_LETTERS.index(ref), _LETTERS.index(alt)]] = 0, ratio

    def _takes(self, chrom: str, pos: int, alt: str) -> bool:
        region, ratio_LV = self._whole[self._at], self._ratios[self._at]
        if chrom != region.chrom or not region.start < pos <= region.end:
            return False
        place = pos - 1 - region.start
        return place >= len(ratio_LV) or bool(np.isnan(ratio_LV[place, _LETTERS.index(alt)]))

    def sentence(self) -> str:
        """What the picture shows, and what it leaves out."""
        shown = len(self._regions)
        text = "one region" if shown == 1 else f"{shown} regions"
        if self._all > shown:
            text += f" of {self._all:,}"
        if any(whole.end > cut.end for whole, cut in zip(self._whole, self._regions, strict=True)):
            text += f", of each at most {MOST_LETTERS} letters"
        return text

    @drawing.plain_text()
    def png(self) -> bytes:
        """A logo and a heat map of each region."""
        longest = max(map(len, self._ratios))
        size = (2 + 0.16 * max(longest, 24), 2.9 * len(self._regions))
        figure = Figure(figsize=size, layout="constrained")
        rows = figure.subplots(2 * len(self._regions), 1, squeeze=False)[:, 0]
        most = max((np.nanmax(np.abs(r)) for r in self._ratios if not np.isnan(r).all()), default=0) or 1.0
        for region, ref_L, ratio_LV, above, below in zip(
            self._regions, self._refs, self._ratios, rows[::2], rows[1::2], strict=True
        ):
            _draw_logo(above, region, information(ratio_LV), longest)
            _draw_map(figure, below, region, ref_L, ratio_LV, longest=longest, most=most)
        return drawing.png(figure)


def information(ratio_LV: Numbers) -> Numbers:
    """[L, 4]: the height of each letter in bits: its probability times what the network knows, 2 - entropy.

    The probabilities are those that the ratios to the reference's letter (its own is 0) tell; 0 for an N.
    """
    with np.errstate(invalid="ignore"):
        p_LV = np.exp(ratio_LV)
        p_LV /= p_LV.sum(1, keepdims=True)
        bits_L = 2 + (p_LV * np.log2(np.maximum(p_LV, 1e-300))).sum(1)
    return np.nan_to_num(p_LV * bits_L[:, None])


def _draw_logo(axis: Axes, region: Region, height_LV: Numbers, longest: int) -> None:
    most = float(height_LV.sum(1).max()) or 1.0
    letters, colours = [], []
    for place, height_V in enumerate(height_LV, region.start + 1):
        bottom = 0.0
        for i in np.argsort(height_V, kind="stable"):
            height = float(height_V[i])
            if height > _THIN * most:
                to_place = Affine2D().scale(0.9, height).translate(place - 0.45, bottom)
                letters.append(_shape(_LETTERS[i]).transformed(to_place))
                colours.append(_COLOURS[_LETTERS[i]])
            bottom += height
    axis.add_collection(PathCollection(letters, facecolors=colours, edgecolors="none"), autolim=False)
    axis.set_ylim(0, most)
    axis.set_ylabel("bits")
    where = f"{region.chrom}:{region.start + 1}-{region.end}"
    drawing.dress(axis, where if region.name == where else f"{region.name} ({where})", steps=False)
    _share_places(axis, region, longest)


@functools.cache
def _shape(letter: str) -> Path:
    """The letter in a box from 0 to 1."""
    path = TextPath((0, 0), letter, size=1)
    box = path.get_extents()
    return path.transformed(Affine2D().translate(-box.x0, -box.y0).scale(1 / box.width, 1 / box.height))


def _draw_map(
    figure: Figure,
    axis: Axes,
    region: Region,
    ref_L: Letters,
    ratio_LV: Numbers,
    *,
    longest: int,
    most: float,
) -> None:
    """Black points: the reference's letters."""
    edges = (region.start + 0.5, region.start + len(ratio_LV) + 0.5, 3.5, -0.5)
    shown = axis.imshow(ratio_LV.T, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", extent=edges)
    place_L = region.start + 1 + np.arange(len(ratio_LV))
    is_known_L = ref_L >= 0
    axis.plot(place_L[is_known_L], ref_L[is_known_L], ".", color="black", markersize=2)
    axis.set_yticks(range(4), list(_LETTERS))
    axis.set_xlabel(f"position on {region.chrom}")
    _share_places(axis, region, longest)
    figure.colorbar(shown, ax=axis, label="llr", pad=0.01)


def _share_places(axis: Axes, region: Region, longest: int) -> None:
    axis.set_xlim(region.start + 0.5, region.start + max(longest, 24) + 0.5)
    axis.ticklabel_format(axis="x", style="plain", useOffset=False)
