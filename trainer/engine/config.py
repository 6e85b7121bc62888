"""The config sections ``train`` and ``ema``: optimiser, batch, precision, ZeRO stage, the teacher's
momentum."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from configs import Section
from configs.numbers import Fraction, Positive
from trainer.core.precision import best_precision
from trainer.engine import compile_mode, deepspeed_config
from trainer.engine.compile_mode import Compile
from trainer.engine.deepspeed_config import EngineSettings


class Ema(Section):
    momentum: Fraction = 0.996
    momentum_end: Fraction = 1.0


class Train(Section):
    """``max_skipped``: steps in a row without a finite loss and gradient after which the run ends.

    ``precision``: or auto, which is bf16 where this machine multiplies it natively, else fp32.
    ``deepspeed``: further settings for DeepSpeed, of those that keep the teacher exact (deepspeed_config.py).
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
    compile: Compile = "off"
    max_skipped: Positive = 10
    deepspeed: dict[str, Any] = {}

    @field_validator("precision", mode="before")
    @classmethod
    def _resolved(cls, precision: Any) -> Any:
        """``auto`` as what this machine is best at, so that a saved config says what was computed in."""
        if precision != "auto":
            return precision
        return best_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @field_validator("compile", mode="before")
    @classmethod
    def _off(cls, compile: Any) -> Any:
        """YAML reads a bare ``off`` as false."""
        return "off" if compile is False else compile

    @field_validator("deepspeed")
    @classmethod
    def _exact(cls, deepspeed: dict[str, Any]) -> dict[str, Any]:
        faults = deepspeed_config.faults(deepspeed)
        if faults:
            raise ValueError("\n".join(faults))
        return deepspeed

    @model_validator(mode="after")
    def _compilable(self) -> "Train":
        if faults := compile_mode.faults(self.compile, zero_stage=self.zero_stage, deepspeed=self.deepspeed):
            raise ValueError("\n".join(faults))
        return self

    def rows_at_once(self, ranks: int) -> int:
        """Rows that a rank reads in one forward; by default its whole share of the global batch."""
        return self.micro_batch or self.global_batch // ranks

    def accumulation(self, ranks: int) -> int:
        """Forwards of each rank in a step."""
        return self.global_batch // (ranks * self.rows_at_once(ranks))

    def engine_settings(self, ranks: int) -> EngineSettings:
        """The settings of an engine on this number of ranks, which must divide the global batch."""
        return EngineSettings(
            zero_stage=self.zero_stage,
            precision=self.precision,
            micro_batch=self.rows_at_once(ranks),
            accumulation=self.accumulation(ranks),
            weight_decay=self.weight_decay,
            betas=self.betas,
            grad_clip=self.grad_clip,
            deepspeed=self.deepspeed,
            compile=self.compile,
        )
