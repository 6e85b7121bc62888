"""Batches of sequences of different lengths with little padding.

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

BATCH_BP = 8192  # letters of a batch: enough to fill two cores, small enough to stay near the cache


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


def batches_by_length(length_N: Tensor) -> Iterator[Tensor]:
    """Indices of batches of at most BATCH_BP letters (or one sequence), similar lengths together."""
    order_N = torch.argsort(length_N, stable=True)
    sorted_N = length_N[order_N].tolist()
    start = 0
    while start < len(sorted_N):
        end = start + 1
        while end < len(sorted_N) and (end + 1 - start) * sorted_N[end] <= BATCH_BP:
            end += 1
        yield order_N[start:end]
        start = end


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
