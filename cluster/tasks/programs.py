"""A program as a task of the pool: on whichever node has room, told to stop when its driver stops, and never
longer there than its worker."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import ray
from ray.exceptions import RayError

from cluster.process.exits import EXIT_FAILED, brief, error_in

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.2
_ASK_S = 1.0  # between questions whether the driver stops
_ANSWER_S = 20.0  # a driver that is silent for so long is gone
_TAIL = 1 << 16  # bytes of a program's output in which its error is looked for


@dataclass(frozen=True)
class Program:
    """What Python runs: its arguments, and the environment beside that of the worker (None: without it).

    ``directory``: where it runs; None: where the worker does. ``grace_s``: how long it may take to end once
    it is told to.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    directory: str | None = None
    grace_s: float = 100.0


@dataclass(frozen=True)
class ProgramEnd:
    """How a program ended: its exit code, below 0 for a signal, and whether it was told to stop.

    ``error``: the error that it printed, or its last line. ``node``: the host that it ran on.
    """

    code: int
    seconds: float
    told: bool
    error: str
    node: str


class _Flag:
    """An actor: whether the driver has told its programs to stop."""

    def __init__(self) -> None:
        self._up = False

    def put_up(self) -> None:
        self._up = True

    def is_up(self) -> bool:
        return self._up


class StopFlag:
    """The driver's side of the flag. ``reference`` is what its programs are given."""

    def __init__(self) -> None:
        self.reference: Any = ray.remote(num_cpus=0)(_Flag).remote()

    def put_up(self) -> None:
        """Tell all programs to stop; they end by themselves, each within its grace."""
        with contextlib.suppress(RayError):
            ray.get(self.reference.put_up.remote(), timeout=_ANSWER_S)


def run_program(program: Program, flag: Any) -> ProgramEnd:
    """How ``program`` ended, on the node where this runs. Where the worker ends before it, even by SIGKILL,
    the kernel sends it SIGTERM."""
    began, told = time.monotonic(), False
    with tempfile.TemporaryFile() as output, _started(program, output) as process:
        ask = time.monotonic() + _ASK_S
        while process.poll() is None:
            time.sleep(_LOOK_S)
            if time.monotonic() >= ask:
                told, ask = _is_up(flag), time.monotonic() + _ASK_S
            if told:
                _end(process, program.grace_s)
        seconds = time.monotonic() - began
        return ProgramEnd(process.returncode, seconds, told, _error_of(output), socket.gethostname())


@contextlib.contextmanager
def _started(program: Program, output: IO[bytes]) -> "Iterator[subprocess.Popen[bytes]]":
    """The process in a session of its own; it has ended when the block has."""
    environment = {**os.environ, **program.environment}
    process = subprocess.Popen(
        [sys.executable, *program.arguments],
        env={name: value for name, value in environment.items() if value is not None},
        cwd=program.directory,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_stopped_with(os.getpid()),
    )
    try:
        yield process
    finally:
        _end(process, program.grace_s)


def _end(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Tell it to stop, and wait; kill it with all that it started once its grace is over."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _stopped_with(parent: int) -> Callable[[], None]:
    """A function for the child to call: the kernel will send it SIGTERM when ``parent`` ends, and signals
    that Ray's workers block reach it."""

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(EXIT_FAILED)  # the parent ended before the call

    return prepare


def _is_up(flag: Any) -> bool:
    """Whether the driver has put its flag up, or is gone with it."""
    try:
        return bool(ray.get(flag.is_up.remote(), timeout=_ANSWER_S))
    except RayError:
        return True


def _error_of(output: IO[bytes]) -> str:
    """The last error in the output of a program; its last line where it printed none."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL))
    lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [text for line in lines if (text := error_in(line)) is not None]
    return brief([*lines[-1:], *errors][-1], 400) if lines else ""
