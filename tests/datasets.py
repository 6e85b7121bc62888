"""Small datasets written straight through the shard writer, without Ray or a FASTA file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import store
from data_prep import shards
from data_prep.alphabet import Codes
from data_prep.blocks import pack
from data_prep.dataset.write import write_shard
from data_prep.levels import Levels
from data_prep.split.intervals import Span


def write_dataset(
    folder: Path,
    contigs: Mapping[str, Sequence[Codes]],
    *,
    block_bp: int = 4096,
    soft: bool = False,
    track: bool = False,
) -> str:
    """The URI of a dataset of ``contigs`` (split -> contigs), cut into blocks of ``block_bp``, one shard a
    split.

    With ``soft`` the first 4 of every 10 letters of a block are soft-masked. With ``track`` letters have the
    weights of ``levels_at`` their positions.
    """
    written: dict[str, tuple[shards.Shard, ...]] = dict.fromkeys(shards.SPLITS, ())
    lengths = {}
    for split, sequences in contigs.items():
        blocks = []
        for number, codes in enumerate(sequences):
            name = f"{split}{number}"
            lengths[name] = len(codes)
            for start in range(0, len(codes), block_bp):
                part = codes[start : start + block_bp]
                span = Span("toy", name, start, start + len(part))
                masked = (np.arange(len(part)) % 10 < 4) & soft
                levels = levels_at(np.arange(start, start + len(part))) if track else None
                blocks.append((span, pack(part, masked, levels)))
        written[split] = (write_shard(str(folder / f"{split}-000000.tar"), blocks),)
    source = shards.Source("toy", "0" * 64, lengths, 0, {"track": {}} if track else {}, 1.0)
    manifest = shards.Manifest(shards.FORMAT_VERSION, (source,), block_bp, 1 << 24, 1.0, {}, 0, written)
    store.write_bytes(str(folder / shards.MANIFEST), manifest.to_bytes())
    return str(folder)


def levels_at(position_N: np.ndarray[Any, np.dtype[np.int64]]) -> Levels:
    """uint8 [N], 0 to 15: levels of weights that no shift by less than 16 letters leaves as they are."""
    return (position_N * position_N % 17 % 16).astype(np.uint8)


def markov_sequence(bases: int, *, seed: int) -> Codes:
    """Codes A, C, G, T in which each letter depends on the one before: something to learn."""
    rng = np.random.default_rng(seed)
    jump = rng.random(bases) < 0.3
    steps = np.where(jump, rng.integers(0, 4, bases), 1)
    return (np.cumsum(steps) % 4).astype(np.uint8)
