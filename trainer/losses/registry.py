"""The losses by the name of their config section, in the order in which their values are added."""

from typing import Any

from trainer.losses.contrastive import Contrastive
from trainer.losses.dino import Dino
from trainer.losses.koleo import Koleo
from trainer.losses.masked_lm import MaskedLm
from trainer.losses.patch import Patch
from trainer.losses.sigreg import Sigreg
from trainer.losses.term import LossTerm
from trainer.losses.vicreg import Vicreg

LOSSES: dict[str, type[LossTerm[Any, Any]]] = {
    "mlm": MaskedLm,
    "distill": Dino,
    "patch": Patch,
    "contrastive": Contrastive,
    "koleo": Koleo,
    "vicreg": Vicreg,
    "sigreg": Sigreg,
}
