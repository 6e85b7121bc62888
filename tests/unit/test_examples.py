"""docs/examples: each runs, and says what the data hold."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.registered import tiny_network
from trainer.models import pretrained

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and a genome whose regions rich in G and C are labelled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    network, rng = tiny_network(), np.random.default_rng(0)
    pretrained.write("model", network, dict(network.state_dict()), card="a toy")
    shares = ([0.3, 0.2, 0.2, 0.3], [0.15, 0.35, 0.35, 0.15])
    blocks = ["".join(rng.choice(list("ACGT"), 120, p=shares[i % 2])) for i in range(80)]
    Path("genome.fa").write_text(">chr1\n" + "\n".join(blocks) + "\n")
    lines = [f"chr1\t{120 * i}\t{120 * i + 120}\t{('poor', 'rich')[i % 2]}\n" for i in range(80)]
    Path("regions.bed").write_text("".join(lines))
    Path("exons.bed").write_text("chr1\t240\t360\nchr1\t480\t600\n")
    return tmp_path


def run(name: str, *options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_embeddings_of_regions_into_scikit_learn(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "model", "--bed", "regions.bed", "--reference", "genome.fa"]
    run("embed_regions.py", *options, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "80 regions, 24 numbers each, labels poor, rich" in out
    found = dict(re.findall(r"^(embeddings|4-mers): MCC (\S+) ±", out, re.MULTILINE))
    assert found.keys() == {"embeddings", "4-mers"}
    assert all(float(score) > 0.6 for score in found.values()), "the content of G and C is in both"


def test_variants_of_a_gene_with_a_picture(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "model", "--reference", "genome.fa", "--region", "chr1:200-620", "--length", "100"]
    more = ["--exons", "exons.bed", "--output", "gene.png", "--every", "6"]
    run("variants_of_a_gene.py", *options, *more, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "210 variants of chr1:200-620" in out
    assert re.search(r"exons: mean llr -?\d\.\d{3} over 40 places", out)
    assert re.search(r"between: mean llr -?\d\.\d{3} over 30 places", out)
    assert (files / "gene.png").read_bytes().startswith(b"\x89PNG")
