"""How a command ends: exit codes, the signals that stop it, its fault in one sentence."""

import contextlib
import os
import select
import signal
import stat
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.process import terminal
from configs import ConfigError, redact

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_PREEMPTED = 75  # what is finished stays; the same command goes on
EXIT_INTERRUPTED = 130  # as a shell has it
_LAUNCHER_S = 3.0  # that DeepSpeed's launcher needs to end by Ctrl-C
LOST_PEERS = "lost its peers"  # begins the sentence of a process that ends because others did


class Preempted(KeyboardInterrupt):
    """SIGTERM or SIGHUP, in the main thread: the machine is wanted for something else, or the terminal is
    gone."""


class EverywhereError(RuntimeError):
    """What every rank meets alike, so that the main one alone says it."""


class ElsewhereError(ValueError):
    """What another rank says, so that this one does not."""


def brief(text: str, most: int = 200) -> str:
    """``text`` in one line of at most ``most`` characters, in whole words."""
    line = " ".join(text.split())
    return textwrap.shorten(line, most, placeholder=" ...") if " " in line[:most] else line[:most]


def stop_signals() -> list[signal.Signals]:
    """Those that tell this process to stop: not SIGHUP where it was started to ignore that, as by nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *[signal.SIGHUP] * (not ignored)]


def leave_terminal() -> None:
    """After SIGHUP: what is written to a terminal that is gone must not end the work that is left."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


class StopSignals:
    """SIGTERM, SIGHUP and Ctrl-C as the main loop wants them: at once until it says ``between_steps``, then
    only noted.

    A second Ctrl-C ends it at once. Where a process of ``peers`` (pids of this host, by rank) is gone when
    SIGTERM comes, as a launcher sends it to those that are left, the main thread may wait for ever for what
    will not come: the process then ends within ALONE_S, without saving. Of several that are left the first
    says so, but each where they are ``supervised``, by what says it once and wants to know of each.
    """

    ALONE_S = 5.0

    def __init__(self, *, peers: Sequence[int] = (), supervised: bool = False) -> None:
        """To be made in the main thread."""
        self.code = 0  # EXIT_PREEMPTED or EXIT_INTERRUPTED, once told to stop
        self.interrupted = False  # by Ctrl-C, which DeepSpeed's launcher has SIGTERM follow
        self._noted = self._told = False
        self._peers = [pid for pid in peers if pid != os.getpid()]
        before = list(peers[: peers.index(os.getpid())]) if os.getpid() in peers else []
        self._before = [] if supervised else before
        self._old = {number: signal.signal(number, self._hear) for number in stop_signals()}
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, end == self._pipe[0])
        # Python's own handlers wait for the main thread; this is written to at once, whatever it waits for.
        self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._peers:
            self._thread.start()

    def between_steps(self, noted: bool = True) -> None:
        """From now on the loop looks at ``code`` after each step, and saves."""
        self._noted = noted

    def is_first_left(self) -> bool:
        """Whether it is for this process to say what all that are left meet: that a peer is lost."""
        return all(state_of(pid) in _GONE for pid in self._before)

    def close(self) -> None:
        """The handlers that were there before are back."""
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.write(self._pipe[1], b"\0")  # ends the thread
        if self._peers:
            self._thread.join()
        for end in self._pipe:
            os.close(end)

    def _hear(self, number: int, frame: object) -> None:
        again = self.code == EXIT_INTERRUPTED
        self.code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
        self.interrupted |= number == signal.SIGINT
        if number == signal.SIGHUP:
            leave_terminal()
        if not self._noted or (again and number == signal.SIGINT):
            raise KeyboardInterrupt if number == signal.SIGINT else Preempted

    def _watch(self) -> None:
        """After SIGTERM, look for peers that are gone until the loop ends or a peer has been gone for
        ALONE_S."""
        listening, since, first = True, None, False
        while listening:
            ready, _, _ = select.select([self._pipe[0]], [], [], 0.2 if self._told else None)
            heard = os.read(self._pipe[0], 16) if ready else b""
            listening = b"\0" not in heard
            self._told = self._told or signal.SIGTERM in heard or signal.SIGHUP in heard
            gone = self._told and any(state_of(pid) in _GONE for pid in self._peers)
            if gone and since is None:
                since, first = time.monotonic(), self.is_first_left()  # before those that are left end, too
            elif not gone:
                since = None
            if listening and since and time.monotonic() - since > self.ALONE_S:
                if first:
                    _tell_error(
                        f"{LOST_PEERS}: a process of this host is gone; steps after the last checkpoint are "
                        "lost"
                    )
                os._exit(EXIT_FAILED)


_GONE = ("", "Z", "X")


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does (R, S, D, T: stopped, Z: a zombie, ...); "" for one that is
    gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def after_launcher() -> str:
    """Words for the sentence with which a process ends by Ctrl-C under DeepSpeed's launcher; "" elsewhere.

    The launcher's own first process ends with a traceback: ours comes after it, and says whose it is.
    """
    deadline = time.monotonic() + _LAUNCHER_S
    while _LAUNCHER and time.monotonic() < deadline:
        if state_of(_LAUNCHER) in _GONE:
            return "; the traceback is the launcher's own"
        time.sleep(0.02)
    return ""


def _find_launcher() -> int:
    """The pid of the first process of DeepSpeed's launcher, of which the second has started this one; 0
    without it."""
    try:
        if b"deepspeed.launcher" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes():
            return int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # no /proc, or the parent is gone
        return 0
    return 0


_LAUNCHER = _find_launcher()  # now: one that is gone is not found any more


def exit_code(
    command: Callable[[], int | None],
    *,
    debug: bool = False,
    main: bool = True,
    interrupted: str = "",
    resumable: bool = False,
) -> int:
    """Run ``command``; a user's mistake or a failure of the outside world becomes one sentence on stderr.

    ConfigError gives 2; ValueError, OSError, RuntimeError and MemoryError give 1; ``debug`` shows their
    traceback instead. Ctrl-C gives 130, and ``interrupted`` says what became of the work; where that is
    ``resumable``, SIGTERM and SIGHUP (unless it is ignored) give 75 and say the same. Processes that are not
    ``main`` say nothing of what every rank meets alike: ConfigError, EverywhereError; none says what another
    does: ElsewhereError.
    """
    terminal.print_anywhere()
    try:
        for number in stop_signals() if resumable else ():
            if number != signal.SIGINT:
                signal.signal(number, _preempt)
        return command() or EXIT_OK
    except MemoryError as fault:
        if debug:
            raise
        _tell_error(f"out of memory: {fault}")
        return EXIT_FAILED
    except (ConfigError, ValueError, OSError, RuntimeError) as fault:
        if debug:
            raise
        usage = isinstance(fault, ConfigError)
        if not isinstance(fault, ElsewhereError) and (
            main or not isinstance(fault, ConfigError | EverywhereError)
        ):
            _tell_error(str(fault))
        return EXIT_USAGE if usage else EXIT_FAILED
    except KeyboardInterrupt as stop:
        preempted = isinstance(stop, Preempted)
        if main:
            what = "told to stop" if preempted else "interrupted"
            interrupted += "" if preempted else after_launcher()
            _tell_error(f"{what}{interrupted and '; '}{interrupted}")
        return EXIT_PREEMPTED if preempted else EXIT_INTERRUPTED


def _tell_error(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody is there to read it, and the exit code tells too
        print(f"error: {redact(text)}", file=sys.stderr, flush=True)


def _preempt(number: int, _: object) -> None:
    if number == signal.SIGHUP:
        leave_terminal()
    raise Preempted
