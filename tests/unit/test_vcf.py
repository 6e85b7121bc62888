"""trainer.inference.variants: VCF and BCF in, VCF out; what is no VCF is refused with its line."""

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pysam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import store
from configs import ConfigError
from trainer.inference.parts import ChangedError
from trainer.inference.variants import bgzip, vcf_writer
from trainer.inference.variants.vcf import Record, Vcf

NAMES = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
HEAD = (
    "##fileformat=VCFv4.3\n##contig=<ID=chr1,length=5000>\n##contig=<ID=chr2>\n"
    '##FILTER=<ID=q10,Description="x">\n##INFO=<ID=AF,Number=A,Type=Float,Description="a, b; c">\n'
    '##INFO=<ID=DB,Number=0,Type=Flag,Description="y">\n##FORMAT=<ID=GT,Number=1,Type=String,Description="z">\n'
)
LINES = [
    "chr1\t100\trs1;rs2\tA\tG,T\t29.50\tPASS\tAF=0.5,0.123456789\tGT\t0/1\t1|2",
    "chr2\t7\t.\tca\tc\t.\tq10\t.\tGT\t./.\t0/0",
    "chr1\t5\t.\tA\t.\t3\t.\tDB\tGT\t0/0\t0/0",
    "chr1\t100\trs1\tA\t<DEL>,*\t.\t.\tDB;AF=0.1,.\tGT\t0/0\t0/0",
]
TEXT = f"{HEAD}{NAMES}\tFORMAT\ts 1\ts2\n" + "".join(f"{line}\n" for line in LINES)


def written(path: Path, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def bgzipped(text: str) -> bytes:
    file = io.BytesIO()
    with bgzip.opened(file) as writer:
        writer.write(text.encode())
    return file.getvalue()


def as_bcf(folder: Path) -> str:
    """TEXT as a BCF. It defines SVLEN: htslib looks for it where an allele is symbolic."""
    defined = "".join(
        f'##INFO=<ID={name},Number={number},Type=Integer,Description="l">\n'
        for name, number in (("SVLEN", "A"), ("END", "1"))
    )
    source = pysam.VariantFile(written(folder / "of.vcf", TEXT.replace("##FORMAT", f"{defined}##FORMAT")))
    with pysam.VariantFile(str(folder / "x.bcf"), "wb", header=source.header) as target:
        for record in source:
            target.write(record)
    return str(folder / "x.bcf")


@pytest.mark.parametrize("kind", ["plain", "gzip", "bgzip", "windows", "unended", "bcf", "s3"])
def test_records_are_read_as_they_stand(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    uri = written(tmp_path / "x.vcf", TEXT)
    if kind == "gzip":
        uri = written(tmp_path / "y.vcf.gz", TEXT)
    elif kind == "bgzip":
        (tmp_path / "z.vcf.gz").write_bytes(bgzipped(TEXT))
        uri = str(tmp_path / "z.vcf.gz")
    elif kind == "windows":
        uri = written(tmp_path / "w.vcf", TEXT.replace("\n", "\r\n"))
    elif kind == "unended":
        uri = written(tmp_path / "u.vcf", TEXT.rstrip("\n"))
    elif kind in ("bcf", "s3"):
        uri = as_bcf(tmp_path)
        if kind == "s3":
            data, uri = Path(uri).read_bytes(), f"{request.getfixturevalue('s3').uri}/x.bcf"
            store.write_bytes(uri, data)
    vcf = Vcf(uri)
    found = list(vcf.records())
    assert [(record.columns[0], *record.variants[0][1:], record.id) for record in found] == [
        ("chr1", 100, "A", "G", "rs1;rs2"),
        ("chr2", 7, "ca", "c", "."),
        ("chr1", 5, "A", ".", "."),
        ("chr1", 100, "A", "<DEL>", "rs1"),
    ]
    assert [record.alts for record in found] == [("G", "T"), ("c",), (".",), ("<DEL>", "*")]
    assert [record.number for record in found] == ([1, 2, 3, 4] if "bcf" in uri else [9, 10, 11, 12])
    survey = vcf.survey()
    assert (survey.variants, survey.contigs, survey.ended) == (6, ["chr1", "chr2"], kind != "unended")
    if "bcf" not in uri:
        assert [record.line for record in found] == LINES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.vcf is empty, not a VCF"),
        ("\n\n", "x.vcf is empty, not a VCF"),
        (LINES[0], "x.vcf is not a VCF: it starts with 'chr1"),
        (">chr1\nACGT\n", "not with ##fileformat=VCF"),
        (NAMES + "\n", "it starts with '#CHROM"),
        (
            HEAD,
            "the line that names the columns is missing: #CHROM POS ID REF ALT QUAL FILTER INFO, with tabs",
        ),
        (HEAD + "chr1\t5\t.\tA\tG\t.\t.\t.\n", "the line that names the columns is missing"),
        (HEAD + NAMES.replace("\t", " ") + "\n", "with tabs between them"),
        (
            f"{HEAD}{NAMES}\nchr1\t5\t.\tA\tG\t.\t.\t.\nchr1\t6\t.\tA\n",
            "line 10: 4 columns, and the header has 8",
        ),
        (f"{HEAD}{NAMES}\nchr1 5 . A G . . .\n", "line 9: 1 column, and the header has 8; tabs lie between"),
        (f"{HEAD}{NAMES}\nchr1\t5\t.\tA\tG\t.\t.\t.\tGT\n", "line 9: 9 columns, and the header has 8"),
        (f"{HEAD}{NAMES}\nchr1\t6x\t.\tA\tG\t.\t.\t.\n", "line 9: POS is '6x', not a whole number"),
        (f"{HEAD}{NAMES}\nchr1\t-6\t.\tA\tG\t.\t.\t.\n", "line 9: POS is '-6', not a whole number"),
        (f"{HEAD}{NAMES}\nchr1\t6\t.\t\tG\t.\t.\t.\n", "line 9: CHROM, REF or an allele of ALT is empty"),
        (f"{HEAD}{NAMES}\nchr1\t6\t.\tA\tG,\t.\t.\t.\n", "line 9: CHROM, REF or an allele of ALT is empty"),
        (f"{HEAD}{NAMES}\nchr1\t6\t.\tA\tG \t.\t.\t.\n", "has a blank in it"),
        (f"{HEAD}{NAMES}\n##late=1\n", "line 9: 1 column"),
        (f"{HEAD}{NAMES}\n\nchr1\t6\t.\tA\tG\t.\t.\t.\n", "line 9 is blank; remove it"),
        (f"{HEAD}\n{NAMES}\n", "line 8 is blank; remove it"),
        (TEXT.encode() + b"\xff\n", "not text in UTF-8: line 13"),
        (b"PAR1\x15" * 9, "Parquet"),
    ],
)
def test_what_is_no_vcf_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Vcf(written(tmp_path / "x.vcf", text)).survey()
    assert message in str(caught.value) and "x.vcf" in str(caught.value) and "\n" not in str(caught.value)


@given(st.integers(1, 10**6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_bgzip_is_refused_also_between_its_blocks(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.vcf.gz"
    data = bgzipped(TEXT + "".join(f"chr1\t{i}\t.\tA\tG\t.\t.\t.\tGT\t0/0\t0/1\n" for i in range(6000)))
    for end in (cut % len(data), len(data) - len(bgzip.END)):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"cut short|damaged gzip|is not a VCF|is empty"):
            Vcf(str(path)).survey()


def test_a_damaged_bcf_is_refused_without_a_word_of_htslib(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    as_bcf(tmp_path)
    whole = gzip.decompress((tmp_path / "x.bcf").read_bytes())
    file = io.BytesIO()
    with bgzip.opened(file) as writer:
        writer.write(whole[:-30])
    (tmp_path / "cut.bcf").write_bytes(file.getvalue())
    capfd.readouterr()
    with pytest.raises(ValueError, match=r"cut.bcf is a damaged BCF \(.*, after 3 records\); get it again"):
        Vcf(str(tmp_path / "cut.bcf")).survey()
    assert capfd.readouterr().err == ""


def tables(counts: list[int]) -> list[pa.Table]:
    """Scores of the six alleles of TEXT, in tables of so many."""
    rows = [
        (chrom, int(pos), ref, alt)
        for chrom, pos, _, ref, alts, *_ in (line.split("\t") for line in LINES)
        for alt in alts.split(",")
    ]
    table = pa.table(
        {
            **dict(zip(("chrom", "pos", "ref", "alt"), zip(*rows, strict=True), strict=True)),
            "llr": pa.array([1.5, -2.25, 1e-7, None, None, None], pa.float32()),
            "status": [
                "ok",
                "ok",
                "ok",
                "no alternate allele",
                "reference mismatch: the reference has G",
                "x, y=z;",
            ],
        }
    )
    parts, start = [], 0
    for count in counts:
        parts.append(table.slice(start, count))
        start += count
    return parts


def scored(vcf: Vcf, end: str, counts: list[int], *, prefix: str = "DNA") -> bytes:
    file, fields = io.BytesIO(), vcf_writer.Fields(prefix, "toy version 1")
    fields.refuse_present(vcf, vcf.survey().info)
    vcf_writer.write(file, vcf, iter(tables(counts)), fields=fields, columns=["llr", "status"], end=end)
    return file.getvalue()


@pytest.mark.parametrize("end", [".vcf", ".vcf.gz"])
def test_scores_are_added_and_all_else_stays(tmp_path: Path, end: str) -> None:
    vcf = Vcf(written(tmp_path / "x.vcf", TEXT))
    data = scored(vcf, end, [3, 3])
    assert data == scored(vcf, end, [2, 1, 1, 2])
    out = tmp_path / f"out{end}"
    out.write_bytes(data)
    text = gzip.decompress(data).decode() if end.endswith("gz") else data.decode()
    assert text.splitlines()[:7] == HEAD.splitlines()
    assert "##DNA_SCORES=toy version 1" in text
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    assert [[*fields[:7], *fields[8:]] for fields in lines] == [
        [*fields[:7], *fields[8:]] for fields in (line.split("\t") for line in LINES)
    ]
    assert [fields[7] for fields in lines] == [
        "AF=0.5,0.123456789;DNA_LLR=1.5,-2.25;DNA_STATUS=ok,ok",
        "DNA_LLR=1e-07;DNA_STATUS=ok",
        "DB",
        "DB;AF=0.1,.;DNA_LLR=.,.;DNA_STATUS=reference_mismatch:_the_reference_has_G,x_y_z_",
    ]
    with pysam.VariantFile(vcf.uri) as before, pysam.VariantFile(str(out)) as after:
        assert after.header.info["DNA_LLR"].number == "A" and after.header.info["DNA_LLR"].type == "Float"
        for old, new in zip(before, after, strict=True):
            assert dict(old.info).items() <= dict(new.info).items()
            for key in ("DNA_LLR", "DNA_STATUS"):
                assert key not in new.info or len(new.info[key]) == len(new.alts)
                new.info.pop(key, None)
            assert str(new).split("\t")[8:] == str(old).split("\t")[8:]
            assert (new.pos, new.id, new.alleles, new.qual) == (old.pos, old.id, old.alleles, old.qual)
    # What has such fields already is not written over.
    with pytest.raises(ValueError, match=f"out{end} has INFO field DNA_LLR already; give another --prefix"):
        scored(Vcf(str(out)), end, [6])
    assert b"T2_LLR=1.5,-2.25" in scored(Vcf(str(out)), ".vcf", [6], prefix="T2")


def test_fields_of_records_that_the_header_does_not_have_are_not_written_twice(tmp_path: Path) -> None:
    vcf = Vcf(written(tmp_path / "x.vcf", TEXT.replace("AF=0.5", "DNA_LLR=3;AF=0.5")))
    with pytest.raises(ValueError, match=r"x.vcf has INFO field DNA_LLR already; give another --prefix"):
        scored(vcf, ".vcf", [6])


def test_a_vcf_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    for old, new in (("A\tG,T", "A\tG,C"), (LINES[0].split("\t")[1], "77")):
        vcf = Vcf(written(tmp_path / "x.vcf", TEXT.replace(f"\t{old}\t", f"\t{new}\t", 1)))
        with pytest.raises(ValueError, match="changed while it was read"):
            scored(vcf, ".vcf", [6])
    sha256 = Vcf(written(tmp_path / "x.vcf", TEXT)).survey().sha256
    assert len(list(Vcf(written(tmp_path / "x.vcf", TEXT)).surveyed(sha256))) == len(LINES)
    changed = Vcf(written(tmp_path / "x.vcf", TEXT.replace("AF=0.5", "AF=0.6")))
    with pytest.raises(ChangedError, match=r"x.vcf changed while it was read; give the command again"):
        list(changed.surveyed(sha256))
    vcf = Vcf(written(tmp_path / "x.vcf", "\n".join(TEXT.splitlines()[:-1]) + "\n"))
    with pytest.raises(ValueError, match="changed while it was read"):
        scored(vcf, ".vcf", [6])


def test_a_prefix_that_is_no_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="--prefix 'a b' cannot begin the name of an INFO field"):
        vcf_writer.Fields("a b", "")


def test_info_of_a_record() -> None:
    fields = ("chr1", "5", ".", "A", "C", ".", ".")
    assert Record(1, (*fields, "."), ("C",)).with_info("X=1").endswith("\tX=1")
    assert Record(1, (*fields, "DB;", "GT\t0/0"), ("C",)).with_info("X=1").endswith("\tDB;X=1\tGT\t0/0")


@given(st.binary(max_size=200), st.integers(1, 9), st.integers(1, 70_000))
@settings(max_examples=30, deadline=None)
def test_bgzip_is_read_back_and_does_not_depend_on_how_it_is_cut(data: bytes, times: int, step: int) -> None:
    text, files = data * (times * 700), []
    for size in (step, len(text) + 1):
        file = io.BytesIO()
        with bgzip.opened(file) as writer:
            for start in range(0, len(text), size):
                writer.write(text[start : start + size])
        files.append(file.getvalue())
    assert files[0] == files[1] and gzip.decompress(files[0]) == text
