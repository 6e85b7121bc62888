"""data_prep.sources.interval_lines: what a line says, by the format of its file, or the number of the first
that says nothing."""

import gzip
import math
from pathlib import Path

import pytest

from data_prep.sources.interval_lines import repeats, scores

OUT = """\
   SW   perc perc perc  query  position in query         matching   repeat          position in repeat
score   div. del. ins.  sequence  begin  end   (left)    repeat     class/family  begin  end (left)  ID

  463   1.3  0.6  1.7  chr1     10001  10468 (248945954) +  (TAACCC)n  Simple_repeat    1  471    (0)  1
 3612  11.4 21.5  1.3  chr1     10469  11447 (248944975) C  TAR1       Satellite/telo (399) 1712  483  2
  484  25.1 13.2  0.0  chr2         1    300 (248943974) C  L1MC5a     LINE/L1      (2382) 5648  5452  3 *
  239  29.4  1.9  1.0  chr2       401    500 (248941322) +  MER5B      DNA?/hAT-Charlie  74  104  (74)
"""
RMSK = (
    "#bin\tswScore\tmilliDiv\tmilliDel\tmilliIns\tgenoName\tgenoStart\tgenoEnd\tgenoLeft\tstrand\trepName\t"
    "repClass\trepFamily\trepStart\trepEnd\trepLeft\tid\n"
    "585\t463\t13\t6\t17\tchr1\t10000\t10468\t-248945954\t+\t(TAACCC)n\tSimple_repeat\tSimple_repeat\t1\t471\t0"
    "\t1\n"
    "585\t484\t251\t132\t0\tchr2\t0\t300\t-248943974\t-\tL1MC5a\tLINE\tL1\t-2382\t5648\t5452\t3\n"
)
ALL = [("chr1", 10000, 10468), ("chr1", 10468, 11447), ("chr2", 0, 300), ("chr2", 400, 500)]


def written(tmp_path: Path, content: str | bytes) -> str:
    """A name says nothing of what is in a file."""
    path = tmp_path / "repeats.dat"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def places(uri: str, *classes: str) -> list[tuple[str, int, int]]:
    return [found[:3] for found in repeats(uri, classes=classes)]


def test_repeatmasker_counts_from_1_inclusive(tmp_path: Path) -> None:
    assert places(written(tmp_path, OUT)) == ALL
    assert places(written(tmp_path, gzip.compress(OUT.replace("\n", "\r\n").encode()))) == ALL
    # Several files as one; without a header; with a file's other header, of nhmmer.
    assert places(written(tmp_path, OUT + OUT)) == ALL + ALL
    assert places(written(tmp_path, "".join(OUT.splitlines(keepends=True)[3:]))) == ALL
    assert places(written(tmp_path, OUT.replace("   SW   perc", "  bit   perc"))) == ALL
    assert places(written(tmp_path, "There were no repetitive sequences detected in x.fa\n")) == []


def test_rmsk_counts_from_0_half_open(tmp_path: Path) -> None:
    assert places(written(tmp_path, RMSK)) == [ALL[0], ALL[2]]
    assert places(written(tmp_path, RMSK.split("\n", 1)[1].rstrip("\n"))) == [ALL[0], ALL[2]]


def test_bed_lines(tmp_path: Path) -> None:
    text = "\ufefftrack name=x\n#c\n\nbrowser hide all\nchr1\t5\t9\tname\t3\nchr1 7 8\rtrack\t1\t2\r\nz\t0\t0"
    assert places(written(tmp_path, text)) == [("chr1", 5, 9), ("chr1", 7, 8), ("track", 1, 2), ("z", 0, 0)]
    assert [found.line for found in repeats(written(tmp_path, text))] == [5, 6, 7, 8]
    assert places(written(tmp_path, "")) == []


def test_classes_choose(tmp_path: Path) -> None:
    assert places(written(tmp_path, OUT), "LINE", "DNA") == ALL[2:], "DNA?/hAT-Charlie is DNA, too"
    assert places(written(tmp_path, RMSK), "LINE") == [ALL[2]]
    with pytest.raises(ValueError, match=r"has no repeat of the class L1; its classes are DNA, LINE, S"):
        places(written(tmp_path, OUT), "LINE", "L1")
    with pytest.raises(ValueError, match="is a BED, whose lines have no class of repeat; leave"):
        places(written(tmp_path, "chr1\t5\t9\tLINE\n"), "LINE")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (">chr1\nACGT\n", "line 1: needs a BED, a RepeatMasker .out or an rmsk table, not '>chr1'"),
        (
            "chr1\t5\t9\nchr1\t5\n",
            r"line 2: needs contig, start and end, as the lines before it are, not 'chr1",
        ),
        ("chr1\t5\t9\nchr1\t-5\t9\n", "line 2: needs contig, start and end"),
        ("chr1\t9\t5\n", r"line 1: \[9, 5\) is no interval"),
        ("\t9\t5\n", "line 1: needs a BED"),
        (
            OUT + "chr1\t5\t9\n",
            "line 8: needs a line of RepeatMasker's .out, as the lines before it are, not 'ch",
        ),
        (OUT.replace(" 10001 ", " 0 "), r"line 4: \[-1, 10468\) is no interval"),
        (OUT.replace(" 10001 ", " 1e4 "), "line 4: needs a BED, a RepeatMasker .out or"),
        (RMSK + "585\t484\t251\n", "line 4: needs a line of an rmsk table, as the lines before it are"),
        (RMSK.replace("\t-\tL1", "\t?\tL1"), "line 3: needs a line of an rmsk table"),
        (b"\xe9\t1\t2\n", "line 1: not text in UTF-8"),
        (gzip.compress(OUT.encode())[:-9], "is a damaged gzip file"),
        (b"PK\x03\x04" + bytes(9), "is a zip archive or an Excel file, not text"),
        (b"\xeb\xf2\x89\x87" + bytes(9), "is a bigBed file, not text"),
    ],
)
def test_lines_that_are_no_repeats(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r"repeats\.dat,? " + message):
        places(written(tmp_path, content))


def test_scores_and_bedgraphs(tmp_path: Path) -> None:
    bed = written(tmp_path, "track useScore=1\nchr1\t5\t9\tpeak\t870\t+\nchr1\t7\t8\t.\t1e2\n")
    assert [(*found[:3], found.value) for found in scores(bed, column=5)] == [
        ("chr1", 5, 9, 870.0),
        ("chr1", 7, 8, 100.0),
    ]
    graph = written(tmp_path, "chr1 5 9 -0.5\nchr1\t9\t10\t3\n")
    assert [(*found[:3], found.value) for found in scores(graph, column=4)] == [
        ("chr1", 5, 9, -0.5),
        ("chr1", 9, 10, 3.0),
    ]


@pytest.mark.parametrize("rest", ["", "\tname", "\tname\t.", "\tn\tnan"])
def test_lines_without_a_score(tmp_path: Path, rest: str) -> None:
    uri = written(tmp_path, f"chr1\t1\t2\tn\t7\nchr1\t5\t9{rest}\n")
    with pytest.raises(ValueError, match="line 2: needs contig, start, end, and a number in column 5"):
        list(scores(uri, column=5))
    assert [math.isnan(found.value) for found in repeats(uri)] == [True, True], "a BED all the same"
