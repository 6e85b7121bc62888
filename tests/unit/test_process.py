"""Exit codes and the one sentence of a failed command."""

import os
import signal

import pytest

from cluster import process
from configs import ConfigError


def failing(fault: BaseException) -> int:
    raise fault


@pytest.mark.parametrize(("fault", "code", "said"), [
    (ConfigError("a.b: unknown key"), 2, "error: a.b: unknown key\n"),
    (ValueError("no such thing"), 1, "error: no such thing\n"),
    (OSError("s3://u:p@host/x is gone"), 1, "error: s3://***@host/x is gone\n"),
    (KeyboardInterrupt(), 130, "error: interrupted; nothing is left\n"),
    (process.Preempted(), 75, "error: told to stop; nothing is left\n"),
])  # fmt: skip
def test_faults_become_one_sentence_and_their_code(
    capsys: pytest.CaptureFixture[str], fault: BaseException, code: int, said: str
) -> None:
    assert process.exit_code(lambda: failing(fault), interrupted="nothing is left") == code
    assert capsys.readouterr().err == said


def test_sigterm_is_heard_where_the_work_can_be_taken_up_again(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = process.exit_code(lambda: os.kill(os.getpid(), signal.SIGTERM), resumable=True, interrupted="go on")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (code, capsys.readouterr().err) == (75, "error: told to stop; go on\n")


def test_debug_shows_the_traceback_and_bugs_are_never_hidden() -> None:
    with pytest.raises(ValueError, match="no such thing"):
        process.exit_code(lambda: failing(ValueError("no such thing")), debug=True)
    with pytest.raises(KeyError):
        process.exit_code(lambda: failing(KeyError("bug")))


def test_a_config_fault_that_every_rank_meets_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert process.exit_code(lambda: failing(ConfigError("x")), main=False) == 2
    assert capsys.readouterr().err == ""


def test_world_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert process.world_from_env() == process.World(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process.world_from_env() == process.World(5, 8, 1)
    assert not process.world_from_env().is_main
    assert process.threads_per_process(10_000) == 1
