"""data_prep.split.filters and the plan of a build, which warns of each line that it ignores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.config import DataConfig
from data_prep.dataset.plan import Plan, make_plan
from data_prep.sources.reference import Handle
from data_prep.sources.survey import Reference
from tests.unit.test_compression import PACKERS

CONTIGS = {"chrA": 5000, "chrB": 5000, "chrC": 5000}


def reference(
    contigs: Mapping[str, int], n_runs: Mapping[str, list[tuple[int, int]]] | None = None
) -> Reference:
    runs = {contig: np.array(pairs) for contig, pairs in (n_runs or {}).items()}
    return Reference(Handle("u.fa", "u.fa", "", "0" * 64, ""), dict(contigs), 0, "", "", runs, {})


def planned(
    split: dict[str, Any],
    *,
    contigs: Mapping[str, int] = CONTIGS,
    assemblies: tuple[str, ...] = ("g",),
    n_runs: Mapping[str, list[tuple[int, int]]] | None = None,
    **wanted: Any,
) -> Plan:
    config = DataConfig.model_validate(
        {
            "references": [{"name": name, "uri": "u.fa"} | wanted for name in assemblies],
            "output": "o",
            "block_bp": 1024,
            "split": {"gap": 0} | split,
        }
    )
    return make_plan(config, dict.fromkeys(assemblies, reference(contigs, n_runs)))


def bed(folder: Path, content: str | bytes, name: str = "v.bed") -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


def covered(plan: Plan, split: str) -> dict[str, int]:
    bp: dict[str, int] = {}
    for span in plan.parts[split]:
        bp[span.contig] = bp.get(span.contig, 0) + span.bp
    return bp


MESSES = {
    "plain": "chrA\t0\t2048\nchrB\t0\t1024\n",
    "spaces": "chrA 0 2048\n chrB  0 1024 \n",
    "no-last-newline": "chrA\t0\t2048\nchrB\t0\t1024",
    "crlf": "chrA\t0\t2048\r\nchrB\t0\t1024\r\n",
    "cr": "chrA\t0\t2048\rchrB\t0\t1024\r",
    "blanks": "\n \nchrA\t0\t2048\n\t\nchrB\t0\t1024\n\n",
    "comments": "#chrC\t0\t9\ntrack name=chrC\nbrowser position chrC:1-9\nchrA\t0\t2048\n # "
    "x\nchrB\t0\t1024\n",
    "blanks-in-fields": "chrA \t0 \t 2048\nchrB\t0\t1024 \n",
    "names": "chrA\t0\t2048\tone\t0\t+\nchrB\t0\t1024\ttwo\n",
}


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig", "utf-16", "utf-32", *PACKERS])
@pytest.mark.parametrize("mess", MESSES)
def test_messes_of_which_every_line_counts(tmp_path: Path, mess: str, mark: str) -> None:
    text = MESSES[mess]
    content = PACKERS[mark](text.encode()) if mark in PACKERS else text.encode(mark)
    plan = planned({"val": {"bed": bed(tmp_path, content)}})
    assert covered(plan, "val") == {"chrA": 2048, "chrB": 1024}
    assert plan.warnings == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "chrA\t0\t9\nchrZ\t0\t9\nchrQ\t0\t9\n",
            r"split.val: .*v.bed, line 2: no contig is called 'chrZ' \(and 1 line more of this kind\); "
            r"correct or remove it; "
            "the references have chrA, chrB, chrC",
        ),
        ('chrB\t0\t9\n"chrA"\t0\t9\n', "line 2: no contig is called '\"chrA\"', is 'chrA' meant; correct"),
        ("chrB\t0\t9\nchra\t0\t9\n", "line 2: no contig is called 'chra', is 'chrA' meant"),
        ("chrB\t0\t9\n\u200bchrA\t0\t9\n", "line 2: no contig is called '.*chrA', is 'chrA' meant"),
        (
            'chrA\t0\t9\tg\nchrB\t0\t9\t"G"\n',
            "split.val: .*line 2: no assembly is called '\"G\"', is 'g' meant; correct",
        ),
        (
            "1\t0\t9\n",
            r"v.bed names no contig of the references \(the BED has 1; they have chrA, chrB, chrC\)",
        ),
        (
            "#only\n",
            r"v.bed names no contig of the references \(the BED has nothing; they have chrA, chrB, chrC\)",
        ),
        ("chrA\t5000\t5001\n", r"line 1: chrA:5000-5001 lies beyond the contig's 5000 bp"),
        (
            "chrA\t7\t7\n",
            "split.val is asked for and would be empty: the filters leave nothing of its intervals",
        ),
    ],
)
def test_a_split_bed_whose_lines_cannot_all_count_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned({"val": {"bed": bed(tmp_path, content)}})


def test_lines_that_count_for_nothing_are_told_of(tmp_path: Path) -> None:
    file = bed(tmp_path, "chrA\t0\t9\nchrA\t7\t7\nchrB\t4000\t9999\nchrC\t0\t9\n")
    plan = planned({"val": {"bed": file}})
    assert covered(plan, "val") == {"chrA": 9, "chrB": 1000, "chrC": 9}
    assert plan.warnings == (
        f"{file}: 1 line of length 0 (the first is line 2): that covers nothing",
        f"{file}: 1 line past the end of the contig (the first is line 3, chrB:4000-9999 of 5000 bp): what "
        f"lies there "
        "counts for nothing",
    )
    config = {"val": {"bed": bed(tmp_path, "chrA\t0\t9\tg\nchrC\t0\t9\tg\nchrQ\t0\t9\tmm10\n")}}
    plan = planned(config)
    assert plan.warnings == (
        f"{file}: 1 line of assemblies that are not in this dataset (mm10): that holds out nothing",
    )


def test_lines_on_contigs_that_are_left_out_are_told_of(tmp_path: Path) -> None:
    file = bed(tmp_path, "chrA\t0\t9\nchrC\t0\t9\n")
    config = DataConfig.model_validate(
        {
            "references": [{"name": "g", "uri": "u.fa", "contigs": ["!chrC"]}],
            "output": "o",
            "split": {"val": {"bed": file}},
        }
    )
    plan = make_plan(config, {"g": reference(CONTIGS)})
    assert plan.warnings == (f"{file}: 1 line on contigs that are left out anyway (chrC)",)


def test_a_line_of_an_assembly_must_be_on_a_contig_of_it(tmp_path: Path) -> None:
    config = DataConfig.model_validate(
        {
            "references": [{"name": name, "uri": "u.fa"} for name in "xy"],
            "output": "o",
            "split": {"val": {"bed": bed(tmp_path, "chrA\t0\t9\tx\nchrC\t0\t9\ty\n")}},
        }
    )
    with pytest.raises(ValueError, match="line 2: no contig is called 'chrC' in y; correct or remove it"):
        make_plan(config, {"x": reference(CONTIGS), "y": reference({"chrA": 5000})})


def test_filters_with_other_contigs(tmp_path: Path) -> None:
    file = bed(tmp_path, "chrA\t0\t1000\nchrEBV\t0\t9\n")
    plan = planned({}, exclude=[file])
    assert covered(plan, "train") == {"chrA": 4000, "chrB": 5000, "chrC": 5000}
    assert plan.warnings == (
        f"{file}: 1 line on contigs that reference g does not have (chrEBV): nothing to exclude",
    )
    said = (
        "reference g: .*v.bed, line 2: no contig is called 'chrEBV'; correct or remove it; the "
        "reference has chrA"
    )
    with pytest.raises(ValueError, match=said):
        planned({}, include=[file])
    with pytest.raises(ValueError, match="line 2: no contig is called 'chrb', is 'chrB' meant"):
        planned({}, exclude=[bed(tmp_path, "chrA\t0\t1000\nchrb\t0\t9\n")])


def test_both_splits_by_name_and_bed_may_not_meet(tmp_path: Path) -> None:
    said = "split: g:chrA in both val and test: held out whole by name, and the BED of"
    with pytest.raises(ValueError, match=f"{said} test"):
        planned({"val": ["chrA"], "test": {"bed": bed(tmp_path, "chrA\t10\t20\n")}})
    with pytest.raises(ValueError, match=f"{said} val"):
        planned({"test": ["chr[AB]"], "val": {"bed": bed(tmp_path, "chrA\t10\t20\nchrC\t0\t10\n")}})
    plan = planned({"val": ["chrA"], "test": {"bed": bed(tmp_path, "chrB\t10\t20\n")}})
    assert (covered(plan, "val"), covered(plan, "test")) == ({"chrA": 5000}, {"chrB": 10})


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_that_was_asked_for_is_not_empty(name: str) -> None:
    said = f"split.{name} is asked for and would be empty"
    with pytest.raises(ValueError, match=f"{said}: all of its 5 blocks have more N than max_n_fraction 0.5"):
        planned({name: ["chrA"]}, n_runs={"chrA": [(0, 5000)]})
    with pytest.raises(
        ValueError,
        match=f"{said}: a share of 1e-06 draws none of 15 blocks; a larger share, a smaller "
        "block_bp or another seed draws some",
    ):
        planned({name: 1e-6})


def test_other_copies_of_what_is_held_out_are_named() -> None:
    contigs = dict.fromkeys(
        ["chr1", "chr8", "chr8_KI270821v1_alt", "chr8_KZ208915v1_fix", "chr1_KI2_random"], 5000
    )
    plan = planned({"val": ["chr8"]}, contigs=contigs)
    assert plan.warnings == (
        "train has chr8_KI270821v1_alt, chr8_KZ208915v1_fix: by name other copies or pieces of chr8, held "
        "out; "
        'hold them out, too, or leave them out (contigs: ["chr*", "!*_*"] takes UCSC\'s primary ones)',
    )
    assert planned({"val": ["chr8*"]}, contigs=contigs).warnings == ()
