"""Losses that tie the student's rows of all ranks to each other, so that each rank's depend on the others'
rows.

They read features of all rows at once. Where a step has several micro-batches, the student reads them once
more before, without gradient (GradCache: Gao et al. 2021): the gradient of the features is found once, and
each micro-batch then brings it to the weights. So there is one gather a step whatever the number of
micro-batches.

Shapes: B rows of this rank, W ranks, E features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from trainer.core.collectives import Group
from trainer.data.locus import Loci
from trainer.losses import COUPLED
from trainer.losses.config import Loss
from trainer.losses.infonce import SymmetricContrast
from trainer.losses.koleo import Spread
from trainer.losses.ring_infonce import RingContrast, RingSymmetricContrast
from trainer.losses.vicreg import Expanded
from trainer.models.network import Outputs

_FEATURES = {"contrastive": "embedding_BE", "koleo": "pooled_BD", "vicreg": "expanded_BE"}


def coupled_names(loss: Loss) -> list[str]:
    """The losses in use that are coupled under this config."""
    contrastive = loss.contrastive.keys == "student" or loss.contrastive.variant == "ring"
    return [name for name in loss.weights() if name in COUPLED and (name != "contrastive" or contrastive)]


@dataclass(frozen=True)
class Cached:
    """``losses``: name -> this rank's share. ``gradients``: of their weighted sum, by feature and
    direction."""

    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def attach(self, outputs: Sequence[Outputs], rows: slice, *, micro_batches: int) -> Tensor:
        """A scalar whose gradient brings the features' to the network; its value means nothing."""
        found = []
        for key, gradient in self.gradients.items():
            name, direction = key.split()
            feature = getattr(outputs[int(direction)], name)
            if feature.requires_grad:
                # The scale is one for all micro-batches, so each brings its part.
                found.append(
                    (feature * (gradient / micro_batches if name == "scale" else gradient[rows])).sum()
                )
        return torch.stack(found).sum()


class Features:
    """What the coupled losses read of the student, [B, E] each, for both directions."""

    def __init__(self, names: Sequence[str], outputs: Sequence[Sequence[Outputs]]) -> None:
        """``outputs``: by micro-batch and direction."""
        self.names = list(names)
        self.directions = len(outputs[0])
        self._leaves: dict[str, Tensor] = {}
        for name in names:
            for d in range(self.directions):
                rows = torch.cat([getattr(by_direction[d], _FEATURES[name]) for by_direction in outputs])
                self._leaves[f"{_FEATURES[name]} {d}"] = rows.detach().requires_grad_()
        if "contrastive" in names:
            scale = outputs[0][0].scale
            assert scale is not None, "the contrastive head gives a scale"
            self._leaves["scale 0"] = scale.detach().requires_grad_()

    def payload(self, loss: Loss) -> dict[str, Tensor]:
        """What has to come from every rank before ``losses``: all but the ring's, which travels by itself."""
        ring = loss.contrastive.variant == "ring"
        return {
            key: leaf
            for key, leaf in self._leaves.items()
            if key != "scale 0" and not (ring and key.startswith(_FEATURES["contrastive"]))
        }

    def losses(
        self,
        loss: Loss,
        *,
        everywhere: dict[str, Tensor],
        taught: Sequence[Sequence[Outputs]],
        loci_B: Loci | None,
        loci_G: Loci | None,
        rows_total: int,
        group: Group,
    ) -> Cached:
        """Shares and gradients; ``everywhere``: the payload of all ranks [W, ...], ``loci_G`` in rank
        order."""
        leaves, directions = self._leaves, self.directions
        gathered = {key: everywhere[key].flatten(0, 1) for key in self.payload(loss)}
        first = group.rank * len(next(iter(leaves.values())))

        def of_teacher(name: str, d: int) -> Tensor:
            return torch.cat([getattr(by_direction[d], name) for by_direction in taught])

        def contrasts() -> list[tuple[str, Any]]:
            mine = [leaves[f"embedding_BE {d}"] for d in range(directions)]
            scale, ring = leaves["scale 0"], loss.contrastive.variant == "ring"
            if loss.contrastive.keys == "teacher":
                return [
                    (
                        "ring",
                        RingContrast(
                            mine[d],
                            of_teacher("embedding_BE", d),
                            scale,
                            group,
                            rows_total * directions,
                            loci_B,
                        ),
                    )
                    for d in range(directions)
                ]
            if ring:
                return [
                    (
                        "symmetric ring",
                        RingSymmetricContrast(mine[0], mine[1], scale, group, rows_total, loci_B),
                    )
                ]
            variant = cast(Literal["lse", "ref"], loss.contrastive.variant)
            firsts, seconds = (gathered[f"embedding_BE {d}"] for d in (0, 1))
            return [
                (
                    "symmetric",
                    SymmetricContrast(
                        mine[0], mine[1], firsts, seconds, first, scale, group, rows_total, loci_G, variant
                    ),
                )
            ]

        def parts(name: str) -> list[tuple[str, Any]]:
            """(what it is, the loss's dataclass) for each call of the loss."""
            if name == "contrastive":
                return contrasts()
            keys = [f"{_FEATURES[name]} {d}" for d in range(directions)]
            if name == "koleo":
                return [("spread", Spread(leaves[key], gathered[key], first, group.size)) for key in keys]
            v = loss.vicreg
            return [
                (
                    "expanded",
                    Expanded(
                        leaves[key],
                        gathered[key],
                        of_teacher("expanded_BE", d),
                        first,
                        group.size,
                        v.invariance,
                        v.variance,
                        v.covariance,
                    ),
                )
                for d, key in enumerate(keys)
            ]

        shares: dict[str, Tensor] = {}
        for name in self.names:
            functions = {kind.needs: kind.function for kind in COUPLED[name]}
            values = [functions[needs](of) for needs, of in parts(name)]
            # Contrastive losses divide by rows of both directions themselves; the others are a mean for each.
            shares[name] = torch.stack(values).sum() / (1 if name == "contrastive" else len(values))
        total = torch.stack([loss.weights()[name] * share for name, share in shares.items()]).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return Cached(
            {name: share.detach() for name, share in shares.items()},
            dict(zip(leaves, gradients, strict=True)),
        )
