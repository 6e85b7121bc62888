"""python -m data_prep: exit codes and what a user reads."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.dataset.build import Built
from data_prep.dataset.read import load_manifest
from tests.datasets import write_dataset

ROOT = Path(__file__).resolve().parents[2]
YEAST = str(ROOT / "configs" / "data" / "yeast.yaml")


@pytest.fixture
def config(small_letters: dict[str, str], tmp_path: Path) -> str:
    (tmp_path / "x.fa").write_text(
        "".join(f">{name}\n{letters}\n" for name, letters in small_letters.items())
    )
    (tmp_path / "c.yaml").write_text(
        f"references: [{{name: toy, uri: {tmp_path}/x.fa}}]\noutput: {tmp_path}/out\nblock_bp: 1024\n"
    )
    return str(tmp_path / "c.yaml")


def test_from_fasta_to_fasta_in_a_process_of_its_own(config: str, tmp_path: Path) -> None:
    """The real thing, once: a local Ray starts by itself, and stderr stays empty. As a Slurm job may have it:
    with a folder for temporary files whose name is too long for Ray's sockets, and a cache that no shell has
    expanded."""
    command = [
        sys.executable,
        "-m",
        "data_prep",
        "build",
        "--config",
        config,
        "workers=1",
        "split.val=[three]",
    ]
    long = tmp_path / "slurm_jobdir" / ("a.user.name" * 4) / "4711001.scratch"
    environment = {**os.environ, "TMPDIR": str(long), "HOME": str(tmp_path / "home"), "DNA_CACHE": "~/dna"}
    environment.pop("RAY_TMPDIR", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((long / "ray").glob("session_2*")), "what Ray writes is where it was asked for"
    assert list((tmp_path / "home" / "dna").glob("*.fai")) and not (ROOT / "~").exists()
    # two/b is 60 % N, above max_n_fraction: its 3 blocks are dropped.
    assert f"{tmp_path}/out: 7,007 bp (train 7,000, val 7, test 0) in 2 shards" in done.stdout
    assert "left out: 3 blocks with more N than max_n_fraction 0.5, 0 empty records" in done.stdout


@pytest.mark.usefixtures("local_ray")
def test_build_twice_verify_stats_export(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["build", "--config", config]) == 0
    assert main(["build", "--config", config]) == 0
    assert capsys.readouterr().out.endswith(f"{out} holds this very dataset already; nothing to do\n")
    assert main(["verify", out]) == 0
    assert capsys.readouterr().out == f"{out} is whole\n"
    assert main(["stats", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["bp"] == 7007
    assert main(["stats", out]) == 0
    assert "bytes/bp" in capsys.readouterr().out
    assert main(["export", out, "--split", "train", "--fasta", str(tmp_path / "y.fa")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/y.fa: 7,007 bp\n"
    (tmp_path / "out" / "train-000000.tar").unlink()
    assert main(["verify", out]) == 1
    advice = "remove what is damaged and build again, which writes only that"
    assert capsys.readouterr().out == f"train-000000.tar is missing\n{out}: 1 fault; {advice}\n"


@pytest.mark.usefixtures("local_ray")
def test_leakage_and_picture(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leakage", str(small)]) == 0
    assert capsys.readouterr().out.startswith("val: 0 of 1,204 bp (0.00%) also stand in train\n")
    assert main(["leakage", str(small), "--json", "--workers", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    written = json.loads((small / "leakage.json").read_bytes())
    assert report == written, "from the shards as from the references"
    assert main(["stats", str(small), "--picture", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "--config", YEAST, "blok_bp=1", "split.vall=0"], 2, "2 faults"),
        (["build", "--config", YEAST, "blok_bp=1"], 2, "blok_bp: unknown key, did you mean 'block_bp'?"),
        (
            ["build", "--config", YEAST, "block_bp=1001"],
            2,
            "block_bp: input should be a multiple of 4 (given 1001)",
        ),
        (["build", "--config", "none.yaml"], 2, "config file none.yaml does not exist"),
        (["build", "--config", YEAST, "output"], 2, "not an override of the form dotted.key=value: output"),
        (["build", "--config", YEAST, "references.0.uri=none.fa"], 1, "none.fa: no such file"),
        (["build", "--config", YEAST, "output=nope://x"], 1, "cannot use nope://x: Protocol not known"),
        (
            ["build", "--config", YEAST, f"output={YEAST}"],
            2,
            "yeast.yaml is a file; a dataset is a folder, so give",
        ),
        (
            ["build", "--config", YEAST, f"references.0.uri={YEAST}"],
            1,
            "yeast.yaml is not a FASTA: it starts with",
        ),
        (["verify", "no/such/dataset"], 1, "no/such/dataset: manifest.json is missing there"),
        (
            ["export", "no/such/dataset", "--split", "val", "--fasta", "x.fa"],
            1,
            "manifest.json is missing there",
        ),
        (["synth", "--output", "x", "--bp", "10"], 2, "at least 100,000 bp, not 10"),
        (
            ["build", "--config", YEAST, "references.0.contigs=[]"],
            2,
            "references.0.contigs: must name at least one contig",
        ),
        (["build", "--config", YEAST, "split=3"], 2, "split: input should be a mapping (given 3)"),
        (["build", "--config", YEAST, "references={a: 1}"], 2, "references: input should be a list"),
        (["leakage", "no/such/dataset"], 1, "no/such/dataset: manifest.json is missing there"),
        (
            ["build", "--config", YEAST, "split.val={bad: x}"],
            2,
            "split.val: must be a fraction in [0, 1), a list of contig names, {bed: URI} or {clade: NAME}",
        ),
        (["build", "--config", YEAST, "split.leakage=maybe"], 2, "input should be 'report', 'drop' or 'off'"),
        (
            ["build", "--config", YEAST, "split.val=1.5"],
            2,
            "split.val: must be a fraction in [0, 1), a list of contig",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert os.listdir(tmp_path) == [], "nothing half-written"


def test_the_summary_of_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings first, also where nothing was to be done; what was counted; and no advice on a split that is
    there."""
    manifest = load_manifest(
        write_dataset(tmp_path / "d", {"train": [np.zeros(900, np.uint8)], "val": [np.zeros(100, np.uint8)]})
    )
    manifest = replace(manifest, sources=(replace(manifest.sources[0], iupac_to_n=1234),))
    built = Built(manifest, True, 1.0, dropped_bp=300, warnings=("x.bed: 1 line of length 0",))
    monkeypatch.setattr("data_prep.commands.build_dataset", lambda *_, **__: built)
    assert main(["build", "--config", YEAST, "output=o"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "warning: x.bed: 1 line of length 0"
    assert said[2:] == [
        "1,234 IUPAC ambiguity letters became N",
        "dropped from val and test: 300 of 400 bp, with split.leakage drop",
    ]
    built = replace(built, fresh=False)
    assert main(["build", "--config", YEAST, "output=run #2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "warning: x.bed: 1 line of length 0",
        "run #2 holds this very dataset already; nothing to do",
    ]


def test_not_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    assert main(["stats", str(tmp_path)]) == 1
    assert f"{tmp_path}/manifest.json: not a dataset manifest" in capsys.readouterr().err


def test_debug_shows_the_fault_itself() -> None:
    with pytest.raises(OSError, match="no dataset at"):
        main(["verify", "no/such/dataset", "--debug"])


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(uri: str, **_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.dataset.verify.verify", interrupt)
    assert main(["verify", "x"]) == 130
    assert capsys.readouterr().err == (
        "error: interrupted; finished shards of a build stay, and the same command goes on from them\n"
    )


def test_a_config_that_is_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("3")
    assert main(["build", "--config", str(tmp_path / "c.yaml")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/c.yaml: a mapping of keys is needed, not a number\n"


def test_a_cache_that_cannot_be_used(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DNA_CACHE", config)
    assert main(["build", "--config", config]) == 1
    assert (
        capsys.readouterr().err
        == f"error: cannot use the cache folder {config}: File exists; set DNA_CACHE\n"
    )


def test_workers_are_counted_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "-1", "two"):
        with pytest.raises(SystemExit):
            main(["verify", "x", "--workers", wrong])
        assert f"must be a whole number above 0, not '{wrong}'" in capsys.readouterr().err


def test_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["bild"], ["export", "x", "--split", "all", "--fasta", "y"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "usage: python -m data_prep" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_unreachable_cluster(config: str, tmp_path: Path, address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", "build", "--config", config],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot join the Ray cluster at RAY_ADDRESS={address}: ")
    assert not (tmp_path / "out").exists()
