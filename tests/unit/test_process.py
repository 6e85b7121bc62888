"""Exit codes and the one sentence of a failed command."""

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.process import exits, host, world
from configs import ConfigError
from tests import signals

ROOT = Path(__file__).parents[2]


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
        (exits.Preempted(), 75, "error: told to stop; nothing is left\n"),
    ],
)
def test_faults_become_one_sentence_and_their_code(
    capsys: pytest.CaptureFixture[str], fault: BaseException, code: int, said: str
) -> None:
    assert exits.exit_code(lambda: failing(fault), interrupted="nothing is left") == code
    assert capsys.readouterr().err == said


def test_sigterm_is_heard_where_the_work_can_be_taken_up_again(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = exits.exit_code(
            lambda: os.kill(os.getpid(), signal.SIGTERM), resumable=True, interrupted="go on"
        )
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
        assert exits.exit_code(command, resumable=True, interrupted="go on") == 75
        assert capsys.readouterr().err == "error: told to stop; go on\n"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert exits.exit_code(command, resumable=True) == 0
        stops = exits.StopSignals()
        stops.between_steps()
        command()
        stops.close()
        assert stops.code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


# Its terminal is closed, as by a connection that is cut: SIGHUP comes, and whatever is written there fails.
HUNG_UP = """
import os, signal, sys, time
from cluster.process import exits as process
stops = process.StopSignals()
stops.between_steps()
print("ready", flush=True)
while not stops.code:
    time.sleep(0.01)
print("saving", file=sys.stderr, flush=True)
print("saving", flush=True)
with open(sys.argv[1], "w") as file:
    file.write(f"{stops.code}")
"""


def test_work_is_finished_after_the_terminal_is_gone(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        signals.hear()
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-c", HUNG_UP, str(tmp_path / "told")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=own_terminal
    ) as one:
        os.close(theirs)
        said = b""
        while not said.endswith(b"\n"):  # a terminal gives what it has
            said += os.read(ours, 100)
        assert said == b"ready\r\n"
        os.close(ours)
        assert one.wait(30) == 0
    assert (tmp_path / "told").read_text() == "75"


def test_words_are_whole_however_long_the_text_is() -> None:
    text = "Connection closed by peer [127.0.0.1]:4711. " * 9
    said = exits.brief(text)
    assert len(said) <= 200
    assert said.endswith(" ...")
    assert text.startswith(said.removesuffix(" ...") + " ")
    assert exits.brief(" two\n words ") == "two words"
    assert exits.brief("x" * 300) == "x" * 200


def test_of_those_that_are_left_the_first_says_it(hup: None) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with subprocess.Popen(["sleep", "600"]) as other:
        me = os.getpid()
        for peers, supervised, first in (
            ([me, other.pid], False, True),
            ([other.pid, me], False, False),
            ([gone.pid, me, other.pid], False, True),
            ([other.pid, me], True, True),
        ):
            stops = exits.StopSignals(peers=peers, supervised=supervised)
            assert stops.is_first_left() is first
            stops.close()
        other.kill()


# DeepSpeed's launcher has two processes: one waits, and ends with a traceback; the other starts the ranks.
LAUNCHER = """
import os, subprocess, sys, time
if len(sys.argv) == 2:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], "deepspeed.launcher.launch", "rank"])
if "rank" in sys.argv:
    code = "import sys; from cluster.process import exits as process; " \
           "print('ready', flush=True); sys.stdin.readline()\\n" \
           "print(repr(process.after_launcher()), flush=True)"
    subprocess.run([sys.executable, "-c", code])
"""


@pytest.mark.parametrize(("ends", "words"), [(True, "; the traceback is the launcher's own"), (False, "")])
def test_under_deepspeeds_launcher_the_last_sentence_comes_after_its_traceback(
    ends: bool, words: str
) -> None:
    first = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[1]])"
    with subprocess.Popen(
        [sys.executable, "-c", first, LAUNCHER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as one:
        try:
            assert one.stdin and one.stdout
            assert one.stdout.readline() == "ready\n"
            if ends:
                one.kill()
                one.wait()
            one.stdin.write("\n")
            one.stdin.flush()
            assert one.stdout.readline().strip() == repr(words)
        finally:
            one.kill()


def test_debug_shows_the_traceback_and_bugs_are_never_hidden() -> None:
    with pytest.raises(ValueError, match="no such thing"):
        exits.exit_code(lambda: failing(ValueError("no such thing")), debug=True)
    with pytest.raises(KeyError):
        exits.exit_code(lambda: failing(KeyError("bug")))


def test_a_config_fault_that_every_rank_meets_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.exit_code(lambda: failing(ConfigError("x")), main=False) == 2
    assert capsys.readouterr().err == ""


def test_what_another_rank_says_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (True, False):
        assert exits.exit_code(lambda: failing(exits.ElsewhereError("rank 1 says why")), main=main) == 1
    assert capsys.readouterr().err == ""


def test_what_every_rank_meets_alike_is_said_by_the_main_one(capsys: pytest.CaptureFixture[str]) -> None:
    for fault, said in (
        (exits.EverywhereError("the store is away"), ""),
        (RuntimeError("mine"), "error: mine\n"),
    ):
        assert exits.exit_code(lambda fault=fault: failing(fault), main=False) == 1
        assert capsys.readouterr().err == said
        assert exits.exit_code(lambda fault=fault: failing(fault)) == 1
        assert capsys.readouterr().err == f"error: {fault}\n"


@pytest.fixture
def stops(hup: None) -> Iterator[exits.StopSignals]:
    stops = exits.StopSignals()
    yield stops
    with contextlib.suppress(OSError):
        stops.close()


def test_a_signal_ends_what_is_before_the_steps_at_once(stops: exits.StopSignals) -> None:
    with pytest.raises(exits.Preempted):
        signal.raise_signal(signal.SIGTERM)
    assert stops.code == 75
    with pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(signal.SIGINT)
    assert not isinstance(caught.value, exits.Preempted)
    assert stops.code == 130


def test_between_steps_a_signal_is_noted_and_a_second_ctrl_c_ends_it(stops: exits.StopSignals) -> None:
    stops.between_steps()
    assert stops.code == 0
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # a launcher sends it more than once
    assert stops.code == 75
    assert not stops.interrupted
    signal.raise_signal(signal.SIGINT)
    assert stops.code == 130
    signal.raise_signal(signal.SIGHUP)
    assert stops.code == 75
    assert stops.interrupted  # that was one of them, whatever came after it
    signal.raise_signal(signal.SIGINT)
    assert stops.code == 130
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    stops.between_steps(False)
    with pytest.raises(exits.Preempted):
        signal.raise_signal(signal.SIGTERM)


def test_the_handlers_that_were_there_are_back(stops: exits.StopSignals) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ours = [signal.getsignal(number) for number in numbers]
    inner = exits.StopSignals(peers=[os.getpid()])
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == inner._pipe[1]
    signal.set_wakeup_fd(wakeup)
    assert [signal.getsignal(number) for number in numbers] == [inner._hear] * 3 != ours
    inner.close()
    assert [signal.getsignal(number) for number in numbers] == ours == [stops._hear] * 3
    assert signal.set_wakeup_fd(stops._pipe[1]) == stops._pipe[1]


# A mutex that is locked twice waits for ever, and no signal wakes it: Python's handlers cannot run.
STUCK = """
import ctypes, sys
from cluster.process import exits as process
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
    with (
        peer,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=signals.hear
        ) as one,
    ):
        try:
            assert one.stdout and one.stderr
            assert one.stdout.readline() == "stuck\n"
            one.send_signal(signal.SIGTERM)  # sent to all: the peer may still be saving
            with pytest.raises(subprocess.TimeoutExpired):
                one.wait(timeout=0.6)
            peer.kill()  # it is a zombie now, which is seen without another signal
            assert one.wait(timeout=30) == 1
            assert one.stderr.read() == (
                "error: lost its peers: a process of this host is gone; steps after the last "
                "checkpoint are lost\n"
            )
        finally:
            for each in (one, peer):
                each.kill()


def test_world_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world.world_from_env() == world.World(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert world.world_from_env() == world.World(5, 8, 1)
    assert not world.world_from_env().is_main
    assert host.threads_per_process(10_000) == 1
