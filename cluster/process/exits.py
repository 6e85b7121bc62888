"""How a process ends: exit codes, errors that one rank reports for all, and how one is printed."""

import contextlib
import sys
import textwrap

from configs import redact

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_PREEMPTED = 75  # what is finished stays; the same command goes on from there
EXIT_INTERRUPTED = 130  # by Ctrl-C, as shells count it
LOST_PEERS = "lost its peers"  # begins the error of a process that ends because others did
_ERROR = "error: "


class EverywhereError(RuntimeError):
    """An error that every rank has: only the main rank reports it."""


class ElsewhereError(ValueError):
    """An error that another rank reports: this one ends without a message."""


def brief(text: str, most: int = 200) -> str:
    """``text`` in one line of at most ``most`` characters, cut between words."""
    line = " ".join(text.split())
    return textwrap.shorten(line, most, placeholder=" ...") if " " in line[:most] else line[:most]


def print_error(text: str) -> None:
    """One line on stderr that ``error_in`` recognises."""
    with contextlib.suppress(OSError):  # nobody can read it; the exit code still says that it failed
        print(f"{_ERROR}{redact(text)}", file=sys.stderr, flush=True)


def error_in(line: str) -> str | None:
    """The text of the error that another process printed in ``line``; None if the line is no error."""
    return line.removeprefix(_ERROR) if line.startswith(_ERROR) else None
