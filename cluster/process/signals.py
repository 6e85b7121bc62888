"""SIGTERM, SIGHUP and Ctrl-C: raised at once, noted for later, or delayed to the end of a block."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from cluster.process import terminal
from cluster.process.exits import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    LOST_PEERS,
    print_error,
)
from cluster.process.processes import find_launcher, is_gone

_STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_CLOSE = b"\0"  # written to the wake-up pipe, which holds the numbers of signals otherwise
_LAUNCHER_S = 3.0  # DeepSpeed's launcher needs less to end after Ctrl-C
_LAUNCHER = find_launcher()  # at import: a launcher that has ended cannot be found later


class Preempted(KeyboardInterrupt):
    """SIGTERM or SIGHUP in the main thread: the machine is needed elsewhere, or the terminal is gone."""


def stop_signals() -> list[signal.Signals]:
    """The signals that stop this process: all three, or without SIGHUP if it is ignored (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in _STOPS if number != signal.SIGHUP or not ignored]


_preempted: list[int] = []  # the signals for which Preempted was raised


def raise_preempted() -> None:
    """From now on SIGTERM and SIGHUP raise Preempted, as Ctrl-C raises KeyboardInterrupt."""
    _preempted.clear()

    def handler(number: int, _: object) -> None:
        _preempted.append(number)
        if number == signal.SIGHUP:
            terminal.silence_lost()
        raise Preempted

    for number in stop_signals():
        if number != signal.SIGINT:
            signal.signal(number, handler)


def was_preempted() -> bool:
    """Whether Preempted was raised since ``raise_preempted``. What is caught need not be it: Ray puts a plain
    KeyboardInterrupt in the place of one that is raised while it waits."""
    return bool(_preempted)


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Signals that come during the block are handled at its end, by the handlers from before the block.

    For work that must not be left half done, such as a run that was created at a server and is not recorded
    here yet. A second Ctrl-C is handled at once. Python handles signals in the main thread alone: in other
    threads the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    old: dict[int, Any] = {}

    def handler(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            old[number](number, frame)
        received.append(number)

    for number in _STOPS:
        # A signal that is ignored stays ignored. With the default action it ends the process at once.
        if callable(signal.getsignal(number)):
            old[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for stop, before in old.items():
            signal.signal(stop, before)
        if received:
            signal.raise_signal(received[0])


class StopSignals:
    """The handlers of a training process: they raise at once until ``defer``, and then only set ``code``.

    A second Ctrl-C raises in any case. ``peers`` are the pids of the ranks of this host, by rank. When one of
    them has ended and SIGTERM or SIGHUP arrives, as a launcher sends it to the others, the main thread may
    wait for ever inside a collective. A thread then ends the process after PEER_GONE_S, without saving. The
    first rank that still runs reports the error; if the ranks are ``supervised``, each of them does, since
    the supervisor shows it once and wants to know of each.
    """

    PEER_GONE_S = 5.0

    def __init__(self, *, peers: Sequence[int] = (), supervised: bool = False) -> None:
        """To be made in the main thread."""
        self.code = 0  # the exit code after a signal: EXIT_PREEMPTED or EXIT_INTERRUPTED
        self.had_ctrl_c = False  # whatever came later: after Ctrl-C DeepSpeed's launcher sends SIGTERM
        self._deferred = False
        me = os.getpid()
        self._peers = [pid for pid in peers if pid != me]
        self._lower_ranks = [] if supervised or me not in peers else list(peers[: peers.index(me)])
        self._old = {number: signal.signal(number, self._handle) for number in stop_signals()}
        # Python runs its handlers only when the main thread returns to the interpreter. The kernel writes the
        # signal's number to this pipe at once, and the thread reads it there.
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, end == self._pipe[0])
        self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch_peers, daemon=True)
        if self._peers:
            self._thread.start()

    def defer(self) -> None:
        """From now on signals only set ``code``, which the training loop checks after each step."""
        self._deferred = True

    def reports_lost_peers(self) -> bool:
        """Whether this process reports an error that all remaining ranks have: no lower rank still runs."""
        return all(is_gone(pid) for pid in self._lower_ranks)

    def close(self) -> None:
        """Restore the handlers from before."""
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.write(self._pipe[1], _CLOSE)
        if self._peers:
            self._thread.join()
        for end in self._pipe:
            os.close(end)

    def _handle(self, number: int, frame: object) -> None:
        ctrl_c = number == signal.SIGINT
        again = ctrl_c and self.code == EXIT_INTERRUPTED
        self.code = EXIT_INTERRUPTED if ctrl_c else EXIT_PREEMPTED
        self.had_ctrl_c |= ctrl_c
        if number == signal.SIGHUP:
            terminal.silence_lost()
        if again or not self._deferred:
            raise KeyboardInterrupt if ctrl_c else Preempted

    def _watch_peers(self) -> None:
        """After SIGTERM or SIGHUP: end the process once a peer has been gone for PEER_GONE_S."""
        stopping, gone_since, reports = False, 0.0, False
        while True:
            ready, _, _ = select.select([self._pipe[0]], [], [], 0.2 if stopping else None)
            received = os.read(self._pipe[0], 16) if ready else b""
            if _CLOSE in received:
                return
            stopping = stopping or signal.SIGTERM in received or signal.SIGHUP in received
            if not (stopping and any(is_gone(pid) for pid in self._peers)):
                continue
            if not gone_since:  # ask now: the other ranks that remain end within PEER_GONE_S, too
                gone_since, reports = time.monotonic(), self.reports_lost_peers()
            if time.monotonic() - gone_since > self.PEER_GONE_S:
                if reports:
                    print_error(
                        f"{LOST_PEERS}: a process of this host is gone; steps after the last checkpoint are "
                        "lost"
                    )
                os._exit(EXIT_FAILED)


def after_launcher() -> str:
    """Words to append to the error of a process that ends by Ctrl-C; "" without DeepSpeed's launcher.

    The launcher's first process ends with a traceback of its own. This waits for it, so that our error is the
    last line and says where the traceback comes from.
    """
    deadline = time.monotonic() + _LAUNCHER_S
    while _LAUNCHER and time.monotonic() < deadline:
        if is_gone(_LAUNCHER):
            return "; the traceback is the launcher's own"
        time.sleep(0.02)
    return ""
