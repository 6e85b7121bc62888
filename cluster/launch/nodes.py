"""Nodes as the supervisor sees them, and those that a process reaches: this machine, and hosts by a
command."""

import contextlib
import json
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from cluster.launch.hostfile import read_hostfile

AGENT = ("-m", "cluster.launch.agent")
_PATIENCE = 15.0  # seconds that an agent gets to end its ranks and itself
_NO_PATIENCE = 1.0  # and one that has never answered, and has no ranks
_REACH_S = 10.0
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Place:
    """One node as it can be used now: a name for people, the address by which other nodes reach it, room for
    ranks."""

    name: str
    address: str
    slots: int


class NodeLost(RuntimeError):  # noqa: N818 - it is what happened
    """A node or its agent is gone; one sentence."""


class Link(Protocol):
    """The way to one node's agent."""

    def send(self, line: str) -> None:
        """One line of JSON. NodeLost if the agent is gone."""

    def receive(self) -> list[str]:
        """Lines since the last call, without waiting. NodeLost once the agent is gone and all its lines were
        given."""

    def close(self) -> None:
        """The agent's input ends: it kills what it started, and ends. Idempotent."""


class Nodes(Protocol):
    """The nodes of one kind of cluster."""

    def places(self) -> list[Place]:
        """Nodes to be tried now, in a stable order."""

    def connect(self, place: Place) -> Link:
        """A new agent there; many may be connected at once. NodeLost with the reason."""

    def close(self) -> None:
        """Nothing of it is left."""


class LocalNodes:
    """This machine alone."""

    def __init__(
        self, slots: int | None, *, directory: str | None = None, agent: Sequence[str] = AGENT
    ) -> None:
        """``slots``: ranks that it runs; default one for each GPU, or 1."""
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
        """``slots``: ranks on each host, whatever the file says. ConfigError if the file is wrong."""
        self._hosts = read_hostfile(hostfile)
        self._remote, self._slots, self._agent = remote, slots, agent
        self._directory = str(Path(directory or ".").absolute())

    def places(self) -> list[Place]:
        addresses = {name: _address(name) for name in self._hosts}
        # This host's own name is 127.0.1.1 on many; the others need the address by which this one reaches
        # them.
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
        reach = [word.replace("{host}", place.name) for word in shlex.split(self._remote)]
        # env and not a shell: ssh joins words with blanks, other commands take them as they are.
        there = ["env", f"--chdir={self._directory}", sys.executable, *self._agent]
        return _ProcessLink(place.name, [*reach, *there], directory=None)

    def close(self) -> None:
        pass


@dataclass
class Member:
    """A node with its agent; ``first``, ``local``: its ranks, once there is a world."""

    place: Place
    link: Link
    port: int = 0
    first: int = 0
    local: int = 0
    heard: float = field(default_factory=time.monotonic)
    lost: str | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)  # events that came while another was waited for

    def events(self) -> list[dict[str, Any]]:
        """What its agent has told since the last call. NodeLost once it is gone."""
        kept, self.kept = self.kept, []
        if kept:
            return kept
        lines = self.link.receive()
        if lines:
            self.heard = time.monotonic()
        found = []
        for line in lines:  # a remote shell may say something of its own, and a link may break within a line
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [event for event in found if isinstance(event, dict) and "event" in event]

    def order(self, do: str, **more: Any) -> None:
        self.link.send(json.dumps({"do": do, **more}))

    def await_event(self, name: str, seconds: float, stop: Callable[[], object] = bool) -> dict[str, Any]:
        """The next event called ``name``; others are kept for ``events``. NodeLost if it does not come."""
        deadline = time.monotonic() + seconds
        others: list[dict[str, Any]] = []
        while time.monotonic() < deadline and not stop():
            found = self.events()
            for place, event in enumerate(found):
                if event["event"] == name:
                    self.kept = [*others, *found[:place], *found[place + 1 :]]
                    return event
            others += found
            time.sleep(_PAUSE_S)
        self.kept += others
        raise NodeLost(f"{self.place.name}: its agent has not answered for {seconds:g} s")


def reach(member: Member, head: Member, *, listens: bool, stop: Callable[[], object] = bool) -> str | None:
    """Why ``member`` cannot be used together with ``head``: it does not reach its port, or does not answer.

    Where not even the agent ``listens`` there, a refusal shows that the network is whole.
    """
    try:
        member.order("reach", address=head.place.address, port=head.port)
        told = member.await_event("reach", _REACH_S, stop)
    except NodeLost as lost:
        return str(lost)
    whole = told["fault"] is None or (told["refused"] and not listens)
    return None if whole else f"{member.place.name}: {told['fault']}"


def close_all(members: Iterable[Member]) -> None:
    """Their agents end, all at once: one that does not answer is waited for."""
    links = [member.link for member in members]
    with ThreadPoolExecutor(max(1, len(links))) as pool:
        list(pool.map(lambda link: link.close(), links))


class _ProcessLink:
    """An agent that is a child of this process, or of a command that reaches another host."""

    def __init__(self, name: str, command: Sequence[str], *, directory: str | None) -> None:
        self._name, self._lines, self._last_words = name, queue.SimpleQueue[str | None](), ""
        self._ended = self._closed = self._spoke = False
        try:
            # A session of its own: the terminal's Ctrl-C is for the supervisor, which tells the ranks.
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
            threading.Thread(target=read, args=(pipe,), daemon=True)
            for pipe, read in ((self._process.stdout, self._read), (self._process.stderr, self._listen))
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
            self._process.wait(_PATIENCE if self._spoke else _NO_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._spoke = True
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _listen(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._last_words = line.strip() or self._last_words

    def _why(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipes end a moment before it
            self._threads[1].join(1)
        code = self._process.poll()
        how = "its agent does not take orders"
        if code is not None:
            how = (
                f"its agent was killed by {signal.Signals(-code).name}"
                if code < 0
                else f"its agent ended ({code})"
            )
        return f"{self._name}: {how}" + (f": {self._last_words}" if self._last_words else "")


def _address(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return name  # what connects to it says what is wrong


def _own_address(away: str) -> str:
    """Of this host, on the way to ``away``."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((away, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return "127.0.0.1"
