"""tasks.rows.table: the rows of a right file however it is written; any other is refused by
line."""

import gzip
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import store
from tests.s3 import S3
from tests.unit.test_compression import PACKERS
from trainer.evaluation.tasks.kinds.classification import Classification
from trainer.evaluation.tasks.rows import table
from trainer.evaluation.tasks.rows.table import LabelReader, Table
from trainer.inference.readers.rows import Wanted

ROWS = [("ACGTACGTAC", "a"), ("GGGTTTACGN", "b"), ("TTTTACGTCC", "a")]
PLAIN = "sequence,label\n" + "".join(f"{letters},{label}\n" for letters, label in ROWS)


def read(path: Path | str) -> Table:
    kind = Classification(("a", "b"))
    wanted = Wanted(label_columns=("label",))
    return table.read(str(path), wanted=wanted, label_reader=LabelReader(kind.labels, kind.parse))


def rows(found: Table) -> list[tuple[str, str]]:
    return list(zip(found.letters, found.labels, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("\n", "\n\n \n"),
        "\ufeff" + PLAIN,
        "\n\n" + PLAIN,
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", ";"),
        PLAIN.lower(),
        PLAIN.replace(",", " , "),
        PLAIN.replace(",a", ',"a"').replace("label", '"label"'),
        "".join(f"{i},{line}\n" for i, line in enumerate(PLAIN.splitlines())).replace(
            "0,", ",", 1
        ),  # DataFrame.to_csv
        "".join(f'{line},"x, ""y"" é"\n' for line in PLAIN.splitlines()),
        "".join(f"{line},\n" for line in PLAIN.splitlines()),  # a column without a name or a value
        "".join(f"{line}{',0' * 3000}\n" for line in PLAIN.splitlines()),
    ],
    ids=range(15),
)
def test_a_right_file_is_read_however_it_is_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text, newline="")
    assert rows(read(tmp_path / "t.csv")) == ROWS


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=["sequence", "label"])
    for index in (True, False):
        frame.to_csv(tmp_path / "t.csv", index=index)
        assert rows(read(tmp_path / "t.csv")) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_say_the_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_text(PLAIN.replace(",", "\t"), encoding=encoding)
    assert rows(read(tmp_path / "t.csv")) == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            PLAIN.replace("AC,a\n", "AC,a,\n", 1),
            "line 2: 3 fields, and the header names 2 columns: the line ends in",
        ),
        (
            "sequence,label\n" + "".join(f"{s},{y},\n" for s, y in ROWS),
            "line 2: 3 fields, .* ends in a comma too many",
        ),
        (
            "sequence,label\n" + "".join(f"{i},{s},{y}\n" for i, (s, y) in enumerate(ROWS)),
            "line 2: 3 fields, .*a row name",
        ),
        (PLAIN.replace("CC,a\n", ",CC,a\n"), "line 4: 3 fields, .*a comma too many"),
        (
            PLAIN.replace("GN,b\n", "GN\n"),
            "line 3: 1 field, and the header names 2 columns: the line is cut short",
        ),
        (PLAIN[:-3], "line 4: 1 field"),
        (PLAIN.replace("GG", "# from hg38\nGG"), "line 3: 1 field, .*looks like a comment"),
        ("# from hg38\n" + PLAIN, "no column 'sequence', its columns are '# from hg38'"),
        (PLAIN[len("sequence,label\n") :], r"t.csv has no header: its line 1 holds a sequence"),
        (PLAIN.replace("label", "sequence"), "no column 'label', its columns are 'sequence', 'sequence'"),
        (
            "".join(f"{x},{x[-1]}\n" for x in PLAIN.replace("label", "label").splitlines()).replace(
                ",l\n", ",label\n", 1
            ),
            "line 1: 'label' is the name of columns 2 and 3; rename",
        ),
        (PLAIN.replace("AC,a", "AC,", 1), "line 2: label '' is not among the task's labels"),
        (
            PLAIN.replace("AC,a", "AC,1.0", 1),
            r"line 2: label '1.0' is not among the task's labels \['a', 'b'\]",
        ),
        (PLAIN.replace("ACGTACGTAC", "NA"), "line 2: the sequence is 'NA', as tables write a missing value"),
        (PLAIN.replace("ACGTACGTAC", "nan"), "line 2: the sequence is 'nan', as"),
        (PLAIN.replace("ACGTACGTAC", "null"), "line 2: byte b'l' at position 2 is no nucleotide"),
        (PLAIN.replace("ACGTACGTAC", " "), "line 2: the sequence is empty"),
        (PLAIN.replace("ACGTACGTAC", "ACGT ACGT"), "line 2: byte b' ' at position 4"),
        (
            PLAIN.replace("ACGTACGTAC", '"ACGT\nACGT"'),
            "line 2: quotes are not in order .*; a quoted field ends on its line, with a quote before",
        ),
        (PLAIN.replace("GGG", '"GGG'), r"line 3: quotes are not in order"),
        (PLAIN.replace("ACGTACGTAC", '"ACGT"ACGT'), r"line 2: quotes are not in order"),
        (PLAIN.replace("label", '"label'), r"line 1: quotes are not in order"),
        (
            ",sequence,label\nA,AAA,a\n",
            r"line 2: column 1 has no name in the header and holds 'A', which is no number",
        ),
        (
            "sequence,label,\nACGT,a,\nACG,b,x\n",
            r"line 3: column 3 has no name .* name it, or remove a comma too many",
        ),
        (PLAIN + PLAIN, "line 5: label 'label' is not among"),
        (PLAIN.replace("GN,b", "GN,b\0"), "t.csv: not text in UTF-8: line 3 has a NUL"),
        ("sequence,label\n\n", "has a header and no rows"),
        (" \n", r"t.csv is empty; the first line must name the columns 'sequence' and 'label'"),
        (
            ",".join(f"c{i}" for i in range(5000)) + "\n",
            "no column 'sequence', its columns are 'c0', .* and 4,980 more",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text, newline="")
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "t.csv")
    assert str(tmp_path / "t.csv") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not re.search("[ACGT]{10}", str(caught.value)), "letters of a sequence are never shown"


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("sequence,label,note\nACGT,a,x\nACGT,b,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t.csv: not text in UTF-8: line 3 has byte b'\\xe9'"):
        read(tmp_path / "t.csv")


def test_letters_that_became_n_are_counted_and_a_cut_file_is_marked(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sequence,label\nACGTR,a\nACYYN,b")
    found = read(tmp_path / "t.csv")
    assert found.letters == ("ACGTN", "ACNNN")
    assert (found.ambiguous, found.cut) == (3, True)
    (tmp_path / "t.csv").write_text(PLAIN)
    assert (read(tmp_path / "t.csv").ambiguous, read(tmp_path / "t.csv").cut) == (0, False)


@pytest.mark.parametrize("name", PACKERS)
def test_compressed_files_are_told_by_their_first_bytes(tmp_path: Path, name: str) -> None:
    pack, path = PACKERS[name], tmp_path / "t"
    long = PLAIN + "ACGTACGTAC,a\n" * 5_000
    path.write_bytes(pack(long.encode()))
    assert len(read(path).letters) == 5_003
    path.write_bytes(pack(PLAIN[:20].encode()) + pack(PLAIN[20:].encode()))
    assert rows(read(path)) == ROWS, "one stream behind the other, as `cat` makes them"
    whole = pack(long.encode())
    for damaged in (whole[:-3], whole[: len(whole) // 2], whole[:20], whole + b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"t is a damaged {name} file"):
            read(path)


@pytest.mark.parametrize(
    ("first", "what"), [(b"PK\x03\x04", "a zip archive or an Excel"), (b"PAR1\x15", "a Parquet file")]
)
def test_what_is_no_text_is_named(tmp_path: Path, first: bytes, what: str) -> None:
    (tmp_path / "t.csv").write_bytes(first + bytes(100))
    with pytest.raises(ValueError, match=f"t.csv is {what}"):
        read(tmp_path / "t.csv")


@pytest.fixture
def web() -> Iterator[str]:
    """The URL of a server that has the gzip of PLAIN under any name, without ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = gzip.compress(PLAIN.encode(), mtime=0)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["t.csv.gz?download=1", "t.csv", "t.csv.GZ"])
def test_a_gzip_on_the_web_is_one_under_any_name(web: str, name: str) -> None:
    assert rows(read(f"{web}/{name}")) == ROWS


def test_a_gzip_on_s3_is_one_under_any_name(s3: S3) -> None:
    store.write_bytes(f"{s3.uri}/t.csv", gzip.compress(PLAIN.encode()))
    assert rows(read(f"{s3.uri}/t.csv")) == ROWS


MARKS = [",", '"', "\n", ",", '"', "\r", "'", ";", "\t", " ", "\0", "\ufeff"]
STROKES = ["put", "put", "put", "quote", "drop", "mark", "ends", "blank", "comment", "separator"]
EXTRA = {"blank": ["\n", "  \n", "\t\n"], "comment": ["# x\n", "#x,y\n", "#x,y,z\n", "#\n", "//\n"]}


@st.composite
def files(draw: st.DrawFn) -> tuple[list[tuple[str, str]], str]:
    """The rows of a right CSV, and its text after some of the damage that files come to."""
    order = draw(st.permutations(range(3)))
    count = draw(st.integers(1, 3))
    right = [
        (draw(st.text("ACGTN", min_size=4, max_size=9)), draw(st.sampled_from("ab"))) for _ in range(count)
    ]
    notes = [draw(st.sampled_from(["", "x", '"x, y"', '"say ""x"""', "5'"])) for _ in range(count)]
    lines = [("sequence", "label", "note"), *((*row, note) for row, note in zip(right, notes, strict=True))]
    text = "".join(",".join(line[i] for i in order) + "\n" for line in lines)
    for _ in range(draw(st.integers(1, 3))):
        text = strike(draw, text)
    return right, text


def strike(draw: st.DrawFn, text: str) -> str:
    what, at = draw(st.sampled_from(STROKES)), draw(st.integers(0, max(0, len(text) - 1)))
    if what == "put":
        return text[:at] + draw(st.sampled_from(MARKS)) + text[at:]
    if what == "quote":  # from the start of one field to the end of another, on this line or a later one
        ends = [found.start() for found in re.finditer("[,\n]", text)]
        first, last = sorted((draw(st.sampled_from(ends)), draw(st.sampled_from(ends)))) if ends else (0, 0)
        return f'{text[: first + 1]}"{text[first + 1 : last]}"{text[last:]}' if first < last else text
    if what == "drop":  # no letter: without one it would be another right file
        return text if text[at : at + 1].isalnum() else text[:at] + text[at + 1 :]
    if what == "mark":
        return "\ufeff" + text
    if what == "ends":
        return text.replace("\n", draw(st.sampled_from(["\r\n", "\r"])))
    if what == "separator":
        return text.replace(",", draw(st.sampled_from(["\t", ";", ", "])))
    parts = re.split("(?<=\n)", text)
    parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(EXTRA[what])))
    return "".join(parts)


QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(files(), st.sampled_from(["utf-8", "utf-16"]))
@settings(QUICK, max_examples=300)
def test_a_mangled_file_has_the_same_rows_or_is_refused(
    tmp_path: Path, made: tuple[list[tuple[str, str]], str], encoding: str
) -> None:
    right, text = made
    (tmp_path / "t.csv").write_text(text, encoding=encoding, newline="")
    found = attempt(tmp_path / "t.csv")
    # A comma more in the header and one within a sequence make another right table, with a column without a
    # name.
    nameless = not all(
        name.strip() for name in re.split("[,;\t]", re.split("[\r\n]", text.lstrip("\ufeff\r\n "))[0])
    )
    assert found is None or rows(found) == right or nameless or is_moved(rows(found), right, text), text


def is_moved(found: list[tuple[str, str]], right: list[tuple[str, str]], text: str) -> bool:
    """Whether a comma of a row stands within its sequence now, and the rest of it in the next column: another
    right table."""
    pairs = list(zip(found, right, strict=False))
    return len(found) == len(right) and all(
        label == own and (letters == whole or f"{letters},{whole[len(letters) :]}" in text)
        for (letters, label), (whole, own) in pairs
    )


def attempt(path: Path) -> Table | None:
    """The table, or None where it is refused in a sentence that names the file."""
    try:
        return read(path)
    except ValueError as fault:
        said = str(fault)
    assert str(path) in said
    assert "\n" not in said
    return None


@given(st.data())
@settings(QUICK, max_examples=200)
def test_a_cut_file_is_refused_or_told_or_ends_with_a_row(tmp_path: Path, data: st.DataObject) -> None:
    """A plain file that was cut behind a row's line end is a right file: no reader can know."""
    packed = data.draw(st.sampled_from([None, *PACKERS.values()]))
    stored = packed(PLAIN.encode()) if packed else PLAIN.encode()
    part = stored[: data.draw(st.integers(0, len(stored) - 1))]
    (tmp_path / "t").write_bytes(part)
    found = attempt(tmp_path / "t")
    if found:
        assert not packed, "what was compressed has an end"
        assert found.cut != part.endswith(b"\n")
        whole = len(found.letters) - found.cut
        assert rows(found)[:whole] == ROWS[:whole]


def test_numbers_of_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n" + PLAIN.replace("GGG", "\n\nGGG"))
    found = read(tmp_path / "t.csv")
    assert found.numbers == (3, 6, 7)
    assert found.at(1) == f"{tmp_path}/t.csv, line 6"
    assert np.array(found.numbers).dtype == np.int64
