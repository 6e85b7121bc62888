"""Terminals that know ASCII only, so that no table is lost at its last line, and terminals that are gone."""

import codecs
import contextlib
import io
import os
import stat
import sys

_PLAIN = {"±": "+/-", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "…": "...", "–": "-", "µ": "u"}


def print_anywhere() -> None:
    """From now on stdout and stderr write in ASCII what they cannot encode: → as ->, others as \\u1234."""
    codecs.register_error("dna-plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have replaced it
            stream.reconfigure(errors="dna-plain")


def silence_lost() -> None:
    """After SIGHUP: writes to a terminal that is gone are dropped, instead of ending the work."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _plainly(fault: UnicodeError) -> tuple[str, int]:
    assert isinstance(fault, UnicodeEncodeError), "registered for writing alone"
    given = fault.object[fault.start : fault.end]
    return "".join(_PLAIN.get(letter) or ascii(letter)[1:-1] for letter in given), fault.end
