"""Training FLOPs as steps: every arm gets as many steps as fit into the same number of FLOPs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from trainer.core.collectives import Group
from trainer.distill.method import Method
from trainer.losses.config import projection_heads
from trainer.models import pretrained
from trainer.models.config import build_backbone
from trainer.models.network import Network
from trainer.run.config import TrainConfig
from trainer.run.flops import step_flops


class LengthPart(Protocol):
    """Windows of ``length`` bp from a step on, counted from 0."""

    @property
    def from_step(self) -> int: ...

    @property
    def length(self) -> int: ...


@dataclass(frozen=True)
class Cost:
    """What a pretraining costs: its steps, their FLOPs in all, and the network's parameters."""

    steps: int
    flops: float
    parameters: int


def cost_of(config: TrainConfig, flops: float) -> Cost:
    """The cost of as many steps of ``config`` as fit into ``flops``; 0 steps if not one does."""
    network, of = _step(config)
    steps = steps_within(flops, lengths=config.data.length, flops_of=of)
    return Cost(
        steps, spent(steps, lengths=config.data.length, flops_of=of), pretrained.parameter_count(network)
    )


def first_step(config: TrainConfig) -> float:
    """FLOPs of the first step."""
    _, of = _step(config)
    return of(config.data.length[0].length)


def _step(config: TrainConfig) -> tuple[Network, Callable[[int], float]]:
    """The network of ``config``, and the FLOPs of a step by its length."""
    terms = config.loss.terms()
    backbone = build_backbone(config.model)
    network = Network(backbone, heads=projection_heads(terms, backbone.hidden_size))
    method = Method(config.views, terms, config.train.global_batch, Group(0, 1))
    return network, cache(lambda length: step_flops(method, network, length=length))


def steps_within(flops: float, *, lengths: Sequence[LengthPart], flops_of: Callable[[int], float]) -> int:
    """How many steps fit into ``flops``."""
    left, steps = flops, 0
    for part, end in _spans(lengths):
        cost = flops_of(part.length)
        fit = int(left // cost)
        if end is None or fit < end - part.from_step:
            return steps + fit
        steps, left = end, left - cost * (end - part.from_step)
    return steps


def spent(steps: int, *, lengths: Sequence[LengthPart], flops_of: Callable[[int], float]) -> float:
    """The FLOPs of the first ``steps`` steps."""
    return sum(
        flops_of(part.length) * max(0, min(steps, steps if end is None else end) - part.from_step)
        for part, end in _spans(lengths)
    )


def _spans(lengths: Sequence[LengthPart]) -> list[tuple[LengthPart, int | None]]:
    """Each part with the step at which the next one begins; None for the last."""
    ends: list[int | None] = [*(part.from_step for part in lengths[1:]), None]
    return list(zip(lengths, ends, strict=True))
