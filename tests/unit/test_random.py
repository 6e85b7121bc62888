"""Counter-based draws: the same everywhere, uniform, and independent between streams, samples, words and
fields."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from trainer.core import random


def test_golden_values_do_not_change() -> None:
    """Another hash would give every run other samples: these figures are a contract."""
    key_B = random.fold(7, torch.tensor([0, 1]))
    assert key_B.tolist() == GOLDEN_KEYS
    assert random.words(key_B, "mask", 2).tolist() == GOLDEN_WORDS


def test_a_sample_draws_the_same_in_any_batch() -> None:
    ids = torch.arange(100)
    together = random.words(random.fold(3, 0, ids), "mask", 50)
    alone = random.words(random.fold(3, 0, ids[37:38]), "mask", 50)
    assert torch.equal(together[37:38], alone)


def test_ids_streams_and_seeds_all_count() -> None:
    base = random.words(random.fold(3, torch.arange(4), 5), "mask", 8)
    for other in (
        random.words(random.fold(4, torch.arange(4), 5), "mask", 8),
        random.words(random.fold(3, 5, torch.arange(4)), "mask", 8),
        random.words(random.fold(3, torch.arange(4), 5), "letters", 8),
    ):
        assert not (base == other).any()


INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(seed=INT64, ids=st.lists(st.tuples(INT64, st.booleans()), max_size=4), seed_as_tensor=st.booleans())
def test_numbers_and_tensors_fold_alike(seed: int, ids: list[tuple[int, bool]], seed_as_tensor: bool) -> None:
    """Numbers are hashed in Python, tensors in torch: one hash all the same, against SplitMix64 on numpy's
    uint64."""
    parts = [torch.tensor([i]) if as_tensor else i for i, as_tensor in ids]
    key = random.fold(torch.tensor([seed]) if seed_as_tensor else seed, *parts)

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    expected = np.array([seed]).astype(np.uint64)
    for i, _ in ids:
        expected = mix(mix(expected) + np.uint64(0x9E3779B97F4A7C15) * np.array([i]).astype(np.uint64))
    assert key.dtype == torch.int64
    assert key.item() == mix(expected).astype(np.int64).item()


def test_folding_leaves_its_tensors_alone() -> None:
    key_B, ids_B = torch.arange(4), torch.arange(4)
    random.fold(key_B)
    random.fold(key_B, ids_B, 3)
    random.words(key_B, "mask", 8)
    assert torch.equal(key_B, torch.arange(4))
    assert torch.equal(ids_B, torch.arange(4))


def test_a_stream_can_be_read_anywhere() -> None:
    keys = random.fold(3, torch.arange(4))
    assert torch.equal(
        random.read(random.stream_keys(keys, "mask"), 5, 3), random.words(keys, "mask", 8)[:, 5:]
    )


def test_integers_are_uniform() -> None:
    drawn = random.integers(random.fold(1, torch.arange(40_000)), "place", 8)
    counts = torch.bincount(drawn, minlength=8).double()
    assert drawn.min() == 0
    assert drawn.max() == 7
    chi_square = float(((counts - 5000) ** 2 / 5000).sum())
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001


def test_below_has_its_probability_in_every_field() -> None:
    words = random.words(random.fold(2, torch.arange(100)), "mask", 1000)
    for low_bit in (0, 24, 32):
        share = random.below(words, low_bit, 0.3).double().mean().item()
        assert abs(share - 0.3) < 5 * math.sqrt(0.21 / 1e5)
    assert not random.below(words, 0, 0.0).any()
    assert random.below(words, 0, 1.0).all()


def test_a_short_is_below_a_cut_with_its_probability_exactly() -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    for cut in (0, 1, 4, 9830, 32767, 32768, 32769, 65535, 65536):
        flags = random.below_short(every, cut)
        assert flags.dtype == torch.uint8
        assert (int(flags.sum()), int(flags.max())) == (cut, int(cut > 0))
    with pytest.raises(AssertionError, match=r"cut 65537 is not within 0 and 2\^16"):
        random.below_short(every, 65537)


def excess(first: torch.Tensor, second: torch.Tensor, kinds: int) -> float:
    """Chi-square of the pairs of two draws, each uniform on 0 … kinds - 1 and independent, over its 99.9 %
    quantile."""
    counts = torch.bincount((first.long() * kinds + second.long()).flatten(), minlength=kinds**2).double()
    expected = counts.sum() / kinds**2
    return float(((counts - expected) ** 2 / expected).sum()) / float(chi2.ppf(0.999, kinds**2 - 1))


def test_shorts_are_uniform_and_independent_of_their_neighbours() -> None:
    shorts = random.shorts(random.words(random.fold(11, torch.arange(200)), "mask", 500))
    assert shorts.shape == (200, 2000)
    high, low = (shorts >> 12) + 8, shorts & 15
    for apart in (1, 2, 3, 4):  # in one word and in the next
        for one in (high, low):
            for other in (high, low):
                assert excess(one[:, :-apart], other[:, apart:], 16) < 1, apart
    assert excess(high, low, 16) < 1
    assert excess(high[:-1], high[1:], 16) < 1  # the next sample
    for place in range(4):
        assert excess(high[:, place::8], high[:, 4 + place :: 8], 16) < 1


def test_letters_are_uniform_and_independent_of_their_neighbours() -> None:
    words = random.words(random.fold(11, torch.arange(200)), "letters", 32)
    letters = random.letters(words)
    assert letters.shape == (200, 1024)
    assert letters.dtype == torch.uint8
    for apart in (1, 2, 8, 32, 256, 512):
        assert excess(letters[:, :-apart], letters[:, apart:], 4) < 1, apart
    assert excess(letters[:-1], letters[1:], 4) < 1
    bits = (words[:, :, None] >> torch.arange(0, 64, 2)) & 3
    assert torch.equal(bits.flatten().bincount(), letters.flatten().bincount())  # each bit pair serves once


def test_dependence_and_bias_are_caught() -> None:
    letters = random.letters(random.words(random.fold(11, torch.arange(200)), "letters", 32)).clone()
    letters[:, 1::20] = letters[:, ::20][:, : letters[:, 1::20].shape[1]]
    assert excess(letters[:, :-1], letters[:, 1:], 4) > 1


def test_normals_have_mean_0_and_variance_1_and_no_correlation() -> None:
    drawn = random.normals(random.fold(2, torch.arange(200)), "noise", 1001)
    assert drawn.shape == (200, 1001)
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.var() - 1) < 0.02
    for apart in (1, 2, 501):  # neighbours, words, and the members of a pair, half of 1,002 apart
        one, other = drawn[:, :-apart], drawn[:, apart:]
        assert abs((one * other).mean()) < 0.02
        assert abs((one.square() * other.square()).mean() - 1) < 0.05
    within = [float((drawn.abs() < deviations).double().mean()) for deviations in (1, 2, 3)]
    assert within == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.004)


GOLDEN_KEYS = [-1897817670069925741, 3610735443005674341]
GOLDEN_WORDS = [
    [7829130724281688925, -3273289979353658007],
    [5285194945767796426, 7206535856696196214],
]
