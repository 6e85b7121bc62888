"""``make bench``: each row is a ratio of two measurements in this run; prints a table and writes bench.json.

Rows: name, ours, reference, ratio, unit, target, reference_is. The median of five runs each, taken in turns, so that a
slow moment of the machine falls on both.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.preprocessing import LabelBinarizer

from data_prep import alphabet, shards
from trainer import counter
from trainer.collectives import Group
from trainer.ema import FlatGroup, ShardedEMA
from trainer.views import Windows, make_view, mask


@dataclass(frozen=True)
class Row:
    name: str
    ours: float
    reference: float
    ratio: float
    unit: str
    target: str
    reference_is: str


def rate(amount: float, ours: Callable[[], object], reference: Callable[[], object]) -> tuple[float, float]:
    """(ours, reference) in amount a second: medians of five runs in turns, after a warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(6):
        for function, into in zip((ours, reference), seconds, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                into.append(time.perf_counter() - start)
    return amount / statistics.median(seconds[0]), amount / statistics.median(seconds[1])


def block_like_hg38(bases: int) -> tuple[alphabet.Codes, alphabet.Mask]:
    """Random letters, soft-masked in runs of 300 on average, as repeats are."""
    rng = np.random.default_rng(0)
    runs = rng.geometric(1 / 300, bases // 50)
    soft_mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)[:bases]
    return rng.integers(0, 4, bases).astype(np.uint8), soft_mask


def encode_and_pack() -> Row:
    codes, soft_mask = block_like_hg38(1 << 16)
    letters = alphabet.decode(codes, soft_mask)
    binarizer = LabelBinarizer().fit(list("ACGTN"))

    def ours() -> bytes:
        codes, soft_mask, _ = alphabet.encode(letters)
        return shards.pack(codes, soft_mask)

    fast, slow = rate(len(letters) / 1e6, ours, lambda: binarizer.transform(list(letters.decode().upper())))
    return Row("encode and pack a block", fast, slow, fast / slow, "Mbp/s", "–", "LabelBinarizer one-hot, per base")


def reverse_complement() -> Row:
    codes = np.random.default_rng(0).integers(0, 5, 1 << 18).astype(np.uint8)
    text = alphabet.decode(codes).decode()
    pairs = dict(zip("ACGTN", "TGCAN", strict=True))
    fast, slow = rate(len(codes) / 1e6, lambda: alphabet.reverse_complement(codes),
                      lambda: "".join(pairs[letter] for letter in reversed(text)))  # fmt: skip
    return Row("reverse complement", fast, slow, fast / slow, "Mbp/s", "–", "dictionary look-up, per base")


def two_views() -> Row:
    rows, length, flank = 64, 1000, 60
    generator = torch.Generator().manual_seed(0)
    codes_BS = torch.randint(0, 4, (rows, length + 2 * flank), generator=generator, dtype=torch.uint8)
    windows = Windows(codes_BS, torch.zeros(rows, dtype=torch.int64), torch.full((rows,), length + 2 * flank),
                      counter.fold(0, torch.arange(rows)), flank)  # fmt: skip

    def ours() -> None:
        student = make_view(windows, name="student", operations={}, reverse_complement=0.5)
        mask(student, windows, name="student", rate=0.3, mask_share=0.8, random_share=0.1)
        make_view(windows, name="teacher", operations={"deletion": 20, "insertion": 20, "shift": 20})

    rng = np.random.default_rng(0)

    def one_by_one() -> None:
        for row in codes_BS.tolist():
            text = row[flank:-flank]
            text = [3 - c for c in reversed(text)] if rng.random() < 0.5 else text
            [5 if rng.random() < 0.24 else c for c in text]
            cut, at, new = rng.integers(0, length), rng.integers(0, length), rng.integers(0, 4, 20).tolist()
            other = row[flank : flank + cut] + row[flank + cut + 20 :]
            (other[:at] + new + other[at:])[:length]

    fast, slow = rate(rows * length / 1e6, ours, one_by_one)
    return Row("two views and a mask, L = 1000", fast, slow, fast / slow, "Mbp/s", "–", "row by row in Python")


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


def bytes_per_bp() -> Row:
    codes, soft_mask = block_like_hg38(1 << 18)
    size = len(shards.pack(codes, soft_mask)) / len(codes)
    return Row("payload of a 262 kbp block, soft-masked", size, 1.0, size, "bytes/bp", "≤ 0.27", "one byte a base")


def main() -> None:
    torch.set_num_threads(1)
    rows = [encode_and_pack(), bytes_per_bp(), reverse_complement(), two_views(), ema_update()]
    print(f"{'name':<42}{'ours':>10}{'reference':>11}{'ratio':>9}  {'unit':<12}{'target':<8}reference is")
    for row in rows:
        print(f"{row.name:<42}{row.ours:>10.4g}{row.reference:>11.4g}{row.ratio:>9.4g}  {row.unit:<12}{row.target:<8}"
              f"{row.reference_is}")  # fmt: skip
    Path("bench.json").write_text(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
