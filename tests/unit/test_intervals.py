"""data_prep.intervals: BED, filters, blocks, splits."""

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.intervals import (
    Intervals,
    Span,
    assign,
    bed_bytes,
    choose_contigs,
    count_covered,
    group,
    intersect,
    merge,
    read_bed,
    subtract,
    tile,
)

intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 15)).map(lambda p: (p[0], p[0] + p[1])), max_size=8)


def covered(parts: Intervals) -> set[int]:
    return {i for start, end in parts for i in range(start, end)}


@given(intervals, intervals)
def test_interval_arithmetic_against_sets(left: Intervals, right: Intervals) -> None:
    a, b = merge(left), merge(right)
    assert covered(a) == covered(left)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(a)), "merged ones must not touch"
    assert covered(intersect(a, b)) == covered(left) & covered(right)
    assert covered(subtract(a, b)) == covered(left) - covered(right)


def test_bed_round_trip(tmp_path: Path) -> None:
    spans = [Span("s", "c/1", 0, 10), Span("s", "c/1", 20, 30), Span("t", "d", 5, 6)]
    (tmp_path / "x.bed").write_bytes(bed_bytes(spans))
    assert read_bed(str(tmp_path / "x.bed")) == {"c/1": [(0, 10), (20, 30)], "d": [(5, 6)]}
    (tmp_path / "z.bed").write_text("track_12\t5\t6\nbrowserA\t1\t2\nbrowser position chr7\ntrack\n")
    assert read_bed(str(tmp_path / "z.bed")) == {"track_12": [(5, 6)], "browserA": [(1, 2)]}
    messy = b"#c\r\ntrack name=x\r\n\r\nd 5 6 name 0 +\r\nd\t6\t9\r\nd\t7\t7\r\n"
    (tmp_path / "y.bed.gz").write_bytes(gzip.compress(messy))
    assert read_bed(str(tmp_path / "y.bed.gz")) == {"d": [(5, 9)]}


@pytest.mark.parametrize(("content", "message"), [
    (b"a\t1\t2\na\t5\n", "line 2: needs contig, start and end, not 'a\\\\t5'"),
    (b"a\tx\t2\n", "line 1: needs contig, start and end"),
    (b"a\t5\t2\n", r"line 1: \[5, 2\) is no interval"),
    (b"\xff\xfe", "is not a BED file"),
])
def test_bed_faults(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.bed").write_bytes(content)
    with pytest.raises(ValueError, match=message) as fault:
        read_bed(str(tmp_path / "x.bed"))
    assert str(tmp_path / "x.bed") in str(fault.value)


def test_contigs_by_glob_keep_their_order() -> None:
    contigs = {"chr2": 2, "chr1": 1, "chrUn_7": 7}
    assert choose_contigs(contigs, None, where="r") == contigs
    assert list(choose_contigs(contigs, ("chr1", "chr?"), where="r")) == ["chr2", "chr1"]
    with pytest.raises(ValueError, match="reference r: no contig matches 'IV'; there are chr1, chr2, chrUn_7"):
        choose_contigs(contigs, ("chr1", "IV"), where="reference r")


def test_tiles_cover_every_base_once() -> None:
    spans = tile("s", {"a": 25, "b": 3}, block_bp=10)
    assert [(s.contig, s.start, s.end) for s in spans] == [("a", 0, 10), ("a", 10, 20), ("a", 20, 25), ("b", 0, 3)]


def test_include_and_exclude() -> None:
    spans = tile("s", {"a": 50, "b": 9}, block_bp=10, include=[{"a": [(5, 20)]}, {"a": [(18, 99)]}],
                 exclude=[{"a": [(10, 12), (40, 60)]}])
    assert [(s.start, s.end) for s in spans] == [(5, 10), (12, 22), (22, 32), (32, 40)]


def test_whole_contigs_held_out() -> None:
    spans = tile("s", {"I": 20, "II": 20, "Mito": 20}, block_bp=10) + tile("t", {"I": 10}, block_bp=10)
    parts = assign(spans, val=("s:I",), test=("M*",), seed=0, gap=5)
    assert [(s.assembly, s.contig) for s in parts["val"]] == [("s", "I")] * 2
    assert {s.contig for s in parts["test"]} == {"Mito"}
    assert [(s.assembly, s.contig, s.bp) for s in parts["train"]] == [("s", "II", 10), ("s", "II", 10), ("t", "I", 10)]
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
        split: parts[split] for split in parts}, "the draw depends on the place alone"
    assert parts["val"] != assign(spans, val=0.1, test=0.05, seed=4, gap=150)["val"]
    held_out = merge((s.start, s.end) for split in ("val", "test") for s in parts[split])
    train = [(s.start, s.end) for s in parts["train"]]
    wide = [(max(0, start - 150), end + 150) for start, end in held_out]
    assert not intersect(merge(train), merge(wide))
    assert covered(merge(train)) == covered([(0, 100_000)]) - covered(merge(wide)), "no more is cut than the gap asks"


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


@given(runs=intervals, spans=intervals)
def test_covered_bases_are_counted(runs: Intervals, spans: Intervals) -> None:
    merged = merge(runs)
    stretches = [Span("s", "c", start, end) for start, end in merge(spans)] + [Span("s", "other", 0, 9)]
    counts = count_covered(stretches, {("s", "c"): np.array(merged, np.int64).reshape(-1, 2)} if merged else {})
    expected = [len(covered(merged) & set(range(s.start, s.end))) if s.contig == "c" else 0 for s in stretches]
    assert counts.tolist() == expected
