"""The network as variants are scored with it: hidden states and logits of tiles, on one strand or both.

Shapes: N windows, R rows and L columns of a tile, B windows in it, D hidden.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_prep import alphabet
from trainer.core.tiles import each_alone
from trainer.inference import batching
from trainer.inference.batching import PaddedBatch
from trainer.inference.embedding import letters_of
from trainer.inference.precision import Resolved, computing_in, device_of
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network

Strands = Literal["both", "forward"]
T = TypeVar("T")


class Shape(NamedTuple):
    """Of a tile; ``is_full``: its rows have no padding."""

    rows: int
    columns: int
    is_full: bool


@dataclass(frozen=True)
class Forward:
    """A network in eval mode, the letters of a whole window, the strands that are read, and what products are
    computed in."""

    network: Network
    length: int
    strands: Strands = "both"
    precision: Resolved = "fp32"

    @property
    def device(self) -> torch.device:
        return device_of(self.network)

    @property
    def strands_read(self) -> int:
        return 2 if self.strands == "both" else 1

    def each(self, function: Callable[[T], None], tiles: Iterable[T], length_N: Tensor) -> None:
        """``function`` of each of ``tiles``, without gradient; on a CPU each by one thread, since how a
        product is summed may depend on how many share it.

        Raises:
            MemoryError: a window is too long for the device. ``length_N`` are the lengths of all.
        """
        whole = list(tiles)

        def one(numbers: slice) -> None:
            for tile in whole[numbers]:
                function(tile)

        with batching.explain_out_of_memory(length_N):
            each_alone(one, [slice(i, i + 1) for i in range(len(whole))], device=self.device)

    def shape(self, length: int) -> Shape:
        """Of the tile that a window of so many letters goes into; nothing else decides, as in batching.

        Nearly all windows are whole, up to a letter, since flanks are equally long. These have tiles without
        padding, which cost less.
        """
        if self.length - 1 <= length <= self.length:
            return Shape(max(1, batching.TILE_BP[self.device.type] // length), length, True)
        return Shape(*batching.tile_shape(length, device=self.device), False)

    def groups(self, length_N: Tensor) -> Iterator[Tensor]:
        """Indices of the windows of each tile; each is in one of them."""
        alike: dict[Shape, list[int]] = defaultdict(list)
        for number, length in enumerate(length_N.tolist()):
            alike[self.shape(length)].append(number)
        for shape, numbers in alike.items():
            for start in range(0, len(numbers), shape.rows):
                yield torch.tensor(numbers[start : start + shape.rows])

    def tiles(self, windows: EncodedSequences, index_B: Tensor) -> list[PaddedBatch]:
        """The windows ``index_B``, which share a tile, on each strand that is read; the given one first. Rows
        behind them are copies of the first."""
        strands = range(self.strands_read)
        shape = self.shape(int(windows.length_N[index_B[0]]))
        if not shape.is_full:
            return [
                batching.padded_tile(windows, index_B, strand=strand, device=self.device)
                for strand in strands
            ]
        start_R1 = filled(windows.start_N[index_B], shape.rows).numpy()[:, None]
        codes_RL = windows.codes_M[start_R1 + np.arange(shape.columns)]
        given = [codes_RL, alphabet.reverse_complement(codes_RL)][: len(strands)]
        return [PaddedBatch(torch.from_numpy(codes).to(self.device), None) for codes in given]

    def letters(self, tile: PaddedBatch) -> Tensor:
        """fp32 [R, L, D]: the hidden states of the letters."""
        with computing_in(self.precision, self.device):
            return letters_of(self.network, *tile).float()

    def log_probabilities(self, tile: PaddedBatch) -> Tensor:
        """fp32 [R, L, 4]: log p of A, C, G and T at each letter."""
        with computing_in(self.precision, self.device):
            logits_RLV = self.network.nucleotide(letters_of(self.network, *tile))
        return torch.log_softmax(logits_RLV.float(), -1)


def filled(value_B: Tensor, rows: int) -> Tensor:
    """[rows, …]: ``value_B`` with copies of its first behind it."""
    return torch.cat([value_B, value_B[:1].expand(rows - len(value_B), *value_B.shape[1:])])
