"""Scores of variants: from a network, a genome and a list of them, without a file.

Shapes: N variants, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from trainer.inference.opened_model import DEFAULT_LENGTH
from trainer.inference.precision import Resolved
from trainer.inference.variants.alleles import OK, Variant
from trainer.inference.variants.changes import changes
from trainer.inference.variants.forward import Forward, Strands
from trainer.inference.variants.genome import Genome
from trainer.inference.variants.likelihood import log_ratios
from trainer.inference.variants.windows import Placed, place
from trainer.models.network import Network

Score = Literal["llr", "embedding_distance", "max_local_change"]
SCORES: tuple[Score, ...] = get_args(Score)

CHUNK = 512  # variants whose windows are held at once

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Scoring:
    """What is computed: the window's letters, the scores, the strands whose mean they are, and the number
    format of products. ValueError for a value that cannot be."""

    length: int = DEFAULT_LENGTH
    scores: tuple[Score, ...] = SCORES
    strands: Strands = "both"
    precision: Resolved = "fp32"

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ValueError(f"length {self.length} must be at least 3")
        if wrong := [name for name in self.scores if name not in SCORES]:
            raise ValueError(f"scores has {wrong[0]!r}; known are {', '.join(SCORES)}")
        if len(set(self.scores)) < max(1, len(self.scores)):
            raise ValueError(f"scores must name some of {', '.join(SCORES)}, each once")
        if self.strands not in get_args(Strands):
            raise ValueError(f"strands {self.strands!r} is not {' or '.join(get_args(Strands))}")


@dataclass(frozen=True)
class Scored:
    """What was found of N variants.

    Attributes:
        status: "ok", or why a variant has no scores.
        scores: fp32 [N] of each that was asked for, NaN without one.
        difference_ND: the mean hidden state of the alternate window less that of the reference's; None if
            neither distance was asked for.
    """

    status: list[str]
    scores: dict[Score, Array]
    difference_ND: Array | None

    def table(self, variants: Sequence[Variant]) -> pa.Table:
        """Columns chrom, pos, ref, alt, the scores, status; a score that is not there is null."""
        table = {
            name: pa.array([each[i] for each in variants], pa.int64() if name == "pos" else pa.string())
            for i, name in enumerate(Variant._fields)
        }
        for name, values_N in self.scores.items():
            table[name] = pa.array(values_N, pa.float32(), mask=np.isnan(values_N))
        return pa.table(table | {"status": pa.array(self.status, pa.string())})


def score_table(network: Network, genome: Genome, variants: Sequence[Variant], scoring: Scoring) -> pa.Table:
    """``Scored.table`` of ``variants``, any number of them; raises as ``score``."""
    chunks = [variants[start : start + CHUNK] for start in range(0, len(variants), CHUNK)] or [[]]
    return pa.concat_tables(score(network, genome, chunk, scoring).table(chunk) for chunk in chunks)


def score(network: Network, genome: Genome, variants: Sequence[Variant], scoring: Scoring) -> Scored:
    """The scores of ``variants``, in order, computed where ``network`` is.

    On a CPU in fp32 each has the same bits whatever is scored beside it.

    Raises:
        ValueError: a letter of the reference is none. StoreError: the reference cannot be read. MemoryError:
            a window is too long for the device.
    """
    found = [place(variant, genome, length=scoring.length) for variant in variants]
    placed = [each for each in found if isinstance(each, Placed)]
    is_placed_N = np.array([isinstance(each, Placed) for each in found], bool)
    forward = Forward(network, scoring.length, scoring.strands, scoring.precision)

    def spread(values: Any) -> Array:
        values_N = np.full((len(found), *values.shape[1:]), np.nan, np.float32)
        values_N[is_placed_N] = values
        return values_N

    none = np.empty(0)
    scores: dict[Score, Array] = {}
    difference_ND = None
    if "llr" in scoring.scores:
        scores["llr"] = spread(log_ratios(forward, placed) if placed else none)
    if {"embedding_distance", "max_local_change"} & set(scoring.scores):
        local = "max_local_change" in scoring.scores
        changed = changes(forward, placed, local=local) if placed else None
        difference = changed.difference_ND.numpy() if changed else np.empty((0, 0))
        difference_ND = spread(difference)
        squares_ND = difference.astype(np.float64) ** 2
        scores["embedding_distance"] = spread(np.sqrt(squares_ND.sum(1)))
        scores["max_local_change"] = spread(changed.largest_N.numpy() if changed else none)
    status = [OK if isinstance(each, Placed) else each.status for each in found]
    return Scored(status, {name: scores[name] for name in scoring.scores}, difference_ND)
