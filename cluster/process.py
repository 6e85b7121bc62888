"""This process among its peers: rank, world, and the exit code of a command. Only here is the world read."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs import ConfigError, redact

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_PREEMPTED = 75  # what is finished stays; the same command goes on
EXIT_INTERRUPTED = 130  # as a shell has it


class Preempted(KeyboardInterrupt):
    """SIGTERM, in the main thread: the machine is wanted for something else."""


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
    """Where this machine keeps what can be made again: DNA_CACHE, else ``~/.cache/dna-distill``."""
    return Path(os.environ.get("DNA_CACHE") or Path.home() / ".cache" / "dna-distill")


def threads_per_process(local_size: int) -> int:
    """Cores of this machine shared out over ``local_size`` processes, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, local_size))


def exit_code(
    command: Callable[[], int | None], *, debug: bool = False, main: bool = True, interrupted: str = "",
    resumable: bool = False
) -> int:
    """Run ``command``; a user's mistake or a failure of the outside world becomes one sentence on stderr.

    ConfigError gives 2; ValueError, OSError and RuntimeError give 1; ``debug`` shows their traceback instead. Ctrl-C
    gives 130, and ``interrupted`` says what became of the work; where that is ``resumable``, SIGTERM gives 75 and says
    the same. Processes that are not ``main`` say nothing of a ConfigError, which every rank meets alike.
    """
    try:
        if resumable:
            signal.signal(signal.SIGTERM, _preempt)
        return command() or EXIT_OK
    except (ConfigError, ValueError, OSError, RuntimeError) as fault:
        if debug:
            raise
        usage = isinstance(fault, ConfigError)
        if main or not usage:
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
