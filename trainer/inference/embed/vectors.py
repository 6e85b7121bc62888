"""Windows through a backbone: which hidden states are read, of which strands, and how they are pooled.

On a CPU in fp32 each window has the same bits whatever is read beside it and by however many threads: it goes
through tiles (trainer.inference.batching), each by one thread, and everything here treats the rows of a tile
alike.

Shapes: N windows, B of a tile, L letters, P summaries, D hidden, S strands (the given one, the reverse one),
V numbers of a vector (D, or P·D for summaries), K letters that are kept.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainer.core.tiles import each_alone
from trainer.inference import batching
from trainer.inference.batching import PaddedBatch
from trainer.inference.precision import Resolved, computing_in, device_of
from trainer.inference.sequences import EncodedSequences
from trainer.models.backbone import Backbone, Hidden
from trainer.models.network import Network

Pooling = Literal["mean", "max", "summary", "letters"]
Strands = Literal["both", "forward", "separate"]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Reading:
    """What is read of a sequence.

    Attributes:
        pooling: over its letters, mean or max; its summary positions, one behind the other; or a vector for
            each of its letters.
        layer: the hidden states after so many layers, 0 for the input map; None: after all.
        strands: both averaged (a letter's with the letter that it pairs with), the given one alone, or both
            kept, the given one first.
    """

    pooling: Pooling = "mean"
    layer: int | None = None
    strands: Strands = "both"

    @property
    def strands_read(self) -> int:
        """S."""
        return 1 if self.strands == "forward" else 2

    def size(self, backbone: Backbone) -> int:
        """V: the numbers of a vector of one strand."""
        return backbone.hidden_size * (backbone.summaries if self.pooling == "summary" else 1)

    def check(self, backbone: Backbone) -> None:
        """ValueError if ``backbone`` has no such layer."""
        if self.layer is None:
            return
        count = backbone.layer_count
        if count is None:
            raise ValueError(
                f"layer {self.layer}: the model {backbone.config.name} does not stop after a layer; leave it "
                "out to read the last hidden states"
            )
        if not 0 <= self.layer <= count:
            raise ValueError(
                f"layer {self.layer} is not there: the model has {count} layers; give 0 (the input map) to "
                f"{count}"
            )


@dataclass(frozen=True)
class WindowBatch:
    """Windows, and which letters [keep_start, keep_end) of each count; at least one of each."""

    sequences: EncodedSequences
    keep_start_N: Tensor  # int64
    keep_end_N: Tensor  # int64

    @classmethod
    def whole(cls, sequences: EncodedSequences) -> "WindowBatch":
        """Each sequence as one window, all of whose letters count."""
        return cls(sequences, torch.zeros_like(sequences.length_N), sequences.length_N)

    def kept(self) -> Tensor:
        """int64 [N]: how many letters of each window count."""
        return self.keep_end_N - self.keep_start_N


def read_windows(
    network: Network, windows: WindowBatch, reading: Reading, *, precision: Resolved = "fp32"
) -> Vectors:
    """fp32 [N, S, V]: a vector of each window and strand; [K, S, D] if each letter has one, window by window.

    Only letters that count are pooled. The reverse strand's letters come in the order of the given one.

    Raises:
        MemoryError: a window is too long for the device.
    """
    device, sequences = device_of(network), windows.sequences
    is_letters, size = reading.pooling == "letters", reading.size(network.backbone)
    kept_N = windows.kept() if is_letters else torch.ones_like(sequences.length_N)
    end_N = kept_N.cumsum(0)
    result = np.empty((int(end_N[-1]), reading.strands_read, size), np.float32)
    tiles = list(batching.tiles(sequences.length_N, device=device))

    def read(index_B: Tensor, strand: int) -> None:
        tile = batching.padded_tile(sequences, index_B, strand=strand, device=device)
        with computing_in(precision, device):
            hidden = _hidden(network.backbone, tile, reading.layer)
        if not is_letters:
            keep_BL = _kept(windows, index_B, tile, strand=strand)
            pooled_BV = _pooled(hidden, keep_BL, reading.pooling)
            result[index_B.numpy(), strand] = pooled_BV[: len(index_B)].cpu().numpy()
            return
        letters_BLD = hidden.letters_BLD[: len(index_B)].float().cpu().numpy()
        for letters_LD, number in zip(letters_BLD, index_B.tolist(), strict=True):
            letters_LD = letters_LD[: int(sequences.length_N[number])]
            letters_LD = letters_LD[::-1] if strand else letters_LD
            end, kept, start = int(end_N[number]), int(kept_N[number]), int(windows.keep_start_N[number])
            result[end - kept : end, strand] = letters_LD[start : start + kept]

    def read_tiles(numbers: slice) -> None:
        for index_B in tiles[numbers]:
            with batching.explain_out_of_memory(sequences.length_N[index_B]):
                for strand in range(reading.strands_read):
                    read(index_B, strand)

    # A thread for each tile: how a product is summed may depend on how many threads share it.
    each_alone(read_tiles, [slice(i, i + 1) for i in range(len(tiles))], device=device)
    return result


def over_strands(vectors_NSV: np.ndarray[Any, Any], strands: Strands) -> Vectors:
    """fp32 [N, V], or [N, 2·V] if the strands are kept apart: what is given of ``vectors_NSV``."""
    if strands == "both":
        return ((vectors_NSV[:, 0] + vectors_NSV[:, 1]) / 2).astype(np.float32)
    return vectors_NSV.reshape(len(vectors_NSV), -1).astype(np.float32)


def _hidden(backbone: Backbone, tile: PaddedBatch, layer: int | None) -> Hidden:
    options = {} if layer is None else {"layer": layer}
    hidden: Hidden = backbone(tile.codes_BL, length_B=tile.length_B, **options)
    return hidden


def _kept(windows: WindowBatch, index_B: Tensor, tile: PaddedBatch, *, strand: int) -> Tensor:
    """bool [rows of the tile, L]: the letters that count, in the order of ``strand``. Rows behind the windows
    are as the first."""
    rows, columns = tile.codes_BL.shape
    filled_B = torch.cat([index_B, index_B[:1].expand(rows - len(index_B))])
    start_B, end_B = windows.keep_start_N[filled_B], windows.keep_end_N[filled_B]
    if strand:
        length_B = windows.sequences.length_N[filled_B]
        start_B, end_B = length_B - end_B, length_B - start_B
    place_L = torch.arange(columns)
    keep_BL = (place_L >= start_B[:, None]) & (place_L < end_B[:, None])
    return keep_BL.to(tile.codes_BL.device)


def _pooled(hidden: Hidden, keep_BL: Tensor, pooling: Pooling) -> Tensor:
    """fp32 [B, V]."""
    if pooling == "summary":
        return hidden.summary_BPD.float().flatten(1)
    letters_BLD = hidden.letters_BLD.float()
    if pooling == "max":
        return letters_BLD.masked_fill(~keep_BL[..., None], -torch.inf).amax(1)
    return (letters_BLD * keep_BL[..., None]).sum(1) / keep_BL.sum(1, keepdim=True)
