"""FLOPs of one training step by formula: those that the method needs, not those that an implementation
spends.

A weight of a matrix product costs 2 FLOPs for each vector that it is applied to, and 4 more in the backward
(Kaplan et al. 2020): 6 for the student, 2 for the teacher, which has none. Activations that are computed
again, the first look of losses that tie all rows together, and whatever a kernel does beside, are not
counted: they are the price of a way to do it. Left out as small: Sinkhorn, KoLeo's distances, VICReg's
covariance, norms, softmaxes, the optimiser's step.
"""

from typing import Any

from torch import nn

from data_prep import alphabet
from trainer.distill.step import needs_teacher
from trainer.models.network import Network
from trainer.run.config import TrainConfig

_STUDENT, _TEACHER = 6, 2  # FLOPs a weight and vector


def step_flops(config: TrainConfig, network: Network, *, length: int, ranks: int) -> float:
    """FLOPs of one rank's share of a step that reads windows of ``length`` bp."""
    weights, views, loss = config.loss.weights(), config.views, config.loss
    windows = config.train.global_batch / ranks
    rows = windows * (2 if views.symmetric else 1)
    crops = windows * views.crops.number
    summary: int = network.backbone.num_summary
    teaches = _TEACHER if needs_teacher(config) else 0
    backbone = _weights(network.backbone)
    total = backbone * (_STUDENT + teaches) * rows * (summary + length)
    total += backbone * _STUDENT * crops * (summary + views.crops.length)
    if "mlm" in weights:
        total += _STUDENT * alphabet.BASES * network.backbone.hidden_size * rows * length
    # A head's weights are applied to so many vectors of the student, and of the teacher.
    vectors = {
        "distill": (summary * (rows + crops), summary * rows),
        "patch": (loss.patch.pairs * rows, loss.patch.pairs * rows),
        "contrastive": (rows, rows if loss.contrastive.keys == "teacher" else 0),
        "vicreg": (rows, 0),
    }
    for name, head in network.heads.items():
        students, teachers = vectors[name]
        total += _weights(head) * (_STUDENT * students + teaches * teachers)
    if "contrastive" in weights:
        products = config.train.global_batch * loss.contrastive.embedding  # of one query with all keys
        if loss.contrastive.keys == "teacher":
            total += 4 * rows * products  # logits, and the queries' gradients
        else:
            total += (
                6 * windows * products
            )  # one matrix of logits serves both directions; both views have gradients
    return float(total)


def _weights(module: nn.Module) -> int:
    """Entries of its matrices; under ZeRO-3, where a rank holds a part of each, of the whole ones."""
    parameters: list[Any] = list(module.parameters())
    return sum(
        getattr(p, "ds_numel", p.numel()) for p in parameters if len(getattr(p, "ds_shape", p.shape)) >= 2
    )
