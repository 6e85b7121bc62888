"""trainer.inference.readers: the same rows from every format; what is wrong with a file is one
sentence that names the line, row or record."""

import gzip
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cluster.storage import store
from configs import ConfigError, validate
from configs import load as load_config
from data_prep import alphabet
from tests.registered import write_task
from tests.unit.test_reference import twobit
from tests.unit.test_table import strike
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.rows.data import load, read_files
from trainer.evaluation.tasks.rows.table import Table
from trainer.inference.readers import labels
from trainer.inference.readers.formats import format_of
from trainer.inference.readers.stream import SequenceChunk, read_sequences

Rows = list[tuple[str, str]]
ROWS = [("ACGTACGTAC", "a"), ("GGGTTTACGN", "b"), ("TTTTACG", "a"), ("CACACACAC", "b")]
GENOME = {"chr1": "ACGTACGTACTTTTTTTTTT", "chr2": "gggtttacgnRYACGT"}


def read(path: Path | str, **values: object) -> Table:
    """The rows of the one file of a task, whose labels are a and b."""
    config = task(path, **values)
    return read_files(config, config.make_kind())["test"]


def task(path: Path | str, **values: object) -> TaskConfig:
    return validate(
        TaskConfig, {"name": "t", "test": str(path), "labels": ["a", "b"]} | values, source="test"
    )


def rows(table: Table) -> Rows:
    return list(zip(table.letters, table.labels, strict=True))


def csv(found: Sequence[tuple[str, str]], separator: str = ",") -> str:
    return "".join(f"{separator.join(row)}\n" for row in [("sequence", "label"), *found])


def genome(folder: Path, contigs: dict[str, str] = GENOME) -> str:
    (folder / "g.fa").write_text("".join(f">{name}\n{letters}\n" for name, letters in contigs.items()))
    return str(folder / "g.fa")


def other_strand(letters: str) -> str:
    return alphabet.decode(alphabet.reverse_complement(alphabet.encode(letters.encode())[0])).decode()


# The same rows, however they are written.


def write_csv(path: Path, found: Rows) -> dict[str, str]:
    path.write_text(csv(found))
    return {}


def write_tsv(path: Path, found: Rows) -> dict[str, str]:
    path.write_bytes(gzip.compress(csv(found, "\t").replace("\n", "\r\n").encode("utf-8-sig")))
    return {}


def write_parquet(path: Path, found: Rows) -> dict[str, str]:
    pd.DataFrame(found, columns=["sequence", "label"]).to_parquet(path, row_group_size=2)
    return {}


def write_fasta(path: Path, found: Rows) -> dict[str, str]:
    records = (
        f">s{i} label={label}\n{text[:5]}\n{text[5:].lower()}\n" for i, (text, label) in enumerate(found)
    )
    path.write_text("".join(records))
    return {}


def write_bed(path: Path, found: Rows) -> dict[str, str]:
    """The sequences lie one behind the other on a contig, every other one on its other strand."""
    at, lines, letters = 0, [], ""
    for i, (text, label) in enumerate(found):
        letters += other_strand(text) if i % 2 else text
        lines.append(f"chr1\t{at}\t{at + len(text)}\t{label}\t0\t{'+-'[i % 2]}\n")
        at += len(text)
    path.write_text("".join(lines))
    return {"reference": genome(path.parent, {"chr1": letters})}


WRITERS: dict[str, Callable[[Path, Rows], dict[str, str]]] = {
    "t.csv": write_csv,
    "t.tsv.gz": write_tsv,
    "t.parquet": write_parquet,
    "t.fa": write_fasta,
    "t.bed": write_bed,
}


@given(
    st.lists(
        st.tuples(st.text("ACGT", min_size=6, max_size=20), st.sampled_from("ab")), min_size=30, max_size=60
    ),
    st.sampled_from(["hash", "stratified"]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_rows_in_every_format_are_the_same_task(tmp_path: Path, found: Rows, split: str) -> None:
    found = [*found, *(("ACGT"[i % 4] * 3 + f"{'CG'[i % 2]}A" * 9, "ab"[i // 8]) for i in range(16))]
    given_rows, seen = [], set[str]()
    for name, write in WRITERS.items():
        keys = write(tmp_path / name, found)
        given_rows.append(rows(read(tmp_path / name, **keys)))
        seen.add(outcome(task(tmp_path / name, split=split, **keys)))
    assert all(each == found for each in given_rows)
    assert len(seen) == 1


def outcome(config: TaskConfig) -> str:
    """The digest of the task's data, or why they cannot be used."""
    try:
        return load(config).sha256()
    except ValueError as fault:
        return str(fault)


TWO: dict[str, list[Any]] = {
    "sequence": ["ACGTA", "CCGTA", "GCGTA"],
    "x": [1, 0, 1],
    "y": [0.0, 0.0, 1.0],
    "note": ["p", "q", "r"],
}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.fa", "t.bed", "one.csv", "list.parquet"])
def test_several_labels_of_a_row_in_every_format(tmp_path: Path, name: str) -> None:
    frame, path = pd.DataFrame(TWO), tmp_path / name
    keys: dict[str, object] = {"kind": "multilabel", "labels": ["x", "y"]}
    if name == "one.csv":
        path.write_text("sequence;label\nACGTA;x\nCCGTA;\nGCGTA;x,y\n")
    elif name == "list.parquet":
        pq.write_table(pa.table({"sequence": TWO["sequence"], "label": [["x"], [], ["x", "y"]]}), path)
    else:
        keys |= {"label_column": ["x", "y"]}
    if name == "t.csv":
        frame.assign(x=frame["x"] > 0).to_csv(path)
    elif name == "t.parquet":
        frame.to_parquet(path)
    elif name == "t.fa":
        lines = (f">s x={row.x} y={row.y}\n{row.sequence}\n" for row in frame.itertuples())
        path.write_text("".join(lines))
    elif name == "t.bed":
        lines = (
            f"chr1\t{5 * i}\t{5 * i + 5}\t{row.x}\t{row.y}\n" for i, row in enumerate(frame.itertuples())
        )
        path.write_text("chrom\tstart\tend\tx\ty\n" + "".join(lines))
        keys |= {"reference": genome(tmp_path, {"chr1": "".join(TWO["sequence"])})}
    assert rows(read(path, **keys)) == list(zip(TWO["sequence"], ["x", "", "x,y"], strict=True))


def test_what_is_wrong_with_several_columns(tmp_path: Path) -> None:
    keys: dict[str, object] = {"kind": "multilabel", "label_column": ["x", "y"], "labels": ["x", "y"]}
    (tmp_path / "t.csv").write_text("sequence,x,y\nACGT,1,0\nACGA,,0\n")
    refused(tmp_path / "t.csv", r"t.csv, line 3: column 'x' has '', and 1 or 0 .* is needed", **keys)
    (tmp_path / "t.fa").write_text(">s x=1\nACGT\n")
    refused(
        tmp_path / "t.fa",
        r"record 1: its header 's x=1' has no labels; needed is '>name x=... y=...'",
        **keys,
    )
    (tmp_path / "t.bed").write_text("chr1\t0\t4\t1\t0\n")
    message = "line 1: several label columns need a header: chrom, start, end, then their names"
    refused(tmp_path / "t.bed", message, **keys, reference=genome(tmp_path))
    with pytest.raises(
        ConfigError, match=r"label_column: several columns are the labels .* leave labels out"
    ):
        task(tmp_path / "t.csv", **keys | {"labels": ["x", "z"]})
    for columns in ([], ["x", "x"], ["x", ""]):
        with pytest.raises(ConfigError, match=r"label_column: a name is needed, or a list of names"):
            task(tmp_path / "t.csv", **keys | {"label_column": columns})


def test_a_bed_beside_a_parquet_and_a_csv_is_the_same_task(tmp_path: Path) -> None:
    config = tmp_path / "toy"
    config.mkdir()
    toy = load_config(TaskConfig, write_task(config))
    frames = {role: pd.read_csv(getattr(toy, role)) for role in ("dev", "test")}
    frames["dev"].to_parquet(tmp_path / "dev.parquet")
    letters, labels_of = frames["test"]["sequence"], frames["test"]["label"]
    ends = letters.str.len().cumsum()
    bed = pd.DataFrame({"c": "1", "start": ends - letters.str.len(), "end": ends, "label": labels_of})
    bed.to_csv(tmp_path / "test.bed", sep="\t", header=False, index=False)
    uris = {"dev": f"{tmp_path}/dev.parquet", "test": f"{tmp_path}/test.bed"}
    keys = {"reference": genome(tmp_path, {"1": "".join(letters)})}
    assert load(toy.model_copy(update=uris | keys)).sha256() == load(toy).sha256()


# Odd files, each with its rows.


def excel_german(path: Path) -> dict[str, object]:
    path.write_bytes(csv(ROWS, ";").replace("\n", "\r\n").encode("utf-8-sig"))
    return {}


def excel_unicode_text(path: Path) -> dict[str, object]:
    path.write_bytes(csv(ROWS, "\t").encode("utf-16"))
    return {}


def rna_in_bars(path: Path) -> dict[str, object]:
    path.write_text(csv([(text.lower().replace("t", "u"), label) for text, label in ROWS], "|"))
    return {}


def numbers_as_pandas_writes_them(path: Path) -> dict[str, object]:
    frame = pd.DataFrame(ROWS, columns=["sequence", "label"])
    frame["label"] = frame["label"].map({"a": 0.0, "b": 1.0})
    frame.to_csv(path)
    return {"labels": ["0", "1"]}


def truth_as_r_writes_it(path: Path) -> dict[str, object]:
    path.write_text(csv([(text, {"a": "FALSE", "b": "TRUE"}[label]) for text, label in ROWS]))
    return {"labels": ["0", "1"]}


def categories_in_parquet(path: Path) -> dict[str, object]:
    frame = pd.DataFrame(ROWS, columns=["text", "label"]).assign(note=None)
    frame["label"] = frame["label"].astype("category")
    frame.to_parquet(path, compression="zstd")
    return {"sequence_column": "text", "format": "parquet"}


def truth_in_parquet(path: Path) -> dict[str, object]:
    table = {"sequence": [row[0] for row in ROWS], "label": [row[1] == "b" for row in ROWS]}
    pq.write_table(pa.table(table), path)
    return {"labels": ["0", "1"], "format": "parquet"}


def fasta_of_ilearn(path: Path) -> dict[str, object]:
    path.write_text("".join(f">s|{label}|training\n{text}\n" for text, label in ROWS))
    return {"format": "fasta"}


def fasta_with_words(path: Path) -> dict[str, object]:
    path.write_text(
        "; made by hand\n" + "".join(f"> s{i} {row[1]} \r\n{row[0]}\r\n\r\n" for i, row in enumerate(ROWS))
    )
    return {"format": "fasta"}


def fasta_by_pattern(path: Path) -> dict[str, object]:
    path.write_text("".join(f">chr1:{i}-9 class:{row[1]} x\n{row[0]}\n" for i, row in enumerate(ROWS)))
    return {"format": "fasta", "label_pattern": r"class:(\w)"}


def bed_with_a_header(path: Path) -> dict[str, object]:
    at, lines = 0, ["track name=x\n#Chrom\tChromStart\tchromEnd\tnote\tSTRAND\tlabel\n"]
    for text, label in ROWS:
        lines.append(f"chr1\t{at}\t{at + len(text)}\t\t.\t{label}\n# a comment\n")
        at += len(text)
    path.write_text("".join(lines))
    contigs = {"chr1": "".join(row[0] for row in ROWS).lower()}
    (path.parent / "g.2bit").write_bytes(twobit({name: text.encode() for name, text in contigs.items()}))
    return {"format": "bed", "reference": str(path.parent / "g.2bit")}


def bed_of_four_columns_with_blanks(path: Path) -> dict[str, object]:
    keys = write_bed(path, [ROWS[0]])
    genome(path.parent, {"chr1": "".join(row[0] for row in ROWS)})
    at, lines = 0, []
    for text, label in ROWS:
        lines.append(f"chr1 {at} {at + len(text)} {label}\n")
        at += len(text)
    path.write_bytes(gzip.compress("".join(lines).encode()))
    return {**keys, "format": "bed"}


ODD = [
    excel_german,
    excel_unicode_text,
    rna_in_bars,
    numbers_as_pandas_writes_them,
    truth_as_r_writes_it,
    categories_in_parquet,
    truth_in_parquet,
    fasta_of_ilearn,
    fasta_with_words,
    fasta_by_pattern,
    bed_with_a_header,
    bed_of_four_columns_with_blanks,
]


@pytest.mark.parametrize("write", ODD, ids=lambda write: write.__name__)
def test_an_odd_file_has_its_rows(tmp_path: Path, write: Callable[[Path], dict[str, object]]) -> None:
    keys = write(tmp_path / "odd")
    found = read(tmp_path / "odd", **keys)
    wanted = {"0": "a", "1": "b"} if keys.get("labels") else {"a": "a", "b": "b"}
    assert [(text, wanted[label]) for text, label in rows(found)] == ROWS


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("s3://b/a.FA.GZ", "fasta"),
        ("https://x.org/a.bed.gz?download=1", "bed"),
        ("a.b/c.pq", "parquet"),
        ("c.fasta.zst", "fasta"),
        ("a.bed/x", "table"),
        ("t.tsv", "table"),
    ],
)
def test_the_end_of_a_name_says_the_format(name: str, form: str) -> None:
    assert format_of(name) == form
    assert format_of(name, "bed") == "bed"


@pytest.mark.parametrize(
    ("text", "known", "label"),
    [
        ("1.0", ["0", "1"], "1"),
        ("1", ["0.0", "1.0"], "1.0"),
        ("1.0", ["1", "1.0"], "1.0"),
        ("01", ["0", "1"], "01"),
        ("1.5", ["1", "2"], "1.5"),
        ("true", ["True", "False"], "True"),
        ("true", ["True", "TRUE"], "true"),  # which one is not known: the kind refuses it
        ("1.0", [], "1.0"),
        ("-1.00", ["-1", "1"], "-1"),
    ],
)
def test_a_number_is_a_label_however_it_is_spelt_if_it_is_one_only(
    text: str, known: list[str], label: str
) -> None:
    assert labels.meant(text, known) == label


def test_several_columns_are_the_names_of_those_that_say_yes() -> None:
    assert labels.named(["1", "0.0", "TRUE"], ["x", "y", "z"]) == "x,z"
    assert labels.named(["no", "0"], ["x", "y"]) == ""
    for cell in ("", "2", "maybe"):
        with pytest.raises(ValueError, match=rf"column 'x' has '{cell}', and 1 or 0"):
            labels.named([cell], ["x"])


# What is wrong with a file is one sentence.


def refused(path: Path, message: str, **keys: object) -> None:
    with pytest.raises((ValueError, store.StoreError), match=message) as caught:
        read(path, **keys)
    said = str(caught.value)
    assert "\n" not in said
    assert not isinstance(caught.value, ConfigError), "the config is right: exit code 1"
    assert not re.search("[ACGT]{10}", said), "letters of a sequence are never shown"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "chr1\t0\t21\ta\n",
            r"t.bed, line 2: \[0, 21\) reaches beyond the end of contig chr1, which has 20 bp in .*g.fa",
        ),
        ("3\t0\t9\ta\n", r"line 2: .*g.fa has no contig '3'; it has chr1, chr2$"),
        ("chrQ\t0\t9\ta\n", r"line 2: .*g.fa has no contig 'chrQ'; it has chr1, chr2$"),
        ("chr1\t9\t9\ta\n", r"line 2: \[9, 9\) has no letters; BED counts from 0, half-open"),
        ("chr1\t9\t7\ta\n", r"line 2: \[9, 7\) has no letters"),
        ("chr1\t-1\t7\ta\n", r"line 2: needs contig, start and end, not 'chr1 -1 7 a'; .* of digits alone"),
        ("chr1\t1.0\t7\ta\n", r"line 2: needs contig, start and end"),
        ("chr1\t1\t7\tc\n", r"line 2: label 'c' is not among the task's labels \['a', 'b'\]"),
        ("chr1\t1\t7\t\n", r"line 2: label '' is not among"),
        ("chr1\t1\t7\n", r"line 2: 3 fields, and the lines before have 4"),
    ],
)
def test_a_bed_is_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "t.bed").write_text(f"chr1\t0\t9\ta\n{line}")
    refused(tmp_path / "t.bed", message, reference=genome(tmp_path))


def test_other_faults_of_a_bed(tmp_path: Path) -> None:
    path, keys = tmp_path / "t.bed", {"reference": genome(tmp_path)}
    cases: list[tuple[str | bytes, str]] = [
        ("chr1\t0\t9\ta\t0\tx\n", r"line 1: the strand is 'x'; \+ - and \. are known"),
        (
            "chrom\tstart\tend\tname\nchr1\t0\t9\ta\n",
            r"line 1: no column 'label', its columns are 'chrom', 's",
        ),
        ("chrom\tstart\tend\tlabel\tlabel\n", r"line 1: 'label' is the name of columns 4 and 5"),
        ("chr1\t0\t9\n", r"line 1: needs chrom, start, end, label, not 'chr1 0 9'"),
        ("# nothing\n\n", r"t.bed has no intervals"),
        ("", r"t.bed has no intervals"),
        ("chr1\t0\t9\té\n".encode("latin-1"), r"t.bed: not text in UTF-8: line 1 has byte b'\\xe9'"),
        (gzip.compress(b"chr1\t0\t9\ta\n" * 99)[:-9], r"t.bed is a damaged gzip file \(it ends early"),
    ]
    for text, message in cases:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        refused(path, message, **keys)
    path.write_text("chr1\t0\t9\ta\n")
    refused(path, r"nowhere.fa: no such file", reference=str(tmp_path / "nowhere.fa"))
    refused(path, r"t.csv is not a FASTA", reference=str(write_other(tmp_path / "t.csv")))


def write_other(path: Path) -> Path:
    path.write_text(csv(ROWS))
    return path


def test_a_bed_needs_a_reference_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"reference: nowhere.bed is a BED and needs the genome that its"):
        task("nowhere.bed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ">s1\nACGT\n",
            r"record 1: its header 's1' has no label; write '>name label=LABEL', '>name|LABEL' or",
        ),
        (
            ">s1 a\nACGT\n>s2\nACGT\n",
            r"record 2: its header 's2' has no label where the records before it have",
        ),
        (">s1 label=a\nACGT\n>s2 b\nACGT\n", r"record 2: its header 's2 b' has no label where the records"),
        ("> \nACGT\n", r"record 1: its header '' has no label; write"),
        (">s1 a b\nACGT\n", r"record 1: label 'a b' is not among the task's labels"),
        (">s1 a\n\n>s2 b\nACGT\n", r"record 1: the sequence is empty"),
        (">s1 a\nACGT\n>s2 b\nAC!T\n", r"record 2: byte b'!' at position 2 is no nucleotide letter"),
        ("ACGTACGT\n", r"t.fa is not a FASTA: it starts with letters of a sequence"),
        ("", r"t.fa is empty, not a FASTA"),
    ],
)
def test_a_fasta_is_refused_by_record(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.fa").write_text(text)
    refused(tmp_path / "t.fa", message)


def test_a_fasta_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "t.fa.gz").write_bytes(gzip.compress(b">s1 a\nACGT\n" * 9)[:-5])
    refused(tmp_path / "t.fa.gz", r"t.fa.gz is a damaged gzip file \(it ends early")


def test_a_pattern_that_fits_no_header_or_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.fa").write_text(">s1 a\nACGT\n")
    refused(tmp_path / "t.fa", r"record 1: .* has no label where label_pattern says", label_pattern="c=(.)")
    for pattern, message in [("(", "label_pattern: is no regular expression"), ("a", "needs one group")]:
        with pytest.raises(ConfigError, match=message):
            task(tmp_path / "t.fa", label_pattern=pattern)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"sequence": ["ACGT"]},
            r"no column 'label', its columns are 'sequence'; give the right name as label_column$",
        ),
        ({"sequence": [1], "label": ["a"]}, r"column 'sequence' holds int64, and text is needed"),
        (
            {"sequence": ["ACGT"], "label": [{"x": 1}]},
            r"column 'label' holds struct<.*, and text, numbers, or true",
        ),
        (
            {"sequence": ["ACGT", None], "label": ["a", "b"]},
            r"t.parquet, row 2: column 'sequence' has no value",
        ),
        (
            {"sequence": ["ACGT", "ACG"], "label": ["a", None]},
            r"row 2: column 'label' has no value \(null\); remove",
        ),
        ({"sequence": ["ACGT", "ACG"], "label": [1.0, 2.0]}, r"row 1: label '1.0' is not among"),
        ({"sequence": ["ACGT"], "label": [float("nan")]}, r"row 1: column 'label' has no value \(nan\)"),
        ({"sequence": ["ACGT", ""], "label": ["a", "b"]}, r"row 2: the sequence is empty"),
        (
            {"sequence": pa.array([], pa.string()), "label": pa.array([], pa.string())},
            r"has columns and no rows",
        ),
    ],
)
def test_a_parquet_is_refused_by_row(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", message)


def test_other_faults_of_a_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    twice = pa.Table.from_arrays(
        [pa.array(["ACGT"]), pa.array(["a"]), pa.array(["b"])], ["sequence", "label", "label"]
    )
    pq.write_table(twice, path)
    refused(path, r"t.parquet: 'label' is the name of columns 2 and 3; rename all but one")
    pq.write_table(pa.table({"sequence": ["ACGT"] * 99, "label": ["a"] * 99}), path)
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[:40], whole[:8] + bytes(20) + whole[28:]):
        path.write_bytes(damaged)
        refused(path, r"t.parquet is a damaged Parquet file \(.*\); get it again")
    path.write_text(csv(ROWS))
    refused(path, r"t.parquet is not a Parquet file: it does not begin as one")
    path.write_bytes(b"")
    refused(path, r"t.parquet is not a Parquet file: it is empty")
    refused(tmp_path / "none.parquet", r"none.parquet: no such file")


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3))
@example([(40, 255), (41, 255)])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_parquet_with_other_bytes_is_refused_or_has_all_rows(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"sequence": [row[0] for row in ROWS], "label": [row[1] for row in ROWS]})
    pq.write_table(table, path, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    for at, byte in flips:
        content[at % len(content)] = byte
    path.write_bytes(content)
    found, said = ROWS, f"{path}"
    try:
        found = rows(read(path))
    except ValueError as fault:
        said = str(fault)
    assert found == ROWS
    assert str(path) in said
    assert "\n" not in said


def test_a_fasta_or_a_parquet_under_another_name(tmp_path: Path) -> None:
    write_fasta(tmp_path / "t.csv", ROWS)
    refused(tmp_path / "t.csv", r"t.csv looks like a FASTA: name it .fa, or set format: fasta")
    write_parquet(tmp_path / "t.csv", ROWS)
    refused(tmp_path / "t.csv", r"t.csv is a Parquet file, not text")
    with pytest.raises(ConfigError, match=r"format: must be null .* or one of table, parquet, fasta, bed"):
        task(tmp_path / "t.csv", format="excel")


@st.composite
def mangled(draw: st.DrawFn, text: str, strokes: int) -> str:
    for _ in range(strokes):
        text = strike(draw, text)
    return text


@given(st.data(), st.sampled_from(["t.fa", "t.bed", "t.csv"]), st.integers(1, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mangled_file_has_the_same_rows_or_is_refused(
    tmp_path: Path, data: st.DataObject, name: str, strokes: int
) -> None:
    path = tmp_path / name
    keys = WRITERS[name](path, ROWS)
    text = data.draw(mangled(path.read_text(), strokes))
    path.write_text(text, newline="")
    found, said = ROWS, f"{path}"
    try:
        found = rows(read(path, **keys))
    except ValueError as fault:
        said = str(fault)
    assert found == ROWS, text
    assert str(path) in said
    assert "\n" not in said


# Sequences without labels.


def stream(path: Path, **keys: str) -> list[SequenceChunk]:
    return list(read_sequences(str(path), **keys))


def test_sequences_stream_in_order_with_their_other_columns(tmp_path: Path) -> None:
    count = 2_500
    frame = pd.DataFrame(
        {
            "id": range(count),
            "sequence": ["acgr" + "ACGT"[i % 4] for i in range(count)],
            "when": pd.Timestamp("2026-01-01"),
            "score": [None if i % 7 == 0 else i / 2 for i in range(count)],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv")
    chunks = stream(tmp_path / "t.parquet")
    assert len(chunks) > 1
    assert [text for chunk in chunks for text in chunk.letters] == [
        "ACGN" + "ACGT"[i % 4] for i in range(count)
    ]
    assert sum(chunk.ambiguous for chunk in chunks) == count
    assert [number for chunk in chunks for number in chunk.numbers] == list(range(1, count + 1))
    others = pa.concat_tables(chunk.others for chunk in chunks)
    pd.testing.assert_frame_equal(others.to_pandas(), frame.drop(columns="sequence"))
    texts = pa.concat_tables(chunk.others for chunk in stream(tmp_path / "t.csv"))
    assert texts.column_names == ["id", "when", "score"]
    assert texts["id"].to_pylist() == list(map(str, range(count)))


def test_names_of_records_and_intervals_are_other_columns(tmp_path: Path) -> None:
    (tmp_path / "t.fa").write_text(">s1 x y\nACGT\n>s2\nacgu\n")
    (chunk,) = stream(tmp_path / "t.fa")
    assert chunk.letters == ["ACGT", "ACGT"]
    assert chunk.others.to_pydict() == {"name": ["s1", "s2"]}
    (tmp_path / "t.bed").write_text("chr1\t0\t4\tx\t0\t-\nchr2\t0\t12\ty\t0\t+\n")
    (chunk,) = stream(tmp_path / "t.bed", reference=genome(tmp_path))
    assert (chunk.letters, chunk.ambiguous) == (["ACGT", "GGGTTTACGNNN"], 2)
    assert chunk.others.to_pydict() == {
        "chrom": ["chr1", "chr2"],
        "start": ["0", "0"],
        "end": ["4", "12"],
        "label": ["x", "y"],
        "score": ["0", "0"],
        "strand": ["-", "+"],
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "seq\nACGT\n", r"t.csv has no column 'sequence', its columns are 'seq'"),
        ("t.csv", "ACGTACGT\n", r"t.csv has no header: .* must name the column 'sequence'"),
        ("t.csv", "sequence,x,x\nACGT,1,2\n", r"t.csv, line 1: 'x' is the name of columns 2 and 3"),
        ("t.csv", "sequence,x\nACGT,1\nAC-T,2\n", r"t.csv, line 3: byte b'-' at position 2"),
        ("t.fa", ">\nACGT\n", r"t.fa, record 1 has no name after its '>'"),
        (
            "t.fa",
            "> s 1\nACGT\n> s 2\nACGT\n",
            r"t.fa: 's' is the name of records 1 and 2; a name is the first",
        ),
        ("t.bed", "chr1\t0\t4\n", r"t.bed is a BED: set reference to the genome"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        stream(tmp_path / name)
