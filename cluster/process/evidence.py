"""What a rank that hangs prints before it is killed: the stacks of its threads, and its last collectives.

A signal makes a handler in C print the stacks, whatever the interpreter waits for. A thread that reads from a
pipe prints the collectives when the agent asks: those of torch's flight recorders, or else of the rank's own
record.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

STACKS = signal.SIGUSR1
END = "(end of what the rank shows)"  # the last line of an answer
_PIPE = ".ask"
_LAST = 8  # collectives
_STACKS_S = 0.3  # enough for the stacks, which are written piece by piece
# nccl has a recorder of its own, apart from the other backends.
_RECORDERS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")


def listen(path: str, own: Callable[[], Sequence[str]]) -> None:
    """In a rank: from now on, answer on stderr. ``path``: of its heartbeat; ``own``: the lines of its own
    record, newest first."""
    faulthandler.register(STACKS, all_threads=True)
    with contextlib.suppress(OSError):  # where no pipe can be made, the stacks are all there is
        os.mkfifo(path + _PIPE)
        threading.Thread(target=_answer, args=(path + _PIPE, own), name="evidence", daemon=True).start()


def ask(pid: int, path: str) -> None:
    """Make a rank that listens print its evidence; called in another process. A rank that is gone is
    ignored."""
    with contextlib.suppress(OSError):
        os.kill(pid, STACKS)
    with contextlib.suppress(OSError):
        pipe = os.open(path + _PIPE, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(pipe, b"?")
        finally:
            os.close(pipe)


def _answer(pipe: str, own: Callable[[], Sequence[str]]) -> None:
    # Open for writing, too: otherwise the pipe ends after the first question.
    with open(pipe, "r+b", buffering=0) as asked:
        while asked.read(1):
            time.sleep(_STACKS_S)
            lines = recorded() or ["torch has recorded no collective; its own record, newest first:", *own()]
            os.write(2, "".join(f"{line}\n" for line in [*lines, END]).encode())


def recorded() -> list[str]:
    """The last collectives in torch's flight recorders, newest first; empty where this process has no
    recorder."""
    c10d = sys.modules.get("torch._C._distributed_c10d")
    entries: list[dict[str, Any]] = []
    for name in _RECORDERS:
        with contextlib.suppress(Exception):  # internal to torch: it differs from version to version
            entries += json.loads(getattr(c10d, name)(includeCollectives=True, onlyActive=False))["entries"]
    entries.sort(key=lambda entry: -entry["time_created_ns"])
    now = time.time_ns()
    return ["collectives by torch's flight recorder, newest first:"] * bool(entries) + [
        f"  {entry['profiling_name']} {entry['collective_seq_id']} of group {entry['process_group'][0]}, "
        f"{'+'.join(map(str, entry['input_dtypes']))} {entry['input_sizes']}: "
        + (
            "done"
            if entry["retired"] or entry["state"] == "completed"
            else f"{entry['state']}, under way for {(now - entry['time_created_ns']) / 1e9:.0f} s"
        )
        for entry in entries[:_LAST]
    ]
