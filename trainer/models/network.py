"""The network: a backbone, the nucleotide head, and the projection heads of the losses in use.

Shapes: B rows, X rows of crops, L letters, P summaries, V nucleotides, D hidden.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_prep import alphabet
from trainer.models.backbone import Backbone


class Reading(NamedTuple):
    """What a head may read of B rows."""

    summary_BPD: Tensor
    letters_BLD: Tensor
    pooled_BD: Tensor  # fp32, mean over the letters


class Outputs(NamedTuple):
    """What a network gives for B rows.

    Tuples and dicts, because DeepSpeed hooks its backward to the tensors that it finds in tuples, lists and
    dicts only.
    """

    logits_BLV: Tensor | None  # fp32, 4 nucleotides; None: not asked for
    pooled_BD: Tensor  # fp32, mean over the letters
    # By loss; tensors in tuples, [B, ...] or 0-d. A tuple may say by a method ``cut`` what its rows are.
    heads: dict[str, Any] = {}
    crops: dict[str, Any] = {}  # the same of the crops, [X, ...]

    @property
    def embedding(self) -> Tensor:
        """[B, E]: the embedding of the first head that gives one, else the pooled hidden states."""
        for output in self.heads.values():
            if hasattr(output, "embedding_BE"):
                embedding_BE: Tensor = output.embedding_BE
                return embedding_BE
        return self.pooled_BD

    def chunk(self, parts: int) -> "list[Outputs]":
        """The outputs of equal parts of the rows; 0-d tensors and ``crops`` are everybody's."""
        columns = (_chunk(part, parts) for part in (self.logits_BLV, self.pooled_BD, self.heads))
        return [
            Outputs(logits_BLV, pooled_BD, heads, self.crops)
            for logits_BLV, pooled_BD, heads in zip(*columns, strict=True)
        ]


class Network(nn.Module):
    """Backbone, nucleotide head, and ``heads`` by the loss's name, each called with (Reading, request)."""

    def __init__(self, backbone: Backbone, *, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.nucleotide = nn.Linear(backbone.hidden_size, alphabet.BASES)
        self.heads = nn.ModuleDict(heads)

    @property
    def embedding_size(self) -> int:
        """E of ``Outputs.embedding``."""
        sizes = (getattr(head, "embedding_size", None) for head in self.heads.values())
        return next((size for size in sizes if size is not None), self.backbone.hidden_size)

    def forward(
        self,
        codes_BL: Tensor,
        *,
        length_B: Tensor | None = None,
        noise_BLC: Tensor | None = None,
        nucleotides: bool = True,
        requests: Mapping[str, Any] | None = None,
        crops: "Crops | None" = None,
    ) -> Outputs:
        """Outputs for ``codes_BL`` uint8; ``length_B`` and ``noise_BLC`` as the backbone's.

        Args:
            nucleotides: whether logits are wanted.
            requests: the heads that are wanted, and what each is asked for; None: all, with no request.
            crops: shorter rows. In the same call, since DeepSpeed allows one forward a backward.
        """
        reading = self.read(codes_BL, length_B=length_B, noise_BLC=noise_BLC)
        if requests is None:
            requests = dict.fromkeys(self.heads)
        # The order of these calls is that in which autograd adds up gradients, in bits.
        of_crops: dict[str, Any] = {}
        if crops is not None:
            crop_reading = self.read(crops.codes_XL, length_B=crops.length_X)
            of_crops = {name: self.heads[name](crop_reading, None) for name in crops.heads}
        heads = {name: self.heads[name](reading, request) for name, request in requests.items()}
        logits_BLV = self.nucleotide(reading.letters_BLD).float() if nucleotides else None
        return Outputs(logits_BLV, reading.pooled_BD, heads, of_crops)

    def read(
        self, codes_BL: Tensor, *, length_B: Tensor | None = None, noise_BLC: Tensor | None = None
    ) -> Reading:
        """The hidden states, and their mean over each row's letters."""
        hidden = self.backbone(codes_BL, length_B=length_B, noise_BLC=noise_BLC)
        return Reading(hidden.summary_BPD, hidden.letters_BLD, mean_pool(hidden.letters_BLD, length_B))


class Crops(NamedTuple):
    """Local windows, and the heads that read them."""

    codes_XL: Tensor  # uint8
    length_X: Tensor | None  # letters of each; None: every row is full
    heads: tuple[str, ...]


def mean_pool(letters_BLD: Tensor, length_B: Tensor | None) -> Tensor:
    """fp32 [B, D]: the mean over each row's letters, padding left out."""
    if length_B is None:
        return letters_BLD.float().mean(1)
    real_BL = torch.arange(letters_BLD.shape[1], device=length_B.device) < length_B[:, None]
    return (letters_BLD.float() * real_BL[..., None]).sum(1) / length_B[:, None]


def _chunk(value: Any, parts: int) -> Sequence[Any]:
    """``value`` for each part of the rows: every tensor in it is cut, or a tuple that can cuts itself."""
    if isinstance(value, Tensor):
        return value.chunk(parts) if value.ndim else [value] * parts
    if isinstance(value, dict):
        cut = {name: _chunk(each, parts) for name, each in value.items()}
        return [{name: pieces[i] for name, pieces in cut.items()} for i in range(parts)]
    if hasattr(value, "cut"):
        parts_of: Sequence[Any] = value.cut(parts)
        return parts_of
    if isinstance(value, tuple):
        return [type(value)(*each) for each in zip(*(_chunk(each, parts) for each in value), strict=True)]
    assert value is None, f"outputs hold tensors, not {type(value).__name__}"
    return [None] * parts
