"""The text that the first rank says during a run, as a file that goes to MLflow: log.txt."""

import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cluster.storage import store
from configs import redact
from trainer.core.console import listen

NAME = "log.txt"


class RunLog:
    """A local file to which every line that ``say`` writes is added with its time, until ``close``.

    It goes on where an earlier process of the run ended. ``kept``: the URI of a copy that outlives this
    machine; None where the file itself does.
    """

    def __init__(self, folder: Path, *, kept: str | None) -> None:
        self.path, self._kept, self._lock = folder / NAME, kept, threading.Lock()
        with suppress(OSError):  # a log stops no run
            folder.mkdir(parents=True, exist_ok=True)
            if kept and not self.path.exists() and store.exists(kept):
                self.path.write_bytes(store.read_bytes(kept))
        self._end = listen(self.add)

    def add(self, text: str) -> None:
        """One line, or several, with the time; a full disk loses them."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now}  {line}\n" for line in redact(text).splitlines())
        with self._lock, suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def keep(self) -> None:
        """The copy is as new as the file."""
        if self._kept and self.path.exists():
            with suppress(store.StoreError, OSError):
                store.write_bytes(self._kept, self.path.read_bytes())

    def close(self) -> None:
        self._end()
