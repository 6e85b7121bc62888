"""What the name of an output says is what is written to it, or refused at the command line."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from tests.datasets import write_dataset


def test_the_name_of_an_output_says_its_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = write_dataset(tmp_path / "data", {"val": [np.arange(200, dtype=np.uint8) % 4]})
    for name in ("v.fa", "v.fa.gz", "V.FA.GZ"):
        assert main(["export", uri, "--split", "val", "--fasta", str(tmp_path / name)]) == 0
    text = (tmp_path / "v.fa").read_bytes()
    assert text.startswith(b">") and text.endswith(b"ACGT\n")
    for name in ("v.fa.gz", "V.FA.GZ"):
        assert gzip.decompress((tmp_path / name).read_bytes()) == text
    for command, message in (
        (["export", uri, "--split", "val", "--fasta", "v.fa.bz2"], "v.fa.bz2 says another format"),
        (["export", uri, "--split", "val", "--fasta", "v.2bit"], "a FASTA is written as text, or"),
        (["export", uri, "--split", "val", "--fasta", "v.fq.gz"], "v.fq.gz says another format"),
        (["export", uri, "--split", "val", "--fasta", str(tmp_path)], f"{tmp_path} is a folder;"),
        (["export", uri, "--split", "val", "--fasta", "-"], "- is no file; standard input"),
        (["stats", uri, "--picture", str(tmp_path)], f"{tmp_path} is a folder; give"),
        (["stats", uri, "--picture", "p.pdf"], "p.pdf says another format; a PNG is written"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
