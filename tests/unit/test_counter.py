"""Counter-based draws: the same everywhere, uniform, and independent between streams and samples."""

import math

import torch

from trainer import counter


def test_golden_values_do_not_change() -> None:
    """Another hash would give every run other samples: these figures are a contract."""
    key_B = counter.fold(7, torch.tensor([0, 1]))
    assert key_B.tolist() == GOLDEN_KEYS
    assert counter.words(key_B, "mask", 2).tolist() == GOLDEN_WORDS


def test_a_sample_draws_the_same_in_any_batch() -> None:
    ids = torch.arange(100)
    together = counter.words(counter.fold(3, 0, ids), "mask", 50)
    alone = counter.words(counter.fold(3, 0, ids[37:38]), "mask", 50)
    assert torch.equal(together[37:38], alone)


def test_ids_streams_and_seeds_all_count() -> None:
    base = counter.words(counter.fold(3, torch.arange(4), 5), "mask", 8)
    for other in (
        counter.words(counter.fold(4, torch.arange(4), 5), "mask", 8),
        counter.words(counter.fold(3, 5, torch.arange(4)), "mask", 8),
        counter.words(counter.fold(3, torch.arange(4), 5), "letters", 8),
    ):
        assert not (base == other).any()


def test_integers_are_uniform() -> None:
    drawn = counter.integers(counter.fold(1, torch.arange(40_000)), "place", 8)
    counts = torch.bincount(drawn, minlength=8).double()
    assert drawn.min() == 0
    assert drawn.max() == 7
    chi_square = float(((counts - 5000) ** 2 / 5000).sum())
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001


def test_below_has_its_probability_in_every_field() -> None:
    words = counter.words(counter.fold(2, torch.arange(100)), "mask", 1000)
    for low_bit in (0, 24, 32):
        share = counter.below(words, low_bit, 0.3).double().mean().item()
        assert abs(share - 0.3) < 5 * math.sqrt(0.21 / 1e5)
    assert not counter.below(words, 0, 0.0).any()
    assert counter.below(words, 0, 1.0).all()


def test_normals_have_mean_0_and_variance_1_and_no_correlation() -> None:
    drawn = counter.normals(counter.fold(2, torch.arange(200)), "noise", 1001)
    assert drawn.shape == (200, 1001)
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.var() - 1) < 0.02
    assert abs((drawn[:, :-1:2] * drawn[:, 1::2]).mean()) < 0.02


GOLDEN_KEYS = [-1897817670069925741, 3610735443005674341]
GOLDEN_WORDS = [
    [7829130724281688925, -3273289979353658007],
    [5285194945767796426, 7206535856696196214],
]
