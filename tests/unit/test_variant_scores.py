"""trainer.inference.variants: scores that a naive loop gives, too, that no batch or strand changes, and that
are most extreme where a motif breaks."""

import functools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_prep import alphabet
from tests.registered import tiny_network
from trainer.inference.variants.alleles import Variant
from trainer.inference.variants.genome import Genome
from trainer.inference.variants.scoring import SCORES, Scored, Scoring, score
from trainer.models.config import build_backbone
from trainer.models.dilated_conv import DilatedConvConfig
from trainer.models.network import Network

LETTERS = "ACGT"
COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


def genome(contigs: dict[str, str]) -> Genome:
    sizes = {name: len(letters) for name, letters in contigs.items()}
    return Genome(sizes, lambda name, start, end: contigs[name][start:end].encode(), uri="x.fa")


def random_contig(size: int, *, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), size))


CONTIGS = {
    "c": random_contig(700, seed=1),
    "s": random_contig(21, seed=2),
    "n": "N" * 30 + "ACGTAC" + "N" * 30,
}


def draw_variants(count: int, *, seed: int, contig: str = "c") -> list[Variant]:
    """SNVs, MNVs, insertions, deletions and others, also at the ends."""
    rng, letters = np.random.default_rng(seed), CONTIGS[contig]
    found = []
    while len(found) < count:
        pos, size = int(rng.integers(1, len(letters) + 1)), int(rng.integers(1, 5))
        pos = pos if rng.random() < 0.8 else (1 if rng.random() < 0.5 else len(letters))
        ref, alt = letters[pos - 1 : pos - 1 + size], random_contig(int(rng.integers(1, 5)), seed=len(found))
        if rng.random() < 0.5:
            alt = ref[0] + alt if rng.random() < 0.5 else alt[: len(ref)].ljust(len(ref), "A")
        if ref != alt:
            found.append(Variant(contig, pos, ref, alt))
    return found


class Naive:
    """The scores by one window at a time, in the words of the documentation."""

    def __init__(self, network: Network, *, strands: Sequence[int] = (0, 1)) -> None:
        self.network, self.strands = network, strands

    def scores(self, contig: str, variant: Variant, length: int) -> dict[str, float]:
        start, end, alt = self._change(contig, variant)
        flank = (length - (end - start)) // 2
        first, last = start - flank, end + flank
        first, last = first - max(0, last - len(contig)), last + max(0, -first)
        first, last = max(first, 0), min(last, len(contig))
        before, behind = contig[first:start], contig[end:last]
        windows = [before + contig[start:end] + behind, before + alt + behind]
        spans = [(len(before), len(before) + end - start), (len(before), len(before) + len(alt))]
        same = len(alt) == end - start
        margin = 0 if same else 4
        spans = [
            (max(0, a - margin), min(len(w), b + margin)) for w, (a, b) in zip(windows, spans, strict=True)
        ]
        means, counts = zip(
            *(self._likelihood(w, *span) for w, span in zip(windows, spans, strict=True)), strict=True
        )
        hidden = [self._hidden(window) for window in windows]
        pairs = [(i, i) for i in range(len(before))] + [(-i, -i) for i in range(1, len(behind) + 1)]
        if same:
            pairs += [(i, i) for i in range(len(windows[0]))]
        return {
            "llr": max(counts) * (means[1] - means[0]),
            "embedding_distance": float((hidden[1].mean(0) - hidden[0].mean(0)).norm()),
            "max_local_change": max(float((hidden[0][i] - hidden[1][j]).norm()) for i, j in pairs),
        }

    def _change(self, contig: str, variant: Variant) -> tuple[int, int, str]:
        start, ref, alt = variant.pos - 1, variant.ref, variant.alt
        while ref and alt and ref[0] == alt[0]:
            start, ref, alt = start + 1, ref[1:], alt[1:]
        while ref and alt and ref[-1] == alt[-1]:
            ref, alt = ref[:-1], alt[:-1]
        end = start + len(ref)
        if bool(ref) == bool(alt):
            return start, end, alt
        changed, size = contig[:start] + alt + contig[end:], max(len(ref), len(alt))
        longer, shorter = (contig, changed) if ref else (changed, contig)
        places = [i for i in range(len(shorter) + 1) if longer[:i] + longer[i + size :] == shorter]
        first, last = min(places), max(places)
        assert last - first <= 16 and places == list(range(first, last + 1))
        return (
            (first, last + size, shorter[first:last]) if ref else (first, last, longer[first : last + size])
        )

    def _read(self, codes: alphabet.Codes, function: str) -> Tensor:
        """The mean of the strands, in forward order."""
        read = []
        for strand in self.strands:
            given = alphabet.reverse_complement(codes) if strand else codes
            tensor_1L = torch.from_numpy(given.copy())[None]
            with torch.no_grad():
                letters_LD = self.network.backbone(tensor_1L).letters_BLD[0]
                if function == "log_p":
                    letters_LD = self.network.nucleotide(letters_LD).log_softmax(-1)
                    letters_LD = letters_LD.flip(1) if strand else letters_LD  # A C G T -> T G C A
            read.append(letters_LD.flip(0) if strand else letters_LD)
        return torch.stack(read).mean(0)

    def _likelihood(self, window: str, start: int, end: int) -> tuple[float, int]:
        codes = alphabet.encode(window.encode())[0].copy()
        right = [(i, int(codes[i])) for i in range(start, end) if codes[i] != alphabet.N]
        for i, _ in right:
            codes[i] = alphabet.MASK
        log_p = self._read(codes, "log_p")
        return float(np.mean([float(log_p[i, letter]) for i, letter in right])), len(right)

    def _hidden(self, window: str) -> Tensor:
        return self._read(alphabet.encode(window.encode())[0], "hidden")


NETWORKS = {
    "mixer": tiny_network,
    "convolution": lambda: Network(build_backbone(DilatedConvConfig(hidden_size=12)), heads={}).eval(),
}


@functools.cache
def network_of(name: str) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]()


@pytest.mark.parametrize("strands", ["both", "forward"])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_a_naive_loop(name: str, strands: str) -> None:
    network = network_of(name)
    naive = Naive(network, strands=(0, 1) if strands == "both" else (0,))
    cases = [(40, draw_variants(25, seed=3)), (64, draw_variants(5, seed=4, contig="s"))]
    cases += [(33, [Variant("n", 31, "A", "G"), Variant("n", 31, "AC", "A"), Variant("n", 35, "A", "AGG")])]
    for length, variants in cases:
        found = score(network, genome(CONTIGS), variants, Scoring(length, strands=strands))
        assert sum(status == "ok" for status in found.status) > 0.7 * len(variants)
        for i, variant in enumerate(variants):
            if found.status[i] == "ok":
                expected = naive.scores(CONTIGS[variant.chrom], variant, length)
                for key in SCORES:
                    assert found.scores[key][i] == pytest.approx(expected[key], abs=1e-5), (key, variant)


def the_bits(found: Scored, number: int) -> list[bytes]:
    assert found.difference_ND is not None
    return [found.scores[key][number].tobytes() for key in SCORES] + [found.difference_ND[number].tobytes()]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_bit_of_a_score_depends_on_what_is_scored_beside_it_or_on_threads(name: str) -> None:
    network, scoring = network_of(name), Scoring(48)
    variants = [*draw_variants(60, seed=5), *draw_variants(8, seed=6, contig="s")]
    variants += [
        variants[0],
        Variant("c", 300, *substitution(300, 1)),
        Variant("c", 300, *substitution(300, 2)),
    ]
    together = score(network, genome(CONTIGS), variants, scoring)
    order = np.random.default_rng(0).permutation(len(variants))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        shuffled = score(network, genome(CONTIGS), [variants[i] for i in order], scoring)
    finally:
        torch.set_num_threads(threads)
    for place, i in enumerate(order):
        assert the_bits(shuffled, place) == the_bits(together, i), variants[i]
    for i in (0, 1, 2, 3, 61, len(variants) - 2, len(variants) - 1):
        assert the_bits(score(network, genome(CONTIGS), [variants[i]], scoring), 0) == the_bits(together, i)


def substitution(pos: int, step: int) -> tuple[str, str]:
    ref = CONTIGS["c"][pos - 1]
    return ref, LETTERS[(LETTERS.index(ref) + step) % 4]


@given(st.integers(0, 10**6), st.integers(8, 90))
@settings(max_examples=10, deadline=None)
def test_the_other_strand_has_the_same_scores(seed: int, length: int) -> None:
    variants = draw_variants(12, seed=seed)
    mirrored = [
        each._replace(
            pos=len(CONTIGS["c"]) - each.pos - len(each.ref) + 2,
            ref=each.ref.translate(COMPLEMENT)[::-1],
            alt=each.alt.translate(COMPLEMENT)[::-1],
        )
        for each in variants
    ]
    given = score(tiny_network(), genome(CONTIGS), variants, Scoring(length))
    other = {"c": CONTIGS["c"].translate(COMPLEMENT)[::-1]}
    found = score(tiny_network(), genome(other), mirrored, Scoring(length))
    assert found.status == given.status
    for key in SCORES:
        np.testing.assert_allclose(found.scores[key], given.scores[key], atol=1e-5)


def test_only_what_is_asked_for_is_computed() -> None:
    calls, network = [], tiny_network()
    network.backbone.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    rows = {}
    for scores in (("llr",), ("embedding_distance",), SCORES):
        calls.clear()
        found = score(network, genome(CONTIGS), [Variant("c", 9, *substitution(9, 1))], Scoring(64, scores))
        assert set(found.scores) == set(scores)
        rows[scores] = len(calls)
    assert list(rows.values()) == [2, 4, 6], "llr of a substitution is a third of the work"


def test_a_network_that_has_learned_nothing_finds_no_allele_likelier() -> None:
    network = tiny_network()
    with torch.no_grad():
        network.nucleotide.weight.zero_()
        network.nucleotide.bias.zero_()
    found = score(network, genome(CONTIGS), draw_variants(30, seed=8), Scoring(50, ("llr",)))
    assert np.nanmax(np.abs(found.scores["llr"])) < 1e-6 and found.status.count("ok") > 20


MOTIF = "GATTACAGGT"


def with_motifs(rng: np.random.Generator, rows: int, length: int) -> alphabet.Codes:
    codes_BL = rng.integers(0, 4, (rows, length)).astype(np.uint8)
    motif = alphabet.encode(MOTIF.encode())[0]
    for row in codes_BL:
        at = int(rng.integers(0, length - len(motif) + 1))
        row[at : at + len(motif)] = motif if rng.random() < 0.5 else alphabet.reverse_complement(motif)
    return codes_BL


@functools.cache
def trained() -> Network:
    """A small network that has learned masked letters of random sequences with a motif, on either strand."""
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = DilatedConvConfig(hidden_size=24, stem_kernel=9, kernel=5, dilations=(1, 2), expansion=2)
        network = Network(build_backbone(sizes), heads={})
    optimizer = torch.optim.AdamW(network.parameters(), lr=8e-3)
    for _ in range(400):
        codes_BL = torch.from_numpy(with_motifs(rng, 32, 32))
        is_masked_BL = torch.from_numpy(rng.random(codes_BL.shape) < 0.15)
        logits_BLV = network(codes_BL.masked_fill(is_masked_BL, alphabet.MASK)).logits_BLV
        loss = torch.nn.functional.cross_entropy(logits_BLV[is_masked_BL], codes_BL[is_masked_BL].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_variants_that_break_a_motif_are_the_most_extreme() -> None:
    contig = list(random_contig(120, seed=11))
    contig[60:70] = MOTIF
    letters = "".join(contig)
    variants = [
        Variant("c", pos, ref, alt) for pos, ref in enumerate(letters, 1) for alt in LETTERS if alt != ref
    ]
    ratios = score(trained(), genome({"c": letters}), variants, Scoring(32, ("llr",))).scores["llr"]
    within = np.array([61 <= each.pos <= 70 for each in variants])
    assert within[np.argsort(ratios)[:27]].all(), "of 30 that break it"
    assert ratios[within].mean() < -3 and abs(ratios[~within].mean()) < 0.3


def test_insertions_at_the_edge_of_a_motif_are_more_extreme_than_elsewhere() -> None:
    """In its middle the masked letters hide a motif of 10."""
    contig = list(random_contig(120, seed=11))
    contig[60:70] = MOTIF
    letters = "".join(contig)
    places = [*range(20, 46), *range(85, 106), 61, 62, 67, 68]
    variants = [Variant("c", pos, letters[pos - 1], letters[pos - 1] + "CC") for pos in places]
    ratios = score(trained(), genome({"c": letters}), variants, Scoring(32, ("llr",))).scores["llr"]
    assert ratios[-4:].mean() < -3 < -1 < ratios[:-4].mean()
