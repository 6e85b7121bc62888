"""This process among its peers: rank, world, and the exit code of a command. Only here is the world read."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import paths, terminal
from configs import ConfigError, redact

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_PREEMPTED = 75  # what is finished stays; the same command goes on
EXIT_INTERRUPTED = 130  # as a shell has it
LOST_PEERS = "lost its peers"  # begins the sentence of a process that ends because others did


class Preempted(KeyboardInterrupt):
    """SIGTERM or SIGHUP, in the main thread: the machine is wanted for something else, or the terminal is gone."""


class EverywhereError(RuntimeError):
    """What every rank meets alike, so that the main one alone says it."""


@dataclass(frozen=True)
class World:
    """Rank of this process, number of processes, and rank among the processes of its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def world_from_env() -> World:
    """As the launcher says (RANK, WORLD_SIZE, LOCAL_RANK); a single process without one."""
    rank, size, local = (int(os.environ.get(key, default)) for key, default in
                         (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    return World(rank, size, local)


def cache_root() -> Path:
    """Where this machine keeps what can be made again: DNA_CACHE, else ``~/.cache/dna-distill``; an absolute path."""
    return Path(paths.expand(os.environ.get("DNA_CACHE") or "~/.cache/dna-distill", what="DNA_CACHE")).absolute()


def threads_per_process(local_size: int) -> int:
    """Cores of this machine shared out over ``local_size`` processes, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, local_size))


class StopSignals:
    """SIGTERM and Ctrl-C as the main loop wants them: at once until it says ``between_steps``, and then only noted.

    A second Ctrl-C ends it at once. Where a process of ``peers`` (pids of this host) is gone when SIGTERM comes, as a
    launcher sends it to those that are left, the main thread may wait for ever for what will not come: the process then
    ends within ALONE_S, without saving.
    """

    ALONE_S = 5.0

    def __init__(self, *, peers: Sequence[int] = ()) -> None:
        """To be made in the main thread."""
        self.code = 0  # EXIT_PREEMPTED or EXIT_INTERRUPTED, once told to stop
        self._noted = self._told = False
        self._peers = [pid for pid in peers if pid != os.getpid()]
        self._old = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
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
        self.code = EXIT_PREEMPTED if number == signal.SIGTERM else EXIT_INTERRUPTED
        if not self._noted or (again and number == signal.SIGINT):
            raise Preempted if number == signal.SIGTERM else KeyboardInterrupt

    def _watch(self) -> None:
        """After SIGTERM, look for peers that are gone until the loop ends or a peer has been gone for ALONE_S."""
        listening, since = True, None
        while listening:
            ready, _, _ = select.select([self._pipe[0]], [], [], 0.2 if self._told else None)
            heard = os.read(self._pipe[0], 16) if ready else b""
            listening = b"\0" not in heard
            self._told = self._told or signal.SIGTERM in heard
            gone = self._told and any(state_of(pid) in ("", "Z", "X") for pid in self._peers)
            since = (since or time.monotonic()) if gone else None
            if listening and since and time.monotonic() - since > self.ALONE_S:
                why = "a process of this host is gone; steps after the last checkpoint are lost"
                print(f"error: {LOST_PEERS}: {why}", file=sys.stderr, flush=True)
                os._exit(EXIT_FAILED)


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does (R, S, D, T: stopped, Z: a zombie, ...); "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def exit_code(
    command: Callable[[], int | None], *, debug: bool = False, main: bool = True, interrupted: str = "",
    resumable: bool = False
) -> int:
    """Run ``command``; a user's mistake or a failure of the outside world becomes one sentence on stderr.

    ConfigError gives 2; ValueError, OSError, RuntimeError and MemoryError give 1; ``debug`` shows their traceback
    instead. Ctrl-C gives 130, and ``interrupted`` says what became of the work; where that is ``resumable``, SIGTERM
    and SIGHUP (unless it is ignored) give 75 and say the same. Processes that are not ``main`` say nothing of what
    every rank meets alike: ConfigError, EverywhereError.
    """
    terminal.print_anywhere()
    try:
        for number in (signal.SIGTERM, signal.SIGHUP) if resumable else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _preempt)
        return command() or EXIT_OK
    except MemoryError as fault:
        if debug:
            raise
        print(f"error: out of memory: {fault}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    except (ConfigError, ValueError, OSError, RuntimeError) as fault:
        if debug:
            raise
        usage = isinstance(fault, ConfigError)
        if main or not isinstance(fault, ConfigError | EverywhereError):
            print(f"error: {redact(str(fault))}", file=sys.stderr, flush=True)
        return EXIT_USAGE if usage else EXIT_FAILED
    except KeyboardInterrupt as stop:
        preempted = isinstance(stop, Preempted)
        if main:
            what = "told to stop" if preempted else "interrupted"
            print(f"error: {what}{interrupted and '; '}{interrupted}", file=sys.stderr, flush=True)
        return EXIT_PREEMPTED if preempted else EXIT_INTERRUPTED


def _preempt(*_: object) -> None:
    raise Preempted
