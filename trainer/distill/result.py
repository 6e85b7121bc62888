"""What a step found: on the device at once, on the host when it is first asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from cluster.process.heartbeat import heartbeat
from trainer.engine.flat_adapters import Decision


@dataclass(frozen=True)
class Reduced:
    """What all ranks agreed on, as numbers on the host.

    ``losses``: name -> mean over the global batch, and "total", their weighted sum. ``finite``: no loss and
    no gradient of any rank is infinite or NaN, so that the step may be applied. ``stop``: the exit code that
    some rank was told to stop with, or 0. ``norm``: of the global gradient; NaN where DeepSpeed finds it.
    """

    losses: dict[str, float]
    finite: bool
    stop: int = 0
    norm: float = math.nan


class StepResult:
    """What a step found, the same on all ranks.

    The fields of Reduced wait for the GPU where they are read for the first time: what is to run on it
    meanwhile is queued before. ``states``: of the losses that carry one, after this step, if it is applied.
    ``decision``: whether it is, decided on the device; None where the host decides.
    """

    def __init__(
        self,
        read: Callable[[], Reduced],
        states: dict[str, Tensor],
        health: dict[str, float],
        decision: Decision | None = None,
    ) -> None:
        """``read``: waits for what all ranks agreed on; it is called once."""
        self._read = read
        self.states, self.health, self.decision = states, health, decision

    @cached_property
    def _reduced(self) -> Reduced:
        with heartbeat.inside("the step's losses", phase=True):
            return self._read()

    @property
    def losses(self) -> dict[str, float]:
        return self._reduced.losses

    @property
    def finite(self) -> bool:
        return self._reduced.finite

    @property
    def stop(self) -> int:
        return self._reduced.stop

    @property
    def norm(self) -> float:
        return self._reduced.norm
