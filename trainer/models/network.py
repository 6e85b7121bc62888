"""What reads the backbone's hidden states, and the network that puts backbone and heads together.

Shapes: B rows, X rows of crops, L letters, N of them, P summary positions, D hidden, C bottleneck, K
prototypes, E embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_prep import alphabet
from trainer.models.heads import Assigned, EmbeddingHead


class Outputs(NamedTuple):
    """What a network says of one view; a head that was not built, or not asked, leaves None.

    Tuples, because DeepSpeed hooks its backward to the tensors that it finds in tuples, lists and dicts only.
    """

    logits_BLV: Tensor | None  # fp32, 4 nucleotides
    summary: Assigned | None  # [B, P, K]
    patches: Assigned | None  # [B, N, K], of the letters asked for
    crops_XPK: Tensor | None  # fp32 cosines of the crops' summaries
    embedding_BE: Tensor | None  # fp32 unit vectors
    expanded_BE: Tensor | None  # fp32
    scale: Tensor | None  # fp32 0-d, of the contrastive loss
    pooled_BD: Tensor  # fp32, mean over the letters

    @property
    def embedding(self) -> Tensor:
        """The contrastive embedding where there is one, else the pooled hidden states."""
        return self.pooled_BD if self.embedding_BE is None else self.embedding_BE

    def chunk(self, parts: int) -> "list[Outputs]":
        """The outputs of equal parts of the rows; ``crops_XPK`` and ``scale`` are everybody's."""

        def pieces(tensor: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * parts if tensor is None else tensor.chunk(parts)

        def assigned(given: Assigned | None) -> Sequence[Assigned | None]:
            return [None] * parts if given is None else [Assigned(part) for part in pieces(given.cosines)]

        columns = (
            pieces(self.logits_BLV),
            assigned(self.summary),
            assigned(self.patches),
            [self.crops_XPK] * parts,
            pieces(self.embedding_BE),
            pieces(self.expanded_BE),
            [self.scale] * parts,
            self.pooled_BD.chunk(parts),
        )
        return [Outputs(*part) for part in zip(*columns, strict=True)]


class Network(nn.Module):
    """Backbone, nucleotide head, and the projection heads that the losses in use need, by the loss's name."""

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
        letters_BN: Tensor | None = None,
        crops_XL: Tensor | None = None,
        crop_length_X: Tensor | None = None,
        split: tuple[bool, bool] = (False, False),
    ) -> Outputs:
        """All heads' outputs for ``codes_BL`` uint8; ``length_B`` and ``noise_BLC`` as the backbone's.

        Args:
            nucleotides: whether logits are wanted.
            letters_BN: int64, the letters of each row that the patch head reads.
            crops_XL: uint8, shorter rows of which only the summaries are read, with ``crop_length_X`` letters
                each. In the same call, since DeepSpeed allows one forward a backward.
            split: whether ``summary``, and whether ``patches`` come as bottleneck and prototypes.
        """
        hidden_BTD = self.backbone(codes_BL, length_B=length_B, noise_BLC=noise_BLC)
        summary_BPD, letters_BLD = hidden_BTD.split([self.backbone.num_summary, codes_BL.shape[1]], dim=1)
        pooled_BD = mean_pool(letters_BLD, length_B)
        heads = self.heads
        patches = crops_XPK = embedding_BE = scale = None
        if letters_BN is not None:
            patch_BND = letters_BLD.gather(1, letters_BN[..., None].expand(-1, -1, letters_BLD.shape[2]))
            patches = heads["patch"](patch_BND, split=split[1])
        if crops_XL is not None:
            crop_XTD = self.backbone(crops_XL, length_B=crop_length_X)
            crops_XPK = heads["distill"](crop_XTD[:, : self.backbone.num_summary]).cosines
        if "contrastive" in heads:
            embedding_BE, scale = heads["contrastive"](pooled_BD.to(hidden_BTD.dtype))
        return Outputs(
            logits_BLV=self.nucleotide(letters_BLD).float() if nucleotides else None,
            summary=heads["distill"](summary_BPD, split=split[0]) if "distill" in heads else None,
            patches=patches,
            crops_XPK=crops_XPK,
            embedding_BE=embedding_BE,
            expanded_BE=heads["vicreg"](pooled_BD.to(hidden_BTD.dtype)) if "vicreg" in heads else None,
            scale=scale,
            pooled_BD=pooled_BD,
        )


def mean_pool(letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
    """fp32 [B, D]: the mean over each row's letters, padding left out."""
    if length_B is None:
        return letters_BLD.float().mean(1)
    real_BL = torch.arange(letters_BLD.shape[1], device=length_B.device) < length_B[:, None]
    return (letters_BLD.float() * real_BL[..., None]).sum(1) / length_B[:, None]
