"""The actor that runs a node's agent in a Ray cluster."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import IO

import ray

from cluster.process.exits import brief

PATIENCE_S = 15.0  # for an agent to end its ranks
# Ray kills the children of a worker that ends, by their parent's id. It kills this shell, and not the agent,
# whose input ends with the worker, and which then has the time to end its ranks. The input goes through
# descriptor 3, since a shell gives background commands none.
_SHIELD = ("/bin/sh", "-c", 'exec 3<&0; "$@" <&3 3<&- & exec 3<&- 0</dev/null; wait $!', "agent")


class Launcher:
    """The actor on a node: runs the agent and passes lines in both directions."""

    def __init__(self, agent: list[str], directory: str | None) -> None:
        self._command, self._directory = [*_SHIELD, sys.executable, *agent], directory
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[str] = []
        self._last_error = ""
        self._ended = ""
        self._changed = threading.Condition()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            cwd=self._directory,
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        outputs = [
            threading.Thread(target=follow, args=(output,), daemon=True)
            for follow, output in ((self._take, self._process.stdout), (self._log, self._process.stderr))
        ]
        for thread in outputs:
            thread.start()
        threading.Thread(target=self._await_end, args=(self._process, outputs), daemon=True).start()

    def _take(self, output: IO[bytes]) -> None:
        with open(output.fileno(), errors="replace", closefd=False) as text:
            for line in text:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()

    def _log(self, output: IO[bytes]) -> None:
        with open(output.fileno(), errors="replace", closefd=False) as text:
            for line in text:
                print(line, end="", file=sys.stderr, flush=True)  # Ray's log of this worker
                self._last_error = line.strip() or self._last_error

    def _await_end(self, process: subprocess.Popen[bytes], outputs: list[threading.Thread]) -> None:
        code = process.wait()
        for thread in outputs:
            thread.join(timeout=2)  # a rank that outlives its agent may keep them open
        how = f"signal {code - 128}" if code > 128 else f"exit code {code}"
        with self._changed:
            self._ended = f"{how} ({brief(self._last_error)})" if self._last_error else how
            self._changed.notify_all()

    @ray.method(concurrency_group="read")
    def read(self, wait_seconds: float) -> tuple[list[str], str]:
        """(new lines, after a wait if there are none; how the agent ended, "" while it runs)."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended, timeout=wait_seconds)
            lines, self._lines = self._lines, []
            return lines, self._ended

    @ray.method(concurrency_group="write")
    def write(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None, "write before start"
        with contextlib.suppress(BrokenPipeError, ValueError):  # read() reports that the agent is gone
            self._process.stdin.write(line.rstrip("\n").encode() + b"\n")

    def stop(self) -> None:
        """End the agent's input; it ends its ranks and itself within PATIENCE_S, or is killed."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
