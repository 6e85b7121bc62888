"""Losses that tie the student's rows of all ranks to each other, so that each rank's depend on the others'
rows.

They read features of all rows at once. Where a step has several micro-batches, the student reads them once
more before, without gradient (GradCache: Gao et al. 2021): the gradient of the features is found once, and
each micro-batch then brings it to the weights. So there is one gather a step whatever the number of
micro-batches.

Shapes: A rows of all of this rank's micro-batches, W ranks, E features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.losses.term import LossTerm, RankBatch
from trainer.models.network import Outputs

Term = LossTerm[Any, Any]


@dataclass(frozen=True)
class Leaves:
    """The student's features of one loss, cut off from the network: they want a gradient of their own."""

    term: Term
    by_direction: tuple[tuple[Tensor, ...], ...]  # [A, E], or 0-d: the same in every direction

    @classmethod
    def of(cls, term: Term, outputs: Sequence[Sequence[Outputs]]) -> "Leaves":
        """``outputs``: by micro-batch and direction."""
        features = [[term.features(one) for one in by_direction] for by_direction in outputs]
        first = features[0][0]
        shared = {i: part.detach().requires_grad_() for i, part in enumerate(first) if not part.ndim}
        return cls(
            term,
            tuple(
                tuple(
                    shared[i] if i in shared else _leaf([parts[d][i] for parts in features])
                    for i in range(len(first))
                )
                for d in range(len(features[0]))
            ),
        )


def _leaf(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)).detach().requires_grad_()


@dataclass(frozen=True)
class FeatureGradient:
    """The gradient of one feature of one loss, for all rows of a direction; 0-d for one that all rows
    share."""

    term: Term
    direction: int
    feature: int
    gradient: Tensor


@dataclass(frozen=True)
class CachedGradients:
    """``shares``: name -> this rank's share. ``gradients``: of their weighted sum."""

    shares: dict[str, Tensor]
    gradients: list[FeatureGradient]

    def attach(self, outputs: Sequence[Outputs], rows: slice, *, micro_batches: int) -> Tensor:
        """A scalar whose gradient brings the features' to the network; its value means nothing."""
        found = []
        for part in self.gradients:
            feature = part.term.features(outputs[part.direction])[part.feature]
            if feature.requires_grad:
                # A feature that all rows share is one for all micro-batches, so each brings its part.
                gradient = part.gradient[rows] if part.gradient.ndim else part.gradient / micro_batches
                found.append((feature * gradient).sum())
        return torch.stack(found).sum()


def coupled_gradients(
    leaves: Sequence[Leaves],
    batches: Mapping[str, RankBatch],
    gathered: Mapping[str, Mapping[str, Tensor]],
    contexts: Mapping[str, Any],
) -> CachedGradients:
    """Shares and gradients of the coupled losses; all by the loss's name, ``gathered`` [W, ...] each."""
    shares: dict[str, Tensor] = {}
    for of in leaves:
        name = of.term.name
        shares[name] = of.term.coupled_value(of.by_direction, batches[name], gathered[name], contexts[name])
    total = torch.stack([of.term.weight * shares[of.term.name] for of in leaves]).sum()
    wanted = [
        FeatureGradient(of.term, d, i, leaf)
        for of in leaves
        for d, features in enumerate(of.by_direction)
        for i, leaf in enumerate(features)
        if leaf.ndim or d == 0
    ]
    wanted.sort(key=lambda part: not part.gradient.ndim)  # rows first
    gradients = torch.autograd.grad(total, [part.gradient for part in wanted], materialize_grads=True)
    return CachedGradients(
        {name: share.detach() for name, share in shares.items()},
        [
            FeatureGradient(part.term, part.direction, part.feature, gradient)
            for part, gradient in zip(wanted, gradients, strict=True)
        ],
    )
