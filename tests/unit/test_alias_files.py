"""Files of contigs' names, and where they count: contigs, include, exclude, splits by name and by BED."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import DataConfig
from data_prep.dataset.plan import Plan, make_plan
from data_prep.sources.alias_files import read_aliases
from data_prep.sources.aliases import AliasTable, Renamed
from tests.unit.test_filters import bed, covered, reference

REPORT = (
    "# Assembly name:  T1\r\n#\r\n# Sequence-Name\tSequence-Role\tAssigned-Molecule\tAssigned-Molecule-"
    "Location/Type\tGenBank-Accn\tRelationship\tRefSeq-Accn\tAssembly-Unit\tSequence-Length\tUCSC-style-name\r\n"
    "1\tassembled-molecule\t1\tChromosome\tCM1.2\t=\tNC_000001.11\tPrimary\t5000\tchr1\r\n"
    "HSCHR1_CTG1\tunlocalized-scaffold\t1\tChromosome\tKI1.1\t=\tNT_1.1\tPrimary\t5000\tchr1_KI1v1_random\r\n"
    "MT\tassembled-molecule\tMT\tMitochondrion\tna\t<>\tNC_012920.1\tnon-nuclear\t5000\tna\r\n"
)
JSON = "".join(
    json.dumps(row) + "\n"
    for row in (
        {
            "sequenceName": "1",
            "chrName": "1",
            "genbankAccession": "CM1.2",
            "refseqAccession": "NC_000001.11",
            "role": "assembled-molecule",
            "ucscStyleName": "chr1",
        },
        {
            "sequenceName": "HSCHR1_CTG1",
            "chrName": "1",
            "genbankAccession": "KI1.1",
            "refseqAccession": "NT_1.1",
            "role": "unlocalized-scaffold",
            "ucscStyleName": "chr1_KI1v1_random",
        },
        {
            "sequenceName": "MT",
            "chrName": "MT",
            "refseqAccession": "NC_012920.1",
            "role": "assembled-molecule",
        },
    )
)
UCSC = (
    "# sequenceName\talias names\tUCSC database: t1\nchr1\t1\tCM1.2\tNC_000001.11\n"
    "chr1_KI1v1_random\tHSCHR1_CTG1\tKI1.1\tNT_1.1\nchrM\tMT\t\tNC_012920.1\n"
)
TABLE = "1 chr1 NC_000001.11 CM1.2\nHSCHR1_CTG1 chr1_KI1v1_random NT_1.1 KI1.1\nMT NC_012920.1\n"
FILES = {"report.txt": REPORT, "sequence_report.jsonl": JSON, "chromAlias.txt": UCSC, "names.tsv": TABLE}
GENBANK = {"CM1.2": 5000, "KI1.1": 5000, "NC_012920.1": 5000}


def table(folder: Path, text: str = REPORT, name: str = "aliases.txt") -> AliasTable:
    (folder / name).write_text(text, newline="")
    return read_aliases(str(folder / name))


def planned(
    found: AliasTable | None,
    split: dict[str, Any] | None = None,
    *,
    contigs: Mapping[str, int] = GENBANK,
    others: Mapping[str, Mapping[str, int]] = {},
    only: Any = None,
    **wanted: Any,
) -> Plan:
    """The plan of reference g, whose aliases are ``found``, and of ``others``, which have none."""
    config = DataConfig.model_validate(
        {
            "references": [{"name": "g", "uri": "u.fa", "contigs": only} | wanted]
            + [{"name": name, "uri": "u.fa"} for name in others],
            "output": "o",
            "block_bp": 1024,
            "split": {"gap": 0} | (split or {}),
        }
    )
    references = {"g": replace(reference(contigs), aliases=found)}
    return make_plan(config, references | {name: reference(own) for name, own in others.items()})


@pytest.mark.parametrize("name", FILES)
def test_each_format_says_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(FILES[name].encode()))
    found = table(tmp_path, FILES[name], name)
    assert read_aliases(str(tmp_path / f"{name}.gz")).rows == found.rows
    names = Renamed(GENBANK, found)
    for meant, others in {
        "CM1.2": ("1", "chr1", "NC_000001.11", "CM1.2", "Chr1"),
        "KI1.1": ("HSCHR1_CTG1", "chr1_KI1v1_random", "NT_1.1"),
        "NC_012920.1": ("MT", "NC_012920.1", "chrM", "M"),
    }.items():
        assert [names.find(other) for other in others] == [meant] * len(others)
    assert names.find("na") is None and names.find("chr2") is None and names.find("") is None
    assert set(names.roles) == (set(GENBANK) if name in ("report.txt", "sequence_report.jsonl") else set())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "chr1\n",
            "aliases.txt, line 1: needs two or more names of one contig, with tabs between, not 'chr1'",
        ),
        ("# a\tb\n\n", "aliases.txt has no row of contig names"),
        (
            REPORT.replace("\tRefSeq-Accn", "\tX"),
            "the assembly report has no column RefSeq-Accn; get it again",
        ),
        (REPORT + "2\tassembled-molecule\n", "line 7: 2 columns, the header has 10; get it again"),
        (JSON + "{oops\n", "line 4: is no entry of a sequence report"),
        (JSON + "[1]\n", "line 4: is no entry of a sequence report"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def test_a_table_of_another_assembly_and_one_that_joins_two_contigs(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no name of a contig of the reference \(its rows begin with 1, HSC"
    ):
        Renamed({"scaffold9": 5}, table(tmp_path))
    with pytest.raises(
        ValueError, match="says that 1 and chr1 are names of one sequence, and the reference has"
    ):
        Renamed({"1": 5, "chr1": 5}, table(tmp_path))


@given(
    st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=3, unique=True), min_size=1, max_size=5
    )
)
def test_a_name_means_the_contigs_of_its_rows(rows: list[list[str]]) -> None:
    contigs = {"a": 1, "b": 1, "c": 1}
    try:
        names = Renamed(contigs, AliasTable("t", "", tuple(map(tuple, rows))))
    except ValueError:
        owned = [len(contigs.keys() & set(row)) for row in rows]
        assert max(owned) > 1 or not any(owned)
        return
    for name in "abcdefgh":
        meant = {c for row in rows if name in row for c in row if c in contigs}
        expected = {name} if name in contigs else meant
        assert set(names.meanings(name)) == expected
        assert names.find(name) == (next(iter(expected)) if len(expected) == 1 else None)


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_filters_by_other_names(tmp_path: Path, key: str) -> None:
    file = bed(tmp_path, "chr1\t0\t1000\nNC_000001.11\t500\t2000\nMT\t0\t5000\n")
    beds: dict[str, Any] = {key: [file]}
    plan = planned(table(tmp_path), **beds)
    kept = {"CM1.2": 2000, "NC_012920.1": 5000} if key == "include" else {"CM1.2": 3000, "KI1.1": 5000}
    assert covered(plan, "train") == kept
    assert plan.warnings == (
        f"reference g: contigs chr1, NC_000001.11, MT of {file} were read as CM1.2, CM1.2, NC_012920.1 of "
        "the reference",
    )
    assert plan.manifest.sources[0].filters["aliases"] == table(tmp_path).sha256
    assert "aliases" not in planned(None).manifest.sources[0].filters


def test_a_bed_that_matches_partly_is_refused_or_listed(tmp_path: Path) -> None:
    file = bed(tmp_path, "chr1\t0\t1000\nchr9\t0\t9\n")
    with pytest.raises(ValueError, match=r"line 2: no contig is called 'chr9'; correct or remove it"):
        planned(table(tmp_path), include=[file])
    warnings = planned(table(tmp_path), exclude=[file]).warnings
    assert f"{file}: 1 line on contigs that reference g does not have (chr9): nothing to exclude" in warnings
    twice = table(tmp_path, "CM1.2\tx\nKI1.1\tx\n")
    message = "line 1: 'x' may mean CM1.2 or KI1.1; use one of these names"
    with pytest.raises(ValueError, match=message):
        planned(twice, exclude=[bed(tmp_path, "x\t0\t9\n")])
    with pytest.raises(ValueError, match=message):
        planned(twice, {"val": {"bed": bed(tmp_path, "x\t0\t9\n")}})
    with pytest.raises(ValueError, match=r"reference g: 'x' may mean CM1\.2 or KI1\.1; give one"):
        planned(twice, only=["x"])


def test_without_a_file_another_spelling_is_read_and_said(tmp_path: Path) -> None:
    ensembl = {"1": 5000, "MT": 5000}
    file = bed(tmp_path, "chr1\t0\t1000\nchrM\t0\t10\n")
    for plan, split in (
        (planned(None, contigs=ensembl, exclude=[file]), ""),
        (planned(None, {"val": {"bed": file}}, contigs=ensembl), "val"),
    ):
        (warning,) = plan.warnings
        assert "chr1" in warning and "chrM" in warning and "were read as" in warning, warning
        assert not split or covered(plan, split) == {"1": 1000, "MT": 10}
    plan = planned(None, {"val": ["chr1"]}, contigs=ensembl)
    assert covered(plan, "val") == {"1": 5000}
    assert plan.warnings == ("split.val: contig chr1 was read as 1 of g",)
    assert planned(None, {"val": ["chr1"]}, contigs=ensembl).manifest.split["val"] == ["chr1"]


def test_a_spelling_counts_only_where_no_assembly_has_the_name(tmp_path: Path) -> None:
    """A dataset that could be built before keeps its bytes."""
    others = {"h": {"chr1": 5000, "chr2": 5000}}
    for value in (["chr1"], {"bed": bed(tmp_path, "chr1\t0\t5000\n")}):
        plan = planned(None, {"val": value}, contigs={"1": 5000, "MT": 5000}, others=others)
        assert {span.place for span in plan.parts["val"]} == {("h", "chr1")} and plan.warnings == ()
        plan = planned(table(tmp_path), {"val": value}, others=others)
        assert {span.place for span in plan.parts["val"]} == {("h", "chr1"), ("g", "CM1.2")}
        assert len(plan.warnings) == 1 and "read as CM1.2" in plan.warnings[0]
    for value in (["g:chr1"], {"bed": bed(tmp_path, "chr1\t0\t5000\tg\n")}):
        plan = planned(table(tmp_path), {"val": value}, others=others)
        assert {span.place for span in plan.parts["val"]} == {("g", "CM1.2")}


def test_globs_match_the_files_names_where_no_contig_has_such_a_name(tmp_path: Path) -> None:
    found = table(tmp_path)
    assert [*planned(found, only=["chr*", "!*_*"]).manifest.sources[0].contigs] == ["CM1.2"]
    assert [*planned(found, only=["C*"]).manifest.sources[0].contigs] == ["CM1.2"]
    plan = planned(found, only=["chr1", "MT"])
    assert [*plan.manifest.sources[0].contigs] == ["CM1.2", "NC_012920.1"]
    assert plan.warnings == (
        "reference g: contigs chr1, MT of contigs were read as CM1.2, NC_012920.1 of the reference",
    )
    assert covered(planned(found, {"val": ["chr1*"]}), "val") == {"CM1.2": 5000, "KI1.1": 5000}
    with pytest.raises(ValueError, match=r"no contig matches 'zz\*'; there are CM1.2, KI1.1"):
        planned(found, only=["zz*"])
    with pytest.raises(ValueError, match=r"split.val: no contig matches 'chr9'"):
        planned(found, {"val": ["chr9"]})


@pytest.mark.parametrize(
    ("contigs", "chosen", "how"),
    [
        (["chr1", "chr2L", "chrX", "chrM", "chr1_KI1_random", "chrUn_1", "chrEBV"], 4, "UCSC"),
        (["chrI", "chrXVI", "chrM", "chrUn"], 3, "UCSC"),
        (["1", "22", "X", "MT", "KI27.1", "CHR_HSCHR1_1", "HSCHR9"], 4, "Ensembl"),
        (["I", "IV", "Mito", "scaffold_1"], 3, "Ensembl"),
        (["NC_000001.11", "NC_012920.1", "NT_1.1", "NW_3.2"], 2, "RefSeq"),
        (["chr1", "chr2", "MT", "NC_001422.1"], 2, "UCSC"),
    ],
)
def test_primary_contigs_by_name(contigs: list[str], chosen: int, how: str) -> None:
    plan = _primary(dict.fromkeys(contigs, 5000), None)
    assert [*plan.manifest.sources[0].contigs] == contigs[:chosen]
    (warning,) = [text for text in plan.warnings if "primary" in text]
    assert warning.startswith(
        f"reference g: primary contigs, by {how}'s names, are {chosen} of {len(contigs)}: "
    )


def _primary(contigs: Mapping[str, int], found: AliasTable | None) -> Plan:
    return planned(found, contigs=contigs, only="primary")


def test_primary_contigs_by_a_report_by_its_names_and_a_contig_of_this_name(tmp_path: Path) -> None:
    plan = _primary(GENBANK, table(tmp_path))
    assert [*plan.manifest.sources[0].contigs] == ["CM1.2", "NC_012920.1"]
    assert "by the role assembled-molecule, are 2 of 3" in plan.warnings[0]
    plan = _primary({"x": 5000, "KI1.1": 5000}, table(tmp_path, "x\tchr1\nKI1.1\tchr1_random\n"))
    assert [*plan.manifest.sources[0].contigs] == ["x"]
    plan = _primary({"primary": 5000, "chr1": 5000}, None)
    assert [*plan.manifest.sources[0].contigs] == ["primary"]
    assert plan.warnings == ("reference g: contigs: primary means the contig of this name",)
    with pytest.raises(
        ValueError, match=r"recognises none of the names \(scaffold1, scaffold2\); give an assembly"
    ):
        _primary({"scaffold1": 5000, "scaffold2": 5000}, None)
    with pytest.raises(
        ValueError, match=r"has no assembled-molecule among them \(it has unlocalized-scaffold\)"
    ):
        _primary({"KI1.1": 5000}, table(tmp_path))
