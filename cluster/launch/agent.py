"""``python -m cluster.launch.agent``: starts the ranks of one node for the supervisor, and never outlives it.

Orders come on stdin and events go to stdout, as protocol.py has them. The end of stdin means that the
supervisor is gone: the agent kills every rank and ends. A network that is cut does not end stdin for hours;
so the agent also ends when it has received no order for ``silence`` seconds.

No rank outlives the agent: the kernel kills them (PR_SET_PDEATHSIG), also when the agent dies by SIGKILL.
"""

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from cluster.launch.protocol import RankState, Start
from cluster.process import evidence, heartbeat
from cluster.process.heartbeat import HeartbeatRecord
from cluster.process.processes import is_stopped

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_STATES_EVERY_S = 0.5
_REACH_S = 5.0
_OPEN_S = 2.0  # how long a process that a rank has left behind may keep the rank's output open
_LINE = 1 << 16  # bytes; a longer line is sent in parts
# The supervisor receives these and decides what the ranks get.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    path: Path  # of its heartbeat
    text: bytes = b""  # the beginning of a line that is not complete
    record: HeartbeatRecord = field(default_factory=HeartbeatRecord)
    moved: float = field(default_factory=time.monotonic)  # when its heartbeat was last seen to change
    ended: float | None = None  # when its end was seen
    reported: bool = False  # that it has ended

    def state(self) -> RankState:
        now, record = time.monotonic(), heartbeat.read(self.path)
        if record != self.record:
            self.record, self.moved = record, now
        return RankState(**vars(record), still_s=now - self.moved, stopped=is_stopped(self.process.pid))


class Agent:
    """The ranks of this node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ranks: dict[int, _Rank] = {}
        self._selector = selectors.DefaultSelector()
        self._input = b""  # the beginning of an order that is not complete
        self._silence: float | None = None
        # The port where the ranks will meet. It stays open until they are started, for others to try it.
        self._port: socket.socket | None = socket.create_server(("", 0))
        self._port.settimeout(0)
        self._orders: dict[str, Callable[..., None]] = {
            "start": lambda **values: self._start(Start(**values)),
            "signal": self._signal,
            "show": self._show,
            "kill": self._kill,
            "reach": _reach,
            "here": lambda: None,  # any order shows that the supervisor is alive
        }

    def run(self) -> None:
        """Serve until stdin ends."""
        assert self._port
        self._selector.register(0, selectors.EVENT_READ, None)
        send("ready", host=socket.gethostname(), port=self._port.getsockname()[1])
        sent = time.monotonic()
        while True:
            for key, _ in self._selector.select(0.1):
                if key.data is not None:
                    self._pass_on(key.data)
                elif not self._obey():
                    self._kill()
                    return
            if self._port:
                with contextlib.suppress(OSError):
                    self._port.accept()[0].close()
            self._report_ends()
            if self._ranks and time.monotonic() - sent > _STATES_EVERY_S:
                sent = time.monotonic()
                self._send_states()

    def abandon(self, *_: object) -> None:
        """The supervisor is out of reach: kill the ranks and end, without an event, which would block."""
        for rank in self._ranks.values():
            _kill_group(rank.process.pid)
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)

    def _obey(self) -> bool:
        """Carry out the orders that have come; False at the end of stdin."""
        data = os.read(0, 1 << 16)
        self._restart_timer()
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            try:
                self._orders[order.pop("do")](**order)
            except OSError as fault:
                send("fault", text=str(fault))
        return bool(data)

    def _restart_timer(self) -> None:
        """Wait ``silence`` seconds from now. SIGALRM comes also while this process is blocked in a write."""
        signal.setitimer(signal.ITIMER_REAL, self._silence or 0)

    def _start(self, start: Start) -> None:
        if self._port:
            self._port.close()
            self._port = None
        self._silence = start.silence
        self._restart_timer()
        for local_rank in range(start.local):
            number = start.first + local_rank
            path = self._folder / f"{number}.heartbeat"
            process = subprocess.Popen(
                [sys.executable, *start.command],
                env=_environment(start, local_rank) | {heartbeat.ENV: str(path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
            self._ranks[number] = rank = _Rank(number, process, path)
            assert process.stdout
            self._selector.register(process.stdout, selectors.EVENT_READ, rank)

    def _signal(self, number: int) -> None:
        for rank in self._ranks.values():
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def _show(self) -> None:
        for rank in self._ranks.values():
            # The signal would kill a rank that has no handler yet; it has one before its first heartbeat.
            if rank.process.poll() is None and heartbeat.read(rank.path).at:
                evidence.ask(rank.process.pid, str(rank.path))

    def _kill(self) -> None:
        left = [rank for rank in self._ranks.values() if rank.ended is None]  # other pids may be reused
        for rank in left:
            _kill_group(rank.process.pid)
        for rank in left:
            rank.process.wait()

    def _pass_on(self, rank: _Rank) -> None:
        """Send whole lines of a rank's output."""
        pipe: IO[bytes] | None = rank.process.stdout
        assert pipe
        data = os.read(pipe.fileno(), 1 << 16)
        *lines, rank.text = (rank.text + data).split(b"\n")
        if not data:
            self._selector.unregister(pipe)
            pipe.close()
            lines, rank.text = ([rank.text] if rank.text else []), b""
        if len(rank.text) > _LINE:
            lines, rank.text = [*lines, rank.text], b""
        for line in lines:
            send("line", rank=rank.number, text=line.decode(errors="replace").rstrip("\r"))

    def _report_ends(self) -> None:
        """Send the exit codes of ranks that have ended, each after all of its output."""
        for rank in self._ranks.values():
            assert rank.process.stdout
            code = rank.process.poll()
            if code is None or rank.reported:
                continue
            if rank.ended is None:
                rank.ended = time.monotonic()
                _kill_group(rank.process.pid)  # what the rank started must not outlive it
            if not rank.process.stdout.closed and time.monotonic() - rank.ended > _OPEN_S:
                self._selector.unregister(rank.process.stdout)  # a process outside its group keeps it open
                rank.process.stdout.close()
            if rank.process.stdout.closed:
                rank.reported = True
                self._send_states()
                send("exited", rank=rank.number, code=code)

    def _send_states(self) -> None:
        send("states", states={number: asdict(rank.state()) for number, rank in self._ranks.items()})


def _environment(start: Start, local_rank: int) -> dict[str, str]:
    return (
        os.environ
        | _interface(start.address)
        | start.env
        | {
            "RANK": str(start.first + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(start.world),
            "LOCAL_WORLD_SIZE": str(start.local),
            "MASTER_ADDR": start.address,
            "MASTER_PORT": str(start.port),
            "PYTHONUNBUFFERED": "1",
        }
    )


def _interface(address: str) -> dict[str, str]:
    """The network interface that leads from this node to ``address``, for gloo and nccl; what the user has
    set stays.

    By default gloo takes the interface of the host's own name, which many hosts resolve to 127.0.0.1.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = probe.getsockname()[0]
    names = [name for name, found in psutil.net_if_addrs().items() if own in {each.address for each in found}]
    if own == address and address not in ("127.0.0.1", "localhost"):
        names = [name for name in names if name != "lo"] or names
    keys = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if names else ()
    return {key: os.environ.get(key, names[0]) for key in keys}


def _reach(address: str, port: int) -> None:
    try:
        socket.create_connection((address, port), timeout=_REACH_S).close()
        send("reach", fault=None, refused=False)
    except OSError as fault:
        text = f"it does not reach {address}:{port}: {fault.strerror or fault}"
        send("reach", fault=text, refused=isinstance(fault, ConnectionRefusedError))


def send(event: str, **more: Any) -> None:
    """One event to the supervisor. If that is gone, stdin has ended too."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"event": event, **more}), flush=True)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _die_with(parent: int) -> Any:
    """A function for the child to call: the kernel will kill it when ``parent`` ends, and the signals that
    the agent ignores work again."""

    def prepare() -> None:
        for number in _STOPS:
            signal.signal(number, signal.SIG_DFL)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the parent ended before the call

    return prepare


def main() -> None:
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="dna-agent-") as folder:
        agent = Agent(Path(folder))
        signal.signal(signal.SIGALRM, agent.abandon)
        agent.run()


if __name__ == "__main__":
    main()
