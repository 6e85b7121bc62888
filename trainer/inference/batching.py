"""Batches of sequences of different lengths with little padding, and tiles, whose shape no batch changes.

How many rows and columns a matrix product has decides in which order its sums are added, and so their last
bits. In a tile the shape follows from the length of each of its sequences alone. So a sequence has the same
bits in any tile, whatever is read beside it.

Shapes: N sequences, B of a batch, L letters of its longest.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep import alphabet
from trainer.inference.sequences import EncodedSequences

TILE_BP = {"cpu": 2048, "cuda": 1 << 17}  # letters of a tile: what keeps the device busy
_STEP = 16  # short sequences are padded to a multiple of it, so that few tiles are not full


class PaddedBatch(NamedTuple):
    """Sequences with PAD behind each up to the longest of them."""

    codes_BL: Tensor  # uint8
    length_B: Tensor | None  # int64; None: all are equally long


def padded_batch(
    sequences: EncodedSequences, index_B: Tensor, *, strand_B: Tensor | int = 0, device: torch.device
) -> PaddedBatch:
    """The sequences ``index_B``, each on its strand: 0, or 1 for the reverse complement."""
    length_B = sequences.length_N[index_B]
    longest = int(length_B.max())
    codes_BL = np.full((len(index_B), longest), alphabet.PAD, np.uint8)
    strands = torch.as_tensor(strand_B).expand(len(index_B))
    for row, (number, strand) in enumerate(zip(index_B.tolist(), strands.tolist(), strict=True)):
        codes = sequences.codes(number)
        codes_BL[row, : len(codes)] = alphabet.reverse_complement(codes) if strand else codes
    even = int(length_B.min()) == longest
    return PaddedBatch(torch.from_numpy(codes_BL).to(device), None if even else length_B.to(device))


def tiles(length_N: Tensor, *, device: torch.device) -> Iterator[Tensor]:
    """Indices of the sequences of each tile, for ``padded_tile``; each is in one of them."""
    shapes = [tile_shape(length, device=device) for length in length_N.tolist()]
    columns_N = torch.tensor([columns for _, columns in shapes])
    order_N = torch.argsort(columns_N, stable=True)
    start = 0
    while start < len(order_N):
        rows, columns = shapes[order_N[start]]
        end = start + int((columns_N[order_N[start : start + rows]] == columns).sum())
        yield order_N[start:end]
        start = end


def tile_shape(length: int, *, device: torch.device) -> tuple[int, int]:
    """Rows and columns of the tile that a sequence of so many letters goes into; nothing else decides."""
    tile_bp = TILE_BP[device.type]
    if 2 * length > tile_bp:
        return 1, length
    columns = -(-length // _STEP) * _STEP
    return tile_bp // columns, columns


def padded_tile(
    sequences: EncodedSequences, index_B: Tensor, *, strand: int = 0, device: torch.device
) -> PaddedBatch:
    """The sequences ``index_B`` of one tile, each on ``strand``. Rows behind them are copies of the first.

    ``length_B`` is always given, also where all are equally long.
    """
    rows, columns = tile_shape(int(sequences.length_N[index_B[0]]), device=device)
    filled_B = torch.cat([index_B, index_B[:1].expand(rows - len(index_B))])
    codes_BL = np.full((rows, columns), alphabet.PAD, np.uint8)
    for row, number in enumerate(index_B.tolist()):
        codes = sequences.codes(number)
        codes_BL[row, : len(codes)] = alphabet.reverse_complement(codes) if strand else codes
    codes_BL[len(index_B) :] = codes_BL[0]
    return PaddedBatch(torch.from_numpy(codes_BL).to(device), sequences.length_N[filled_B].to(device))


def parts_of_similar_length(length_B: Tensor) -> list[Tensor]:
    """The places of a batch in as few parts as keep the padding of each part below its letters."""
    if len(length_B) * int(length_B.max()) <= 2 * int(length_B.sum()):
        return [torch.arange(len(length_B))]
    order_B = torch.argsort(length_B, descending=True, stable=True)
    parts = []
    while len(order_B):
        similar = int((2 * length_B[order_B] >= length_B[order_B[0]]).sum())
        parts.append(order_B[:similar])
        order_B = order_B[similar:]
    return parts


@contextlib.contextmanager
def explain_out_of_memory(length_B: Tensor) -> Iterator[None]:
    """Turns a failed allocation in the block into a MemoryError that says how long the sequences are."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        ours = isinstance(fault, MemoryError | torch.OutOfMemoryError)
        if not ours and "allocate memory" not in str(fault):  # torch's words for it on a CPU
            raise
        raise MemoryError(
            f"{len(length_B)} sequence{'s' * (len(length_B) != 1)} at once, the longest of "
            f"{int(length_B.max()):,} letters; leave it out or cut it"
        ) from fault
