"""The health of a step's representation, and what the losses read of held-out windows."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.core import collectives
from trainer.distill import representation_metrics
from trainer.distill.method import GlobalContext, Method, States, Term
from trainer.losses.term import Place
from trainer.models.network import Outputs

HEALTH_ROWS = 512  # of the global batch that its health is read from: spread and rank cost their square


@torch.no_grad()
def measure_rows(
    outputs: Outputs, context: GlobalContext, place: Place, method: Method, *, count: int
) -> dict[str, Tensor]:
    """Of the first ``count`` rows of a micro-batch, first direction: what ``read_health`` gathers."""
    student_BE = F.normalize(outputs.embedding[:count], dim=-1)
    found = {"unit": student_BE}
    if context.taught:
        teacher_BE = F.normalize(context.taught[place.micro_batch][0].embedding[:count], dim=-1)
        found = {"unit": teacher_BE, "other": student_BE}
    for term in method.terms:
        batch, own = context.batches[term.name], context.contexts[term.name]
        parts = term.measure(outputs, batch, place, own, count=count)
        found |= {f"{term.name} {key}": part for key, part in parts.items()}
    return found


def read_health(measured: Sequence[Mapping[str, Tensor]], method: Method) -> dict[str, float]:
    """``health/…`` of the global batch's first rows; a collective."""
    mine = {key: torch.cat([part[key] for part in measured]) for key in measured[0]}
    gathered = collectives.gather_packed(method.group, mine)
    everywhere = {key: part.flatten(0, 1) for key, part in gathered.items()}
    found = representation_metrics.readings(everywhere["unit"], other_GE=everywhere.get("other"))
    for term in method.terms:
        prefix = f"{term.name} "
        own = {key.removeprefix(prefix): part for key, part in everywhere.items() if key.startswith(prefix)}
        if own:
            found |= term.readings(own)
    return found


def held_out_readings(terms: Sequence[Term], states: States) -> Callable[[Outputs], dict[str, Tensor]]:
    """What the losses read of the teacher's outputs of held-out windows, by row [B]."""

    def by_row(outputs: Outputs) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for term in terms:
            found |= term.held_out(outputs, states.get(term.name))
        return found

    return by_row
