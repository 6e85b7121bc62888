"""Is the representation alive? Pure functions of embeddings and of the teacher's prototype distribution.

Shapes: N samples, E embedding, K prototypes.
"""

import torch
from torch import Tensor


def embedding_std(unit_NE: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit vectors, times √E: 1 is isotropic, 0 is collapsed."""
    return float(unit_NE.std(0).mean() * unit_NE.shape[1] ** 0.5)


def effective_rank(unit_NE: Tensor) -> float:
    """exp of the entropy of the normalised singular values, 1 … min(N, E) (Garrido et al. 2023, RankMe)."""
    singular = torch.linalg.svdvals(unit_NE.double())
    share = singular / singular.sum() + 1e-12
    return float(torch.exp(-(share * share.log()).sum()))


def alignment(first_NE: Tensor, second_NE: Tensor) -> float:
    """Mean squared distance of two views of the same sample (Wang and Isola 2020); 0 is best."""
    return float((first_NE - second_NE).square().sum(1).mean())


def uniformity(unit_NE: Tensor) -> float:
    """log of the mean of exp(-2 · squared distance) over pairs of samples (Wang and Isola 2020); 0 is collapsed."""
    return float(torch.pdist(unit_NE).square().mul(-2).exp().mean().log())


def entropy(probability: Tensor) -> Tensor:
    """Entropy in nats [...] of distributions [..., K]; 0 says one prototype each, log K says no preference."""
    return torch.special.entr(probability).sum(-1)
