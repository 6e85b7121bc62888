"""Training on windows by region: the same samples to the bit, and the same losses, on 1 and 2 ranks."""

import math
from pathlib import Path
from typing import Any

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import run_cases, small_config
from tests.ranks import on_ranks

STEPS = 4


def test_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    contigs = {"train": [markov_sequence(8_000, seed=1)], "val": [markov_sequence(1_000, seed=2)]}
    uri = write_dataset(tmp_path / "toy", contigs, block_bp=512, soft=True)
    lines = "".join(f"train0\t{start}\t{start + 70}\tx\t{start % 900}\n" for start in range(40, 8_000, 300))
    (tmp_path / "peaks.bed").write_text(lines)
    regions = {"anywhere": 0.2, "beds": [{"uri": str(tmp_path / "peaks.bed"), "by": "score"}]}
    cases = {"regions": (small_config(uri, data__regions=regions), STEPS)}
    (alone,), both = (on_ranks(world, run_cases, cases) for world in (1, 2))
    wanted = alone["regions"]
    found: dict[Any, Any] = {}
    for rank in both:
        found |= rank["regions"]["samples"]
        for one, two in zip(rank["regions"]["losses"], wanted["losses"], strict=True):
            assert all(math.isclose(one[name], two[name], rel_tol=1e-5) for name in two)
    assert found == wanted["samples"]
    leaves = [int(key[0]) for _, key in found]
    assert 0.7 < leaves.count(1) / len(leaves) < 0.9 and set(leaves) == {0, 1}
