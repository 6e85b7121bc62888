"""Homology split of the 44 ENCODE files: held-out windows that train has, too, by the naive definition; time
and memory."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cluster.tasks import ray_session
from configs import load
from data_prep.alphabet import Codes, N
from data_prep.config import DataConfig, HomologyConfig
from data_prep.dataset.build import Built, build
from data_prep.dataset.read import blocks
from data_prep.split.minimisers import minimisers
from tests.bench.harness import Row, sampled

ROOT = Path(__file__).resolve().parents[2]
VALS = {"a tenth": "0.1", "the fish": "{clade: fish}"}
_STEP = 200  # bp between two windows that are looked at
_KMERS = np.ndarray[Any, np.dtype[np.uint64]]


def rows() -> list[Row]:
    """The split of a tenth by families, and of the fish by their clade, against a split by blocks."""
    os.environ.setdefault("DNA_DATA", str(ROOT.parent / "shared" / "data"))
    if not (Path(os.environ["DNA_DATA"]) / "genomes/encode").is_dir():
        print("homology: no genomes/encode in DNA_DATA, nothing to measure", flush=True)
        return []
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-homology-") as name, ray_session.session(2):
        folder = Path(name)
        os.environ["DNA_CACHE"] = str(folder / "cache")
        _built(folder / "warm", "split.by=contigs", "split.val=0.1")  # all is decompressed and imported
        by_blocks = _built(folder / "blocks", "split.by=contigs", "split.val=0.1")
        built, peaks = dict[str, Built](), dict[str, float]()
        for what, value in VALS.items():  # before the windows are looked at, which takes memory
            with _peaks() as peak:
                built[what] = _built(folder / what, f"split.val={value}")
            peaks[what] = peak[0] / (1 << 20)
        plain = broken_share(str(folder / "blocks"), by_blocks)
        for what, one in built.items():
            share = broken_share(str(folder / what), one)
            assert one.divided and one.divided.splits
            val = one.divided.splits["val"]
            took, before, kept = one.seconds, by_blocks.seconds, val.kept_bp / val.drawn_bp
            mib = peaks[what]
            found += [
                Row(
                    f"val windows > 10 % in train, {what}", share, plain, share, "of all", "= 0", "by blocks"
                ),
                Row(
                    f"the build, {what} by homology", took, before, took / before, "s", "stated", "by blocks"
                ),
                Row(f"bp of val kept, {what}", val.kept_bp, val.drawn_bp, kept, "bp", "stated", "held out"),
                Row(f"driver's peak memory, {what}", mib, 1024, mib / 1024, "MiB", "stated", "1 GiB"),
            ]
    return found


def _built(output: Path, *overrides: str) -> Built:
    wanted = [f"output={output}", "workers=2", "split.leakage=off", *overrides]
    return build(load(DataConfig, ROOT / "configs/data/encode-clades.yaml", wanted))


def broken_share(uri: str, built: Built) -> float:
    """Of all windows of val at every 200th start, the share with more than a tenth of their minimisers among
    the k-mers of train. Each window is looked at alone, and k-mers are compared as numbers in base 4."""
    rule = HomologyConfig()
    of_train = [_kmers(codes, rule.k) for _, codes, _ in blocks(uri, built.manifest, "train")]
    train = np.unique(np.concatenate(of_train))
    windows = broken = 0
    for _, codes, _ in blocks(uri, built.manifest, "val"):
        bp = min(rule.window_bp, len(codes))
        for start in range(0, len(codes) - bp + 1, _STEP):
            window = codes[start : start + bp]
            _, positions = minimisers(window, k=rule.k, window=rule.window)
            own = _at(window, positions, rule.k)
            at = np.minimum(np.searchsorted(train, own), len(train) - 1)
            windows += 1
            broken += bool(len(own)) and (train[at] == own).mean() > rule.max_shared
    return broken / windows


def _kmers(codes: Codes, k: int) -> _KMERS:
    """The smaller of each k-mer without N and its reverse complement."""
    if len(codes) < k:
        return np.zeros(0, np.uint64)
    unknown = np.convolve(codes >= N, np.ones(k, np.int64), "valid")
    return np.unique(_at(codes, np.flatnonzero(unknown == 0), k))


def _at(codes: Codes, positions: np.ndarray[Any, np.dtype[np.int64]], k: int) -> _KMERS:
    forward, reverse = np.zeros(len(positions), np.uint64), np.zeros(len(positions), np.uint64)
    for i in range(k):
        forward = forward * np.uint64(4) + codes[positions + i]
        reverse = reverse * np.uint64(4) + (3 - codes[positions + k - 1 - i])
    return np.minimum(forward, reverse)


@contextmanager
def _peaks() -> Iterator[list[int]]:
    """[bytes]: the largest unique memory of this process meanwhile, sampled at 20 Hz."""
    peak = [0]

    def look() -> None:
        peak[0] = max(peak[0], psutil.Process().memory_full_info().uss)

    with sampled(look, every_s=0.05):
        yield peak
