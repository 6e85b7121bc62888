"""data_prep.dataset.pairs: windows that are the same by descent, as they truly are."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.dataset.pairs import pairs
from data_prep.dataset.partner_checks import read_table
from data_prep.dataset.read import load_manifest
from tests.commands import exit_code
from tests.orthologs import relatives, relatives_dataset

pytestmark = pytest.mark.usefixtures("local_ray")
LENGTH = 200


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    relatives_dataset(folder, relatives())
    return str(folder / "dataset")


def test_pairs_are_the_truth(dataset: str) -> None:
    pair, manifest = relatives(), load_manifest(dataset)
    table = read_table(dataset, manifest)
    assert table
    found = list(pairs(table, manifest, length=LENGTH))
    off, turned = [], 0
    for one, other, is_turned, identity in found:
        assert one[3] - one[2] == other[3] - other[2] == LENGTH and 0.5 < identity <= 1
        assert (one[:2], other[:2]) == (("one", "a"), ("other", "a"))
        middle = one[2] + LENGTH // 2
        at = pair.to_other[middle]
        if at >= 0:
            assert bool(pair.turned[middle]) == is_turned
            there = other[3] - 1 - LENGTH // 2 if is_turned else other[2] + LENGTH // 2
            off.append(abs(int(at) - there))
            turned += is_turned
    assert len(off) > 200 and turned > 20
    assert np.quantile(off, 0.9) <= 3 and max(off) <= 50
    starts = sorted(one[2] for one, *_ in found)
    assert min(np.diff(starts)) >= LENGTH // 2, "windows lie beside each other"


def test_the_command_writes_bedpe(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, packed = tmp_path / "p.bedpe", tmp_path / "p.bedpe.gz"
    for path in (plain, packed):
        assert main(["pairs", dataset, "--length", "200", "--output", str(path)]) == 0
    lines = plain.read_text().splitlines()
    assert f"{plain}: {len(lines)} pairs of 200 bp" in capsys.readouterr().out
    assert gzip.decompress(packed.read_bytes()).decode().splitlines() == lines
    columns = [line.split("\t") for line in lines]
    assert {len(row) for row in columns} == {12}
    assert {(row[0], row[3], row[10], row[11]) for row in columns} == {("a", "a", "one", "other")}
    assert {row[9] for row in columns} == {"+", "-"}
    assert main(["pairs", dataset, "--between", "one", "other", "--output", str(plain)]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--output", "p.bam"], 2, "p.bam: pairs are written as text; let its name end in .bedpe or"),
        (
            ["--output", "p.bedpe", "--between", "cow"],
            1,
            "has no partners of 'cow'; there are those of one, other",
        ),
        (["--output", "p.bedpe", "--length", "0"], 2, "must be a whole number above 0, not '0'"),
    ],
)
def test_mistakes(
    dataset: str,
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(main, ["pairs", dataset, *arguments]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_partners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relatives_dataset(tmp_path, relatives(), partners={})
    uri = str(tmp_path / "dataset")
    assert main(["pairs", uri, "--output", str(tmp_path / "p.bedpe")]) == 1
    assert f"{uri} has no partners; build it with partners.between" in capsys.readouterr().err
