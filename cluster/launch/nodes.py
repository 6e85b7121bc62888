"""Nodes as the supervisor uses them; this machine, and hosts that a command such as ssh reaches."""

import contextlib
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from cluster.launch.hostfile import read_hostfile

AGENT = ("-m", "cluster.launch.agent")
_PATIENCE = 15.0  # seconds for an agent to end its ranks and itself
_NO_PATIENCE = 1.0  # the same for one that has never answered, and so has no ranks


@dataclass(frozen=True)
class Place:
    """A node that can be used now: its name, the address at which other nodes reach it, and how many ranks it
    can run."""

    name: str
    address: str
    slots: int


class NodeLost(RuntimeError):  # noqa: N818 - an event more than an error
    """A node or its agent is gone; one sentence."""


class Link(Protocol):
    """The connection to one node's agent."""

    def send(self, line: str) -> None:
        """One line of JSON. NodeLost if the agent is gone."""

    def receive(self) -> list[str]:
        """The lines since the last call, without waiting. NodeLost once the agent is gone and all its lines
        were returned."""

    def close(self) -> None:
        """End the agent's input: it kills what it started and ends. May be called twice."""


class Nodes(Protocol):
    """The nodes of one kind of cluster."""

    def places(self) -> list[Place]:
        """The nodes to try now, always in the same order."""

    def connect(self, place: Place) -> Link:
        """A new agent there. Called for many nodes at once. NodeLost with the reason."""

    def close(self) -> None:
        """End all agents and give back what was taken."""


class LocalNodes:
    """This machine alone."""

    def __init__(
        self, slots: int | None, *, directory: str | None = None, agent: Sequence[str] = AGENT
    ) -> None:
        """``slots``: how many ranks it runs; default one for each GPU, or 1."""
        self._place = Place(
            "localhost", "127.0.0.1", slots or len(list(Path("/dev").glob("nvidia[0-9]*"))) or 1
        )
        self._directory, self._agent = directory, agent

    def places(self) -> list[Place]:
        return [self._place]

    def connect(self, place: Place) -> Link:
        return _ProcessLink(place.name, [sys.executable, *self._agent], directory=self._directory)

    def close(self) -> None:
        pass


class HostNodes:
    """Hosts of a hostfile, each reached by a command such as ``ssh {host}``."""

    def __init__(
        self,
        hostfile: str,
        remote: str,
        *,
        directory: str | None = None,
        slots: int | None = None,
        agent: Sequence[str] = AGENT,
    ) -> None:
        """``slots``: ranks on each host, instead of what the file says. ConfigError if the file is wrong."""
        self._hosts = read_hostfile(hostfile)
        self._remote, self._slots, self._agent = remote, slots, agent
        self._directory = str(Path(directory or ".").absolute())

    def places(self) -> list[Place]:
        addresses = {name: _address(name) for name in self._hosts}
        # Many hosts resolve their own name to 127.0.1.1. The others need the address that faces them.
        away = next((address for address in addresses.values() if not address.startswith("127.")), None)
        return [
            Place(
                name,
                _own_address(away) if away and addresses[name].startswith("127.") else addresses[name],
                self._slots or slots,
            )
            for name, slots in self._hosts.items()
        ]

    def connect(self, place: Place) -> Link:
        remote = [word.replace("{host}", place.name) for word in shlex.split(self._remote)]
        # No shell syntax: ssh joins the words with blanks, other commands pass them as they are.
        there = ["env", f"--chdir={self._directory}", sys.executable, *self._agent]
        return _ProcessLink(place.name, [*remote, *there], directory=None)

    def close(self) -> None:
        pass


class _ProcessLink:
    """An agent that is a child of this process, or of the command that reaches another host."""

    def __init__(self, name: str, command: Sequence[str], *, directory: str | None) -> None:
        self._name, self._lines, self._last_error = name, queue.SimpleQueue[str | None](), ""
        self._ended = self._closed = self._answered = False
        try:
            # A session of its own: Ctrl-C goes to the supervisor alone, which stops the ranks.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                stderr=subprocess.PIPE,
                bufsize=1,
                cwd=directory,
                errors="replace",
                start_new_session=True,
            )
        except OSError as fault:
            raise NodeLost(f"{name}: cannot run {command[0]}: {fault.strerror}") from fault
        assert self._process.stdout and self._process.stderr
        self._threads = [
            threading.Thread(target=follow, args=(pipe,), daemon=True)
            for pipe, follow in (
                (self._process.stdout, self._read_out),
                (self._process.stderr, self._read_err),
            )
        ]
        for thread in self._threads:
            thread.start()

    def send(self, line: str) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(line + "\n")
        except (OSError, ValueError) as fault:
            raise NodeLost(self._why()) from fault

    def receive(self) -> list[str]:
        found: list[str] = []
        with contextlib.suppress(queue.Empty):
            while not self._ended:
                line = self._lines.get_nowait()
                if line is None:
                    self._ended = True
                else:
                    found.append(line)
        if self._ended and not found:
            raise NodeLost(self._why())
        return found

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE if self._answered else _NO_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read_out(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._answered = True
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_err(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._last_error = line.strip() or self._last_error

    def _why(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipes close a moment before it ends
            self._threads[1].join(1)
        code = self._process.poll()
        how = "its agent does not read its input"
        if code is not None:
            how = (
                f"its agent was killed by {signal.Signals(-code).name}"
                if code < 0
                else f"its agent ended ({code})"
            )
        return f"{self._name}: {how}" + (f": {self._last_error}" if self._last_error else "")


def _address(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return name  # the connection to it will say what is wrong


def _own_address(away: str) -> str:
    """The address of this host on the route to ``away``."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((away, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return "127.0.0.1"
