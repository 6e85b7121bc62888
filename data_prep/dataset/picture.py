"""A picture of a dataset: what its splits are made of, and where in the genome N, repeats, GC and the splits
lie."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from cluster.storage import store
from data_prep.dataset import output
from data_prep.dataset.stats import BlockStats, Stats
from data_prep.shards import SPLITS

_COLOURS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}
_PARTS = (("A", "#4c72b0"), ("C", "#dd8452"), ("G", "#55a868"), ("T", "#8172b3"), ("N", "#999999"))
_TRACKS = (("gc", "GC", "viridis"), ("soft_mask_share", "soft mask", "Blues"), ("n_share", "N", "Greys"))
_CONTIGS = 24  # the longest; more would be hairlines


def check_name(uri: str) -> str:
    """``uri``, if its name fits a PNG. ValueError for a folder, or the name of another format."""
    output.refuse_folder(uri)
    if "." in store.basename(uri) and not uri.lower().endswith(".png"):
        raise ValueError(f"{uri} says another format; a PNG is written, to a name that ends in .png")
    return uri


def picture(numbers: Stats, blocks: Sequence[BlockStats], *, title: str) -> bytes:
    """PNG bytes: on top the composition of each split, below it a strip for each of the longest contigs, by
    block."""
    lengths: dict[tuple[str, str], int] = {}
    for block in blocks:
        place = (block.assembly, block.contig)
        lengths[place] = max(lengths.get(place, 0), block.end)
    longest = sorted(lengths, key=lambda place: -lengths[place])[:_CONTIGS]
    splits = [split for split in SPLITS if numbers.splits[split].bp]
    figure = Figure(figsize=(10, 2.2 + 0.28 * len(splits) + 0.34 * len(longest)), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[1 + len(splits), 1.5 + 1.2 * len(longest)])
    _composition(top, numbers, splits)
    top.set_title(f"{title}: {numbers.bp:,} bp, {numbers.bytes_per_bp:.3f} bytes/bp", fontsize=10)
    _strips(
        bottom, [block for block in blocks if (block.assembly, block.contig) in set(longest)], longest, figure
    )
    if len(lengths) > len(longest):
        bottom.set_title(f"the {len(longest)} longest of {len(lengths)} contigs", fontsize=8, loc="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


def _composition(axes: matplotlib.axes.Axes, numbers: Stats, splits: Sequence[str]) -> None:
    for row, split in enumerate(splits):
        part = numbers.splits[split]
        left = 0.0
        for letter, colour in _PARTS:
            share = part.n_share if letter == "N" else part.letters[letter] * (1 - part.n_share)
            axes.barh(row, share, left=left, color=colour, label=letter if not row else None)
            left += share
        axes.barh(
            row, part.soft_mask_share, height=0.18, color="black", label="soft-masked" if not row else None
        )
    axes.set_yticks(range(len(splits)), [f"{s}, {numbers.splits[s].bp / 1e6:,.4g} Mbp" for s in splits])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.legend(ncols=6, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, -0.75), frameon=False)
    axes.tick_params(labelsize=8)


def _strips(
    axes: matplotlib.axes.Axes,
    blocks: Sequence[BlockStats],
    contigs: Sequence[tuple[str, str]],
    figure: Figure,
) -> None:
    """Four thin tracks a contig: the split, then GC, soft mask and N as shades."""
    row = {place: i for i, place in enumerate(contigs)}
    height = 0.8 / (len(_TRACKS) + 1)
    for track, (field, label, colours) in enumerate((("split", "", ""), *_TRACKS)):
        boxes = []
        for block in blocks:
            low = row[block.assembly, block.contig] - 0.4 + track * height
            start, end = block.start / 1e6, block.end / 1e6
            boxes.append([(start, low), (end, low), (end, low + height), (start, low + height)])
        if field == "split":
            colour = [_COLOURS[block.split] for block in blocks]
            axes.add_collection(PolyCollection(boxes, facecolors=colour, linewidths=0))
            continue
        shades = PolyCollection(boxes, cmap=colours, linewidths=0)
        shades.set_array(np.array([getattr(block, field) for block in blocks]))
        shades.set_clim(*((0.25, 0.65) if field == "gc" else (0, 1)))
        axes.add_collection(shades)
        bar = figure.colorbar(shades, ax=axes, label=label, fraction=0.02, pad=0.01)
        bar.ax.tick_params(labelsize=6)
    for split in SPLITS:
        axes.plot([], [], color=_COLOURS[split], linewidth=4, label=split)
    axes.legend(ncols=3, fontsize=7, loc="lower right", frameon=False)
    assemblies = {assembly for assembly, _ in contigs}
    names = [contig if len(assemblies) == 1 else f"{assembly}:{contig}" for assembly, contig in contigs]
    axes.set_yticks(range(len(contigs)), [name[:32] for name in names], fontsize=7)
    axes.set_ylim(len(contigs) - 0.5, -0.5)
    axes.set_xlim(0, max(block.end for block in blocks) / 1e6)
    axes.set_xlabel("Mbp; from top to bottom: split, GC, soft mask, N", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
