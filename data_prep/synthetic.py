"""A generated genome with structure to learn, and a labelled task on it, for machines without real data.

Chromosomes of GC isochores whose letters depend on the five before them, dispersed repeats (families of
mutated, truncated copies on either strand, soft-masked), N runs, and motif sites. The task asks for a pair of
motifs: windows with both against windows with one of them or none. All of it is a function of ``bp`` and
``seed``.
"""

import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.storage import store
from configs import ConfigError
from data_prep.alphabet import Codes, Mask, N, decode, encode, reverse_complement

MIN_BP = 100_000
WINDOW = 101
MOTIFS = (b"TGACGTCATCGC", b"CCATATTTGG")

_SHARES = {"chr1": 0.30, "chr2": 0.24, "chr3": 0.20, "chr4": 0.16, "chr5": 0.10}
_ORDER = 5
_LANE = 2000  # bp drawn one after the other; all lanes are drawn at once, in numpy
_SLOT = 500  # bp with at most one site: task windows never overlap
_TASK = {"train": 4000, "dev": 500, "test": 500}
_FAMILIES = 12
_REPEAT_SHARE = 0.2
_KEEP = 0.93  # chance that a planted motif letter is the consensus

Rng = np.random.Generator


@dataclass(frozen=True)
class Synthetic:
    """What was generated: bp by chromosome, rows by task file, and the URI of the FASTA."""

    fasta: str
    chromosomes: dict[str, int]
    task: dict[str, int]


def synthesise(output: str, *, bp: int = 6_000_000, seed: int = 0) -> Synthetic:
    """A genome of about ``bp`` as ``output``/genome.fa.gz and its task as
    ``output``/task/{train,dev,test}.csv."""
    if bp < MIN_BP:
        raise ConfigError(f"a generated genome needs at least {MIN_BP:,} bp, not {bp:,}")
    rng = np.random.default_rng(seed)
    families = [
        _markov(rng, 1, length, gc=rng.uniform(-0.6, 0.6))[0] for length in rng.integers(250, 2500, _FAMILIES)
    ]
    rows: list[tuple[bytes, int]] = []
    records, sizes = [], {}
    for name, share in _SHARES.items():
        codes, soft = _chromosome(rng, int(bp * share), families)
        rows += _plant(rng, codes)
        sizes[name] = len(codes)
        letters = decode(codes, soft)
        lines = [letters[i : i + 60] for i in range(0, len(letters), 60)]
        records.append(b">" + name.encode() + b" generated\n" + b"\n".join(lines) + b"\n")
    fasta = store.join(output, "genome.fa.gz")
    store.write_bytes(fasta, gzip.compress(b"".join(records), compresslevel=4, mtime=0))
    return Synthetic(fasta, sizes, _write_task(rng, output, rows))


def _chromosome(rng: Rng, bp: int, families: list[Codes]) -> tuple[Codes, Mask]:
    lanes = -(-bp // _LANE)
    # An isochore is a run of 25 lanes (50 kbp) of one GC tilt.
    tilt = np.repeat(rng.choice([-0.5, 0.0, 0.6], -(-lanes // 25)), 25)[:lanes]
    codes = _markov(rng, lanes, _LANE, gc=tilt).ravel()[:bp]
    soft = np.zeros(bp, np.bool_)
    placed = 0
    while placed < _REPEAT_SHARE * bp:
        copy = _diverged(rng, families[int(rng.integers(len(families)))])
        at = int(rng.integers(bp - len(copy)))
        codes[at : at + len(copy)] = copy
        soft[at : at + len(copy)] = True
        placed += len(copy)
    centre = int(rng.integers(bp // 3, bp // 2))
    for start, length in ((0, bp // 500), (centre, bp // 50), (bp - bp // 500, bp // 500)):
        codes[start : start + length] = N
        soft[start : start + length] = False
    return codes, soft


def _markov(rng: Rng, lanes: int, length: int, *, gc: Any) -> Codes:
    """``lanes`` x ``length`` codes; each letter depends on the five before it, tilted to G and C by ``gc``
    [lanes]."""
    weights = _weights()
    lift = np.multiply.outer(np.broadcast_to(gc, lanes), np.array([-0.5, 0.5, 0.5, -0.5]))
    codes = rng.integers(4, size=(_ORDER + length, lanes)).astype(np.uint8)
    # The argmax of logits plus Gumbel noise is a draw from their softmax.
    noise = rng.gumbel(size=(length, lanes, 4)).astype(np.float32)
    for i in range(length):
        logits = lift + noise[i]
        for back in range(_ORDER):
            logits += weights[back, codes[i + _ORDER - 1 - back]]
        codes[i + _ORDER] = logits.argmax(axis=1)
    return np.ascontiguousarray(codes[_ORDER:].T)


def _weights() -> np.ndarray[Any, np.dtype[np.float64]]:
    """[back, letter there, letter here]: how the letters before favour the next; the same for every seed."""
    scale = np.array([0.45, 0.35, 0.25, 0.2, 0.15])
    return np.random.default_rng(20).normal(size=(_ORDER, 4, 4)) * scale[:, None, None]


def _diverged(rng: Rng, family: Codes) -> Codes:
    """A copy of ``family``: cut short at its 5' end, 2 to 20 % of its letters replaced, on either strand."""
    copy = family[int(rng.integers(len(family) * 2 // 3)) :].copy()
    hit = rng.random(len(copy)) < rng.uniform(0.02, 0.2)
    copy[hit] = rng.integers(4, size=int(hit.sum()))
    return reverse_complement(copy) if rng.random() < 0.5 else copy


def _plant(rng: Rng, codes: Codes) -> list[tuple[bytes, int]]:
    """(window letters, label) of every slot of ``codes``, into which motifs are planted: half pairs, half
    not."""
    first, second = (encode(motif)[0] for motif in MOTIFS)
    rows = []
    for slot in range(0, len(codes) - _SLOT, _SLOT):
        start = slot + int(rng.integers(_SLOT - WINDOW))
        window = codes[start : start + WINDOW]  # a view: planting changes the genome
        if (window == N).any():
            continue
        kind = int(rng.integers(6))  # 0 to 2: the pair; 3, 4: one motif of it; 5: neither
        flip = rng.random() < 0.5
        site = reverse_complement(window) if flip else window.copy()
        at = int(rng.integers(10, 35))
        if kind <= 3:
            _put(rng, site, at, first)
        if kind <= 2 or kind == 4:
            _put(rng, site, at + len(first) + int(rng.integers(6, 30)), second)
        window[:] = reverse_complement(site) if flip else site
        rows.append((decode(window), int(kind <= 2)))
    return rows


def _put(rng: Rng, site: Codes, at: int, motif: Codes) -> None:
    kept = rng.random(len(motif)) < _KEEP
    site[at : at + len(motif)][kept] = motif[kept]


def _write_task(rng: Rng, output: str, rows: list[tuple[bytes, int]]) -> dict[str, int]:
    by_label = [[row for row in rows if row[1] == label] for label in (0, 1)]
    each = min(map(len, by_label))
    scale = min(1.0, 2 * each / sum(_TASK.values()))
    balanced = [by_label[label][i] for i in range(each) for label in (0, 1)]
    taken, counts = 0, {}
    # Shuffled in pairs of one row of each label, so that every file is balanced.
    order = rng.permutation(each)
    for name, wanted in _TASK.items():
        pairs = int(wanted * scale) // 2
        chosen = [balanced[2 * i + label] for i in order[taken : taken + pairs] for label in (0, 1)]
        lines = [f"{letters.decode()},{label}" for letters, label in chosen]
        store.write_bytes(
            store.join(output, "task", f"{name}.csv"), "\n".join(["sequence,label", *lines, ""]).encode()
        )
        taken += pairs
        counts[name] = len(lines)
    return counts
