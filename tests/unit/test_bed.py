"""data_prep.sources.bed: lines of any table of intervals, or the number of the first that is none."""

import bz2
import gzip
from pathlib import Path

import pytest

from data_prep.sources.bed import Line, read_lines
from data_prep.split.filters import read_filter
from data_prep.split.intervals import Intervals, Span, bed_bytes


def read_bed(uri: str) -> dict[str, Intervals]:
    """contig -> merged intervals of the BED file at ``uri``, over a genome that has all of its contigs."""
    contigs = {line.contig: 1_000_000 for line in read_lines(uri)}
    return read_filter(uri, contigs, where="references.0", strict=True, warn=lambda text: None)


def test_bed_round_trip(tmp_path: Path) -> None:
    spans = [Span("s", "c/1", 0, 10), Span("s", "c/1", 20, 30), Span("t", "d", 5, 6)]
    (tmp_path / "x.bed").write_bytes(bed_bytes(spans))
    assert read_bed(str(tmp_path / "x.bed")) == {"c/1": [(0, 10), (20, 30)], "d": [(5, 6)]}
    (tmp_path / "z.bed").write_text("track_12\t5\t6\nbrowserA\t1\t2\nbrowser position chr7\ntrack\n")
    assert read_bed(str(tmp_path / "z.bed")) == {"track_12": [(5, 6)], "browserA": [(1, 2)]}
    (tmp_path / "z.bed").write_text("track\t5\t6\nbrowser 1 2\ntrack type=bed name=3\nbrowser hide all\n")
    assert read_bed(str(tmp_path / "z.bed")) == {"track": [(5, 6)], "browser": [(1, 2)]}, (
        "contigs of such names"
    )
    messy = b"#c\r\ntrack name=x\r\n\r\nd 5 6 name 0 +\r\nd\t6\t9\r\nd\t7\t7\r\n"
    (tmp_path / "y.bed.gz").write_bytes(gzip.compress(messy))
    assert read_bed(str(tmp_path / "y.bed.gz")) == {"d": [(5, 9)]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\t1\t2\na\t5\n", "line 2: needs contig, start and end, not 'a\\\\t5'"),
        (b"a\tx\t2\n", "line 1: needs contig, start and end"),
        (b"a\t5\t2\n", r"line 1: \[5, 2\) is no interval"),
        (gzip.compress(bz2.compress(b"a\t1\t2\n")), "is not a BED file: it is bzip2, not text; unpack it"),
        (b"PK\x03\x04" + bytes(9), "is a zip archive or an Excel file, not text; give it as plain text"),
        (b"\xff\xfea", "is not a BED file: not text in UTF-16-LE"),
        (b"\xe9\t1\t2\n", "is not a BED file: not text in UTF-8: line 1 has byte"),
        (
            "a\t1\t2\n".encode("utf-16-le"),
            "is not a BED file: not text in UTF-8: line 1 has a NUL; save it as UTF-8",
        ),
        (
            gzip.compress(b"a\t1\t2\n")[:-9],
            "is a damaged gzip file .it ends early, after .* bytes of text.; get it again",
        ),
        (gzip.compress(b"a\t1\t2\n") + b"more", "is a damaged gzip file .*after 6 bytes of text"),
        (b"a\t1,000\t2,000\n", "line 1: needs contig, start and end"),
        (b"a\t1_000\t2_000\n", "line 1: needs contig, start and end"),
        (b"a\t0\t1e3\n", "line 1: needs contig, start and end"),
        (b"a\t-1\t2\n", "line 1: needs contig, start and end"),
        (b'"a"\t"1"\t"2"\n', "line 1: needs contig, start and end"),
        (b'"a\t1\t2"\n', "line 1: needs contig, start and end"),
        (b"chrom\tstart\tend\na\t1\t2\n", "line 1: needs contig, start and end"),
        (b"\t0\t10\t20\n", "line 1: needs contig, start and end"),
        (b"a \t b\t1\t2\n", "line 1: needs contig, start and end"),
        (b"a b\t1\t2\n", "line 1: needs contig, start and end"),
        (b"a:1-2\n", "line 1: needs contig, start and end"),
        (b"a\tsource\tgene\t1\t2\n", "line 1: needs contig, start and end"),
        (b"a\t1\t2\n\x1a", "line 2: needs contig, start and end"),
    ],
)
def test_bed_faults(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.bed").write_bytes(content)
    with pytest.raises(ValueError, match=message) as fault:
        read_lines(str(tmp_path / "x.bed"))
    assert str(tmp_path / "x.bed") in str(fault.value)


def test_lines_have_their_numbers_and_names(tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("# of\n\na\t1\t2\n a\t3 \t4\t x \ty\n")
    assert read_lines(str(tmp_path / "x.bed")) == [Line(3, "a", 1, 2, ""), Line(4, "a", 3, 4, "x", "y")]
