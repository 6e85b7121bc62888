"""Runs the body of a command and turns its errors and signals into exit codes."""

from collections.abc import Callable

from cluster.process import terminal
from cluster.process.exits import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PREEMPTED,
    EXIT_USAGE,
    ElsewhereError,
    EverywhereError,
    print_error,
)
from cluster.process.signals import Preempted, after_launcher, raise_preempted, was_preempted
from configs import ConfigError


def exit_code(
    command: Callable[[], int | None],
    *,
    debug: bool = False,
    main: bool = True,
    interrupted: str = "",
    resumable: bool = False,
) -> int:
    """Run ``command``. A user's mistake or a failure of the outside world becomes one sentence on stderr.

    ConfigError gives 2. ValueError, OSError, RuntimeError and MemoryError give 1. With ``debug`` they are
    raised instead. Ctrl-C gives 130, and ``interrupted`` says what happened to the work. If the work is
    ``resumable``, SIGTERM and SIGHUP (unless it is ignored) give 75 with the same sentence. A process that is
    not ``main`` does not report what every rank has: ConfigError and EverywhereError. No process reports an
    ElsewhereError.
    """
    terminal.print_anywhere()
    try:
        if resumable:
            raise_preempted()
        return command() or EXIT_OK
    except (ConfigError, ValueError, OSError, RuntimeError, MemoryError) as fault:
        if debug:
            raise
        everywhere = isinstance(fault, ConfigError | EverywhereError)
        if not isinstance(fault, ElsewhereError) and (main or not everywhere):
            print_error(f"out of memory: {fault}" if isinstance(fault, MemoryError) else str(fault))
        return EXIT_USAGE if isinstance(fault, ConfigError) else EXIT_FAILED
    except KeyboardInterrupt as stop:
        preempted = isinstance(stop, Preempted) or (resumable and was_preempted())
        if main:
            what = "told to stop" if preempted else "interrupted"
            interrupted += "" if preempted else after_launcher()
            print_error(f"{what}{interrupted and '; '}{interrupted}")
        return EXIT_PREEMPTED if preempted else EXIT_INTERRUPTED
