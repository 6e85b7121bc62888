"""What a step is made of: the method, which is the same at every step, and what the step reads and knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.core.collectives import Group
from trainer.data.windows import Windows
from trainer.distill.grad_cache import CachedGradients
from trainer.losses.term import LossTerm, RankBatch
from trainer.models.network import Outputs
from trainer.views.config import Views
from trainer.views.view_batch import ViewBatch, make_view_batch

Term = LossTerm[Any, Any]
States = Mapping[str, Tensor]
"""What losses carry from step to step, by their names: the moving centres."""


@dataclass(frozen=True)
class Method:
    """What is the same at every step: views, losses in use, samples of a global batch, the ranks."""

    views: Views
    terms: Sequence[Term]
    global_batch: int
    group: Group

    @property
    def reads_teacher(self) -> bool:
        return any(term.reads_teacher for term in self.terms)


@dataclass(frozen=True)
class StepInputs:
    """What this rank reads in a step: views by micro-batch, and what each loss prepared of them, by name."""

    views: list[ViewBatch]
    extras: dict[str, list[Any]]

    @classmethod
    def of(cls, micro_batches: Sequence[Windows], method: Method) -> "StepInputs":
        views = [make_view_batch(windows, method.views) for windows in micro_batches]
        extras = {
            term.name: [term.prepare(*pair) for pair in zip(micro_batches, views, strict=True)]
            for term in method.terms
        }
        return cls(views, extras)

    @property
    def device(self) -> torch.device:
        return self.views[0].pairs[0].student.codes_BL.device

    def student_requests(
        self, micro_batch: int, terms: Sequence[Term], heads: nn.ModuleDict
    ) -> dict[str, Any]:
        """What each loss that has a head asks it for of the student."""
        asked = [term for term in terms if term.name in heads]
        return {term.name: term.student_request(self.extras[term.name][micro_batch]) for term in asked}

    def teacher_requests(
        self, micro_batch: int, direction: int, terms: Sequence[Term], heads: nn.ModuleDict
    ) -> dict[str, Any]:
        """The same of the teacher."""
        asked = [term for term in terms if term.name in heads]
        return {
            term.name: term.teacher_request(self.extras[term.name][micro_batch], direction) for term in asked
        }


@dataclass(frozen=True)
class GlobalContext:
    """What this rank knows of the global batch after the one gather, by the loss's name."""

    taught: Sequence[Sequence[Outputs]]  # the teacher's; empty where no loss reads it
    batches: dict[str, RankBatch]
    contexts: dict[str, Any]  # what the loss's ``receive`` made of it
    cached: CachedGradients | None  # of the coupled losses, where there are any
