"""Genomes as NCBI gives them: datasets packages, accessions by mirror and web server, GenBank flat files."""

import gzip
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord

from data_prep.config import DataConfig, ReferenceConfig
from data_prep.dataset.references import first_changed, prepare_all
from data_prep.dataset.runner import Runner
from data_prep.sources import accessions
from data_prep.sources.reference import changed, fetch
from data_prep.sources.survey import Reference, prepare
from tests.unit.test_reference import letters, serving

ACC, OTHER = "GCF_000146045.2", "GCA_000146045.2"
FASTA = b">NC_1.1 Yeast chromosome I\nACGTNacgt\nAC\n>NC_2.1 x\nGGGT\n"
REPORT = "".join(
    json.dumps({"refseqAccession": accession, "ucscStyleName": name, "role": "assembled-molecule"}) + "\n"
    for accession, name in (("NC_1.1", "chrI"), ("NC_2.1", "chrII"))
).encode()
EXPECTED = {"NC_1.1": b"ACGTNacgtAC", "NC_2.1": b"GGGT"}


def zipped(path: Path, members: Mapping[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return str(path)


def package(path: Path, *keys: str) -> str:
    members = {"README.md": b"x", "ncbi_dataset/data/assembly_data_report.jsonl": b"{}\n"}
    for key in keys:
        folder = f"ncbi_dataset/data/{key}"
        members |= {
            f"{folder}/{key}_R64_genomic.fna": FASTA,
            f"{folder}/cds_from_genomic.fna": b">c\nA\n",
            f"{folder}/sequence_report.jsonl": REPORT,
        }
    return zipped(path, members)


def found(uri: str, **keys: str) -> Reference:
    wanted = ReferenceConfig.model_validate({"name": "g", "uri": uri} | keys)
    return prepare_all([wanted], Runner(1, lambda *_: None, lambda _: None))["g"]


def test_a_package_is_its_fasta_with_other_names(tmp_path: Path) -> None:
    (tmp_path / "plain.fa").write_bytes(FASTA)
    plain = prepare(str(tmp_path / "plain.fa"))
    uri = package(tmp_path / "pkg.zip", ACC)
    reference = found(uri)
    assert letters(reference) == EXPECTED
    assert reference.handle.sha256 == plain.handle.sha256, "of the FASTA's text, wherever it lies"
    assert (
        reference.names.find("chrII") == "NC_2.1" and reference.names.roles["NC_1.1"] == "assembled-molecule"
    )
    (tmp_path / "own.tsv").write_text("NC_1.1\tone\n")
    own = found(uri, aliases=str(tmp_path / "own.tsv"))
    assert own.names.find("one") == "NC_1.1" and own.names.find("chrII") is None
    assert not changed(reference)
    package(tmp_path / "pkg.zip", ACC, OTHER)
    assert changed(reference)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.tsv", "pkg.zip", "plain.fa"]


def test_one_assembly_of_a_package_with_several(tmp_path: Path) -> None:
    uri = package(tmp_path / "pkg.zip", ACC, OTHER)
    with pytest.raises(
        ValueError, match=rf"pkg.zip has 2 assemblies \({OTHER}, {ACC}\); say which, as in pkg.zip#{OTHER}"
    ):
        found(uri)
    reference = found(f"{uri}#{OTHER}")
    assert letters(reference) == EXPECTED and reference.names.find("chrI") == "NC_1.1"
    assert reference.handle.uri == f"{uri}#{OTHER}"
    with pytest.raises(ValueError, match=rf"has no assembly GCF_9; it has {OTHER}, {ACC}"):
        found(f"{uri}#GCF_9")


@pytest.mark.parametrize("name", ["x.fa", "deep/x.fna.gz", "x.FASTA"])
def test_a_zip_of_one_fasta(tmp_path: Path, name: str) -> None:
    data = gzip.compress(FASTA) if name.endswith(".gz") else FASTA
    uri = zipped(tmp_path / "x.zip", {name: data, "notes.txt": b"x", "__MACOSX/x.fa": b"?"})
    reference = found(uri)
    assert letters(reference) == EXPECTED and reference.aliases is None


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"a.fa": FASTA, "b.fa": FASTA},
            r"x.zip has 2 FASTA files \(it has a.fa, b.fa\); say which by its name",
        ),
        ({"a.xlsx": b"x"}, r"x.zip has no FASTA \(it has a.xlsx\); a package is to have one genome"),
        ({"a.fa": b"@x\nACGT\n+\n!!!!\n"}, "is not a FASTA: it starts with .*; it looks like FASTQ or SAM"),
        (
            {f"ncbi_dataset/data/{ACC}/{ACC}_{part}_genomic.fna": FASTA for part in "ab"},
            "x.zip has two files of one genome: .*a_genomic.fna, .*b_genomic.fna; unpack it",
        ),
    ],
)
def test_zips_without_one_genome(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(zipped(tmp_path / "x.zip", members))


def test_a_damaged_zip_in_one_sentence(tmp_path: Path) -> None:
    whole = Path(package(tmp_path / "x.zip", ACC)).read_bytes()
    at = whole.index(b"_genomic.fna") + 20
    for broken in (whole[:-40], whole[:200], whole[:at] + b"\xff" * 9 + whole[at + 9 :]):
        (tmp_path / "x.zip").write_bytes(broken)
        with pytest.raises(ValueError, match=r"x\.zip is a damaged zip archive \(.+\); get it again"):
            found(str(tmp_path / "x.zip"))


def test_a_remote_package_is_read_by_ranges(tmp_path: Path) -> None:
    package(tmp_path / "pkg.zip", ACC)
    with serving(tmp_path) as server:
        reference = found(f"{server}/pkg.zip#{ACC}")
        assert letters(reference) == EXPECTED and reference.names.find("chrI") == "NC_1.1"


def mirror(root: Path, accession: str = ACC, name: str = "R64") -> Path:
    folder = root.joinpath(accession[:3], "000", "146", "045", f"{accession}_{name}")
    folder.mkdir(parents=True)
    (folder / f"{accession}_{name}_genomic.fna.gz").write_bytes(gzip.compress(FASTA))
    (folder / f"{accession}_{name}_cds_from_genomic.fna.gz").write_bytes(b"x")
    (folder / f"{accession}_{name}_genomic.gbff.gz").write_bytes(b"x")
    (folder / f"{accession}_{name}_assembly_report.txt").write_text(
        "# Sequence-Name\tSequence-Role\tGenBank-Accn\tRefSeq-Accn\n"
        "I\tassembled-molecule\tna\tNC_1.1\nII\tassembled-molecule\tna\tNC_2.1\n"
    )
    return folder


def test_accessions_from_a_mirror_on_disk_and_on_a_web_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror(tmp_path)
    with serving(tmp_path) as server:
        for root in (str(tmp_path), server):
            monkeypatch.setenv("DNA_ASSEMBLIES", root)
            reference = found(f"accession:{ACC}")
            assert letters(reference) == EXPECTED and reference.names.find("chrII") == "NC_2.1"
            assert reference.handle.uri.startswith(root) and reference.notes == ()
            reference = found("accession:GCF_000146045")
            assert reference.notes == (
                f"reference g: accession:GCF_000146045 has no version; {ACC}, the only one, was taken",
            )
            with pytest.raises(
                ValueError, match=r"has no assembly GCF_000146045\.3 \(neither in .*/GCF/000/146/045"
            ):
                found("accession:GCF_000146045.3")
            with pytest.raises(
                ValueError, match=r"has no assembly GCF_000000001\.1 .*DNA_ASSEMBLIES says where"
            ):
                found("accession:GCF_000000001.1")
        mirror(tmp_path, "GCF_000146045.20", "R99")
        for root in (str(tmp_path), server):
            monkeypatch.setenv("DNA_ASSEMBLIES", root)
            assert f"{ACC}_R64" in accessions.resolve(f"accession:{ACC}").uri
            with pytest.raises(
                ValueError, match=r"there are GCF_000146045\.2, GCF_000146045\.20; give one of them"
            ):
                found("accession:GCF_000146045")


def test_the_default_is_ncbi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DNA_ASSEMBLIES", raising=False)
    mirror(tmp_path)
    with serving(tmp_path) as server:
        monkeypatch.setattr(accessions, "_NCBI", server)
        assert letters(found(f"accession:{ACC}")) == EXPECTED


@pytest.mark.parametrize("name", ["{}.zip", "{}_R64.fa", "{}.fna.gz"])
def test_accessions_of_flat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("DNA_ASSEMBLIES", str(tmp_path))
    path = tmp_path / name.format(ACC)
    if path.suffix == ".zip":
        package(path, ACC)
    else:
        path.write_bytes(FASTA)
    (tmp_path / f"{ACC}_rna_from_genomic.fna").write_bytes(b"x")
    assert letters(found(f"accession:{ACC}")) == EXPECTED
    (tmp_path / f"{ACC}_second{path.suffix}").write_bytes(FASTA)
    if path.suffix != ".gz":
        with pytest.raises(
            ValueError, match=rf"has several genome files \({ACC}.*, {ACC}.*\) of {ACC}; give the"
        ):
            found(f"accession:{ACC}")


def test_accessions_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_ASSEMBLIES", str(tmp_path))
    for wrong in ("NC_000001.11", "GCF_1.1", ""):
        with pytest.raises(ValueError, match="is no accession of an assembly; one is GCF_ or GCA_, 9 digits"):
            found(f"accession:{wrong}")
    (tmp_path / f"{ACC}_readme.txt").write_text("x")
    with pytest.raises(ValueError, match=rf"has only {ACC}_readme.txt of {ACC}; give the URI of one"):
        found(f"accession:{ACC}")
    (tmp_path / "g.fa").write_bytes(FASTA)
    wanted = {"name": "g", "uri": ["accession:GCF_000000001.1", str(tmp_path / "g.fa")]}
    (reference,) = prepare_all(
        [ReferenceConfig.model_validate(wanted)], Runner(1, lambda *_: None, lambda _: None)
    ).values()
    assert letters(reference) == EXPECTED, "an alternative that is there"
    assert first_changed({"g": reference}) == ""
    config = DataConfig.model_validate(
        {"references": [{"name": "g", "uri": "accession:GCF_000000001.1"}], "output": "o"}
    )
    assert config.inputs() == [], "it is no file that could be lost"


def genbank(records: Mapping[str, str]) -> bytes:
    text = io.StringIO()
    SeqIO.write(
        [
            SeqRecord(Seq(letters), id=name, name=name.split(".")[0], annotations={"molecule_type": "DNA"})
            for name, letters in records.items()
        ],
        text,
        "genbank",
    )
    return text.getvalue().encode()


GENBANK = genbank({"NC_1.1": "ACGTNACGTAC" * 20, "NC_2.1": "ggRt"})
OF_GENBANK = {"NC_1.1": b"ACGTNACGTAC" * 20, "NC_2.1": b"GGRT"}


@pytest.mark.parametrize("mess", ["plain", "crlf", "gzip", "no-last-line-end", "blank-first"])
def test_genbank_flat_files(tmp_path: Path, mess: str) -> None:
    content = {
        "plain": GENBANK,
        "crlf": GENBANK.replace(b"\n", b"\r\n"),
        "gzip": gzip.compress(GENBANK),
        "no-last-line-end": GENBANK.rstrip(),
        "blank-first": b"\n\n" + GENBANK,
    }[mess]
    (tmp_path / "x.gbff").write_bytes(content)
    reference = prepare(str(tmp_path / "x.gbff"))
    assert letters(reference) == OF_GENBANK, "upper case: the format has no mask"
    assert reference.ambiguous_runs["NC_2.1"].tolist() == [[2, 3]]
    text = "".join(f">{name}\n{own.decode()}\n" for name, own in OF_GENBANK.items())
    (tmp_path / "x.fa").write_text(text)
    assert reference.handle.sha256 == prepare(str(tmp_path / "x.fa")).handle.sha256
    assert not changed(reference)


def test_genbank_files_that_are_refused(tmp_path: Path) -> None:
    at = GENBANK.index(b"ORIGIN")
    until = GENBANK.index(b"//")
    contig = GENBANK[:at] + b"CONTIG      join(X1.1:1..220)\n" + GENBANK[until:]
    for content, message in {
        contig: r"x.gb: record NC_1.1 has no letters \(a CONTIG line alone",
        GENBANK[: at + 100]: r"x.gb is a damaged GenBank file \(record 1: .+\); get it again",
        GENBANK.replace(
            b"      181 ", b"//\n      181 ", 1
        ): r"x.gb is a damaged GenBank file \(record 1: Expected",
        b"LOCUS \n": "x.gb is not a GenBank file: it has no record",
    }.items():
        (tmp_path / "x.gb").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            prepare(str(tmp_path / "x.gb"))


def test_a_contig_of_genbank_is_read_in_ranges(tmp_path: Path) -> None:
    (tmp_path / "x.gbk").write_bytes(GENBANK)
    reference = prepare(str(tmp_path / "x.gbk"), cache=tmp_path / "cache")
    assert fetch(reference.handle, "NC_1.1", 3, 9) == OF_GENBANK["NC_1.1"][3:9]
    assert reference.handle.path.startswith(str(tmp_path / "cache"))
