"""What a step found is read once, and only where it is asked for."""

import torch

from trainer.core.device import HostCopy, is_queued
from trainer.distill.result import Reduced, StepResult


def test_numbers_are_read_once_and_only_when_they_are_asked_for() -> None:
    asked = []

    def read() -> Reduced:
        asked.append("read")
        return Reduced({"mlm": 1.5, "total": 1.5}, True, 75, 0.25)

    result = StepResult(read, {"distill": torch.zeros(2)}, {"health/kl": 0.5})
    assert result.states["distill"].shape == (2,) and result.health and result.decision is None
    assert not asked, "what is on the device, or known before, waits for nothing"
    assert (result.losses["total"], result.finite, result.stop, result.norm) == (1.5, True, 75, 0.25)
    assert asked == ["read"]


def test_a_copy_has_the_values_of_its_tensor() -> None:
    copied = HostCopy(torch.tensor([1.5, float("inf"), -2.0], dtype=torch.float64))
    assert copied.values() == copied.values() == [1.5, float("inf"), -2.0]


def test_only_a_cpu_is_not_queued() -> None:
    assert not is_queued(torch.device("cpu"))
    assert is_queued(torch.device("cuda")) and is_queued(torch.device("meta"))
