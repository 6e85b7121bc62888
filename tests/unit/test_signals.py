"""Signals that stop a process: raised at once, noted for later, or delayed to the end of a block."""

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

from cluster.process.command import exit_code
from cluster.process.signals import Preempted, StopSignals, delayed
from tests import signals

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_every_signal_to_stop_is_heard(signal_handlers: None, number: int, code: int) -> None:
    assert exit_code(lambda: signal.raise_signal(number), resumable=True) == code


def test_a_stop_that_a_library_took_for_ctrl_c_is_still_a_stop(signal_handlers: None) -> None:
    """As Ray does, which raises a KeyboardInterrupt of its own."""

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise KeyboardInterrupt from None

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_code(work, resumable=True) == 75
    assert exit_code(interrupted, resumable=True) == 130
    assert exit_code(interrupted) == 130


def test_a_hangup_that_nohup_ignores_stays_ignored(signal_handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert exit_code(lambda: signal.raise_signal(signal.SIGHUP), resumable=True) == 0


def test_signals_wait_for_what_must_not_be_left_half_done(signal_handlers: None) -> None:
    done = []

    def work() -> None:
        with delayed():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            done.append("half")
        done.append("more")

    assert exit_code(work, resumable=True) == 75
    assert done == ["half"]

    def twice() -> None:
        with delayed():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("not reached")

    assert exit_code(twice, resumable=True) == 130, "a second Ctrl-C is heard at once"
    assert done == ["half"]
    with delayed():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Its terminal is closed, as by a connection that is cut: SIGHUP comes, and whatever is written there fails.
HUNG_UP = """
import os, signal, sys, time
from cluster.process import signals
stops = signals.StopSignals()
stops.defer()
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


def test_the_first_rank_that_still_runs_reports_lost_peers(signal_handlers: None) -> None:
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
            stops = StopSignals(peers=peers, supervised=supervised)
            assert stops.reports_lost_peers() is first
            stops.close()
        other.kill()


# DeepSpeed's launcher has two processes: one waits, and ends with a traceback; the other starts the ranks.
LAUNCHER = """
import os, subprocess, sys, time
if len(sys.argv) == 2:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], "deepspeed.launcher.launch", "rank"])
if "rank" in sys.argv:
    code = "import sys; from cluster.process import signals; " \
           "print('ready', flush=True); sys.stdin.readline()\\n" \
           "print(repr(signals.after_launcher()), flush=True)"
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


@pytest.fixture
def stops(signal_handlers: None) -> Iterator[StopSignals]:
    stops = StopSignals()
    yield stops
    with contextlib.suppress(OSError):
        stops.close()


def test_signals_raise_at_once_until_they_are_deferred(stops: StopSignals) -> None:
    with pytest.raises(Preempted):
        signal.raise_signal(signal.SIGTERM)
    assert stops.code == 75
    with pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(signal.SIGINT)
    assert not isinstance(caught.value, Preempted)
    assert stops.code == 130


def test_deferred_signals_are_noted_and_a_second_ctrl_c_ends_it(stops: StopSignals) -> None:
    stops.defer()
    assert stops.code == 0
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # a launcher sends it more than once
    assert stops.code == 75
    assert not stops.had_ctrl_c
    signal.raise_signal(signal.SIGINT)
    assert stops.code == 130
    signal.raise_signal(signal.SIGHUP)
    assert stops.code == 75
    assert stops.had_ctrl_c  # that was one of them, whatever came after it
    signal.raise_signal(signal.SIGINT)
    assert stops.code == 130
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_handlers_that_were_there_are_back(stops: StopSignals) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ours = [signal.getsignal(number) for number in numbers]
    inner = StopSignals(peers=[os.getpid()])
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == inner._pipe[1]
    signal.set_wakeup_fd(wakeup)
    assert [signal.getsignal(number) for number in numbers] == [inner._handle] * 3 != ours
    inner.close()
    assert [signal.getsignal(number) for number in numbers] == ours == [stops._handle] * 3
    assert signal.set_wakeup_fd(stops._pipe[1]) == stops._pipe[1]


# A mutex that is locked twice waits for ever, and no signal wakes it: Python's handlers cannot run.
STUCK = """
import ctypes, sys
from cluster.process import signals
signals.StopSignals.PEER_GONE_S = 0.1
stops = signals.StopSignals(peers=[int(sys.argv[1])])
stops.defer()
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
