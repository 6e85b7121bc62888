"""The loss ``contrastive``: InfoNCE over the global batch, by the formulas of infonce.py and ring_infonce.py.

A query's positive is the other view of its sample; the keys are the teacher's, or the student's own. Against
the teacher's keys, gathered once, each micro-batch stands by itself. With student keys, or keys that travel
round a ring, the rows of all ranks are tied together.

Shapes: B rows, A rows of all of this rank's micro-batches, G of the global batch, W ranks, E embedding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from configs.numbers import Above0, Positive
from trainer.data.locus import Loci, loci
from trainer.data.windows import Windows
from trainer.losses.infonce import Contrast, SymmetricContrast, clamped_scale, info_nce, symmetric_info_nce
from trainer.losses.ring_infonce import (
    RingContrast,
    RingSymmetricContrast,
    ring_info_nce,
    ring_symmetric_info_nce,
)
from trainer.losses.term import LossConfig, LossTerm, Place, RankBatch, StepShape
from trainer.models.heads import mlp
from trainer.models.network import Outputs, Reading
from trainer.views.config import Views
from trainer.views.view_batch import ViewBatch


class ContrastiveConfig(LossConfig):
    """``keys``: of the teacher, or the student's own of its other view (``views.symmetric``).

    ``variant``: ``lse`` gathers the batch once, ``ring`` never holds it whole, ``ref`` is the plain formula.
    ``mask_same_place``: windows that overlap, or hold the same sequence on either strand, are no negatives.
    """

    mlp_size: Positive = 512
    embedding: Positive = 128
    temperature: Above0 = 0.1
    learnable_scale: bool = False
    max_scale: Above0 = 100.0
    keys: Literal["teacher", "student"] = "teacher"
    variant: Literal["lse", "ring", "ref"] = "lse"
    mask_same_place: bool = True

    @model_validator(mode="after")
    def _scale(self) -> "ContrastiveConfig":
        if 1 / self.temperature > self.max_scale:
            raise ValueError(
                f"temperature {self.temperature:g} is a scale of {1 / self.temperature:g}, but max_scale "
                f"is {self.max_scale:g}"
            )
        return self

    def faults(self, views: Views, *, global_batch: int) -> list[str]:
        if self.keys == "teacher" or views.symmetric:
            return []
        return ["loss.contrastive.keys: student keys need views.symmetric: true; or use the teacher's"]


class EmbeddingOutput(NamedTuple):
    embedding_BE: Tensor  # fp32 unit vectors
    scale: Tensor  # fp32 0-d, of their cosines


class EmbeddingHead(nn.Module):
    """Unit vectors [B, E] of pooled [B, D], and the scale of their cosines."""

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
        self.mlp = mlp(hidden_size, mlp_size, embedding)
        self.embedding_size = embedding
        self.fixed_scale, self.max_scale = scale, max_scale
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)])) if learnable else None

    def forward(self, reading: Reading, request: None = None) -> EmbeddingOutput:
        x = reading.pooled_BD.to(reading.letters_BLD.dtype)
        embedding_BE = F.normalize(self.mlp(x).float(), dim=-1)
        if self.log_scale is None:
            return EmbeddingOutput(embedding_BE, torch.full((), self.fixed_scale, device=x.device))
        return EmbeddingOutput(embedding_BE, clamped_scale(self.log_scale.float()[0], self.max_scale))


@dataclass(frozen=True)
class Keys:
    """What the queries of this rank are compared with. Row b of rank r is sample b·W + r of the batch: in
    that order the keys are the same on any number of ranks.
    """

    keys: tuple[
        Tensor, ...
    ]  # [G, E] by direction, in the order of samples; empty where they are not gathered
    queries: int  # of the global batch, all directions
    rank: int
    ranks: int
    loci_A: Loci | None  # None: all other keys are negatives
    loci_G: Loci | None  # in the order of samples
    loci_by_rank_G: Loci | None  # the same, rank after rank


class Contrastive(LossTerm[ContrastiveConfig, Keys]):
    """Both directions' queries share one mean."""

    name = "contrastive"
    Config = ContrastiveConfig

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__(config)
        self.reads_teacher = config.keys == "teacher"
        self.coupled = config.keys == "student" or config.variant == "ring"

    def head(self, hidden_size: int) -> nn.Module:
        return EmbeddingHead(
            hidden_size,
            mlp_size=self.config.mlp_size,
            embedding=self.config.embedding,
            scale=1 / self.config.temperature,
            max_scale=self.config.max_scale,
            learnable=self.config.learnable_scale,
        )

    def head_vectors(self, shape: StepShape) -> tuple[float, float]:
        return shape.views, shape.views if self.reads_teacher else 0

    def product_flops(self, shape: StepShape) -> float:
        products = shape.global_batch * self.config.embedding  # of one query with all keys
        if self.reads_teacher:
            return 4 * shape.views * products  # logits, and the queries' gradients
        return 6 * shape.windows * products  # one matrix of logits for both directions; both have gradients

    def prepare(self, windows: Windows, views: ViewBatch) -> Loci | None:
        return loci(windows) if self.config.mask_same_place else None

    def payload(self, batch: RankBatch) -> dict[str, Tensor]:
        found = {}
        if (loci_A := _loci_of(batch)) is not None:
            found["loci"] = loci_A.place_N4
        if not self.coupled:
            found |= {f"keys {d}": self._taught(batch, d) for d in range(batch.directions)}
        return found

    def receive(self, batch: RankBatch, gathered: Mapping[str, Tensor]) -> Keys:
        loci_G = loci_by_rank_G = None
        if "loci" in gathered:
            loci_G = Loci(gathered["loci"].transpose(0, 1).flatten(0, 1))
            loci_by_rank_G = Loci(gathered["loci"].flatten(0, 1))
        directions = range(0 if self.coupled else batch.directions)
        return Keys(
            tuple(gathered[f"keys {d}"].transpose(0, 1).flatten(0, 1) for d in directions),
            queries=batch.global_batch * batch.directions,
            rank=batch.group.rank,
            ranks=batch.group.size,
            loci_A=_loci_of(batch),
            loci_G=loci_G,
            loci_by_rank_G=loci_by_rank_G,
        )

    def value(self, outputs: Outputs, place: Place, context: Keys) -> Tensor:
        embedding_BE, scale = outputs.heads[self.name]
        row_B = torch.arange(place.rows.start, place.rows.stop, device=embedding_BE.device)
        assert self.config.variant != "ring", "a ring is coupled"
        return info_nce(
            Contrast(
                embedding_BE,
                context.keys[place.direction],
                row_B * context.ranks + context.rank,
                scale,
                context.queries,
                context.loci_A and context.loci_A.rows(place.rows),
                context.loci_G,
                self.config.variant,
            )
        )

    def features(self, outputs: Outputs) -> tuple[Tensor, ...]:
        found: EmbeddingOutput = outputs.heads[self.name]
        return tuple(found)

    def coupled_payload(self, features: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        if self.config.variant == "ring":  # whose keys travel by themselves
            return {}
        return {f"embedding {d}": embedding_AE for d, (embedding_AE, _) in enumerate(features)}

    def coupled_value(
        self,
        features: Sequence[tuple[Tensor, ...]],
        batch: RankBatch,
        gathered: Mapping[str, Tensor],
        context: Keys,
    ) -> Tensor:
        mine, scale = [embedding_AE for embedding_AE, _ in features], features[0][1]
        group, windows = batch.group, batch.global_batch
        if self.config.keys == "teacher":
            values = [
                ring_info_nce(
                    RingContrast(
                        mine[d], self._taught(batch, d), scale, group, context.queries, context.loci_A
                    )
                )
                for d in range(batch.directions)
            ]
        elif self.config.variant == "ring":
            ring = RingSymmetricContrast(mine[0], mine[1], scale, group, windows, context.loci_A)
            values = [ring_symmetric_info_nce(ring)]
        else:
            firsts_GE, seconds_GE = (gathered[f"embedding {d}"].flatten(0, 1) for d in (0, 1))
            contrast = SymmetricContrast(
                mine[0],
                mine[1],
                firsts_GE,
                seconds_GE,
                group.rank * len(mine[0]),
                scale,
                group,
                windows,
                context.loci_by_rank_G,
                self.config.variant,
            )
            values = [symmetric_info_nce(contrast)]
        return torch.stack(values).sum()

    @torch.no_grad()
    def measure(
        self, outputs: Outputs, batch: RankBatch, place: Place, context: Keys, *, count: int
    ) -> dict[str, Tensor]:
        return {"scale": outputs.heads[self.name].scale[None]}

    def readings(self, gathered: Mapping[str, Tensor]) -> dict[str, float]:
        return {"health/contrastive_scale": float(gathered["scale"][0])}

    def _taught(self, batch: RankBatch, direction: int) -> Tensor:
        """The teacher's embeddings of this rank's rows, [A, E]."""
        return torch.cat([outputs[direction].heads[self.name].embedding_BE for outputs in batch.taught])


def _loci_of(batch: RankBatch) -> Loci | None:
    """Where this rank's A windows lie; None: nobody asked."""
    places = [part.place_N4 for part in batch.extras if part is not None]
    return Loci(torch.cat(places)) if places else None
