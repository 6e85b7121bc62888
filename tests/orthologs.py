"""Two genomes of one ancestor, of which is known what became of each letter, and a dataset of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.alphabet import Codes, decode
from data_prep.config import DataConfig
from data_prep.dataset.build import Built, build

INVERTED, MOVED = (20_000, 26_000), (40_000, 47_000)  # of the ancestor
SETTINGS = {"between": ["one", "other"], "window": 3, "max_gap": 500, "max_shift": 50}


@dataclass(frozen=True)
class Relatives:
    """``to_other``: where each letter of ``one`` stands in ``other``, -1 where it was lost; ``turned``: on
    the other strand."""

    one: Codes
    other: Codes
    to_other: np.ndarray[Any, np.dtype[np.int64]]
    turned: np.ndarray[Any, np.dtype[np.bool_]]


def relatives(
    bp: int = 60_000, *, seed: int = 0, substitution: float = 0.06, indel: float = 0.004
) -> Relatives:
    """``other`` has substitutions, indels of 1 to 6 bp, an inversion and a stretch that moved to its end."""
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 4, bp, dtype=np.uint8)
    kept = np.ones(bp, np.bool_)
    for at in np.flatnonzero(rng.random(bp) < indel / 2).tolist():
        kept[at : at + int(rng.integers(1, 7))] = False
    source = np.arange(bp)
    parts = [source[: INVERTED[0]], source[slice(*INVERTED)][::-1], source[INVERTED[1] : MOVED[0]]]
    parts += [source[MOVED[1] :], source[slice(*MOVED)]]
    order = np.concatenate(parts)
    order = order[kept[order]]
    places = np.flatnonzero(rng.random(len(order)) < indel / 2)
    new = np.repeat(places, rng.integers(1, 7, len(places)))
    order = np.insert(order, new, -1)
    turned = (source >= INVERTED[0]) & (source < INVERTED[1])
    other = np.where(turned[order], 3 - one[order], one[order])
    drawn = (order < 0) | (rng.random(len(order)) < substitution)
    other = np.where(drawn, rng.integers(0, 4, len(order)), other).astype(np.uint8)
    to_other = np.full(bp, -1)
    to_other[order[order >= 0]] = np.flatnonzero(order >= 0)
    return Relatives(one, other, to_other, turned)


def write_fasta(path: Path, contigs: Mapping[str, Codes]) -> str:
    path.write_text("".join(f">{name}\n{decode(codes).decode()}\n" for name, codes in contigs.items()))
    return str(path)


def relatives_dataset(folder: Path, pair: Relatives, **changes: Any) -> Built:
    """The dataset in ``folder``/dataset: contig a of both genomes is trained on, a copy of its first half is
    held out as contig b."""
    folder.mkdir(parents=True, exist_ok=True)
    references = [
        {
            "name": name,
            "uri": write_fasta(folder / f"{name}.fa", {"a": codes, "b": codes[: len(codes) // 4]}),
        }
        for name, codes in (("one", pair.one), ("other", pair.other))
    ]
    values = {
        "references": references,
        "output": str(folder / "dataset"),
        "block_bp": 4096,
        "shard_bp": 16_384,
        "split": {"val": ["b"], "leakage": "off"},
        "partners": SETTINGS,
        "workers": 1,
    }
    return build(DataConfig.model_validate(values | changes))
