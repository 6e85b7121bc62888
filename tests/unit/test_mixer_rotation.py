"""The rotation by index against rolls, to the bit, zeros' signs too."""

import pytest
import torch
from torch import Tensor

from trainer.models.mixer_rotation import Rotation, shifts_of


def rolled(update_BTD: Tensor, groups: int, channels: int, circle_B: list[int]) -> Tensor:
    rows = []
    for update_TD, n in zip(update_BTD, circle_B, strict=True):
        parts = update_TD[:, : groups * channels].split(channels, 1)
        turned = [part[:n].roll(-shift, 0) for part, shift in zip(parts, shifts_of(groups), strict=True)]
        circle = torch.cat([*turned, update_TD[:n, groups * channels :]], 1)
        rows.append(torch.cat([circle, update_TD[n:]]))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 12])
@pytest.mark.parametrize("circle_B", [None, [37, 5, 1]])
@pytest.mark.parametrize("groups", [1, 2, 5, 11])
def test_it_is_the_roll_of_each_group_and_so_is_its_gradient(
    groups: int, circle_B: list[int] | None, padding: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(groups)
    update_BTD = torch.randn(3, 37, 8 * groups + padding, generator=generator).to(dtype)
    update_BTD[:, ::3] = -0.0
    dy_BTD = update_BTD.flip(1).clone()
    results = []
    for way in ("index", "rolls"):
        x_BTD = update_BTD.clone().requires_grad_()
        if way == "index":
            circles = None if circle_B is None else torch.tensor(circle_B)
            out_BTD = Rotation(x_BTD, num_groups=groups, group_channels=8, circle_B=circles)(x_BTD)
        else:
            out_BTD = rolled(x_BTD, groups, 8, circle_B or [37] * 3)
        out_BTD.backward(dy_BTD)
        assert x_BTD.grad is not None
        results.append((out_BTD.detach(), x_BTD.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(results[0][0].signbit(), results[1][0].signbit())


def test_shifts_are_0_and_the_powers_of_2() -> None:
    assert shifts_of(11) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert shifts_of(1) == [0]
