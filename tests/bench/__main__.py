"""``make bench``: each row compares two figures of this run; prints a table and writes bench.json.

Rows: name, ours, reference, ratio, unit, target, reference_is. Medians of several runs, taken in turns, so that a slow
moment of the machine falls on both. ``python -m tests.bench prep`` runs one group of rows alone.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from data_prep import alphabet
from tests.bench import prep, reader, views
from tests.bench.harness import Row, rate
from trainer.collectives import Group
from trainer.ema import FlatGroup, ShardedEMA


def reverse_complement() -> Row:
    codes = np.random.default_rng(0).integers(0, 5, 1 << 18).astype(np.uint8)
    text = alphabet.decode(codes).decode()
    pairs = dict(zip("ACGTN", "TGCAN", strict=True))
    fast, slow = rate(len(codes) / 1e6, lambda: alphabet.reverse_complement(codes),
                      lambda: "".join(pairs[letter] for letter in reversed(text)))  # fmt: skip
    return Row("reverse complement", fast, slow, fast / slow, "Mbp/s", "–", "dictionary look-up, per base")


def ema_update() -> Row:
    torch.manual_seed(0)
    student = torch.nn.Sequential(*[torch.nn.Linear(308, 512) for _ in range(40)])
    teacher = torch.nn.Sequential(*[torch.nn.Linear(308, 512) for _ in range(40)])
    masters = torch.cat([p.detach().flatten() for p in student.parameters()])
    slots, offset = {}, 0
    for name, parameter in student.named_parameters():
        slots[name] = (offset, parameter.shape)
        offset += parameter.numel()
    half = -(-offset // 2)
    whole = ShardedEMA(teacher, [FlatGroup(offset, slots, [(0, masters)])], group=Group(0, 1), dtype=torch.float32)
    shard, mine = whole.shards[0][:half], masters[:half]
    copies = {name: tensor.clone() for name, tensor in student.state_dict().items()}

    def loop() -> None:
        for name, tensor in student.state_dict().items():
            copies[name].mul_(0.996).add_(tensor, alpha=0.004)

    def ours() -> None:
        torch._foreach_lerp_([shard], [mine], 0.004)

    fast, slow = rate(offset / 1e6, ours, loop)
    return Row("EMA update of one rank of two, 6.3 M", fast, slow, fast / slow, "M params/s", "≥ 3",
               "mul_().add_() over state_dicts")  # fmt: skip


GROUPS: dict[str, Callable[[], list[Row]]] = {
    "prep": prep.rows,
    "reader": reader.rows,
    "views": lambda: [views.two_views(), views.two_heavy_views()],
    "kernels": lambda: [reverse_complement(), ema_update()],
}


def main(wanted: list[str]) -> int:
    unknown = sorted(set(wanted) - GROUPS.keys())
    if unknown:
        print(f"error: no bench is called {', '.join(unknown)}; there are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    rows = []
    print(f"{'name':<58}{'ours':>10}{'reference':>11}{'ratio':>9}  {'unit':<11}{'target':<18}reference is")
    for name in wanted or GROUPS:
        for row in GROUPS[name]():
            print(f"{row.name:<58}{row.ours:>10.4g}{row.reference:>11.4g}{row.ratio:>9.4g}  {row.unit:<11}"
                  f"{row.target:<18}{row.reference_is}", flush=True)  # fmt: skip
            rows.append(row)
    Path("bench.json").write_text(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
