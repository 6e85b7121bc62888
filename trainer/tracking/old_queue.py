"""The queue of versions before the outbox: ``queue.jsonl``, and the byte up to which it was delivered."""

from pathlib import Path

from cluster.storage.retry import named
from trainer.core.console import say
from trainer.tracking.messages import Message, from_line

_QUEUE, _DELIVERED = "queue.jsonl", "delivered"


def waiting(folder: Path) -> dict[str, Message]:
    """The lines that were not delivered, with their messages; a last line that a kill cut short is none.

    Raises:
        StoreError: the file cannot be read.
    """
    path = folder / _QUEUE
    if not path.exists():
        return {}
    with named(str(path), "read"):
        data = path.read_bytes()
    data = data[: data.rfind(b"\n") + 1]
    end, lines = _delivered(folder, data), {}
    for line in data[end:].split(b"\n")[:-1]:
        end += len(line) + 1
        if message := from_line(line):
            lines[line.decode()] = message
        else:
            say(f"warning: a line of {path} that ends at byte {end} is damaged, and left out")
    return lines


def remove(folder: Path) -> None:
    """The queue first: a queue without its note would all be delivered again."""
    for name in (_QUEUE, _DELIVERED):
        with named(str(folder / name), "remove"):
            (folder / name).unlink(missing_ok=True)


def _delivered(folder: Path, data: bytes) -> int:
    """The byte of the note, if a line of ``data`` ends there; 0 otherwise."""
    try:
        noted = int((folder / _DELIVERED).read_text())
    except (OSError, ValueError):
        return 0
    return noted if 0 < noted <= len(data) and data[noted - 1 : noted] == b"\n" else 0
