"""What this device reaches on its own: products of square matrices, layers of the mixer's sizes, copies in
memory."""

import time
from collections.abc import Callable
from typing import Any

import torch

from trainer.run.throughput import matmul_flops_per_s, nominal_flops_per_s


def measure(device_name: str, *, small: bool) -> dict[str, Any]:
    """TFLOP/s of products (random numbers in each dtype, and ones), of linear layers by row width, and TB/s
    of a copy.

    ``small``: sizes of a rehearsal.
    """
    device = torch.device(device_name)
    size, rows, megabytes = (256, 64 * 16, 8) if small else (8192, 64 * 1010, 4096)
    torch.backends.cuda.matmul.allow_tf32 = False
    nominal = nominal_flops_per_s(device)
    found: dict[str, Any] = {
        "nominal_bf16_tflops": nominal and nominal / 1e12,
        "fp32_tflops": matmul_flops_per_s(device, torch.float32, size=size) / 1e12,
        "bf16_tflops": matmul_flops_per_s(device, torch.bfloat16, size=size) / 1e12,
    }
    torch.backends.cuda.matmul.allow_tf32 = True
    found["tf32_tflops"] = matmul_flops_per_s(device, torch.float32, size=size) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    ones = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    found["bf16_ones_tflops"] = 2 * size**3 / seconds(lambda: ones @ ones, device) / 1e12
    for width in (308, 320):  # 308 bf16 are 616 bytes: no multiple of 16
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(rows, width, device=device).to(dtype)
            expand, contract = (
                torch.nn.Linear(*io, device=device, dtype=dtype) for io in ((width, 512), (512, width))
            )
            with torch.no_grad():
                hidden = expand(x)
                took = (
                    seconds(lambda layer=expand, x=x: layer(x), device),
                    seconds(lambda layer=contract, x=hidden: layer(x), device),
                )
            name = str(dtype).removeprefix("torch.")
            found |= {
                f"{kind}_{width}_{name}_tflops": 2 * rows * width * 512 / s / 1e12
                for kind, s in zip(("expand", "contract"), took, strict=True)
            }
    source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    found["copy_tb_per_s"] = 2 * source.nbytes / seconds(lambda: copy.copy_(source), device) / 1e12
    return found


def seconds(call: Callable[[], Any], device: torch.device, *, turns: int = 10) -> float:
    """Of one of ``turns`` calls in a row, after three that warm up."""
    for _ in range(3):
        call()
    wait(device)
    start = time.perf_counter()
    for _ in range(turns):
        call()
    wait(device)
    return (time.perf_counter() - start) / turns


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
