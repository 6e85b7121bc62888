"""The number format that a device multiplies best."""

from typing import Literal

import torch


def best_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where ``device`` multiplies it natively, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
