"""data_prep.levels: values become the nearest level, and the bytes are the same everywhere."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.levels import MAX_LEVEL, PackedLevels, Scale, compress


def naive(value: float, scale: Scale) -> int:
    """The level of one value: of all that there are, the one whose weight is nearest; of two, the higher."""
    weight = scale.missing
    if not math.isnan(value):
        weight = min(1.0, max(0.0, (value - scale.low) / (scale.high - scale.low)))
    known = [MAX_LEVEL * step // (scale.steps - 1) for step in range(scale.steps)]
    return min(known, key=lambda level: (round(abs(level / MAX_LEVEL - weight), 12), -level))


scales = st.builds(
    Scale,
    low=st.floats(-10, 0),
    high=st.floats(0.5, 20),
    missing=st.floats(0, 1),
    steps=st.sampled_from([2, 4, 16]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=32), max_size=30), scales)
def test_a_value_becomes_the_nearest_level(values: list[float], scale: Scale) -> None:
    found = scale.levels(np.array(values, np.float64))
    assert found.dtype == np.uint8
    assert found.tolist() == [naive(value, scale) for value in values]


def test_levels_of_a_scale() -> None:
    values = np.array([-1, 0, 0.8, 0.9, 2.5, 5, 9, math.nan, math.inf, -math.inf])
    assert Scale(0, 5, 1, 4).levels(values).tolist() == [0, 0, 0, 5, 10, 15, 15, 15, 15, 0]
    assert Scale(0, 5, 0.5, 2).levels(values).tolist() == [0, 0, 0, 0, 15, 15, 15, 15, 15, 0]
    assert Scale(0, 5, 0, 16).levels(values).tolist() == [0, 0, 2, 3, 8, 15, 15, 0, 15, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.sampled_from([(1, 15), (2, 5), (4, 1)]), st.integers(0, 1 << 30))
def test_a_letter_takes_as_few_bits_as_its_levels_need(
    letters: int, width: tuple[int, int], seed: int
) -> None:
    bits, step = width
    levels = np.random.default_rng(seed).integers(0, MAX_LEVEL // step + 1, letters).astype(np.uint8) * step
    section = compress(levels.astype(np.uint8))
    assert section[0] <= bits
    assert len(section) <= letters * bits / 8 + 16, "noise gets no larger"
    assert PackedLevels(memoryview(section), letters).read(0, letters).tolist() == levels.tolist()


def test_the_bytes_of_a_section() -> None:
    """zlib and zlib-ng write these. Another program that does not would give shards of other bytes."""
    rng = np.random.default_rng(0)
    noise = np.maximum(rng.integers(-8, 4, 1 << 18), 0).astype(np.uint8) * np.uint8(5)
    smooth = np.repeat(rng.integers(0, 16, 3000), rng.integers(1, 300, 3000)).astype(np.uint8)[: 1 << 18]
    found = [hashlib.sha256(compress(levels)).hexdigest()[:16] for levels in (noise, smooth)]
    assert found == ["f43d55901ee1653e", "3a53d7a1876fb306"]
    assert len(compress(np.zeros(1 << 18, np.uint8))) < 300


def test_a_level_above_the_highest_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="level 16 is above 15"):
        compress(np.array([16], np.uint8))
