"""Learning rate, EMA momentum and what else changes in a run, as pure functions of step and samples seen."""

import math


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_fraction: float, final_fraction: float
) -> float:
    """Rate of optimiser step ``step`` (the first is 1): linear warm-up to ``peak``, then cosine to
    final·peak."""
    warmup = round(total_steps * warmup_fraction)
    if step <= warmup:
        return peak * step / warmup
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done)))


def momentum(samples: int, *, start: float, end: float, total_samples: int) -> float:
    """EMA momentum in float64 after ``samples`` samples: cosine from ``start`` to ``end`` (Grill et al. 2020,
    BYOL)."""
    done = min(1.0, samples / total_samples)
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * done))


def linear(progress: float, *, start: float, end: float, share: float) -> float:
    """From ``start`` to ``end`` over the first ``share`` (above 0) of the schedule, then ``end``."""
    return start + (end - start) * min(1.0, progress / share)
