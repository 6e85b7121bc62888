"""What a loss is to a training step: its config section, its head, what it gathers, its value.

A step asks each loss in turn, and knows none of them. A loss that another one has no part in is one file: a
subclass of LossTerm with its config section, and a line in LOSSES.

All values are this rank's share of the loss over the global batch: summed over ranks and micro-batches, the
shares are the global mean, and so are their gradients. Everything is fp32 inside.

Shapes: B rows of a micro-batch, A rows of all of this rank's micro-batches, W ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from configs.numbers import Weight
from configs.section import Section
from trainer.core.collectives import Group
from trainer.data.windows import Windows
from trainer.models.network import Network, Outputs
from trainer.views.config import Views
from trainer.views.view_batch import ViewBatch


class LossConfig(Section):
    """The part of every loss's config section; weight 0 switches the loss off."""

    weight: Weight = 0.0

    @property
    def needs_soft_mask(self) -> bool:
        """Whether windows must bring the soft mask of the reference."""
        return False

    @property
    def needs_track(self) -> bool:
        """Whether windows must bring the weights of their letters."""
        return False

    def faults(self, views: Views, *, global_batch: int) -> list[str]:
        """What the loss, where it is in use, needs and does not get: a line each, with the key."""
        return []


@dataclass(frozen=True)
class Moment:
    """When in the run a step is, the same on all ranks: all that changes from step to step depends on it.

    ``progress``: the share of the schedule that is done before it, 0 to 1. ``key``: what its random draws are
    folded from (trainer/core/random.py).
    """

    progress: float = 1.0
    key: int = 0


AT_THE_END = Moment()


@dataclass(frozen=True)
class RankBatch:
    """What this rank has of a step before the gather. Lists run over micro-batches, then over directions."""

    views: Sequence[ViewBatch]
    extras: Sequence[Any]  # what the loss's ``prepare`` made of each micro-batch
    taught: Sequence[Sequence[Outputs]]  # the teacher's; empty where no loss reads it
    state: Tensor | None  # the loss's own, as it was after the last step
    global_batch: int  # samples
    group: Group
    moment: Moment = AT_THE_END

    @property
    def directions(self) -> int:
        return len(self.views[0].pairs)


@dataclass(frozen=True)
class Place:
    """Which rows of this rank's batch a micro-batch and direction holds."""

    micro_batch: int
    direction: int
    rows: slice  # of the A rows of a direction


@dataclass(frozen=True)
class StepShape:
    """What a step of one rank reads, for counting FLOPs; numbers may be fractions of a rank's share."""

    windows: float
    views: float  # student views of windows: of one or both directions
    crops: float
    length: int  # letters of a window
    summaries: int  # vectors that stand for a whole row
    hidden_size: int
    global_batch: int
    teacher_flops: int  # FLOPs of the teacher for each weight and vector: 2, or 0 where nothing reads it


STUDENT_FLOPS, TEACHER_FLOPS = 6, 2  # for each weight and vector, with and without a backward


C = TypeVar("C", bound=LossConfig)
Context = TypeVar("Context")


class LossTerm(Generic[C, Context]):
    """One loss in use. A subclass overrides what it has need of; ``value`` or ``coupled_value`` it must.

    ``Context``: what ``receive`` makes of the gathered tensors, frozen, the loss's own for the rest of the
    step.
    """

    name: ClassVar[str]  # the key of its config section, of its metrics, and of its head's weights
    Config: ClassVar[type[LossConfig]]
    reads_crops: ClassVar[bool] = False  # its head reads local windows too
    reads_teacher: bool = True
    needs_same_letters: ClassVar[bool] = False  # compares letters that both views hold; a partner has none
    watches_drift: ClassVar[bool] = False  # its state is a centre whose drift tells a collapse
    coupled: bool = False  # its value ties the student's rows of all ranks to each other: ``coupled_value``

    def __init__(self, config: C) -> None:
        self.config, self.weight = config, config.weight

    # Before the first step

    def head(self, hidden_size: int) -> nn.Module | None:
        """What reads the hidden states for it, called with (Reading, request); None: it needs no head.

        A head whose output has a field ``embedding_BE`` gives the embeddings that health is read from, in
        place of the pooled hidden states; it has an attribute ``embedding_size``, which is E.
        """
        return None

    def first_state(self, network: Network, device: torch.device) -> Tensor | None:
        """What it carries from step to step; saved in checkpoints under its name."""
        return None

    def head_vectors(self, shape: StepShape) -> tuple[float, float]:
        """To how many vectors of the student and of the teacher its head is applied."""
        return 0.0, 0.0

    def student_only(self, head: nn.Module) -> list[nn.Module]:
        """The parts of its head that the teacher does not use."""
        return []

    def product_flops(self, shape: StepShape) -> float:
        """FLOPs of matrix products other than the head's."""
        return 0.0

    # In a step

    def prepare(self, windows: Windows, views: ViewBatch) -> Any:
        """What it needs of a micro-batch beside the letters: weights of letters, aligned places.

        Where a GPU computes, it is called in the reader's thread with tensors of the CPU. The tensors in its
        lists, tuples, dicts and dataclasses come to the GPU with the views.
        """
        return None

    def student_request(self, extra: Any) -> Any:
        """What its head is asked for of the student, all directions one after the other."""
        return None

    def teacher_request(self, extra: Any, direction: int) -> Any:
        """What its head is asked for of the teacher."""
        return None

    def payload(self, batch: RankBatch) -> dict[str, Tensor]:
        """What must come from all ranks; names, shapes and dtypes agree over ranks."""
        return {}

    def receive(self, batch: RankBatch, gathered: Mapping[str, Tensor]) -> Context:
        """The step's context from the payload of all ranks, [W, ...] each; where the loss is coupled, with
        that of ``coupled_payload``."""
        return None  # type: ignore[return-value]

    def value(self, outputs: Outputs, place: Place, context: Context) -> Tensor:
        """0-d, with gradient: the share of this micro-batch and direction."""
        raise NotImplementedError

    def next_state(self, state: Tensor, context: Context) -> Tensor | None:
        """Its state after a step that is applied; None leaves it as it is."""
        return None

    # Where it is coupled

    def features(self, outputs: Outputs) -> tuple[Tensor, ...]:
        """What ``coupled_value`` reads of the student: rows [B, ...], or 0-d tensors that all rows share."""
        raise NotImplementedError

    def coupled_payload(self, features: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """What must come from all ranks of the features, given by direction, of all A rows."""
        raise NotImplementedError

    def coupled_value(
        self,
        features: Sequence[tuple[Tensor, ...]],
        batch: RankBatch,
        gathered: Mapping[str, Tensor],
        context: Context,
    ) -> Tensor:
        """0-d: this rank's share, with the whole gradient of its own rows (see reduction.py: ``among_all``,
        ``as_share``). ``features`` are leaves that want a gradient, by direction."""
        raise NotImplementedError

    # For health

    def measure(
        self, outputs: Outputs, batch: RankBatch, place: Place, context: Context, *, count: int
    ) -> dict[str, Tensor]:
        """Of the first ``count`` rows of a micro-batch, in direction 0: tensors that all ranks gather."""
        return {}

    def readings(self, gathered: Mapping[str, Tensor]) -> dict[str, float]:
        """``health/…`` metrics of ``measure``'s tensors, [N, ...] each over micro-batches and ranks."""
        return {}

    def held_out(self, outputs: Outputs, state: Tensor | None) -> dict[str, Tensor]:
        """``health/…`` metrics of held-out windows, by row: fp32 [B] each, of the teacher's outputs."""
        return {}
