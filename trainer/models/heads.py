"""What reads the backbone's hidden states.

Shapes: B rows, N of them, P summary positions, D hidden, C bottleneck, K prototypes, E embedding.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.losses.infonce import clamped_scale


class Assigned(NamedTuple):
    """What a PrototypeHead says of vectors [..., D]: cosines, or that from which they can be computed
    elsewhere."""

    cosines: Tensor | None  # fp32 [..., K] in [-1, 1]
    bottleneck: Tensor | None = None  # fp32 unit vectors [..., C]
    prototypes_KC: Tensor | None = None  # fp32 unit vectors

    def rows(self) -> "Assigned":
        """[B, N, ...] as rows of one position: [B·N, 1, ...]."""
        cosines, bottleneck = (None if part is None else part.flatten(0, 1)[:, None] for part in self[:2])
        return Assigned(cosines, bottleneck, self.prototypes_KC)


class PrototypeHead(nn.Module):
    """Cosines between a bottleneck of each input vector and K unit prototypes.

    Caron et al. 2021 (DINO), with the prototypes' norm fixed at 1.
    """

    def __init__(self, hidden_size: int, *, mlp_size: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = _mlp(hidden_size, mlp_size, bottleneck)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) / bottleneck**0.5)

    def forward(self, x: Tensor, *, split: bool = False) -> Assigned:
        """``split``: bottleneck and prototypes in place of their cosines."""
        bottleneck = F.normalize(self.mlp(x).float(), dim=-1)
        prototypes_KC = F.normalize(self.prototypes.float(), dim=-1)
        if split:
            return Assigned(None, bottleneck, prototypes_KC)
        return Assigned(bottleneck @ prototypes_KC.T)


class EmbeddingHead(nn.Module):
    """Unit vectors for the contrastive loss, fp32 [B, E], and the scale of their cosines, fp32 0-d."""

    def __init__(
        self,
        hidden_size: int,
        *,
        mlp_size: int,
        embedding: int,
        scale: float,
        max_scale: float,
        learnable: bool,
    ) -> None:
        super().__init__()
        self.mlp = _mlp(hidden_size, mlp_size, embedding)
        self.embedding_size = embedding
        self.fixed_scale, self.max_scale = scale, max_scale
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)])) if learnable else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding_BE = F.normalize(self.mlp(x).float(), dim=-1)
        if self.log_scale is None:
            return embedding_BE, torch.tensor(self.fixed_scale, device=x.device)
        return embedding_BE, clamped_scale(self.log_scale.float()[0], self.max_scale)


class ExpanderHead(nn.Module):
    """Vectors of free length for VICReg (Bardes et al. 2022): [B, D] -> fp32 [B, E]."""

    def __init__(self, hidden_size: int, *, mlp_size: int, embedding: int) -> None:
        super().__init__()
        self.mlp = _mlp(hidden_size, mlp_size, embedding)

    def forward(self, x: Tensor) -> Tensor:
        expanded: Tensor = self.mlp(x).float()
        return expanded


def _mlp(hidden_size: int, mlp_size: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden_size, mlp_size), nn.GELU(), nn.Linear(mlp_size, out))
