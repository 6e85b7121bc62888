"""Passes over sequence on workers: each task reads one chunk of a split and sends back a ``Scan``."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data_prep.alphabet import Codes
from data_prep.split.intervals import Span
from data_prep.split.minimisers import ALL, WINDOW, Hashes, K, minimisers, unique

Read = Callable[[Any], Iterable[tuple[Span, Codes]]]  # what a chunk holds
Run = Callable[..., list[Any]]  # as jobs.run

_RESULTS_BYTES = 512 << 20  # of one batch of tasks, at the driver


@dataclass(frozen=True)
class Scan:
    """The result of a task. Arrays are sent as bytes: views of Ray's store would keep their place in it."""

    bp: int
    data: tuple[bytes, ...] = ()
    counts: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    sketch: tuple[int, dict[str, bytes]] = (ALL, {})  # by assembly: as Sketch.result gives it


class Task(Protocol):
    def scan(self, *shared: Any) -> Scan: ...


def scan(task: Task, shared: tuple[Any, ...] = ()) -> Scan:
    """The result of ``task``: the function that the workers run."""
    return task.scan(*shared)


@dataclass(frozen=True)
class Partition:
    """Part ``number`` of ``count`` parts of all hashes."""

    number: int
    count: int

    def of(self, hashes: Hashes) -> Hashes:
        return hashes[hashes % np.uint64(self.count) == self.number] if self.count > 1 else hashes


@dataclass(frozen=True)
class Gather:
    """Task: the minimisers of a held-out chunk that belong to the partition, each once."""

    read: Read
    chunk: Any
    partition: Partition
    k: int = K
    window: int = WINDOW

    def scan(self) -> Scan:
        bp, hashes = 0, [np.zeros(0, np.uint64)]
        for _, codes in self.read(self.chunk):
            bp += len(codes)
            hashes.append(self.partition.of(minimisers(codes, k=self.k, window=self.window)[0]))
        return Scan(bp, (unique(hashes).tobytes(),))


class Passes:
    """Runs the tasks of one pass after another."""

    def __init__(self, run: Run, workers: int | None, on_scanned: Callable[[int], object]) -> None:
        self._run, self._workers, self._on_scanned = run, workers, on_scanned

    def scan(
        self, tasks: Sequence[Task], *, shared: tuple[Any, ...] = (), result_bytes: int = 1
    ) -> Iterator[Scan]:
        """Results in order, of ``result_bytes`` each beside sketches; in batches, since the runner keeps the
        results of a batch until its end."""
        step = max(1, _RESULTS_BYTES // max(1, result_bytes))
        for i in range(0, len(tasks), step):
            yield from self._run(
                scan,
                tasks[i : i + step],
                workers=self._workers,
                on_result=lambda _, found: self._on_scanned(found.bp),
                shared=shared or None,
            )
