"""``make bench``: each row compares two figures of this run; prints a table and writes bench.json.

Rows: name, ours, reference, ratio, unit, target, reference_is. Medians of several runs, taken in turns, so
that a slow moment of the machine falls on both. ``python -m tests.bench prep`` runs one group of rows alone.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from data_prep import alphabet
from tests.bench import (
    backbone,
    checkpoint,
    contrastive,
    growth,
    homology,
    inference,
    prep,
    reader,
    scale,
    start,
    step,
    teacher,
    track,
    views,
)
from tests.bench.harness import Row, rate


def reverse_complement() -> Row:
    codes = np.random.default_rng(0).integers(0, 5, 1 << 18).astype(np.uint8)
    text = alphabet.decode(codes).decode()
    pairs = dict(zip("ACGTN", "TGCAN", strict=True))
    fast, slow = rate(
        len(codes) / 1e6,
        lambda: alphabet.reverse_complement(codes),
        lambda: "".join(pairs[letter] for letter in reversed(text)),
    )
    return Row("reverse complement", fast, slow, fast / slow, "Mbp/s", "–", "dictionary look-up, per base")


GROUPS: dict[str, Callable[[], list[Row]]] = {
    "prep": prep.rows,
    "homology": homology.rows,
    "growth": growth.rows,
    "reader": reader.rows,
    "track": track.rows,
    "views": lambda: [views.two_views(), views.two_heavy_views()],
    "kernels": lambda: [reverse_complement()],
    "teacher": teacher.rows,
    "backbone": backbone.rows,
    "step": step.rows,
    "contrastive": contrastive.rows,
    "checkpoint": checkpoint.rows,
    "start": start.rows,
    "scale": scale.rows,
    "inference": inference.rows,
}


def main(wanted: list[str]) -> int:
    unknown = sorted(set(wanted) - GROUPS.keys())
    if unknown:
        print(
            f"error: no bench is called {', '.join(unknown)}; there are {', '.join(GROUPS)}", file=sys.stderr
        )
        return 2
    torch.set_num_threads(1)
    rows = []
    print(f"{'name':<58}{'ours':>10}{'reference':>11}{'ratio':>9}  {'unit':<11}{'target':<18}reference is")
    for name in wanted or GROUPS:
        for row in GROUPS[name]():
            print(
                f"{row.name:<58}{row.ours:>10.4g}{row.reference:>11.4g}{row.ratio:>9.4g}  {row.unit:<11}"
                f"{row.target:<18}{row.reference_is}",
                flush=True,
            )
            rows.append(row)
    Path("bench.json").write_text(
        json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
