"""The whole main job on a small generated genome: every command of it, the table and the report."""

import os
import subprocess
from pathlib import Path

import pytest

from tests import commands

ROOT = Path(__file__).resolve().parent.parent.parent


def run_demo(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DNA_DATA": str(folder / "nothing")}
    return commands.run(ROOT / "trainer/demo.py", ["--rows", "100", *arguments], cwd=folder, environment=environment,
                        timeout_s=280)  # fmt: skip


@pytest.mark.timeout(300)
def test_demo_goes_from_a_generated_genome_to_a_report(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = run_demo(tmp_path, "--folder", "demo", "--genome-bp", "1000000", "train.steps=60", "model.num_layers=4",
                    "val.every=30", "val.windows=256")  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Genome: generated, since" in done.stdout
    table = done.stdout[done.stdout.index("\ngenome  "):]
    (majority,) = [line for line in table.splitlines() if "majority letter" in line]
    assert float(majority.split(":")[1].split()[0]) > 3  # standard errors above, after 60 steps
    for mode in ("kmer", "probe", "finetune", "scratch"):
        assert any(line.split()[:2] == ["synthetic", mode] for line in table.splitlines())
    report = (tmp_path / "demo" / "report" / "index.html").read_text()
    assert "data:image/png;base64," in report
    assert (tmp_path / "mlflow.db").is_file()
    again = run_demo(tmp_path, "--folder", "demo")
    assert again.returncode == 1
    assert again.stderr.strip().endswith("File exists: 'demo'")


def test_a_failing_command_ends_the_demo_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = run_demo(tmp_path, "--folder", "demo", "--genome-bp", "10")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "trainer/main.py" not in done.stdout  # nothing after the command that failed
