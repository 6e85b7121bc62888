"""A command's errors and signals become exit codes, with one sentence on stderr."""

import os
import signal
from collections.abc import Iterator

import pytest

from cluster.process import exits
from cluster.process.command import exit_code
from cluster.process.signals import Preempted, StopSignals
from configs import ConfigError


@pytest.fixture
def hup() -> Iterator[None]:
    """SIGHUP as a process has it that nohup did not start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def failing(fault: BaseException) -> int:
    raise fault


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (ConfigError("a.b: unknown key"), 2, "error: a.b: unknown key\n"),
        (ValueError("no such thing"), 1, "error: no such thing\n"),
        (OSError("s3://u:p@host/x is gone"), 1, "error: s3://***@host/x is gone\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; nothing is left\n"),
        (Preempted(), 75, "error: told to stop; nothing is left\n"),
    ],
)
def test_faults_become_one_sentence_and_their_code(
    capsys: pytest.CaptureFixture[str], fault: BaseException, code: int, said: str
) -> None:
    assert exit_code(lambda: failing(fault), interrupted="nothing is left") == code
    assert capsys.readouterr().err == said


def test_sigterm_is_heard_where_the_work_can_be_taken_up_again(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = exit_code(lambda: os.kill(os.getpid(), signal.SIGTERM), resumable=True, interrupted="go on")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (code, capsys.readouterr().err) == (75, "error: told to stop; go on\n")


def test_sighup_is_heard_as_sigterm_but_not_under_nohup(
    capsys: pytest.CaptureFixture[str], hup: None
) -> None:
    def command() -> None:
        signal.raise_signal(signal.SIGHUP)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_code(command, resumable=True, interrupted="go on") == 75
        assert capsys.readouterr().err == "error: told to stop; go on\n"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert exit_code(command, resumable=True) == 0
        stops = StopSignals()
        stops.defer()
        command()
        stops.close()
        assert stops.code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_brief_cuts_between_words() -> None:
    text = "Connection closed by peer [127.0.0.1]:4711. " * 9
    said = exits.brief(text)
    assert len(said) <= 200
    assert said.endswith(" ...")
    assert text.startswith(said.removesuffix(" ...") + " ")
    assert exits.brief(" two\n words ") == "two words"
    assert exits.brief("x" * 300) == "x" * 200


def test_an_error_is_recognised_in_the_output_of_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    exits.print_error("s3://u:p@host/x is gone")
    line = capsys.readouterr().err.rstrip("\n")
    assert exits.error_in(line) == "s3://***@host/x is gone"
    assert exits.error_in(f"step 3: {line}") is None


def test_debug_shows_the_traceback_and_bugs_are_never_hidden() -> None:
    with pytest.raises(ValueError, match="no such thing"):
        exit_code(lambda: failing(ValueError("no such thing")), debug=True)
    with pytest.raises(KeyError):
        exit_code(lambda: failing(KeyError("bug")))


def test_a_config_fault_that_every_rank_meets_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: failing(ConfigError("x")), main=False) == 2
    assert capsys.readouterr().err == ""


def test_what_another_rank_says_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (True, False):
        assert exit_code(lambda: failing(exits.ElsewhereError("rank 1 says why")), main=main) == 1
    assert capsys.readouterr().err == ""


def test_what_every_rank_meets_alike_is_said_by_the_main_one(capsys: pytest.CaptureFixture[str]) -> None:
    for fault, said in (
        (exits.EverywhereError("the store is away"), ""),
        (RuntimeError("mine"), "error: mine\n"),
    ):
        assert exit_code(lambda fault=fault: failing(fault), main=False) == 1
        assert capsys.readouterr().err == said
        assert exit_code(lambda fault=fault: failing(fault)) == 1
        assert capsys.readouterr().err == f"error: {fault}\n"
