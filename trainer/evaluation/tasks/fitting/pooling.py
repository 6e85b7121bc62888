"""The hidden states of a row's letters as one vector: what a head reads.

Each is a module with ``features`` (F), called with letters [B, L, D] and the rows' lengths; padding counts
nothing. What a row gives does not depend on those beside it.

Shapes: B rows, L letters, D hidden, F features, J bins, H queries.
"""

import torch
from torch import Tensor, nn

from trainer.evaluation.tasks.fitting.recipe import PoolingName
from trainer.models.network import mean_pool

BINS, QUERIES = 16, 4


class Pooling(nn.Module):
    """letters_BLD, length_B (None: all rows are full) -> fp32 [B, F]."""

    def __init__(self, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.features = hidden_size


class Mean(Pooling):
    def forward(self, letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
        return mean_pool(letters_BLD, length_B)


class MeanMax(Pooling):
    """The mean, then the maximum."""

    def __init__(self, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__(hidden_size, generator)
        self.features = 2 * hidden_size

    def forward(self, letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
        return torch.cat([mean_pool(letters_BLD, length_B), max_pool(letters_BLD, length_B)], 1)


class Bins(Pooling):
    """The mean and the maximum, then the mean of each of 16 equal parts of the row, from its start to its
    end: so a head sees where something is."""

    def __init__(self, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__(hidden_size, generator)
        self.features = (2 + BINS) * hidden_size

    def forward(self, letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
        binned_BJD = bin_means(letters_BLD, length_B)
        whole = [mean_pool(letters_BLD, length_B), max_pool(letters_BLD, length_B)]
        return torch.cat([*whole, binned_BJD.flatten(1)], 1)


class Attention(Pooling):
    """The mean, then four means weighted by what a learned query finds in each letter."""

    def __init__(self, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__(hidden_size, generator)
        self.features = (1 + QUERIES) * hidden_size
        self.norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, QUERIES, bias=False)
        nn.init.normal_(self.query.weight, std=hidden_size**-0.5, generator=generator)

    def forward(self, letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
        score_BLH = self.query(self.norm(letters_BLD)).float()
        if length_B is not None:
            score_BLH = score_BLH.masked_fill(_padding(letters_BLD, length_B), -torch.inf)
        weighted_BHD = score_BLH.softmax(1).transpose(1, 2) @ letters_BLD.float()
        return torch.cat([mean_pool(letters_BLD, length_B), weighted_BHD.flatten(1)], 1)


POOLINGS: dict[PoolingName, type[Pooling]] = {
    "mean": Mean,
    "mean_max": MeanMax,
    "bins": Bins,
    "attention": Attention,
}


def max_pool(letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
    """fp32 [B, D]: the maximum over each row's letters."""
    if length_B is not None:
        letters_BLD = letters_BLD.masked_fill(_padding(letters_BLD, length_B), -torch.inf)
    return letters_BLD.amax(1).float()


def bin_means(letters_BLD: Tensor, length_B: Tensor | None, *, bins: int = BINS) -> Tensor:
    """fp32 [B, J, D]: the mean of each of ``bins`` equal parts of a row, from its start to its end.

    Bin j of a row of n letters is those from ⌊jn/J⌋ to ⌈(j+1)n/J⌉; so a short row has no empty one, and bins
    may share a letter.
    """
    rows, width, _ = letters_BLD.shape
    if length_B is None:
        length_B = torch.full((1,), width, device=letters_BLD.device)
    bin_J = torch.arange(bins, device=length_B.device)
    start_BJ = length_B[:, None] * bin_J // bins
    end_BJ = -(-length_B[:, None] * (bin_J + 1) // bins)
    place_L = torch.arange(width, device=length_B.device)
    inside_BJL = (place_L >= start_BJ[..., None]) & (place_L < end_BJ[..., None])
    share_BJL = inside_BJL / (end_BJ - start_BJ)[..., None]
    return share_BJL.expand(rows, -1, -1) @ letters_BLD.float()


def _padding(letters_BLD: Tensor, length_B: Tensor) -> Tensor:
    """bool [B, L, 1]"""
    place_L = torch.arange(letters_BLD.shape[1], device=length_B.device)
    return (place_L >= length_B[:, None])[..., None]
