"""Sequences as vectors: mean and max over the letters, by default both strands averaged.

Shapes: N sequences, B of a batch, L letters, D hidden.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer.evaluation import batching
from trainer.evaluation.precision import Resolved, computing_in, device_of
from trainer.evaluation.sequences import EncodedSequences
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
            letters_BLD = letters_of(network, codes_BL, length_B).float()
        mean_BD = mean_pool(letters_BLD, length_B)
        if length_B is not None:
            padding_BL = torch.arange(letters_BLD.shape[1], device=device) >= length_B[:, None]
            letters_BLD = letters_BLD.masked_fill(padding_BL[..., None], -torch.inf)
        return torch.cat([mean_BD, letters_BLD.amax(1)], -1)

    return Embeddings(*mean_over_strands(sequences, pool, device=device, strand=strand).chunk(2, dim=1))


def letters_of(network: Network, codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
    """[B, L, D]: the hidden states of the letters, without those of the summary positions."""
    letters_BLD: Tensor = network.backbone(codes_BL, length_B=length_B).letters_BLD
    return letters_BLD


@torch.no_grad()
def mean_over_strands(
    sequences: EncodedSequences,
    function: Callable[[Tensor, Tensor | None], Tensor],
    *,
    device: torch.device,
    strand: Strand = "both",
) -> Tensor:
    """fp32 [N, …] on CPU: ``function(codes_BL, length_B)`` of each sequence, mean of the strands that are
    read."""
    strands = (0, 1) if strand == "both" else (0,)
    parts, order = [], []
    for index_B in batching.batches_by_length(sequences.length_N):
        with batching.explain_out_of_memory(sequences.length_N[index_B]):
            read = [
                function(*batching.padded_batch(sequences, index_B, strand_B=each, device=device)).float()
                for each in strands
            ]
        parts.append(sum(read[1:], start=read[0]).cpu() / len(read))
        order.append(index_B)
    stacked = torch.cat(parts)
    result = torch.empty_like(stacked)
    result[torch.cat(order)] = stacked
    return result
