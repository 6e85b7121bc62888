"""The optimiser of the masters: torch's AdamW, which can be told to leave everything as it is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.engine.deepspeed_config import EngineSettings


class AdamW(torch.optim.AdamW):
    """AdamW that does nothing while ``paused``, and, where it is fused, where ``found_inf`` is 1."""

    paused = False
    found_inf: Tensor | None = None  # fp32 0-d, as torch.amp's GradScaler gives it

    def step(self, closure: Any = None) -> Any:
        return None if self.paused else super().step(closure)


def make_optimizer(
    named: Mapping[str, nn.Parameter], settings: EngineSettings, *, fused: bool
) -> tuple[AdamW, list[list[str]]]:
    """(the optimiser, the names of the parameters of each of its groups): norms and biases do not decay.

    ``fused`` is for GPUs only: on CPU, fused AdamW rounds by an entry's place in its tensor, hence by the
    partition.
    """
    decay = [name for name, parameter in named.items() if parameter.ndim >= 2]
    no_decay = [name for name, parameter in named.items() if parameter.ndim < 2]
    groups = [(names, rate) for names, rate in ((decay, settings.weight_decay), (no_decay, 0.0)) if names]
    optimizer = AdamW(
        [{"params": [named[name] for name in names], "weight_decay": rate} for names, rate in groups],
        lr=0.0,  # step() sets the rate; bf16 at stage 0 takes a step of its own while DeepSpeed is set up
        betas=settings.betas,
        fused=fused,
    )
    return optimizer, [names for names, _ in groups]
