"""Exit codes and the one sentence of a failed command."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

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


def test_what_every_rank_meets_alike_is_said_by_the_main_one(capsys: pytest.CaptureFixture[str]) -> None:
    for fault, said in ((process.EverywhereError("the store is away"), ""), (RuntimeError("mine"), "error: mine\n")):
        assert process.exit_code(lambda fault=fault: failing(fault), main=False) == 1
        assert capsys.readouterr().err == said
        assert process.exit_code(lambda fault=fault: failing(fault)) == 1
        assert capsys.readouterr().err == f"error: {fault}\n"


@pytest.fixture
def stops() -> Iterator[process.StopSignals]:
    stops = process.StopSignals()
    yield stops
    with contextlib.suppress(OSError):
        stops.close()


def test_a_signal_ends_what_is_before_the_steps_at_once(stops: process.StopSignals) -> None:
    with pytest.raises(process.Preempted):
        signal.raise_signal(signal.SIGTERM)
    assert stops.code == 75
    with pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(signal.SIGINT)
    assert not isinstance(caught.value, process.Preempted)
    assert stops.code == 130


def test_between_steps_a_signal_is_noted_and_a_second_ctrl_c_ends_it(stops: process.StopSignals) -> None:
    stops.between_steps()
    assert stops.code == 0
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # a launcher sends it more than once
    assert stops.code == 75
    signal.raise_signal(signal.SIGINT)
    assert stops.code == 130
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    stops.between_steps(False)
    with pytest.raises(process.Preempted):
        signal.raise_signal(signal.SIGTERM)


def test_the_handlers_that_were_there_are_back(stops: process.StopSignals) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    ours = [signal.getsignal(number) for number in numbers]
    inner = process.StopSignals(peers=[os.getpid()])
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == inner._pipe[1]
    signal.set_wakeup_fd(wakeup)
    assert [signal.getsignal(number) for number in numbers] == [inner._hear] * 2 != ours
    inner.close()
    assert [signal.getsignal(number) for number in numbers] == ours == [stops._hear] * 2
    assert signal.set_wakeup_fd(stops._pipe[1]) == stops._pipe[1]


# A mutex that is locked twice waits for ever, and no signal wakes it: Python's handlers cannot run.
STUCK = """
import ctypes, sys
from cluster import process
process.StopSignals.ALONE_S = 0.1
stops = process.StopSignals(peers=[int(sys.argv[1])])
stops.between_steps()
print("stuck", flush=True)
mutex = ctypes.create_string_buffer(64)
for _ in range(2):
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_process_whose_peer_is_gone_ends_by_itself_though_its_main_thread_is_stuck() -> None:
    peer = subprocess.Popen(["sleep", "600"])
    command = [sys.executable, "-c", STUCK, str(peer.pid)]
    with peer, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        try:
            assert one.stdout and one.stderr
            assert one.stdout.readline() == "stuck\n"
            one.send_signal(signal.SIGTERM)  # sent to all: the peer may still be saving
            with pytest.raises(subprocess.TimeoutExpired):
                one.wait(timeout=0.6)
            peer.kill()  # it is a zombie now, which is seen without another signal
            assert one.wait(timeout=30) == 1
            assert one.stderr.read() == ("error: lost its peers: a process of this host is gone; steps after the last "
                                         "checkpoint are lost\n")
        finally:
            for each in (one, peer):
                each.kill()


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
