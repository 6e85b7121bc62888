"""Text for a terminal that may know ASCII only, so that no table is lost at the last line."""

import codecs
import io
import sys

_PLAIN = {"±": "+/-", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "…": "...", "–": "-", "µ": "u"}


def print_anywhere() -> None:
    """From now on what stdout or stderr cannot encode is written in ASCII: → as ->, and the rest as
    \\u1234."""
    codecs.register_error("dna-plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have put another in its place
            stream.reconfigure(errors="dna-plain")


def _plainly(fault: UnicodeError) -> tuple[str, int]:
    assert isinstance(fault, UnicodeEncodeError), "registered for writing alone"
    given = fault.object[fault.start : fault.end]
    return "".join(_PLAIN.get(letter) or ascii(letter)[1:-1] for letter in given), fault.end
