"""How far an alternate allele moves the hidden states: their mean over the window, and letter by letter.

Shapes: N variants, D hidden; of a tile: R rows, B of them used, L columns.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.inference.sequences import EncodedSequences
from trainer.inference.variants.forward import Forward, Shape, filled
from trainer.inference.variants.windows import Placed, Site
from trainer.models.network import mean_pool


class Changes(NamedTuple):
    """Of each variant, fp32 on the CPU, of hidden states that are averaged over the strands that are read."""

    difference_ND: Tensor  # the mean over the letters of the alternate window less that of the reference's
    largest_N: Tensor  # the largest distance between a letter's states in both windows; NaN: not asked for


class _Tile(NamedTuple):
    """Sites of one tile, and as many variants of each, by site: [variants of a site, B]."""

    sites_B: Tensor
    variants_KB: Tensor


def changes(forward: Forward, placed: Sequence[Placed], *, local: bool) -> Changes:
    """What each alternate allele of ``placed``, at least one, changes; letter by letter only if ``local``.

    A letter that both windows have lies outside the allele; of alleles of one length it may be the allele's.
    """
    sites: dict[Site, int] = {}
    site_N = [sites.setdefault(each.site, len(sites)) for each in placed]
    ref = EncodedSequences.from_codes([np.frombuffer(site.codes, np.uint8) for site in sites])
    alt = EncodedSequences.from_codes([np.frombuffer(each.window, np.uint8) for each in placed])
    edges_S2 = torch.tensor([(site.start, site.end) for site in sites])
    difference_ND = torch.empty(len(placed), forward.network.backbone.hidden_size)
    largest_N = torch.full((len(placed),), torch.nan)

    def read(tile: _Tile) -> None:
        before = _States(forward, ref, tile.sites_B)
        for variants_B in tile.variants_KB:
            after = _States(forward, alt, variants_B)
            count = len(variants_B)
            difference_ND[variants_B] = (after.mean_RD[:count] - before.mean_RD[:count]).cpu()
            if local:
                largest_R = _largest(before, after, edges_S2[tile.sites_B])
                largest_N[variants_B] = largest_R[:count].cpu()

    forward.each(read, _tiles(forward, site_N, ref.length_N, alt.length_N), alt.length_N)
    return Changes(difference_ND, largest_N)


class _States:
    """Hidden states of windows of one tile, strand by strand, and their mean over letters and strands."""

    def __init__(self, forward: Forward, windows: EncodedSequences, index_B: Tensor) -> None:
        tiles = forward.tiles(windows, index_B)
        self.letters = [forward.letters(tile) for tile in tiles]  # [R, L, D]
        self.length_R = filled(windows.length_N[index_B], len(self.letters[0])).to(forward.device)
        means = [
            mean_pool(*each) for each in zip(self.letters, (tile.length_B for tile in tiles), strict=True)
        ]
        self.mean_RD = sum(means[1:], start=means[0]) / len(means)


def _largest(before: _States, after: _States, edges_B2: Tensor) -> Tensor:
    """fp32 [R]: the largest distance between the states of a letter in both windows."""
    rows = min(len(before.length_R), len(after.length_R))
    length_R1, other_R1 = before.length_R[:rows, None], after.length_R[:rows, None]
    start_R1, end_R1 = (edge_R[:, None].to(length_R1.device) for edge_R in filled(edges_B2, rows).unbind(1))
    place_RL = torch.arange(before.letters[0].shape[1], device=length_R1.device).expand(rows, -1)
    outside_RL = (place_RL < start_R1) | (place_RL >= end_R1)
    shared_RL = (outside_RL | (length_R1 == other_R1)) & (place_RL < length_R1)
    there_RL = torch.where(place_RL < start_R1, place_RL, place_RL + other_R1 - length_R1)
    places = [(place_RL, there_RL), (length_R1 - 1 - place_RL, other_R1 - 1 - there_RL)]  # by strand
    moved = [
        _at(after_RLD, there) - _at(before_RLD, here)
        for before_RLD, after_RLD, (here, there) in zip(before.letters, after.letters, places, strict=False)
    ]
    distance_RL = torch.linalg.vector_norm(sum(moved[1:], start=moved[0]), dim=-1) / len(moved)
    return distance_RL.masked_fill(~shared_RL, 0).amax(1)


def _at(letters_RLD: Tensor, place_RL: Tensor) -> Tensor:
    """The states at these places of each row; any states where a place is none."""
    row_R1 = torch.arange(len(place_RL), device=place_RL.device)[:, None]
    return letters_RLD[row_R1, place_RL.clamp(0, letters_RLD.shape[1] - 1)]


def _tiles(
    forward: Forward, site_N: Sequence[int], ref_length_S: Tensor, alt_length_N: Tensor
) -> Iterator[_Tile]:
    """Sites with equally many variants of one shape, tile by tile: a reference window is read once for all
    variants of it. The shapes follow from each window alone, so that no bit depends on what else is there."""
    by_site: dict[tuple[int, Shape], list[int]] = defaultdict(list)
    for number, site in enumerate(site_N):
        by_site[site, forward.shape(int(alt_length_N[number]))].append(number)
    alike: dict[tuple[Shape, Shape, int], list[tuple[int, list[int]]]] = defaultdict(list)
    for (site, shape), numbers in by_site.items():
        alike[forward.shape(int(ref_length_S[site])), shape, len(numbers)].append((site, numbers))
    for (ref_shape, shape, _), group in alike.items():
        rows = min(ref_shape.rows, shape.rows)
        for start in range(0, len(group), rows):
            sites, variants = zip(*group[start : start + rows], strict=True)
            yield _Tile(torch.tensor(sites), torch.tensor(variants).T)
