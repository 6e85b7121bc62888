"""python -m trainer.variants: every variant of a VCF has a row and a status; regions have all substitutions;
a killed command goes on; mistakes are one sentence."""

import gzip
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.ranks import forkserver
from tests.registered import CANDIDATE, registered, tiny_network
from trainer.inference.variants import command, sources
from trainer.inference.variants.picture import Collector, information
from trainer.models import pretrained
from trainer.variants import main

LETTERS = "ACGT"
RNG = np.random.default_rng(5)
CHR1 = "".join(RNG.choice(list(LETTERS), 400)) + "NNNN" + "".join(RNG.choice(list(LETTERS), 100))
CHRM = "".join(RNG.choice(list(LETTERS), 60))
HEAD = (
    '##fileformat=VCFv4.2\n##INFO=<ID=AF,Number=A,Type=Float,Description="f">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
)
COLUMNS = ["chrom", "pos", "id", "ref", "alt", "llr", "embedding_distance", "max_local_change", "status"]


def other(letter: str, step: int = 1) -> str:
    return LETTERS[(LETTERS.index(letter) + step) % 4]


def at(pos: int, size: int = 1) -> str:
    return CHR1[pos - 1 : pos - 1 + size]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, x.fa, and what the tests put there; the working folder."""
    monkeypatch.chdir(tmp_path)
    network = tiny_network()
    pretrained.write(str(tmp_path / "model"), network, dict(network.state_dict()), card="a toy")
    (tmp_path / "x.fa").write_text(f">chr1\n{CHR1[:300]}\n{CHR1[300:].lower()}\n>chrM\n{CHRM}\n")
    return tmp_path


def vcf(path: Path, lines: list[tuple[Any, ...]], *, head: str = HEAD) -> Path:
    """``lines``: chrom, pos, ref, alt."""
    text = "".join(
        f"{c}\t{pos}\trs{i}\t{ref}\t{alt}\t.\t.\t.\n" for i, (c, pos, ref, alt) in enumerate(lines)
    )
    data = (head + text).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def run(*more: str | Path, model: str = "model") -> int:
    return main(["--model", model, "--reference", "x.fa", "--length", "40", *map(str, more)])


ROWS = [
    ("chr1", 3, at(3), other(at(3)), "ok"),
    ("1", 1, at(1), other(at(1)), "ok"),
    ("chr1", 504, at(504), other(at(504)), "ok"),
    ("MT", 60, CHRM[59], other(CHRM[59]), "ok"),
    ("chr1", 100, at(100), other(at(100)), "ok"),
    ("chr1", 100, at(100), other(at(100), 2), "ok"),
    ("chr1", 100, at(100), "*", "an allele that an upstream deletion takes away"),
    ("chr1", 350, at(350).lower(), other(at(350)).lower(), "ok"),
    ("chr1", 200, at(200, 3), "".join(map(other, at(200, 3))), "ok"),
    ("chr1", 1, at(1), at(1) + "GATT", "ok"),
    ("chr1", 1, at(1, 2), at(2), "ok"),
    ("chr1", 210, at(210, 5), at(210), "ok"),
    ("chr1", 220, at(220, 2), "TTTTT", "ok"),
    ("chr1", 7, at(7), ".", "no alternate allele"),
    ("chr1", 7, at(7), "<DEL>", "a symbolic allele"),
    ("chr1", 7, at(7), f"{at(7)}[chr1:9[", "a breakend"),
    ("chr1", 7, at(7), "N", "ALT has other letters than A C G T"),
    ("chr1", 402, "N", "A", "REF has other letters than A C G T"),
    ("chr1", 402, "A", "C", "reference mismatch: the reference has N"),
    ("chr1", 9, other(at(9)), at(9), f"reference mismatch: the reference has {at(9)}"),
    ("chr7", 9, "A", "C", "the reference has no such contig"),
    ("chr1", 505, "A", "C", "outside the contig, which has 504 letters"),
    ("chr1", 0, "A", "C", "outside the contig, which has 504 letters"),
    ("chr1", 9, at(9), at(9) + "A" * 30, "an allele longer than half the window"),
    ("chr1", 3, at(3), other(at(3)), "ok"),
]


def test_every_variant_has_a_row_and_a_status(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [*ROWS[:4], ("chr1", 100, at(100), f"{other(at(100))},{other(at(100), 2)},*"), *ROWS[7:]]
    vcf(files / "in.vcf.gz", [line[:4] for line in lines])
    for end in ("parquet", "tsv", "csv"):
        assert run("--vcf", "in.vcf.gz", "--output", f"o.{end}") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "o.parquet: 25 variants, 13 of them with scores (Parquet; model, windows of 40 letters)"
    assert said[1] == (
        "5 do not fit the reference, and have no scores (2 × reference mismatch, 2 × outside the contig, 1 × "
        "the reference has no such contig); is it another assembly?"
    )
    assert said[2].startswith("no scores for 1 × ") and "1 × a breakend" in said[2]
    assert said[3] == "contigs 1, MT of the VCF were read as chr1, chrM of the reference"
    table = pd.read_parquet("o.parquet")
    assert list(table.columns) == COLUMNS
    assert list(table[["chrom", "pos", "ref", "alt", "status"]].itertuples(index=False, name=None)) == ROWS
    assert table["id"].tolist()[3:8] == ["rs3", "rs4", "rs4", "rs4", "rs5"]
    scores = table[COLUMNS[5:8]]
    assert (scores.notna().all(axis=1) == (table["status"] == "ok")).all()
    assert scores.notna().any(axis=1).sum() == 13
    assert scores.iloc[0].tolist() == scores.iloc[-1].tolist(), "the same variant twice"
    for end, separator in (("tsv", "\t"), ("csv", ",")):
        text = pd.read_csv(
            f"o.{end}", sep=separator, dtype={"chrom": str}, keep_default_na=False, na_values=[""]
        )
        pd.testing.assert_frame_equal(text, table.astype(text.dtypes), check_exact=False, rtol=1e-6)
    assert sorted(path.name for path in files.iterdir()) == [
        "in.vcf.gz",
        "model",
        "o.csv",
        "o.parquet",
        "o.tsv",
        "x.fa",
    ]


def test_scores_go_into_the_vcf(files: Path) -> None:
    vcf(files / "in.vcf", [line[:4] for line in ROWS])
    assert run("--vcf", "in.vcf", "--output", "o.tsv") == 0
    assert run("--vcf", "in.vcf", "--output", "o.vcf.gz", "--prefix", "TOY") == 0
    lines = [
        line.split("\t") for line in gzip.decompress((files / "o.vcf.gz").read_bytes()).decode().splitlines()
    ]
    assert ["##TOY_SCORES=model, windows of 40 letters"] in lines
    records = [line for line in lines if not line[0].startswith("#")]
    table = pd.read_csv("o.tsv", sep="\t")
    for record, row, given in zip(records, table.itertuples(), ROWS, strict=True):
        assert record[:5] == [given[0], str(given[1]), f"rs{row.Index}", given[2], given[3]]
        info = dict(each.split("=") for each in record[7].split(";")) if record[7] != "." else {}
        if row.status == "ok":
            assert float(info["TOY_LLR"]) == pytest.approx(row.llr, rel=1e-5)
            assert float(info["TOY_LOCAL"]) == pytest.approx(row.max_local_change, rel=1e-5)
        assert (
            info.get("TOY_STATUS", row.status.replace(" ", "_")).split(":")[0]
            == (row.status.replace(" ", "_").replace(",_", "_").split(":")[0])
        )


def test_the_pretraining_length_and_the_registry(
    files: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    where = registered(tmp_path_factory)
    vcf(files / "in.vcf", [line[:4] for line in ROWS[:3]])
    arguments = ["--model", CANDIDATE, "--track-uri", where.uri, "--reference", "x.fa", "--vcf", "in.vcf"]
    assert main([*arguments, "--output", "o.csv", "--scores", "llr"]) == 0
    assert "(CSV; toy version 1, windows of 64 letters)" in capsys.readouterr().out
    found = pd.read_csv("o.csv")
    assert [name for name in COLUMNS if name not in found] == ["embedding_distance", "max_local_change"]
    assert run("--vcf", "in.vcf", "--output", "p.csv", "--scores", "llr", "--length", "64") == 0
    assert (files / "o.csv").read_bytes() == (files / "p.csv").read_bytes()


def test_a_vcf_without_records(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vcf(files / "in.vcf", [])
    for name in ("o.parquet", "o.tsv", "o.vcf"):
        assert run("--vcf", "in.vcf", "--output", name) == 0
    assert capsys.readouterr().out.count("in.vcf has no records, so the output has none") == 3
    assert list(pd.read_parquet("o.parquet").columns) == COLUMNS
    assert (files / "o.tsv").read_text() == "\t".join(COLUMNS) + "\n"
    assert (files / "o.vcf").read_text().count("\n##INFO=<ID=DNA_") == 4


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (
            ["--output", "o.xlsx"],
            2,
            "o.xlsx ends in .xlsx, which is no format here; the end of the name says",
        ),
        (
            ["--output", "new/"],
            2,
            "new/ is a folder; give the name of a file in it, such as new/variants.par",
        ),
        (["--output", "in.vcf"], 2, "--output in.vcf is that of --vcf; give another name"),
        (["--length", "2"], 2, "--length 2 must be at least 3"),
        (
            ["--scores", "llr,lll"],
            2,
            "--scores has 'lll'; known are llr, embedding_distance, max_local_change",
        ),
        (["--scores", "llr,llr"], 2, "--scores must name some of llr, embedding_distance, max_local_change"),
        (["--prefix", "1"], 2, "--prefix '1' cannot begin the name of an INFO field"),
        (
            ["--prefix", "A"],
            2,
            "--prefix is for an output that is a VCF (.vcf, .vcf.gz), and o.tsv is a table",
        ),
        (["--picture", "p.png"], 2, "--picture shows all substitutions of regions; give them as --bed"),
        (["--model", "none"], 1, "none is no export: it has no config.json; give models:/NAME@ALIAS, or"),
        (["--reference", "none.fa"], 1, "none.fa: no such file"),
        (["--vcf", "none.vcf"], 1, "none.vcf: no such file"),
        (["--vcf", "x.fa"], 1, "x.fa is not a VCF: it starts with"),
        (["--vcf", "few.vcf"], 1, "few.vcf, line 5: 3 columns, and the header has 8"),
        (
            ["--output", "o.vcf", "--prefix", "A"],
            1,
            "in.vcf has INFO field A_LLR already; give another --prefix",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    files: Path, more: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head = HEAD.replace("##INFO", '##INFO=<ID=A_LLR,Number=A,Type=Float,Description="x">\n##INFO')
    vcf(files / "in.vcf", [ROWS[0][:4]], head=head)
    vcf(files / "few.vcf", [ROWS[0][:4]]).write_text((files / "few.vcf").read_text() + "chr1\t5\t.\n")
    before = sorted(path.name for path in files.iterdir())
    options = {"--vcf": "in.vcf", "--output": "o.tsv"} | dict(zip(more[::2], more[1::2], strict=True))
    assert run(*(word for pair in options.items() for word in pair)) == code
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0], errors
    assert sorted(path.name for path in files.iterdir()) == before


def test_strict_is_for_variants_alone(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "r.bed").write_text("chr1\t10\t20\n")
    assert run("--bed", "r.bed", "--output", "o.tsv", "--strict") == 2
    assert "--strict is for --vcf: substitutions of regions always fit" in capsys.readouterr().err
    assert not (files / "o.tsv").exists()


def test_strict_refuses_the_first_that_does_not_fit(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vcf(files / "in.vcf", [line[:4] for line in ROWS])
    before = sorted(path.name for path in files.iterdir())
    assert run("--vcf", "in.vcf", "--output", "o.tsv", "--strict") == 1
    assert capsys.readouterr().err == (
        "error: in.vcf, line 22: chr1:402 does not fit the reference (reference mismatch); without --strict "
        "it is passed over\n"
    )
    assert sorted(path.name for path in files.iterdir()) == before
    vcf(files / "in.vcf", [line[:4] for line in ROWS[:15]])
    assert run("--vcf", "in.vcf", "--output", "o.tsv", "--strict") == 0


def many(files: Path) -> None:
    rng = np.random.default_rng(1)
    places = rng.integers(1, 400, 60).tolist()
    vcf(files / "in.vcf", [("chr1", pos, at(pos), other(at(pos), int(rng.integers(1, 4)))) for pos in places])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 16)


def stopping(stop: Callable[[], object], *, after: int) -> Callable[..., Any]:
    """``score`` that stops at the call after so many with variants."""
    score, calls = command.score, list[int]()

    def instead(*arguments: Any) -> Any:
        if arguments[2]:
            if len(calls) == after:
                stop()
            calls.append(1)
        return score(*arguments)

    return instead


def killed(folder: str) -> None:
    os.chdir(folder)
    sources.CHUNK = 16  # type: ignore[misc]
    command.score = stopping(lambda: os.kill(os.getpid(), signal.SIGKILL), after=3)
    run("--vcf", "in.vcf", "--output", "o.tsv")


def test_a_killed_command_goes_on_and_gives_the_same_bytes(
    files: Path, small_chunks: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    many(files)
    assert run("--vcf", "in.vcf", "--output", "whole.tsv") == 0
    process = forkserver().Process(target=killed, args=(str(files),))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert not (files / "o.tsv").exists()
    capsys.readouterr()
    computed = list[int]()
    monkeypatch.setattr(command, "score", stopping(lambda: None, after=99))
    score = command.score
    monkeypatch.setattr(command, "score", lambda *given: (computed.append(len(given[2])), score(*given))[1])
    assert run("--vcf", "in.vcf", "--output", "o.tsv") == 0
    assert "3 parts of an earlier command are there, and are not computed again" in capsys.readouterr().err
    assert sorted(computed) == [0, 12], "the last chunk, and the columns of a table without rows"
    assert (files / "o.tsv").read_bytes() == (files / "whole.tsv").read_bytes()
    assert not (files / "o.tsv.parts").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_told_to_stop_it_says_that_the_same_command_goes_on(
    files: Path,
    small_chunks: None,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    signal_handlers: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    many(files)
    (files / "o.vcf").write_text("of yesterday")
    with monkeypatch.context() as patch:
        patch.setattr(command, "score", stopping(lambda: signal.raise_signal(number), after=2))
        assert run("--vcf", "in.vcf", "--output", "o.vcf") == code
    assert (
        "what is computed is kept beside the output, and the same command goes on" in capsys.readouterr().err
    )
    assert (files / "o.vcf").read_text() == "of yesterday"
    # Other options are other work.
    assert run("--vcf", "in.vcf", "--output", "o.vcf", "--strands", "forward") == 0
    assert "parts of an earlier command" not in capsys.readouterr().err
    assert (files / "o.vcf").read_text().count("DNA_STATUS=ok") == 60


@pytest.mark.parametrize("name", ["o.parquet", "o.tsv", "o.vcf", "o.vcf.gz"])
def test_a_disk_that_is_full_leaves_the_parts_and_no_half_of_a_file(
    files: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    many(files)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    publish = command.store.publish

    def full(uri: str) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
        return publish(uri)

    with monkeypatch.context() as patch:
        patch.setattr(command.store, "publish", lambda uri: full(uri) if uri == name else publish(uri))
        try:
            assert run("--vcf", "in.vcf", "--output", name) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: cannot write {name}"), error
    assert sorted(path.name for path in files.iterdir()) == ["in.vcf", "model", f"{name}.parts", "x.fa"]
    assert run("--vcf", "in.vcf", "--output", name) == 0
    assert not (files / f"{name}.parts").exists()


def test_all_substitutions_of_regions_have_the_scores_of_the_same_variants(
    files: Path, capsys: pytest.CaptureFixture[str], small_chunks: None
) -> None:
    (files / "r.bed").write_text("1\t20\t50\tprom\nchrM\t0\t10\nchr1\t396\t406\n")
    assert run("--bed", "r.bed", "--output", "o.parquet", "--picture", "p.png") == 0
    said = capsys.readouterr().out
    assert "4 of 50 letters are N, and have no substitutions" in said
    assert "contig 1 of the BED was read as chr1 of the reference" in said
    assert "p.png: 3 regions" in said
    assert (files / "p.png").read_bytes()[:4] == b"\x89PNG"
    table = pd.read_parquet("o.parquet")
    assert list(table.columns) == [name if name != "id" else "region" for name in COLUMNS]
    assert table["region"].unique().tolist() == ["prom", "chrM:1-10", "chr1:397-406"]
    assert len(table) == 3 * 46 and set(table["status"]) == {"ok"}
    assert table.groupby(["chrom", "pos"])["alt"].nunique().eq(3).all()
    shuffled = table.sample(frac=1, random_state=0)
    vcf(files / "in.vcf", list(shuffled[["chrom", "pos", "ref", "alt"]].itertuples(index=False, name=None)))
    assert run("--vcf", "in.vcf", "--output", "v.parquet") == 0
    found = pd.read_parquet("v.parquet")[COLUMNS[5:8]].to_numpy()
    np.testing.assert_array_equal(found, shuffled[COLUMNS[5:8]].to_numpy())


@pytest.mark.parametrize(
    ("text", "more", "code", "message"),
    [
        ("chr7\t1\t5\n", [], 1, "r.bed, line 1: the reference has no contig 'chr7'; it has chr1, chrM"),
        (
            "chr1\t1\t5\nchr1\t1\t505\n",
            [],
            1,
            "r.bed, line 2: [1, 505) reaches beyond the end of contig chr1",
        ),
        ("chr1\t5\t5\n", [], 1, "r.bed has no letters"),
        ("chr1\t0\t500\n", [], 1, "r.bed has 500 letters, and one command scores at most 100"),
        ("chr1\tx\t5\n", [], 1, "r.bed, line 1: needs contig, start and end"),
        ("chr1\t1\t5\n", ["--output", "o.vcf"], 2, "with --bed there is no VCF that scores could be written"),
        ("chr1\t1\t5\n", ["--picture", "p.pdf"], 2, "--picture p.pdf must end in .png"),
        ("chr1\t1\t5\n", ["--picture", "p.png", "--scores", "max_local_change"], 2, "--picture shows llr"),
    ],
)
def test_regions_that_do_not_fit(
    files: Path,
    text: str,
    more: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "MOST_LETTERS", 100)
    (files / "r.bed").write_text(text)
    assert run("--bed", "r.bed", "--output", "o.tsv", *more) == code
    assert message in capsys.readouterr().err


def rows_of(regions: list[sources.Region]) -> Iterator[tuple[Any, ...]]:
    for region in regions:
        for place in range(region.start, region.end):
            for step in (1, 2, 3):
                ref = LETTERS[place % 4]
                yield region.chrom, place + 1, ref, other(ref, step), float(-step)


def test_the_picture_shows_the_first_regions_and_says_so() -> None:
    regions = [
        sources.Region("c", start, start + 130 - 30 * i, f"r{i}")
        for i, start in enumerate([5, 5, 90, 300, 0])
    ]
    collector = Collector(regions)
    table = pa.table(
        dict(zip(("chrom", "pos", "ref", "alt", "llr"), zip(*rows_of(regions), strict=True), strict=True))
    )
    for start in range(0, len(table), 50):
        collector.add(table.slice(start, 50))
    assert collector.sentence() == "4 regions of 5, of each at most 120 letters"
    assert [len(ratio_LV) for ratio_LV in collector._ratios] == [120, 100, 70, 40]
    for region, ratio_LV in zip(regions, collector._ratios, strict=False):
        for place in (0, 17, 39):
            ref = (region.start + place) % 4
            expected = [0.0 if v == ref else -float((v - ref) % 4) for v in range(4)]
            assert ratio_LV[place].tolist() == expected
    assert collector.png()[:4] == b"\x89PNG"


def test_the_height_of_letters_is_what_the_network_knows() -> None:
    ratio_LV = np.log([[1, 1, 1, 1], [1, 1e-9, 1e-9, 1e-9], [1, 1, 1e-9, 1e-9], [np.nan] * 4])
    height_LV = information(ratio_LV)
    np.testing.assert_allclose(height_LV.sum(1), [0, 2, 1, 0], atol=1e-6)
    np.testing.assert_allclose(height_LV[2], [0.5, 0.5, 0, 0], atol=1e-6)
