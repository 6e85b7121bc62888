"""What validation reads of the teacher's outputs beside its embeddings: one number of each row.

Shapes: B rows, P summary positions, K prototypes.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from trainer.distill import representation_metrics
from trainer.losses.config import Loss
from trainer.losses.dino import centred_probabilities
from trainer.models.network import Outputs


def row_readings(loss: Loss, centres: Mapping[str, Tensor]) -> dict[str, Callable[[Outputs], Tensor]]:
    """By the name of the reading, a function from a network's outputs to one number of each row, [B]."""
    if not loss.distill.weight:
        return {}
    centre_PK, temperature = centres.get("distill"), loss.distill.teacher_temperature

    def teacher_entropy(outputs: Outputs) -> Tensor:
        """Entropy of the prototypes' probabilities, mean over the summary positions."""
        assert outputs.summary is not None, "with the distillation loss the network has its head"
        probability_BPK = centred_probabilities(outputs.summary.cosines, centre_PK, temperature)
        return representation_metrics.entropy(probability_BPK).mean(1)

    return {"teacher_entropy": teacher_entropy}
