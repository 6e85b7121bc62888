"""The losses: name -> what it needs of the step, and the function of that one small dataclass; all in fp32
inside.

A loss returns this micro-batch's share of the loss over the global batch: summed over ranks and
micro-batches, the shares are the global mean, and so are their gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from trainer.losses.dino import distillation
from trainer.losses.infonce import info_nce, symmetric_info_nce
from trainer.losses.koleo import koleo
from trainer.losses.masked_lm import masked_nucleotides
from trainer.losses.ring_infonce import ring_info_nce, ring_symmetric_info_nce
from trainer.losses.vicreg import vicreg


class Loss(NamedTuple):
    """``needs``: what distill.py or coupled.py prepares under that name."""

    needs: str
    function: Callable[[Any], Tensor]


# Of one micro-batch and direction, against what was gathered from the global batch.
LOSSES: dict[str, Loss] = {
    "mlm": Loss("letters", masked_nucleotides),
    "distill": Loss("summaries", distillation),
    "patch": Loss("patches", distillation),
    "contrastive": Loss("contrast", info_nce),
}

WITHOUT_TEACHER = {"mlm", "koleo"}  # the others read what the teacher says

# Of all rows of this rank at once, since other ranks' losses depend on them, too. By name, then by what it
# needs.
COUPLED: dict[str, list[Loss]] = {
    "contrastive": [
        Loss("symmetric", symmetric_info_nce),
        Loss("ring", ring_info_nce),
        Loss("symmetric ring", ring_symmetric_info_nce),
    ],
    "koleo": [Loss("spread", koleo)],
    "vicreg": [Loss("expanded", vicreg)],
}
