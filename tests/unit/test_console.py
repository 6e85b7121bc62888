"""What is said while nobody reads it: nobody waits, nothing is lost but the oldest, and that is said."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.process import console
from cluster.process.console import Console

ROOT = Path(__file__).parents[2]


def read_all(end: int, into: list[bytes]) -> threading.Thread:
    def follow() -> None:
        while data := os.read(end, 1 << 16):
            into.append(data)

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def test_nobody_waits_for_a_reader_and_all_comes_in_order_once_there_is_one() -> None:
    out, into = os.pipe()
    stream, said = Console(into), [f"line {number} of many\n" for number in range(20_000)]
    for line in said:  # far more than a pipe holds: another stream would wait here for ever
        print(line, end="", file=stream, flush=True)
    found: list[bytes] = []
    reader = read_all(out, found)
    stream.finish()
    os.close(into)
    reader.join()
    os.close(out)
    assert b"".join(found).decode() == "".join(said)


def test_what_waits_is_limited_and_what_was_left_out_is_counted() -> None:
    out, into = os.pipe()
    stream, line = Console(into, most=100_000), "x" * 99 + "\n"
    for _ in range(5_000):
        stream.write(line)
    found: list[bytes] = []
    reader = read_all(out, found)
    stream.write("the last\n")
    stream.finish()
    os.close(into)
    reader.join()
    os.close(out)
    lines = b"".join(found).decode().splitlines(keepends=True)
    notes = [each for each in lines if each.endswith(" lines are left out here: nobody read them)\n")]
    assert sum(int(note[1:].split()[0]) for note in notes) + lines.count(line) == 5_000
    assert lines.count(line) < 3_000
    assert lines[-1] == "the last\n"


def test_a_reader_that_is_gone_ends_nothing() -> None:
    out, into = os.pipe()
    stream = Console(into)
    os.close(out)
    for _ in range(3):
        print("said", file=stream, flush=True)
    stream.finish()
    assert stream.write("more") == 4
    os.close(into)


def test_a_descriptor_that_somebody_else_made_non_blocking() -> None:
    out, into = os.pipe()
    os.set_blocking(into, False)
    stream, found = Console(into), list[bytes]()
    stream.write("x" * 300_000 + "\n")
    reader = read_all(out, found)
    stream.finish()
    os.close(into)
    reader.join()
    os.close(out)
    assert len(b"".join(found)) == 300_001


def test_the_end_does_not_wait_for_ever_for_a_reader_that_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "_LAST_S", 0.2)
    out, into = os.pipe()
    stream = Console(into)
    stream.write("x" * 300_000)
    begin = time.monotonic()
    stream.finish()
    assert time.monotonic() - begin < 30
    os.close(out)  # its thread ends
    stream._thread.join(30)
    os.close(into)


def test_a_terminal_that_knows_ascii_only() -> None:
    code = (
        "import sys; from cluster.process import console\nwith console.unblocked(): "
        "print('é', sys.stderr.encoding, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        stderr=subprocess.PIPE,
        check=True,
    )
    assert done.stderr == b"\\xe9 ascii\n"
