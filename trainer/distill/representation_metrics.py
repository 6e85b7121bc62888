"""Is the representation alive? Pure functions of embeddings and of prototype distributions, and a step's
readings.

A single function's answer to what cannot be told (the spread of one row, say) is that of a collapse and never
NaN; ``readings`` leaves out what its rows are too few to tell. Only what is not finite itself reads as NaN,
and nothing raises for it. No row at all is the caller's fault.

Shapes: N samples, G samples of the global batch, R rows of prototype distributions, E embedding, K
prototypes.
"""

import math

import torch
from torch import Tensor

from trainer.losses.prototype_metrics import FEWEST

DEAD = (
    0.01  # of the mean over dimensions: a dimension whose standard deviation is below that share says nothing
)
_ROUNDING = 4 * torch.finfo(torch.float32).eps  # as dimension_std: unit vectors that differ by rounding alone


def dimension_std(unit_NE: Tensor) -> Tensor:
    """fp64 [E]: standard deviation of each dimension over samples, times √E: 1 is isotropic; 0 of a single
    row."""
    assert len(unit_NE) > 0, "health of no embeddings"
    return unit_NE.double().std(0, correction=min(1, len(unit_NE) - 1)) * unit_NE.shape[1] ** 0.5


def embedding_std(unit_NE: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit vectors, times √E: 1 is isotropic, 0 is
    collapsed."""
    return float(dimension_std(unit_NE).mean())


def dead_dimensions(unit_NE: Tensor) -> float:
    """Share in [0, 1] of dimensions whose standard deviation is below 1 % of their mean; 1 where nothing
    varies.

    Relative, since the windows of a young network lie close together in all dimensions alike; how close is
    what ``embedding_std`` says.
    """
    std_E = dimension_std(unit_NE)
    return float((std_E <= (DEAD * std_E.mean()).clamp(min=_ROUNDING)).double().mean())


def effective_rank(unit_NE: Tensor) -> float:
    """exp of the entropy of the normalised singular values, 1 … min(N, E) (Garrido et al. 2023, RankMe).

    0 where every vector is zero.
    """
    assert len(unit_NE) > 0, "health of no embeddings"
    if not bool(unit_NE.isfinite().all()):
        return math.nan  # which svdvals would raise for
    singular = torch.linalg.svdvals(unit_NE.double())
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular / total + 1e-12
    return float(torch.exp(-(share * share.log()).sum()))


def centred_rank(unit_NE: Tensor) -> float:
    """``effective_rank`` of what is left when the mean is taken off: in how many dimensions samples differ.

    Unit vectors that lie close together, as those of a young network do, share one large direction, and their
    effective rank is near 1 whatever they do in the others. 0 where nothing varies.
    """
    if bool((dimension_std(unit_NE) <= _ROUNDING).all()):
        return 0.0
    centred_NE = unit_NE.double()
    return effective_rank(centred_NE - centred_NE.mean(0))


def alignment(first_NE: Tensor, second_NE: Tensor) -> float:
    """Mean squared distance of two views of the same sample (Wang and Isola 2020); 0 is best."""
    assert len(first_NE) > 0 and first_NE.shape == second_NE.shape, (
        "health of no embeddings, or of unlike ones"
    )
    return float((first_NE.float() - second_NE.float()).square().sum(1).mean())


def uniformity(unit_NE: Tensor) -> float:
    """log of the mean of exp(-2 · squared distance) over pairs of samples (Wang and Isola 2020); 0 is
    collapsed."""
    assert len(unit_NE) > 0, "health of no embeddings"
    if len(unit_NE) == 1:
        return 0.0
    return float(torch.pdist(unit_NE.float()).square_().mul_(-2).exp_().mean().log())


def centre_drift(centre: Tensor, before: Tensor) -> float:
    """How far a centre [..., K] moved since ``before``, in units of the spread that it had: 0 is at rest.

    Root mean square of the move over that of ``before``, both with their mean over K taken off, since softmax
    does not see a move of all prototypes alike. An unrelated centre of the same spread reads √2, one turned
    round 2, one grown by a reads a - 1. A centre that had no spread, as the first has none, cannot be
    measured against: 0.
    """
    moved, spread = (
        (part - part.mean(-1, keepdim=True)).square().mean().sqrt()
        for part in (centre.double() - before, before.double())
    )
    return float(moved / spread) if spread != 0 else 0.0


def readings(
    unit_GE: Tensor | None = None,
    *,
    other_GE: Tensor | None = None,
) -> dict[str, float]:
    """The ``health/…`` metrics of a step that its tensors allow; the same on every rank, for they are the
    global ones.

    What says how samples differ (spread, ranks, uniformity, how many prototypes are used) is left out of
    fewer than FEWEST samples, and ``centred_rank`` where they could not differ in FEWEST dimensions: one
    sample is always a point and always chooses one prototype, and of two or three neither is rare.

    Args:
        unit_GE: unit vectors of the global batch, one view, which spread and rank are read from.
        other_GE: unit vectors of the same samples in the same order, another view: alignment.
    """
    found: dict[str, float] = {}
    if unit_GE is not None and len(unit_GE) >= FEWEST:
        found |= {
            "embedding_std": embedding_std(unit_GE),
            "dimension_std_min": float(dimension_std(unit_GE).min()),
            "dead_dimensions": dead_dimensions(unit_GE),
            "effective_rank": effective_rank(unit_GE),
            "uniformity": uniformity(unit_GE),
        }
        if min(len(unit_GE) - 1, unit_GE.shape[1]) >= FEWEST:
            found["centred_rank"] = centred_rank(unit_GE)
    if unit_GE is not None and other_GE is not None:
        found["alignment"] = alignment(unit_GE, other_GE)
    return {f"health/{name}": value for name, value in found.items()}
