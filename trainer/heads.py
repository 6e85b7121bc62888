"""What reads the backbone's hidden states, and the network that puts backbone and heads together.

Shapes: B rows, L letters, P summary positions, D hidden, K prototypes, E embedding.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep import alphabet


class PrototypeHead(nn.Module):
    """Cosines in [-1, 1] between a bottleneck of each input vector and K unit prototypes: [..., D] -> fp32 [..., K].

    Caron et al. 2021 (DINO), with the prototypes' norm fixed at 1.
    """

    def __init__(self, hidden_size: int, *, mlp_size: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(hidden_size, mlp_size), nn.GELU(), nn.Linear(mlp_size, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) / bottleneck**0.5)

    def forward(self, x: Tensor) -> Tensor:
        bottleneck = F.normalize(self.mlp(x).float(), dim=-1)
        return bottleneck @ F.normalize(self.prototypes.float(), dim=-1).T


class EmbeddingHead(nn.Module):
    """Unit vectors for the contrastive loss: [B, D] -> fp32 [B, E]."""

    def __init__(self, hidden_size: int, *, mlp_size: int, embedding: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(hidden_size, mlp_size), nn.GELU(), nn.Linear(mlp_size, embedding))
        self.embedding_size = embedding

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.mlp(x).float(), dim=-1)


class Outputs(NamedTuple):
    """What a network says of one view; a head that was not built, or not asked, leaves None.

    A tuple, because DeepSpeed hooks its backward to the tensors that it finds in tuples, lists and dicts only.
    """

    logits_BLV: Tensor | None  # fp32, 4 nucleotides
    prototypes_BPK: Tensor | None  # fp32 cosines
    embedding_BE: Tensor | None  # fp32 unit vectors
    pooled_BD: Tensor  # fp32, mean over the letters

    @property
    def embedding(self) -> Tensor:
        """The contrastive embedding where there is one, else the pooled hidden states."""
        return self.pooled_BD if self.embedding_BE is None else self.embedding_BE


class Network(nn.Module):
    """Backbone, nucleotide head, and the projection heads that the losses in use need."""

    def __init__(self, backbone: Any, *, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.nucleotide = nn.Linear(backbone.hidden_size, alphabet.BASES)
        self.heads = nn.ModuleDict(heads)
        contrastive = heads.get("contrastive")
        self.embedding_size: int = backbone.hidden_size  # of Outputs.embedding
        if isinstance(contrastive, EmbeddingHead):
            self.embedding_size = contrastive.embedding_size

    def forward(
        self,
        codes_BL: Tensor,
        *,
        length_B: Tensor | None = None,
        noise_BLC: Tensor | None = None,
        nucleotides: bool = True,
    ) -> Outputs:
        """All heads' outputs for ``codes_BL`` uint8; arguments as the backbone's."""
        hidden_BTD = self.backbone(codes_BL, length_B=length_B, noise_BLC=noise_BLC)
        summary_BPD, letters_BLD = hidden_BTD.split([self.backbone.num_summary, codes_BL.shape[1]], dim=1)
        pooled_BD = mean_pool(letters_BLD, length_B)
        heads = self.heads
        return Outputs(
            logits_BLV=self.nucleotide(letters_BLD).float() if nucleotides else None,
            prototypes_BPK=heads["distill"](summary_BPD) if "distill" in heads else None,
            embedding_BE=heads["contrastive"](pooled_BD.to(hidden_BTD.dtype)) if "contrastive" in heads else None,
            pooled_BD=pooled_BD,
        )


def mean_pool(letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
    """fp32 [B, D]: the mean over each row's letters, padding left out."""
    if length_B is None:
        return letters_BLD.float().mean(1)
    real_BL = torch.arange(letters_BLD.shape[1], device=length_B.device) < length_B[:, None]
    return (letters_BLD.float() * real_BL[..., None]).sum(1) / length_B[:, None]
