"""A program that plays the training for tests of the supervisor: steps, checkpoints, heartbeats, and faults
to order.

``python tests/toy.py DIR key=value ...``: steps=N, pause=S (of a step), bytes=N (of a collective), fits=A,B
(numbers of ranks that are allowed), always=WHAT (what befalls all ranks at once, of every start),
always=WHAT:RANK (that rank), once=WHAT:RANK:STEP (what befalls that rank there, the first time only; several
with commas between them), lost=abort (how a rank ends that has lost its peers), disk=full (when it is told to
stop).
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.process.heartbeat import heartbeat

EVERY = 5


class Peers:
    """A collective over TCP, by way of rank 0, which listens where the ranks' store would."""

    def __init__(self, rank: int, world: int, *, size: int, lost: str) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._first, self._size, self._lost, self._sockets = rank == 0, size, lost, list[socket.socket]()
        self._server = socket.create_server(("", port)) if self._first else None
        with heartbeat.inside("meeting the others", phase=True):
            self._meet(address, port, world)

    def _meet(self, address: str, port: int, world: int) -> None:
        while len(self._sockets) < (world - 1 if self._first else 1):
            if self._server:
                peer = self._server.accept()[0]
                if peer.recv(1) == b"h":  # and no probe, which says nothing
                    self._sockets.append(peer)
                continue
            try:
                self._sockets = [socket.create_connection((address, port), timeout=30)]
            except ConnectionRefusedError:
                time.sleep(0.02)
                continue
            self._sockets[0].settimeout(None)
            self._sockets[0].sendall(b"h")

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank."""
        with heartbeat.inside("all_reduce"):
            try:
                if self._first:
                    mine = any([mine, *(self._read(peer) for peer in self._sockets)])
                for peer in self._sockets:
                    peer.sendall((b"1" if mine else b"0") * self._size)
                return mine if self._first else self._read(self._sockets[0])
            except OSError as fault:
                befall(self._lost)
                print(f"error: lost its peers in all_reduce: {fault}", file=sys.stderr, flush=True)
                sys.exit(1)

    def _read(self, peer: socket.socket) -> bool:
        if not (found := peer.recv(self._size, socket.MSG_WAITALL)):
            raise ConnectionResetError("connection closed")
        return found[:1] == b"1"


def advance(seconds: float) -> None:
    for _ in range(30):
        time.sleep(seconds / 30)
        heartbeat.advance()


def befall(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "abort":  # as libraries do that have lost the others
        os.kill(os.getpid(), signal.SIGABRT)
    elif what == "fail":
        print("error: the data are wrong in row 7", file=sys.stderr, flush=True)
        sys.exit(1)
    elif what == "missing":  # as Python itself does where a file is not there
        print(
            "python: can't open file '/x/trainer/main.py': [Errno 2] No such file or directory",
            file=sys.stderr,
        )
        sys.exit(2)
    elif what == "usage":
        print("error: train.lr: missing", file=sys.stderr, flush=True)
        sys.exit(2)
    elif what == "quiet":  # as ranks other than 0 do for a wrong config
        sys.exit(2)
    elif what == "hang":
        while True:
            time.sleep(1)
    elif what == "busy":  # for longer than the tests' hang_timeout_s, while the others wait
        for _ in range(30):
            time.sleep(0.1)
            with heartbeat.inside("phase"):
                pass
    elif what in ("upload", "stall"):  # a checkpoint that a thread writes, piece by piece, or not
        thread = threading.Thread(target=advance if what == "upload" else time.sleep, args=(3,), daemon=True)
        thread.start()
        with heartbeat.inside("waiting for the checkpoint", phase=True):
            thread.join()
    elif what == "slow":
        time.sleep(0.7)
    elif what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif what == "preempt":
        sys.exit(75)
    elif what == "leave":  # a process of another session, which holds this one's output open
        subprocess.Popen(["sleep", "50"], start_new_session=True)
    elif what == "talk":  # without an end of line
        os.write(1, b"x" * 200_000)


def main(arguments: list[str]) -> int:
    given = dict(each.split("=", 1) for each in arguments if "=" in each)
    if "--at-most" in arguments:
        if given.get("fits") == "none":
            print("error: no number fits", file=sys.stderr)
            return 2
        if given.get("fits") == "broken":
            return 1
        most = int(arguments[arguments.index("--at-most") + 1])
        print(max((n for n in map(int, given.get("fits", "1,2,3,4").split(",")) if n <= most), default=0))
        return 0
    folder, rank, world = Path(arguments[0]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    always, _, who = given.get("always", "").partition(":")
    if who in ("", str(rank)):
        befall(always)
    checkpoint, step = folder / "checkpoint", 0
    if checkpoint.exists():
        step = int(checkpoint.read_text())
    heartbeat.saved(step)
    if rank == 0:
        print(f"world {world} from {step}", file=sys.stderr, flush=True)
    peers = Peers(rank, world, size=int(given.get("bytes", "1")), lost=given.get("lost", ""))
    peers.any(False)  # all have read the checkpoint
    faults = [each.split(":") for each in given["once"].split(",")] if "once" in given else []
    while step < int(given["steps"]):
        step += 1
        heartbeat.step(step)
        for what, who, when in faults:
            mark = folder / f"befell-{what}-{who}-{when}"
            if (str(rank), str(step)) == (who, when) and not mark.exists():
                mark.write_text("")
                befall(what)
        deaf = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        stopping = peers.any(bool(told))
        time.sleep(float(given.get("pause", "0.01")))
        if stopping and deaf:
            befall("hang")
        if stopping and given.get("disk") == "full":
            print("error: no space left on the disk", file=sys.stderr, flush=True)
            return 1
        if step % EVERY == 0 or stopping:
            if rank == 0:
                new = folder / "new"
                new.write_text(str(step))
                new.replace(checkpoint)
            heartbeat.saved(step)
            if stopping:
                return 75
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
