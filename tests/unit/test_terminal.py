"""What a command says reaches any terminal."""

import importlib
import io
import sys

import pytest

from cluster.process.command import exit_code

TOLD = "mean ± sd → 3 × 4 … é 🏃 \udce9"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", "mean +/- sd -> 3 x 4 ... \\xe9 \\U0001f3c3 \\udce9\n"),
        ("latin-1", "mean ± sd -> 3 × 4 ... é \\U0001f3c3 \\udce9\n"),
        ("utf-8", "mean ± sd → 3 × 4 … é 🏃 \\udce9\n"),
    ],
)
def test_no_terminal_loses_a_table(monkeypatch: pytest.MonkeyPatch, encoding: str, written: str) -> None:
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, name, stream)
        assert exit_code(lambda stream=stream: print(TOLD, file=stream, flush=True)) == 0
        assert stream.buffer.getvalue().decode(encoding) == written  # type: ignore[attr-defined]


HELPS = [
    *(
        ("data_prep.__main__", command)
        for command in ("", "build", "verify", "stats", "leakage", "export", "synth")
    ),
    *(
        (name, "")
        for name in (
            "cluster.doctor.checks",
            "cluster.launch.supervise",
            "cluster.doctor.bandwidth",
            "trainer.finetune",
            "trainer.embed",
            "trainer.report.__main__",
            "trainer.run.world_size",
            "trainer.main",
            "trainer.demo",
        )
    ),
]


@pytest.mark.parametrize(("module", "command"), HELPS)
def test_every_help_is_plain_ascii(capsys: pytest.CaptureFixture[str], module: str, command: str) -> None:
    """It is written before exit_code can change the stream."""
    main = importlib.import_module(module).main
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*([command] if command else []), "--help"])
    said = capsys.readouterr().out
    assert "usage: " in said
    assert said.isascii()
