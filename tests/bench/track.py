"""What a weight for each letter costs: bytes in the shards, and time of reading.

No track of a genome is read: two are drawn. ``phylop`` is noise as phyloP has it, from letter to letter,
about 0 in 95 % of the letters and about 3 in conserved elements of 100 bp on average. ``phastcons`` is the
smooth probability of these elements.

Shapes: N letters.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from data_prep.blocks import pack
from data_prep.levels import Scale, Values
from tests.bench.harness import Row
from tests.bench.reader import BLOCK_BP, LENGTH, ROWS, open_bench_reader, read_and_show, write_random_dataset

CONSERVED, ELEMENT_BP = 0.05, 100
NOISE = 0.3  # correlation of the noise of neighbouring letters
PHYLOP, PHASTCONS = Scale(0, 5, 0, 4), Scale(0, 1, 0, 4)


def phylop(bases: int) -> Values:
    """float64 [N]."""
    noise_N = _noise(bases)
    return np.where(_conserved(bases), 3 + 2 * noise_N, 0.9 * noise_N)


def phastcons(bases: int) -> Values:
    """float64 [N], 0 to 1."""
    kernel = np.exp(-np.abs(np.arange(-100, 101)) / 15)
    smooth_N = np.convolve(_conserved(bases) + 0.15 * _noise(bases), kernel / kernel.sum(), "same")
    return np.asarray(1 / (1 + np.exp(-14 * (smooth_N - 0.5))))


def _noise(bases: int) -> Values:
    """An Ornstein-Uhlenbeck process, read at each letter."""
    drawn_N = np.random.default_rng(1).normal(size=bases)
    return np.asarray(lfilter([np.sqrt(1 - NOISE**2)], [1, -NOISE], drawn_N))


def _conserved(bases: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    count = int(2 * bases * CONSERVED / ELEMENT_BP) + 100
    gaps = rng.geometric(CONSERVED / (ELEMENT_BP * (1 - CONSERVED)), count)
    runs = np.stack([gaps, rng.geometric(1 / ELEMENT_BP, count)], 1).ravel()
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)[:bases]


def stored(name: str, value_N: Values, scale: Scale) -> Row:
    """Bytes a bp that the weights of a track take, beside those of the letters."""
    rng, sizes = np.random.default_rng(0), np.zeros(2)
    for start in range(0, len(value_N), BLOCK_BP):
        levels = scale.levels(value_N[start : start + BLOCK_BP])
        codes = rng.integers(0, 4, len(levels)).astype(np.uint8)
        soft_mask = np.zeros(len(levels), np.bool_)
        sizes += len(pack(codes, soft_mask, levels)), len(pack(codes, soft_mask))
    more, plain = (sizes[0] - sizes[1]) / len(value_N), sizes[1] / len(value_N)
    title = f"track: {name}, {scale.steps} levels, bytes more a bp"
    return Row(title, more, plain, more / plain, "bytes/bp", "≤ 0.15 bytes", "the letters of the block")


def reader(*, bases: int = 1 << 25, steps: int = 200, turns: int = 7) -> Row:
    """Mbp/s to two masked views, with and without the weights of a phyloP track, in turns."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        levels = PHYLOP.levels(phylop(bases))
        readers = {
            track: open_bench_reader(
                write_random_dataset(
                    str(Path(folder, str(track))), bases=bases, level_N=levels if track else None
                ),
                track=track,
            )
            for track in rates
        }
        for turn in range(turns + 1):  # the first warms up
            for track, into in rates.items():
                start = time.perf_counter()
                read_and_show(readers[track], range(turn * steps, (turn + 1) * steps))
                if turn:
                    into.append(steps * ROWS * LENGTH / 1e6 / (time.perf_counter() - start))
        for source in readers.values():
            source.close()
    ours, plain = (statistics.median(rates[track]) for track in (True, False))
    return Row(
        "reader with a track", ours, plain, ours / plain, "Mbp/s", "≥ 0.8 ×", "the same without a track"
    )


def rows() -> list[Row]:
    bases = 1 << 23
    return [
        stored("noisy (phyloP)", phylop(bases), PHYLOP),
        stored("noisy (phyloP)", phylop(bases), Scale(0, 5, 0, 16)),
        stored("smooth (phastCons)", phastcons(bases), PHASTCONS),
        stored("smooth (phastCons)", phastcons(bases), Scale(0, 1, 0, 16)),
        reader(),
    ]
