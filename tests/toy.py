"""A program that plays the training for tests of the supervisor: steps, checkpoints, heartbeats, and faults to order.

``python tests/toy.py DIR key=value ...``: steps=N, once=WHAT:RANK:STEP (what befalls that rank there, the first time
only), always=WHAT (what befalls all ranks at once), fits=A,B (numbers of ranks that are allowed).
"""

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


def wait_for_all(folder: Path, rank: int, world: int, step: int) -> None:
    """A collective over files: it ends when every rank is here."""
    with heart.inside("all_reduce"):
        (folder / f"at-{rank}").write_text(str(step))
        while any(int((folder / f"at-{other}").read_text() or 0) < step for other in range(world)
                  if (folder / f"at-{other}").exists()):  # fmt: skip
            time.sleep(0.005)


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
    meeting = socket.create_server(("", int(os.environ["MASTER_PORT"]))) if rank == 0 else None  # as the ranks' store
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    checkpoint, step = folder / "checkpoint", 0
    if checkpoint.exists():
        step = int(checkpoint.read_text())
    heart.saved(step)
    (folder / f"at-{rank}").write_text(str(step))
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
        wait_for_all(folder, rank, world, step)
        time.sleep(float(given.get("pause", "0.01")))
        if step % EVERY == 0 or told:
            if rank == 0:
                new = folder / "new"
                new.write_text(str(step))
                new.replace(checkpoint)
            heart.saved(step)
            if told:
                return 75
    if meeting:
        meeting.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
