"""Right files, mangled as editors, spreadsheets and broken transfers do it: a reader finds the same content,
or refuses in a sentence that names the file. Never less content with success."""

import contextlib
import gzip
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from configs import ConfigError, load
from configs.values import argument
from data_prep.config import DataConfig
from data_prep.dataset.plan import make_plan
from data_prep.sources.reference import Handle, fetch
from data_prep.sources.survey import Reference, prepare
from data_prep.split.intervals import merge
from tests.unit.test_reference import twobit

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Mangle = Callable[[bytes, int], bytes]


def at_line(text: bytes, where: int, change: Callable[[bytes], bytes]) -> bytes:
    lines = text.split(b"\n")
    lines[where % len(lines)] = change(lines[where % len(lines)])
    return b"\n".join(lines)


# Whatever happens to a text file; ``where`` chooses the line or the byte.
TEXT: dict[str, Mangle] = {
    "crlf": lambda text, _: text.replace(b"\n", b"\r\n"),
    "cr": lambda text, _: text.replace(b"\n", b"\r"),
    "one crlf": lambda text, where: at_line(text, where, lambda line: line + b"\r"),
    "utf-8 mark": lambda text, _: b"\xef\xbb\xbf" + text,
    "utf-16": lambda text, _: text.decode("latin-1").encode("utf-16"),
    "utf-16 without mark": lambda text, _: text.decode("latin-1").encode("utf-16-le"),
    "utf-32": lambda text, _: text.decode("latin-1").encode("utf-32"),
    "mark later": lambda text, where: at_line(text, where, lambda line: b"\xef\xbb\xbf" + line),
    "blank lines first": lambda text, where: b"\n" * (1 + where % 3) + text,
    "blanks first": lambda text, where: (b" ", b"\t", b" \t", b"\n ")[where % 4] + text,
    "blank line": lambda text, where: at_line(text, where, lambda line: b"\n" + line),
    "line of blanks": lambda text, where: at_line(text, where, lambda line: b" \t\n" + line),
    "indented": lambda text, where: at_line(text, where, lambda line: b"  " + line),
    "tab": lambda text, where: at_line(text, where, lambda line: b"\t" + line),
    "blanks at the end": lambda text, where: at_line(text, where, lambda line: line + b" \t"),
    "quotes": lambda text, where: at_line(text, where, lambda line: b'"' + line + b'"'),
    "quoted words": lambda text, where: at_line(
        text, where, lambda line: b"\t".join(b'"' + word + b'"' for word in line.split())
    ),
    "one word quoted": lambda text, where: at_line(
        text, where, lambda line: re.sub(rb"^(\w+)", rb'"\1"', line)
    ),
    "comment #": lambda text, where: at_line(text, where, lambda line: b"# chrA\t0\t9\n" + line),
    "comment ;": lambda text, where: at_line(text, where, lambda line: b"; chrA\n" + line),
    "no last line end": lambda text, _: text.rstrip(b"\n"),
    "end of file of DOS": lambda text, _: text + b"\x1a",
    "NUL": lambda text, where: text[: where % len(text)] + b"\0" + text[where % len(text) :],
    "letter": lambda text, where: text[: where % len(text)] + b"!" + text[where % len(text) :],
    "form feed": lambda text, where: at_line(text, where, lambda line: b"\f" + line),
    "line separator": lambda text, where: at_line(text, where, lambda line: line + "\u2028".encode()),
    "no-break space": lambda text, where: at_line(text, where, lambda line: "\u00a0".encode() + line),
    "gzip": lambda text, _: gzip.compress(text),
    "gzip members": lambda text, where: gzip.compress(text[:where]) + gzip.compress(text[where:]),
    "gzip and zeros": lambda text, where: gzip.compress(text) + b"\0" * (where % 9),
    "gzip and more": lambda text, _: gzip.compress(text) + b"more",
    "gzip cut": lambda text, where: gzip.compress(text)[: 2 + where % (len(gzip.compress(text)) - 2)],
    "gzip twice": lambda text, _: gzip.compress(gzip.compress(text)),
}
mangles = st.lists(st.tuples(st.sampled_from(sorted(TEXT)), st.integers(0, 500)), max_size=3)


def mangled(text: bytes, how: list[tuple[str, int]]) -> bytes:
    """Encoded and packed after all else, as it happens."""
    encoded, packed = (
        (lambda name: name.startswith(("utf-16", "utf-32"))),
        (lambda name: name.startswith("gzip")),
    )
    for name, where in sorted(how, key=lambda one: (packed(one[0]), encoded(one[0]))):
        text = TEXT[name](text, where) if text else text
    return text


@contextlib.contextmanager
def written(content: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        yield Path(folder) / name


def one_sentence(fault: Exception, path: Path) -> None:
    assert str(path) in str(fault), f"does not name the file: {fault}"
    assert isinstance(fault, ConfigError) or "\n" not in str(fault)


RECORDS = {"chrA": b"ACGTNacgtn" * 3, "b/2": b"GGCC", "c|3": b"TTTTTTTTT"}
FASTA = b"".join(
    b">%s of some\n" % name.encode() + re.sub(b"(.{1,8})", b"\\1\n", letters)
    for name, letters in RECORDS.items()
)


def read_fasta(path: Path) -> dict[str, bytes]:
    reference = prepare(str(path), cache=path.parent / "cache")
    return {contig: fetch(reference.handle, contig, 0, bp) for contig, bp in reference.contigs.items()}


def check_fasta(how: list[tuple[str, int]]) -> None:
    with written(mangled(FASTA, how), "x.fa") as path:
        try:
            found = read_fasta(path)
        except ValueError as fault:
            one_sentence(fault, path)
            return
    assert list(found.values()) == list(RECORDS.values())
    assert found == RECORDS or "letter" in [name for name, _ in how], "one more letter may be in a name"


@QUICK
@given(how=mangles)
@example(how=[("utf-8 mark", 0), ("gzip", 0)])
@example(how=[("comment ;", 0), ("blanks first", 0)])
def test_a_fasta(how: list[tuple[str, int]]) -> None:
    check_fasta(how)


@pytest.mark.parametrize("name", sorted(TEXT))
def test_a_fasta_mangled_once(name: str) -> None:
    for where in range(9):
        check_fasta([(name, where)])


TWO = {"chrA": b"ACGTNacgtNNNNN" * 3, "b": b"GGCC", "c": b"TTTTtttttTTTNN"}


@QUICK
@given(
    order=st.sampled_from("<>"),
    version=st.integers(0, 1),
    cut=st.integers(0, 400),
    junk=st.binary(max_size=5),
    flip=st.none() | st.tuples(st.integers(0, 60), st.integers(0, 255)),
)
@example(order=">", version=0, cut=0, junk=b"", flip=(8, 1))
@example(order="<", version=1, cut=0, junk=b"", flip=(8, 1))
def test_a_twobit(order: str, version: int, cut: int, junk: bytes, flip: tuple[int, int] | None) -> None:
    """Cut short or followed by something, and one byte of its header and index another one."""
    whole = twobit(TWO, order, version)
    content = bytearray(whole[: len(whole) - cut % len(whole)] if cut else whole)
    index_end = 16 + sum(1 + len(name) + (8 if version else 4) for name in TWO)
    if flip and flip[0] % index_end < len(content):
        content[flip[0] % index_end] = flip[1]
    content += b"" if cut else junk
    with written(bytes(content), "x.2bit") as path:
        try:
            found = read_fasta(path)
        except ValueError as fault:
            one_sentence(fault, path)
            return
    assert list(found.values()) == list(TWO.values()), "a name may be another one; the letters are not"


CONTIGS = {"chrA": 5000, "chrB": 5000, "chrC": 5000}
BED = b"chrA\t0\t2048\tone\nchrA\t3000\t4000\ttwo\nchrB\t100\t1024\tthree\n"
HELD_OUT = {"chrA": [(0, 2048), (3000, 4000)], "chrB": [(100, 1024)]}


def held_out(path: Path) -> dict[str, list[tuple[int, int]]]:
    config = DataConfig.model_validate(
        {
            "references": [{"name": "g", "uri": "u"}],
            "output": "o",
            "block_bp": 1024,
            "split": {"val": {"bed": str(path)}, "gap": 0},
        }
    )
    reference = Reference(Handle("u", "u", "", "0" * 64, ""), CONTIGS, 0, "", "", {}, {})
    plan = make_plan(config, {"g": reference})
    found: dict[str, list[tuple[int, int]]] = {}
    for span in plan.parts["val"]:
        found.setdefault(span.contig, []).append((span.start, span.end))
    return {contig: merge(spans) for contig, spans in found.items()}


BED_MANGLES: dict[str, Mangle] = {
    "spaces": lambda text, _: text.replace(b"\t", b" "),
    "thousands": lambda text, where: at_line(
        text, where, lambda line: re.sub(rb"(\d)(\d{3})\b", rb"\1,\2", line)
    ),
    "floats": lambda text, where: at_line(text, where, lambda line: re.sub(rb"\t(\d+)", rb"\t\1.0", line)),
    "no prefix": lambda text, where: at_line(text, where, lambda line: line.removeprefix(b"chr")),
    "upper case": lambda text, where: at_line(text, where, bytes.upper),
    "blank after name": lambda text, where: at_line(text, where, lambda line: line.replace(b"\t", b" \t", 1)),
    "two tabs": lambda text, where: at_line(text, where, lambda line: line.replace(b"\t", b"\t\t", 1)),
    "commas": lambda text, _: text.replace(b"\t", b","),
    "track": lambda text, where: at_line(text, where, lambda line: b'track name="x" y=1\n' + line),
    "browser": lambda text, where: at_line(text, where, lambda line: b"browser position chrA:1-9\n" + line),
    "header": lambda text, _: b"chrom\tstart\tend\n" + text,
    "other contig": lambda text, where: at_line(text, where, lambda line: b"chrQ\t0\t10\n" + line),
    "zero-length": lambda text, where: at_line(text, where, lambda line: b"chrC\t7\t7\n" + line),
    "backwards": lambda text, where: at_line(text, where, lambda line: b"chrC\t9\t7\n" + line),
}


def check_bed(how: list[tuple[str, int]], own: list[tuple[str, int]]) -> None:
    text = BED
    for name, where in own:
        text = BED_MANGLES[name](text, where)
    with written(mangled(text, how), "v.bed") as path:
        try:
            found = held_out(path)
        except ValueError as fault:
            one_sentence(fault, path)
            return
    assert found == HELD_OUT


@QUICK
@given(
    how=mangles, own=st.lists(st.tuples(st.sampled_from(sorted(BED_MANGLES)), st.integers(0, 9)), max_size=2)
)
@example(how=[("utf-16", 0)], own=[("spaces", 0)])
def test_a_bed(how: list[tuple[str, int]], own: list[tuple[str, int]]) -> None:
    check_bed(how, own)


@pytest.mark.parametrize("name", sorted(TEXT) + sorted(BED_MANGLES))
def test_a_bed_mangled_once(name: str) -> None:
    for where in range(4):
        check_bed([(name, where)] if name in TEXT else [], [(name, where)] if name in BED_MANGLES else [])


CONFIG = (
    b"references:\n  - name: g\n    uri: [a.fa, b.fa]  # two\n    contigs: ['1', X]\noutput: run/2\n"
    b"block_bp: 2048\nsplit:\n  val: ['2']\n  leakage: 'off'\n"
)
ADDED = {"letter", "mark later", "no-break space", "line separator"}  # they may become part of a value


@QUICK
@given(how=mangles)
@example(how=[("utf-16", 0)])
@example(how=[("utf-8 mark", 0), ("crlf", 0)])
def test_a_config(how: list[tuple[str, int]]) -> None:
    wanted = DataConfig.model_validate(yaml.safe_load(CONFIG))
    with written(mangled(CONFIG, how), "c.yaml") as path:
        try:
            found = load(DataConfig, path)
        except ConfigError as fault:
            one_sentence(fault, path)
            return
    assert found == wanted or (ADDED & {name for name, _ in how} and len(str(found)) > len(str(wanted)))


@given(
    lines=st.permutations(["output: o", "seed: 1", "references: [{name: g, uri: a}]", "block_bp: 1024"]),
    again=st.sampled_from(["output: p", "seed: 2", "'seed': 2", '"output": o', "references: []"]),
)
@settings(max_examples=40, deadline=None)
def test_a_key_that_stands_twice(lines: list[str], again: str) -> None:
    with (
        written("\n".join([*lines, again]).encode(), "c.yaml") as path,
        pytest.raises(ConfigError, match=rf"{path}: line 5, column 1: key \w+ is given twice"),
    ):
        load(DataConfig, path)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12))
@example("run #2")
@example("a: b")
@example("1e3")
@example("- [")
def test_a_word_of_the_command_line(word: str) -> None:
    """What is no list, mapping or text in quotes is itself; the others are read or refused."""
    if word.strip()[:1] in ("[", "{", '"', "'"):
        with contextlib.suppress(ValueError):
            argument(word)
        return
    value: Any = argument(word)
    assert str(value) == word.strip() or word.strip().lower() in ("", "~", "null", "true", "false")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8), max_size=4))
def test_words_in_quotes_come_back(words: list[str]) -> None:
    quoted = "[" + ", ".join("'" + word.replace("'", "''") + "'" for word in words) + "]"
    assert argument(quoted) == words


def test_the_mangles_are_not_all_refused() -> None:
    """A reader that refused everything would pass the tests above."""
    read = []
    for name, mangle in TEXT.items():
        with written(mangle(FASTA, 1), "x.fa") as path:
            try:
                read += [name] if read_fasta(path) == RECORDS else []
            except ValueError:
                continue
    assert {
        "crlf",
        "cr",
        "utf-8 mark",
        "blanks first",
        "blank line",
        "indented",
        "gzip",
        "gzip members",
    } <= set(read)
