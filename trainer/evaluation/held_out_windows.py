"""The windows that a run is validated on, the same in every run, and the letters that are hidden in them.

Shapes: B windows, L letters, 8 visible neighbours of a letter.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep import alphabet
from trainer.core import random
from trainer.core.collectives import Group
from trainer.data.config import Data
from trainer.data.dataset import Dataset
from trainer.data.windows import WindowBuilder, Windows, choose_windows
from trainer.evaluation import markov
from trainer.evaluation.config import Validation
from trainer.views.config import Views

_MASK_SEED = 20260101  # the same hidden positions in every run, so that runs compare


class Place(NamedTuple):
    """Where a window lies: letters [start, end) of a block of a dataset, which is a number of data.uri."""

    dataset: int
    block: int
    start: int
    end: int


@dataclass(frozen=True)
class HeldOutBatch:
    """Some windows; only the first ``real`` rows count.

    A batch with ``real`` 0 makes a rank without windows take part in the collectives of a forward.
    """

    real: int
    windows: Windows
    codes_BL: Tensor  # uint8, the letters
    visible_BL: Tensor  # uint8, the letters, MASK where one is scored
    scored_BL: Tensor  # bool
    length_B: Tensor | None  # int64; None: every row is full
    context_BL8: np.ndarray[Any, Any]  # the letters around each position, for the Markov baseline

    def to(self, device: torch.device) -> "HeldOutBatch":
        moved: Any = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, windows=self.windows.to(device), **moved)

    def digests(self) -> list[bytes]:
        """A sha256 of each real row: its letters, and which of them are scored."""
        rows = zip(self.codes_BL[: self.real].cpu(), self.scored_BL[: self.real].cpu(), strict=True)
        return [
            hashlib.sha256(codes_L.numpy().tobytes() + scored_L.numpy().tobytes()).digest()
            for codes_L, scored_L in rows
        ]


def digest_of_all(digests: Iterable[bytes]) -> str:
    """A sha256 of windows by their own, in any order, so that it is the same on any number of ranks."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def rank_batches(
    datasets: Mapping[int, Dataset], *, data: Data, val: Validation, views: Views, group: Group
) -> Iterator[HeldOutBatch]:
    """This rank's batches of the held-out windows; every rank has as many.

    Raises: StoreError or FormatError: a block is missing or damaged.
    """
    places = choose_places(datasets, data, windows=val.windows)
    mine = places[group.rank :: group.size]
    for first in range(0, -(-len(places) // group.size), val.batch):
        part = mine[first : first + val.batch]
        yield masked_batch(datasets, part, length=data.last_length, views=views, spare=places[0])


def choose_places(datasets: Mapping[int, Dataset], data: Data, *, windows: int) -> list[Place]:
    """At most ``windows`` places in all datasets, each dataset's share by its weight.

    They are interleaved, so that any first part of them has the same shares.
    """
    weights = [data.uri[number].weight for number in datasets]
    found: list[tuple[float, Place]] = []
    for (number, dataset), count in zip(datasets.items(), share_out(windows, weights), strict=True):
        chosen = choose_windows(dataset.bp().tolist(), data.last_length, count, margin=markov.REACH)
        found += [((i + 0.5) / len(chosen), Place(number, *place)) for i, place in enumerate(chosen)]
    return [place for _, place in sorted(found)]


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` in whole parts by weight, by largest remainder; each part is at least 1."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return [max(1, share) for share in shares]


def masked_batch(
    datasets: Mapping[int, Dataset], places: Sequence[Place], *, length: int, views: Views, spare: Place
) -> HeldOutBatch:
    """The windows of ``places``, hidden letters drawn at the masking rate; of none, ``spare``, not scored.

    What is hidden in a window depends on where the window lies and on nothing else.
    """
    real, places = len(places), places or [spare]
    builder, neighbours = (WindowBuilder(len(places), length, flank) for flank in (views.flank, markov.REACH))
    for row, place in enumerate(places):
        dataset = datasets[place.dataset]
        block, locus = dataset.block(place.block), dataset.locus(place.block)
        builder.fill(row, block, place.start, place.end, locus=locus)
        neighbours.fill(row, block, place.start, place.end, locus=locus)
    dataset_B, block_B, start_B, end_B = torch.tensor(places).T
    key_B = random.fold(_MASK_SEED, block_B, start_B)
    key_B = torch.where(dataset_B == 0, key_B, random.fold(key_B, dataset_B))
    length_B = end_B - start_B
    letters = slice(markov.REACH, -markov.REACH)
    codes_BL = torch.from_numpy(neighbours.codes[:, letters].copy())
    codes_BL[torch.arange(length) >= length_B[:, None]] = alphabet.PAD
    draws_BL = random.words(key_B, "validation mask", length)
    scored_BL = (codes_BL < alphabet.BASES) & random.below(draws_BL, 0, views.masking.rate)
    scored_BL[real:] = False
    neighbours.codes[:, letters][scored_BL.numpy()] = alphabet.MASK
    return HeldOutBatch(
        real=real,
        windows=builder.windows(key_B),
        codes_BL=codes_BL,
        visible_BL=torch.where(scored_BL, alphabet.MASK, codes_BL),
        scored_BL=scored_BL,
        length_B=length_B if bool((length_B != length).any()) else None,
        context_BL8=np.stack([markov.contexts(row) for row in neighbours.codes]),
    )
