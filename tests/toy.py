"""A program that plays the training for tests of the supervisor: steps, checkpoints, heartbeats, and faults to order.

``python tests/toy.py DIR key=value ...``: steps=N, once=WHAT:RANK:STEP (what befalls that rank there, the first time
only), always=WHAT (what befalls all ranks at once), fits=A,B (numbers of ranks that are allowed),
pause=SECONDS of a step, disk=full (when it is told to stop).
"""

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.heartbeat import heart

EVERY = 5


def befall(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "fail":
        print("error: the data are wrong in row 7", file=sys.stderr, flush=True)
        sys.exit(1)
    elif what == "usage":
        print("error: train.lr: missing", file=sys.stderr, flush=True)
        sys.exit(2)
    elif what == "hang":
        while True:
            time.sleep(1)
    elif what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif what == "preempt":
        sys.exit(75)


class Peers:
    """A collective over the network, by way of rank 0, which listens where the ranks' store would."""

    def __init__(self, rank: int, world: int) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.sockets: list[socket.socket] = []
        self._server = socket.create_server(("", port)) if rank == 0 else None
        if self._server:
            self.sockets = [self._server.accept()[0] for _ in range(world - 1)]
        else:
            while not self.sockets:
                with contextlib.suppress(ConnectionRefusedError):
                    self.sockets = [socket.create_connection((address, port), timeout=60)]
                    self.sockets[0].settimeout(None)
        self._first = rank == 0

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank."""
        with heart.inside("all_reduce"):
            try:
                if self._first:
                    mine = any([mine, *(self._read(peer) for peer in self.sockets)])
                for peer in self.sockets:
                    peer.sendall(b"1" if mine else b"0")
                return mine if self._first else self._read(self.sockets[0])
            except OSError as fault:
                print(f"error: lost its peers in all_reduce: {fault}", file=sys.stderr, flush=True)
                sys.exit(1)

    def _read(self, peer: socket.socket) -> bool:
        if not (byte := peer.recv(1)):
            raise ConnectionResetError("connection closed")
        return byte == b"1"


def main(arguments: list[str]) -> int:
    given = dict(each.split("=", 1) for each in arguments if "=" in each)
    if "--at-most" in arguments:
        if given.get("fits") == "none":
            print("error: no number fits", file=sys.stderr)
            return 2
        if given.get("fits") == "broken":
            return 1
        most = int(arguments[arguments.index("--at-most") + 1])
        print(max(n for n in map(int, given.get("fits", "1,2,3,4").split(",")) if n <= most))
        return 0
    folder, rank, world = Path(arguments[0]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    peers = Peers(rank, world)
    checkpoint, step = folder / "checkpoint", 0
    if checkpoint.exists():
        step = int(checkpoint.read_text())
    peers.any(False)  # all have read it
    heart.saved(step)
    if rank == 0:
        print(f"world {world} from {step}", file=sys.stderr, flush=True)
    if "always" in given:
        befall(given["always"])
    what, who, when = (given["once"].split(":") if "once" in given else ("", "-1", "-1"))
    while step < int(given["steps"]):
        step += 1
        heart.step(step)
        mark = folder / f"befell-{what}"
        if (rank, step) == (int(who), int(when)) and not mark.exists():
            mark.write_text("")
            befall(what)
        stopping = peers.any(bool(told))
        time.sleep(float(given.get("pause", "0.01")))
        if step % EVERY == 0 or stopping:
            if stopping and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
                befall("hang")
            if stopping and given.get("disk") == "full":
                print("error: no space left on the disk", file=sys.stderr, flush=True)
                return 1
            if rank == 0:
                new = folder / "new"
                new.write_text(str(step))
                new.replace(checkpoint)
            heart.saved(step)
            if stopping:
                return 75
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
