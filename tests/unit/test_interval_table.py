"""data_prep.sources.interval_table: what a table gives of a stretch is what its intervals say of it."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import store
from data_prep.sources.interval_lines import Interval
from data_prep.sources.interval_table import (
    IntervalTable,
    keep_repeats,
    keep_scores,
    open_table,
    write_table,
)

CONTIG_BP = 60
places = st.tuples(st.integers(0, CONTIG_BP), st.integers(0, CONTIG_BP)).map(sorted)
intervals = st.lists(st.tuples(st.sampled_from("ab"), places, st.floats(-5, 5)), max_size=12)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_CACHE", str(tmp_path / "cache"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(intervals, places)
def test_a_stretch_is_what_its_intervals_say(
    tmp_path: Path, drawn: list[tuple[str, list[int], float]], stretch: list[int]
) -> None:
    found = [
        Interval(contig, *place, value, "", line) for line, (contig, place, value) in enumerate(drawn, 1)
    ]
    with open(tmp_path / "t", "wb") as file:
        write_table(file, found)
    table = IntervalTable(str(tmp_path / "t"))
    solid = [each for each in found if each.start < each.end]
    assert table.content.contigs.keys() == {each.contig for each in solid}
    assert table.content.empty == len(found) - len(solid)
    start, end = stretch
    for contig, extent in table.content.contigs.items():
        own = [each for each in solid if each.contig == contig]
        assert extent.stop - extent.first == len(own)
        assert (extent.start, extent.end) == (max(e.start for e in own), max(e.end for e in own))
        assert found[extent.start_line - 1].start == extent.start
        assert found[extent.end_line - 1].end == extent.end
        over = [[e.value for e in own if e.start <= at < e.end] for at in range(start, end)]
        assert table.mask(contig, start, end).tolist() == [bool(values) for values in over]
        wanted = np.array([max(values, default=math.nan) for values in over], np.float64)
        np.testing.assert_array_equal(table.values(contig, start, end), wanted)


def test_a_file_is_read_once_and_its_text_is_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"a\t1\t5\tn\t3\nb\t0\t2\tn\t4\n"
    (tmp_path / "x.bed").write_bytes(text)
    (tmp_path / "x.bed.gz").write_bytes(gzip.compress(text))
    plain, packed = (keep_repeats(str(tmp_path / name), ()) for name in ("x.bed", "x.bed.gz"))
    assert plain.sha256 == packed.sha256
    scores = keep_scores(str(tmp_path / "x.bed"), column=5)
    assert scores.path != plain.path
    assert open_table(scores).values("a", 0, 6).tolist()[1:5] == [3, 3, 3, 3]
    with monkeypatch.context() as patch:
        patch.setattr(store, "chunks", lambda uri: pytest.fail("it is in the cache"))
        assert keep_repeats(str(tmp_path / "x.bed"), ()) == plain
    Path(plain.path).write_bytes(b"another")
    assert keep_repeats(str(tmp_path / "x.bed"), ()).sha256 == plain.sha256
    (tmp_path / "x.bed").write_bytes(text + b"c\t1\t2\n")
    assert keep_repeats(str(tmp_path / "x.bed"), ()).sha256 != plain.sha256


def test_another_node_makes_its_own_table_or_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_bytes(b"a\t1\t5\n")
    there = keep_repeats(str(tmp_path / "x.bed"), ())

    def elsewhere() -> IntervalTable:
        open_table.cache_clear()
        Path(there.path).unlink()  # the cache of another node does not have it
        return open_table(there)

    assert elsewhere().mask("a", 0, 3).tolist() == [False, True, True]
    keep_repeats(str(tmp_path / "x.bed"), ())
    (tmp_path / "x.bed").write_bytes(b"a\t1\t6\n")
    with pytest.raises(
        ValueError, match=r"x.bed is another file than the build was planned with: .* on host"
    ):
        elsewhere()
    (tmp_path / "x.bed").unlink()
    Path(there.path).touch()
    with pytest.raises(store.StoreError, match=r"x.bed.* on host .*; every node must reach it"):
        elsewhere()
