"""The config sections ``train`` and ``ema``: optimiser, batch, precision, ZeRO stage, the teacher's
momentum."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from configs import Section
from configs.numbers import Fraction, Positive
from trainer.engine import deepspeed_config


class Ema(Section):
    momentum: Fraction = 0.996
    momentum_end: Fraction = 1.0


class Train(Section):
    """``max_skipped``: steps in a row without a finite loss and gradient after which the run ends.

    ``deepspeed``: further settings for DeepSpeed, of those that keep the teacher exact (zero.py).
    """

    steps: Positive
    schedule_steps: Positive | None = None
    global_batch: Positive = 64
    micro_batch: Positive | None = None
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    warmup_fraction: Fraction = 0.3
    final_lr_fraction: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 3e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    grad_clip: Annotated[float, Field(ge=0)] = 0.5
    activation_checkpointing: bool = False

    max_skipped: Positive = 10
    deepspeed: dict[str, Any] = {}

    @field_validator("deepspeed")
    @classmethod
    def _exact(cls, deepspeed: dict[str, Any]) -> dict[str, Any]:
        faults = deepspeed_config.faults(deepspeed)
        if faults:
            raise ValueError("\n".join(faults))
        return deepspeed
