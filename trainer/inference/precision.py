"""Which device and which number format inference and fine-tuning compute with."""

from typing import Literal

import torch
from torch import nn

from trainer.core.precision import best_precision

Precision = Literal["auto", "fp32", "bf16"]
Resolved = Literal["fp32", "bf16"]


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def resolve_precision(precision: Precision, device: torch.device) -> Resolved:
    """``precision``; auto is bf16 where ``device`` multiplies bf16 natively, else fp32."""
    return best_precision(device) if precision == "auto" else precision


def computing_in(precision: Resolved, device: torch.device) -> torch.autocast:
    """A context in which matrix products and convolutions run in ``precision``."""
    torch.backends.cudnn.allow_tf32 = False  # for convolutions, as torch has it for matrix products
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
