"""data_prep.split.intervals: filters, blocks, splits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.split.contigs import choose_contigs, copies
from data_prep.split.intervals import (
    Intervals,
    Span,
    assign,
    count_covered,
    group,
    intersect,
    merge,
    subtract,
    tile,
)

intervals = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 15)).map(lambda p: (p[0], p[0] + p[1])), max_size=8
)


def covered(parts: Intervals) -> set[int]:
    return {i for start, end in parts for i in range(start, end)}


@settings(deadline=None)
@given(intervals, intervals)
def test_interval_arithmetic_against_sets(left: Intervals, right: Intervals) -> None:
    a, b = merge(left), merge(right)
    assert covered(a) == covered(left)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(a)), "merged ones must not touch"
    assert covered(intersect(a, b)) == covered(left) & covered(right)
    assert covered(subtract(a, b)) == covered(left) - covered(right)


def test_contigs_by_glob_keep_their_order() -> None:
    contigs = {"chr2": 2, "chr1": 1, "chrUn_7": 7}
    assert choose_contigs(contigs, None, where="r") == contigs
    assert list(choose_contigs(contigs, ("chr1", "chr?"), where="r")) == ["chr2", "chr1"]
    with pytest.raises(
        ValueError, match="reference r: no contig matches 'IV'; there are chr1, chr2, chrUn_7"
    ):
        choose_contigs(contigs, ("chr1", "IV"), where="reference r")


def test_contigs_that_are_not_wanted() -> None:
    contigs = dict.fromkeys(["chr1", "chr10", "chr8_KI270821v1_alt", "chrX", "chrUn_7", "chrEBV"], 5)
    assert list(choose_contigs(contigs, ("chr*", "!*_*", "!chrEBV"), where="r")) == ["chr1", "chr10", "chrX"]
    assert list(choose_contigs(contigs, ("!*_*",), where="r")) == ["chr1", "chr10", "chrX", "chrEBV"]
    assert list(choose_contigs(contigs, ("chr[0-9]", "chr[0-9][0-9]"), where="r")) == ["chr1", "chr10"]
    assert list(choose_contigs(contigs, ("chr1", "!*_fix"), where="r")) == ["chr1"], (
        "there may be nothing to leave out"
    )
    with pytest.raises(
        ValueError, match=r"r: contigs \['chr1', '!chr\*'\] leave nothing; there are chr1, chr10"
    ):
        choose_contigs(contigs, ("chr1", "!chr*"), where="r")


def test_a_name_that_is_written_like_a_glob_is_that_contig() -> None:
    contigs = {"HLA-A*01:01": 5, "HLA-A*24:01:01": 5, "chrX[1]": 5, "chrX1": 5, "chr2": 5}
    for name, like in (("chrX[1]", "chrX1"), ("HLA-A*01:01", "HLA-A*24:01:01")):
        assert list(choose_contigs(contigs, (name,), where="r")) == [name]
        assert list(choose_contigs(contigs, (f"!{name}",), where="r")) == [c for c in contigs if c != name]
        for pattern in (name, f"a:{name}"):
            parts = assign(
                [Span("a", contig, 0, 5) for contig in contigs], val=(pattern,), test=0.0, seed=0, gap=0
            )
            assert [span.contig for span in parts["val"]] == [name]
            assert like in [span.contig for span in parts["train"]]


def test_filters_that_leave_nothing_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"no contig matches 'chr1'; there are none that contigs, include and"
    ):
        assign([], val=("chr1",), test=0.0, seed=0, gap=0)


def test_a_name_to_leave_out_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"r: no contig matches '!chrEBV'; there are chr1, chrMT"):
        choose_contigs({"chr1": 5, "chrMT": 5}, ("!chrEBV",), where="r")


@pytest.mark.parametrize(
    ("held_out", "train", "found"),
    [
        (
            "chr8",
            [
                "chr8_KI270821v1_alt",
                "chr8_KZ208915v1_fix",
                "chr8_random",
                "chr1_KI270706v1_random",
                "chr9",
                "chr18",
            ],
            ["chr8_KI270821v1_alt", "chr8_KZ208915v1_fix", "chr8_random"],
        ),
        (
            "8",
            ["CHR_HSCHR8_1_CTG1", "HSCHR8_2_CTG1", "CHR_HSCHR18_1_CTG1", "9"],
            ["CHR_HSCHR8_1_CTG1", "HSCHR8_2_CTG1"],
        ),
        ("chr8_hap1", ["chr8_hap2", "chr7_hap1"], ["chr8_hap2"]),
        ("chr2L", ["chr2L_x_random", "chr2R", "chr2"], ["chr2L_x_random"]),
        ("scaffold_1", ["scaffold_2", "scaffold_11"], []),
        ("IV", ["I", "V", "VI", "Mito"], []),
        ("chrM", ["chrUn_1"], []),
    ],
)
def test_copies_of_what_is_held_out_are_known_by_their_names(
    held_out: str, train: list[str], found: list[str]
) -> None:
    parts = {
        "train": [Span("s", c, 0, 9) for c in train],
        "val": [Span("s", held_out, 0, 9)],
        "test": [Span("t", "chr9", 0, 9)],
    }
    assert copies(parts) == (sorted(found), [held_out] if found else [])


@pytest.mark.parametrize("whole", ["val", "test"])
def test_a_contig_held_out_by_name_and_by_bed_is_refused(whole: str) -> None:
    spans = tile("s", {"I": 20, "II": 20}, block_bp=10)
    other = {"val": "test", "test": "val"}[whole]
    said = (
        f"split: s:I in both val and test: held out whole by name, and the BED of {other} has intervals there"
    )
    with pytest.raises(ValueError, match=said):
        assign(spans, **{whole: ("I",), other: {("s", "I"): [(5, 6)], ("s", "II"): [(1, 2)]}}, seed=0, gap=0)
    parts = assign(spans, **{whole: ("I",), other: {("s", "II"): [(1, 2)]}}, seed=0, gap=0)
    assert [(s.contig, s.start, s.end) for s in parts[other]] == [("II", 1, 2)]


def test_tiles_cover_every_base_once() -> None:
    spans = tile("s", {"a": 25, "b": 3}, block_bp=10)
    assert [(s.contig, s.start, s.end) for s in spans] == [
        ("a", 0, 10),
        ("a", 10, 20),
        ("a", 20, 25),
        ("b", 0, 3),
    ]


def test_include_and_exclude() -> None:
    spans = tile(
        "s",
        {"a": 50, "b": 9},
        block_bp=10,
        include=[{"a": [(5, 20)]}, {"a": [(18, 99)]}],
        exclude=[{"a": [(10, 12), (40, 60)]}],
    )
    assert [(s.start, s.end) for s in spans] == [(5, 10), (12, 22), (22, 32), (32, 40)]


def test_whole_contigs_held_out() -> None:
    spans = tile("s", {"I": 20, "II": 20, "Mito": 20}, block_bp=10) + tile("t", {"I": 10}, block_bp=10)
    parts = assign(spans, val=("s:I",), test=("M*",), seed=0, gap=5)
    assert [(s.assembly, s.contig) for s in parts["val"]] == [("s", "I")] * 2
    assert {s.contig for s in parts["test"]} == {"Mito"}
    assert [(s.assembly, s.contig, s.bp) for s in parts["train"]] == [
        ("s", "II", 10),
        ("s", "II", 10),
        ("t", "I", 10),
    ]
    with pytest.raises(ValueError, match=r"split.val: no contig matches 'IV'; there are I, II, Mito"):
        assign(spans, val=("IV",), test=0.0, seed=0, gap=0)
    with pytest.raises(ValueError, match="split: s:I, t:I in both val and test"):
        assign(spans, val=("I",), test=("I*",), seed=0, gap=0)


def test_a_fraction_is_seeded_and_keeps_its_distance() -> None:
    spans = tile("s", {"a": 100_000}, block_bp=100)
    parts = assign(spans, val=0.1, test=0.05, seed=3, gap=150)
    assert abs(len(parts["val"]) - 100) < 40
    assert abs(len(parts["test"]) - 50) < 30
    assert parts == assign(spans[::-1], val=0.1, test=0.05, seed=3, gap=150) | {
        split: parts[split] for split in parts
    }, "the draw depends on the place alone"
    assert parts["val"] != assign(spans, val=0.1, test=0.05, seed=4, gap=150)["val"]
    held_out = merge((s.start, s.end) for split in ("val", "test") for s in parts[split])
    train = [(s.start, s.end) for s in parts["train"]]
    wide = [(max(0, start - 150), end + 150) for start, end in held_out]
    assert not intersect(merge(train), merge(wide))
    assert covered(merge(train)) == covered([(0, 100_000)]) - covered(merge(wide)), (
        "no more is cut than the gap asks"
    )


def test_a_wider_validation_share_keeps_the_old_blocks() -> None:
    spans = tile("s", {"a": 50_000}, block_bp=100)
    few = set(assign(spans, val=0.05, test=0.0, seed=0, gap=0)["val"])
    assert few < set(assign(spans, val=0.2, test=0.0, seed=0, gap=0)["val"])


def test_shards_hold_one_assembly_and_close_in_time() -> None:
    spans = tile("s", {"a": 45}, block_bp=10) + tile("t", {"b": 10}, block_bp=10)
    assert [[s.bp for s in shard] for shard in group(spans, shard_bp=25)] == [[10, 10], [10, 10, 5], [10]]
    assert group([], shard_bp=25) == []


def test_a_draft_of_many_short_contigs_makes_shards_of_few_blocks() -> None:
    spans = tile("s", {f"c{i}": 3 for i in range(20_000)}, block_bp=10)
    assert [len(shard) for shard in group(spans, shard_bp=1 << 26)] == [8192, 8192, 20_000 - 2 * 8192]


@settings(deadline=None)
@given(runs=intervals, spans=intervals)
def test_covered_bases_are_counted(runs: Intervals, spans: Intervals) -> None:
    merged = merge(runs)
    stretches = [Span("s", "c", start, end) for start, end in merge(spans)] + [Span("s", "other", 0, 9)]
    counts = count_covered(
        stretches, {("s", "c"): np.array(merged, np.int64).reshape(-1, 2)} if merged else {}
    )
    expected = [
        len(covered(merged) & set(range(s.start, s.end))) if s.contig == "c" else 0 for s in stretches
    ]
    assert counts.tolist() == expected
