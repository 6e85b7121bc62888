"""The values of ``train.compile``, and what they do not go with.

Apart from compiled.py, since torch's compiler takes seconds to import.
"""

from collections.abc import Mapping
from typing import Any, Literal

Compile = Literal["off", "default", "reduce-overhead"]


def faults(mode: Compile, *, zero_stage: int, deepspeed: Mapping[str, Any]) -> list[str]:
    """A sentence for each setting that a compiled forward cannot be had with."""
    if mode == "off":
        return []
    found = []
    if zero_stage == 3:
        found.append(
            f"compile {mode} needs whole weights in the forward, which ZeRO-3 gathers module by module; "
            "use zero_stage 0 to 2, or compile off"
        )
    profiler = deepspeed.get("flops_profiler", {})
    if isinstance(profiler, Mapping) and profiler.get("enabled"):
        found.append(
            f"compile {mode} leaves no modules for deepspeed.flops_profiler to watch; use compile off, or "
            "leave the profiler out"
        )
    return found
