"""dna-distill: one name for all commands; each is imported only when it is called."""

import subprocess
import sys
from pathlib import Path

import pytest

import dna_distill

ROOT = Path(__file__).resolve().parents[2]
EXIT_USAGE = 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["prep"], ["build", "verify", "stats", "leakage", "export", "synth"]),
        (["prep", "build"], ["--config", "key=value"]),
        (["train"], ["--config", "key=value"]),
        (["finetune"], ["--model", "--task"]),
        (["embed"], ["--model", "--input", "--output"]),
        (["export"], ["--model", "--output", "--overwrite", "--licence"]),
        (["report"], ["RUN_ID", "--output"]),
        (["demo"], ["--generated", "--folder"]),
        (["cluster", "train"], ["--config"]),
        (["cluster", "finetune"], ["--model", "--tasks", "--watch"]),
        (["cluster", "doctor"], ["--store"]),
    ],
    ids=" ".join,
)
def test_every_command_has_help(
    command: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        dna_distill.main([*command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "usage:" in said
    assert [word for word in words if word not in said] == []


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert dna_distill.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert [name for name in dna_distill.COMMANDS if f"  {name} " not in said] == []
    assert dna_distill.main(["cluster", "--help"]) == 0


@pytest.mark.parametrize("arguments", [[], ["pretrain"], ["cluster"], ["cluster", "trian"]], ids=str)
def test_what_is_no_command_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dna_distill.main(arguments) == EXIT_USAGE
    assert "usage:" in capsys.readouterr().err


def test_the_exit_code_is_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dna_distill.main(["prep", "build", "--config", str(tmp_path / "none.yaml")]) == EXIT_USAGE
    assert "none.yaml does not exist" in capsys.readouterr().err


def test_a_command_line_imports_nothing_that_its_command_does_not_need() -> None:
    """Data preparation without torch, training without Ray and pyfaidx: an image holds what it needs."""
    code = (
        "import sys, dna_distill\n"
        "try: dna_distill.main([sys.argv[1], '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.argv[2:] if name in sys.modules], file=sys.stderr)"
    )
    for command, absent in {
        "prep": ["torch", "mlflow", "sklearn"],
        "train": ["ray", "pyfaidx"],
        "embed": ["ray", "pyfaidx", "deepspeed"],
        "--help": ["torch", "ray"],
    }.items():
        done = subprocess.run(
            [sys.executable, "-c", code, command, *absent],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr.splitlines()[-1] == "[]", command
