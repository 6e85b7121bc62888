"""The values that show a misplaced master: any part by itself, exact in bf16, different at every place."""

import itertools

import pytest
import torch

from trainer.engine.probe import probe, wrong_entries

CPU = torch.device("cpu")
ROW = 1 << 16


def made(name: str, length: int, first: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return probe(name, first=first, length=length, device=CPU, dtype=dtype)


def test_a_part_is_the_part_of_the_whole_and_bf16_rounds_nothing() -> None:
    whole = made("layers.3.weight", 3 * ROW + 11)
    for first, length in ((0, 5), (ROW - 3, 7), (ROW, ROW), (100, 2 * ROW + 50), (3 * ROW + 10, 1), (7, 0)):
        assert made("layers.3.weight", length, first).equal(whole[first : first + length])
    assert made("layers.3.weight", len(whole), dtype=torch.bfloat16).float().equal(whole)
    assert wrong_entries(whole, "layers.3.weight", first=0) == 0
    assert wrong_entries(whole[ROW - 5 :], "layers.3.weight", first=ROW - 5) == 0
    spoilt = whole.clone()
    spoilt[[0, ROW, 3 * ROW + 10]] += 1
    assert wrong_entries(spoilt, "layers.3.weight", first=0) == 3


@pytest.mark.parametrize("shift", [1, 2, 308, 512, ROW, 2 * ROW, -1, -ROW])
def test_nearly_all_entries_are_wrong_at_another_place(shift: int) -> None:
    found = made("a", 2 * ROW, first=3 * ROW)
    assert wrong_entries(found, "a", first=3 * ROW + shift) > 0.98 * len(found)


def test_nearly_all_entries_of_another_parameter_are_wrong() -> None:
    names = [f"layers.{i}.{kind}" for i in range(40) for kind in ("bias", "norm.weight")]
    for name, other in itertools.pairwise(names):
        assert wrong_entries(made(name, 308), other, first=0) > 200, (name, other)
    singles = {float(made(name, 1)) for name in names}
    assert len(singles) > 70, "also those of one entry differ, but for a few"
