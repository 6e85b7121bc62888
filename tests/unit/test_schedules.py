"""Schedules are functions of the step and of the samples seen, and of nothing else."""

import pytest

from trainer.core import schedules


def rate(step: int) -> float:
    return schedules.learning_rate(step, peak=2.0, total_steps=100, warmup_fraction=0.3, final_fraction=0.1)


def test_rate_warms_up_peaks_and_ends_at_its_final_fraction() -> None:
    assert rate(1) == pytest.approx(2.0 / 30)
    assert rate(30) == 2.0
    assert rate(65) == pytest.approx(2.0 * 0.55)
    assert rate(100) == pytest.approx(0.2)
    assert rate(1000) == pytest.approx(0.2)


def test_rate_without_warm_up_starts_near_the_peak() -> None:
    first = schedules.learning_rate(1, peak=1.0, total_steps=10, warmup_fraction=0, final_fraction=0)
    assert 0.9 < first < 1


def test_momentum_goes_from_start_to_end_by_samples() -> None:
    values = [schedules.momentum(s, start=0.996, end=1.0, total_samples=1000) for s in range(0, 1100, 50)]
    assert values[0] == 0.996
    assert values[20] == 1.0
    assert values[21] == 1.0
    assert values == sorted(values)
    assert values[10] == pytest.approx(0.998)
