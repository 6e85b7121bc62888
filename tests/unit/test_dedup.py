"""data_prep.split.dedup: which blocks are almost in others, whatever the order and the names."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import ConfigError, validate
from data_prep.alphabet import Codes, reverse_complement
from data_prep.config import DataConfig, DedupConfig
from data_prep.split.block_sets import block_sets
from data_prep.split.dedup import Alike, Duplicates, duplicates
from data_prep.split.intervals import Span
from data_prep.split.passes import Passes
from tests.unit.test_homology import mutated
from tests.unit.test_leakage import Chunk, chunk, planted, read, run, some


def found(chunks: Sequence[Chunk], sha256: dict[str, str], *, min_shared: float = 0.9) -> Duplicates:
    bp = sum(span.bp for part in chunks for span, _ in part)
    passes = Passes(run, None, lambda bp: None)
    return duplicates(
        block_sets(chunks, read, bp=bp, k=21, window=21, passes=passes), sha256, min_shared=min_shared
    )


def test_a_haplotype_goes_wherever_its_blocks_are_cut() -> None:
    first = some(0, 20_000)
    second = reverse_complement(planted(mutated(first, 0.001, 1), some(5, 3000), 9000))
    chunks = [chunk(second, assembly="b", block=1900), chunk(first, assembly="a", block=2000)]
    same = found(chunks, {"a": "1", "b": "2"})
    gone = {span.start for span in same.spans}
    assert {span.assembly for span in same.spans} == {"b"}
    assert gone == {1900 * i for i in range(11)} - {7600, 9500}, "those with the 3,000 bp of its own stay"
    assert same.pairs == (Alike("b", "a", 9, sum(span.bp for span in same.spans)),)
    assert same.bp == same.pairs[0].bp and same.unjudged == 0 and same.sampled == 1
    other = found(chunks, {"a": "2", "b": "1"})
    assert {span.assembly for span in other.spans} == {"a"}, "the sha256 says which file stays"


def test_copies_within_an_assembly_and_short_blocks() -> None:
    gene = some(1, 2000)
    chunks = [
        chunk(gene, assembly="a", contig="c1"),
        chunk(gene, assembly="a", contig="c2"),
        chunk(gene[:50], assembly="a", contig="c3"),
        chunk(some(2, 2000), assembly="a", contig="c4"),
    ]
    same = found(chunks, {"a": "1"})
    assert same.spans == {Span("a", "c2", 0, 2000)} and same.pairs == (Alike("a", "a", 1, 2000),)
    assert same.unjudged == 1


def test_a_copy_is_said_to_be_of_what_has_most_of_it() -> None:
    human = some(0, 20_000)
    chimp = planted(mutated(human, 0.02, 1), some(7, 4000), 16_000)
    chunks = [chunk(of, assembly=name) for name, of in (("chimp", chimp), ("human", human), ("copy", human))]
    same = found(chunks, {"chimp": "1", "human": "2", "copy": "3"})
    assert {span.assembly for span in same.spans} == {"copy"}
    assert {(pair.assembly, pair.within) for pair in same.pairs} == {("copy", "human")}


def test_the_share_is_that_of_the_block() -> None:
    first, other = some(0, 10_000), some(1, 10_000)
    half = planted(other, first[:5000], 0)
    chunks = [chunk(first, assembly="a"), chunk(half, assembly="b")]
    assert found(chunks, {"a": "1", "b": "2"}, min_shared=0.55).spans == frozenset()
    assert found(chunks, {"a": "1", "b": "2"}, min_shared=0.45).spans == {Span("b", "c", 0, 10_000)}


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(5)), st.permutations("vwxyz"))
def test_order_and_names_change_nothing(order: list[int], names: list[str]) -> None:
    first = some(0, 3000)
    letters: list[Codes] = [mutated(first, 0.002, i) for i in range(4)] + [some(9, 3000)]

    def gone(numbers: Sequence[int], names: Sequence[str]) -> tuple[set[tuple[str, int]], int]:
        chunks = [chunk(letters[i], assembly=names[i], block=500 + 100 * i) for i in numbers]
        # The file of i has the sha256 "i", whatever its name in the dataset is.
        same = found(chunks, {names[i]: str(i) for i in numbers})
        return {(str(names.index(span.assembly)), span.start) for span in same.spans}, same.bp

    assert gone(order, names) == gone(range(5), "abcde")
    assert gone(range(5), "abcde")[1] > 5000


def test_a_sample_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = some(0, 200_000)
    chunks = [
        chunk(first, assembly="a", block=50_000),
        chunk(mutated(first, 0.001, 1), assembly="b", block=50_000),
    ]
    passes = Passes(run, None, lambda bp: None)
    sets = block_sets(chunks, read, bp=400_000, k=21, window=21, passes=passes, room=2000)
    assert sets.sampled == pytest.approx(0.055)
    assert {s.assembly for s in duplicates(sets, {"a": "1", "b": "2"}, min_shared=0.9).spans} == {"b"}
    assert len(duplicates(sets, {"a": "1", "b": "2"}, min_shared=0.9).spans) == 4


def data(**values: object) -> DataConfig:
    wanted = {"references": [{"name": "a", "uri": "a.fa"}], "output": "o"} | values
    return validate(DataConfig, wanted, source="test")


def test_a_word_is_its_mode() -> None:
    assert data(dedup="drop").dedup == DedupConfig(mode="drop") == data(dedup={"mode": "drop"}).dedup
    assert data().dedup.mode == "off"


@pytest.mark.parametrize(
    ("dedup", "message"),
    [
        ("all", "input should be 'off', 'report' or 'drop'"),
        ({"min_shared": 0.5}, "has no mode, so nothing would be done; give mode, too: report, drop or off"),
        ({"mode": "drop", "k": 20}, "must be odd, so that no k-mer is its own reverse complement, not 20"),
        ({"mode": "drop", "min_shared": 0}, "input should be greater than 0"),
    ],
)
def test_a_mistake_is_one_sentence(dedup: object, message: str) -> None:
    with pytest.raises(ConfigError, match=r"dedup") as fault:
        data(dedup=dedup)
    assert message in str(fault.value)
