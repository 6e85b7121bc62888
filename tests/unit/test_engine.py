"""What of the engine needs no process group: the verdict on a gradient."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.core.collectives import Group
from trainer.engine.adapter import Adapter
from trainer.engine.engine import Engine

LARGE = 1.5e19  # its square is still a float32, twice its square is not


def verdict(gradients: list[float], ranks: int = 1) -> bool:
    engine: Any = Engine.__new__(Engine)
    engine.group, engine.network = Group(0, ranks), torch.nn.Linear(1, 1)
    engine._adapter = adapter = Adapter(SimpleNamespace(), engine.network, [], engine.group)
    adapter.gradients = lambda: [torch.tensor([value]) for value in gradients]  # type: ignore[method-assign]
    return bool(engine.is_finite(engine.gradient_squares()))


@pytest.mark.parametrize(
    ("gradients", "ranks", "finite"),
    [
        ([], 1, True),
        ([0.0, -3.0], 4, True),
        ([1.0, float("nan")], 1, False),
        ([float("-inf"), 1.0], 1, False),
        ([LARGE], 1, True),
        ([LARGE, LARGE], 1, False),  # each norm is finite, that of both is not: ZeRO-0 in fp32 would step
        ([LARGE], 2, False),
        ([1e20], 1, False),
    ],
)
def test_a_gradient_whose_norm_overflows_is_not_finite(
    gradients: list[float], ranks: int, finite: bool
) -> None:
    assert verdict(gradients, ranks) is finite
