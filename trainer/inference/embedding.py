"""Sequences as vectors: mean and max over the letters, by default both strands averaged.

Shapes: N sequences, B of a batch, L letters, D hidden.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer.inference import batching
from trainer.inference.batching import PaddedBatch
from trainer.inference.precision import Resolved, computing_in, device_of
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network, mean_pool

Strand = Literal["both", "given"]  # what is read of a sequence: the mean of its two strands, or itself alone


class Embeddings(NamedTuple):
    """One vector for each sequence, fp32 on the CPU, each averaged over the strands that are read."""

    mean_ND: Tensor  # the mean over the letters
    max_ND: Tensor  # the maximum over the letters


def embed(
    network: Network,
    sequences: EncodedSequences | Sequence[str],
    *,
    precision: Resolved = "fp32",
    strand: Strand = "both",
) -> Embeddings:
    """The embeddings of ``sequences``, in order, computed where ``network`` is. Padding does not count.

    Raises:
        ValueError: a string is no sequence. MemoryError: a sequence is too long for the device.
    """
    if not isinstance(sequences, EncodedSequences):
        sequences = EncodedSequences.from_strings(sequences)
    device = device_of(network)

    def pool(codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
        with computing_in(precision, device):
            letters_BLD = letters_of(network, codes_BL, length_B)
        return mean_and_max(letters_BLD.float(), length_B)

    return Embeddings(*mean_over_strands(sequences, pool, device=device, strand=strand).chunk(2, dim=1))


def mean_and_max(letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
    """fp32 [B, 2·D]: the mean of each row's letters, then their maximum; padding left out."""
    mean_BD = mean_pool(letters_BLD, length_B)
    if length_B is not None:
        place_L = torch.arange(letters_BLD.shape[1], device=length_B.device)
        letters_BLD = letters_BLD.masked_fill((place_L >= length_B[:, None])[..., None], -torch.inf)
    return torch.cat([mean_BD, letters_BLD.amax(1)], -1)


def letters_of(network: Network, codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
    """[B, L, D]: the hidden states of the letters, without those of the summary positions."""
    letters_BLD: Tensor = network.backbone(codes_BL, length_B=length_B).letters_BLD
    return letters_BLD


def mean_over_strands(
    sequences: EncodedSequences,
    function: Callable[[Tensor, Tensor | None], Tensor],
    *,
    device: torch.device,
    strand: Strand = "both",
) -> Tensor:
    """fp32 [N, …] on CPU: ``function(codes_BL, length_B)`` of each sequence, mean of the strands that are
    read."""

    def mean(batches: Sequence[PaddedBatch]) -> Tensor:
        read = [function(*batch).float() for batch in batches]
        return sum(read[1:], start=read[0]) / len(read)

    return read_strands(sequences, mean, device=device, strand=strand)


@torch.no_grad()
def read_strands(
    sequences: EncodedSequences,
    function: Callable[[Sequence[PaddedBatch]], Tensor],
    *,
    device: torch.device,
    strand: Strand = "both",
) -> Tensor:
    """fp32 [N, …] on CPU: ``function`` of a tile of sequences on the given strand and, if both are read, the
    same on the reverse one.

    On a CPU each sequence has the same bits whatever is read beside it, if ``function`` treats rows alike.
    """
    strands = (0, 1) if strand == "both" else (0,)
    result: Tensor | None = None
    for index_B in batching.tiles(sequences.length_N, device=device):
        with batching.explain_out_of_memory(sequences.length_N[index_B]):
            read = function(
                [batching.padded_tile(sequences, index_B, strand=each, device=device) for each in strands]
            )[: len(index_B)].cpu()
        if result is None:
            result = read.new_empty(len(sequences), *read.shape[1:])
        result[index_B] = read
    assert result is not None, "there is a sequence"
    return result
