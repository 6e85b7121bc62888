"""``python -m cluster.launch.agent``: starts the ranks of one node for the supervisor, and never outlives it.

It speaks lines of JSON. Orders on stdin: ``start`` (command, env, first, local, world, address, port,
silence), ``signal`` (number), ``show`` (what ranks do), ``kill``, ``reach`` (address, port), ``here``. Events
on stdout: ``ready`` (host, port), ``reach`` (fault, refused), ``line`` (rank, text), ``exited`` (rank, code),
``beats`` (rank -> what its heartbeat says, and for how long), ``fault`` (text). When stdin ends the
supervisor is gone: every rank is killed, and the agent ends. So it does when it has heard nothing for
``silence`` seconds: a network that is cut does not end stdin, for hours.

No rank outlives the agent either: the kernel kills them (PR_SET_PDEATHSIG), also if the agent dies by
SIGKILL.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from cluster.process import evidence, heartbeat
from cluster.process.processes import is_stopped

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_BEATS_EVERY_S = 0.5
_REACH_S = 5.0
_OPEN_S = 2.0  # how long what a rank has left behind may hold its output open
_LINE = 1 << 16  # bytes; a longer line is passed on in parts
_STOPS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
)  # that the supervisor passes on to the ranks as it wants


@dataclass
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    path: Path  # of its heartbeat
    text: bytes = b""  # of a line that has not ended
    beat: heartbeat.HeartbeatRecord = field(default_factory=heartbeat.HeartbeatRecord)
    moved: float = field(default_factory=time.monotonic)  # when its heartbeat was last seen to change
    gone: float | None = None  # when its end was seen
    ended: bool = False  # and told


class Agent:
    """The ranks of this node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ranks: dict[int, _Rank] = {}
        self._selector = selectors.DefaultSelector()
        self._orders = b""
        self._silence: float | None = None
        # The port that the ranks will meet at; held, so that others can try to reach it, until they are
        # started.
        self._held: socket.socket | None = socket.create_server(("", 0))
        self._held.settimeout(0)

    def run(self) -> None:
        """Serve until stdin ends."""
        assert self._held
        self._selector.register(0, selectors.EVENT_READ, None)
        tell("ready", host=socket.gethostname(), port=self._held.getsockname()[1])
        told = time.monotonic()
        while True:
            for key, _ in self._selector.select(0.1):
                if key.data is not None:
                    self._listen(key.data)
                elif not self._obey():
                    self._kill()
                    return
            if self._held:
                with contextlib.suppress(OSError):
                    self._held.accept()[0].close()
            self._look()
            if self._ranks and time.monotonic() - told > _BEATS_EVERY_S:
                told = time.monotonic()
                self._tell_beats()

    def _obey(self) -> bool:
        """Carry out the orders that have come; False at the end of stdin."""
        data = os.read(0, 1 << 16)
        self._stay()
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            try:
                getattr(self, f"_do_{order.pop('do')}")(**order)
            except OSError as fault:
                tell("fault", text=str(fault))
        return bool(data)

    def _do_start(
        self,
        command: list[str],
        env: dict[str, str],
        first: int,
        local: int,
        world: int,
        address: str,
        port: int,
        silence: float | None = None,
    ) -> None:
        if self._held:
            self._held.close()
            self._held = None
        self._silence = silence
        self._stay()
        for place in range(local):
            rank = first + place
            beat = self._folder / f"{rank}.heartbeat"
            environment = (
                os.environ
                | _interface(address)
                | env
                | {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(place),
                    "WORLD_SIZE": str(world),
                    "LOCAL_WORLD_SIZE": str(local),
                    "MASTER_ADDR": address,
                    "MASTER_PORT": str(port),
                    "PYTHONUNBUFFERED": "1",
                    heartbeat.ENV: str(beat),
                }
            )
            process = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
            self._ranks[rank] = started = _Rank(rank, process, beat)
            assert process.stdout
            self._selector.register(process.stdout, selectors.EVENT_READ, started)

    def _stay(self) -> None:
        """Wait anew for word of the supervisor. A signal, which comes also while output to nobody blocks
        us."""
        signal.setitimer(signal.ITIMER_REAL, self._silence or 0)

    def forsaken(self, *_: object) -> None:
        """The supervisor is out of reach: leave nothing behind, and tell nobody, since that would block."""
        for rank in self._ranks.values():
            _kill_group(rank.process.pid)
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)

    def _do_here(self) -> None:
        pass

    def _do_signal(self, number: int) -> None:
        for rank in self._ranks.values():
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def _do_show(self) -> None:
        for rank in self._ranks.values():
            if (
                rank.process.poll() is None and heartbeat.read(rank.path).at
            ):  # others would be killed by the signal
                evidence.ask(rank.process.pid, str(rank.path))

    def _do_kill(self) -> None:
        self._kill()

    def _do_reach(self, address: str, port: int) -> None:
        try:
            socket.create_connection((address, port), timeout=_REACH_S).close()
            tell("reach", fault=None, refused=False)
        except OSError as fault:
            words = f"it does not reach {address}:{port}: {fault.strerror or fault}"
            tell("reach", fault=words, refused=isinstance(fault, ConnectionRefusedError))

    def _listen(self, rank: _Rank) -> None:
        """Pass on whole lines of a rank's output."""
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
            tell("line", rank=rank.number, text=line.decode(errors="replace").rstrip("\r"))

    def _look(self) -> None:
        """Tell of ranks that have ended, once all that they said is told."""
        for rank in self._ranks.values():
            assert rank.process.stdout
            code = rank.process.poll()
            if code is None or rank.ended:
                continue
            if rank.gone is None:
                rank.gone = time.monotonic()
                _kill_group(rank.process.pid)  # what it started must not outlive it
            if not rank.process.stdout.closed and time.monotonic() - rank.gone > _OPEN_S:
                self._selector.unregister(rank.process.stdout)  # held by what has left its group
                rank.process.stdout.close()
            if rank.process.stdout.closed:
                rank.ended = True
                self._tell_beats()
                tell("exited", rank=rank.number, code=code)

    def _tell_beats(self) -> None:
        now, beats = time.monotonic(), {}
        for rank in self._ranks.values():
            beat = heartbeat.read(rank.path)
            if beat != rank.beat:
                rank.beat, rank.moved = beat, now
            beats[rank.number] = {
                "step": beat.step,
                "saved": beat.saved,
                "collectives": beat.collectives,
                "inside": beat.inside,
                "label": beat.label,
                "steps": beat.steps,
                "issued": beat.issued,
                "slow": beat.slow,
                "still_s": now - rank.moved,
                "stopped": is_stopped(rank.process.pid),
            }
        tell("beats", beats=beats)

    def _kill(self) -> None:
        left = [
            rank for rank in self._ranks.values() if rank.gone is None
        ]  # other pids may be another's by now
        for rank in left:
            _kill_group(rank.process.pid)
        for rank in left:
            rank.process.wait()


def _interface(address: str) -> dict[str, str]:
    """The network interface by which this node reaches ``address``, for gloo and nccl, unless the user has
    said which.

    Left to itself, gloo takes that of the host's own name, which many hosts resolve to 127.0.0.1.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = probe.getsockname()[0]
    names = [name for name, found in psutil.net_if_addrs().items() if own in {each.address for each in found}]
    if own == address and address not in ("127.0.0.1", "localhost"):
        names = [name for name in names if name != "lo"] or names
    return (
        {key: os.environ.get(key, names[0]) for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
        if names
        else {}
    )


def tell(event: str, **more: Any) -> None:
    """One event to the supervisor. Where that is gone, stdin has ended too."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"event": event, **more}), flush=True)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _die_with(parent: int) -> Any:
    """To be called in the child: the kernel kills it when ``parent`` ends, and it hears the signals that we
    do not."""

    def prepare() -> None:
        for number in _STOPS:
            signal.signal(number, signal.SIG_DFL)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it ended before the kernel knew

    return prepare


def main() -> None:
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="dna-agent-") as folder:
        agent = Agent(Path(folder))
        signal.signal(signal.SIGALRM, agent.forsaken)
        agent.run()


if __name__ == "__main__":
    main()
