"""Blocks in memory, and threads that fetch them ahead of need.

Blocks stay packed (0.25 bytes a base). A block that is in memory or being fetched is never fetched again.
"""

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import PriorityQueue

from cluster.storage.store import StoreError
from data_prep.blocks import PackedBlock
from data_prep.shards import FormatError

NOW, SOON, LATER = 0, 1, 2  # urgency: this batch needs the block; the open set does; the next set does
_STOP = NOW - 1
_Task = Callable[[], None]


class FetchThreads:
    """Threads, each with its own queue, most urgent task first; they start with the first task."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._queues: list[PriorityQueue[tuple[int, int, _Task | None]]] = []
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count()  # equally urgent tasks run in the order of their arrival
        self._closed = False

    def put(self, thread: int, urgency: int, task: _Task) -> None:
        """Queue ``task`` for thread number ``thread``."""
        assert not self._closed, "the threads have ended; open another reader"
        if not self._threads:
            self._start()
        self._queues[thread].put((urgency, next(self._numbers), task))

    def close(self, *, wait_s: float = 10.0) -> None:
        """End each thread after its current task and wait for that; queued tasks are dropped."""
        self._closed = True
        for queue in self._queues:
            queue.put((_STOP, next(self._numbers), None))
        # A request that hangs delays the caller for wait_s at most: the threads are daemons.
        deadline = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        self._queues = [PriorityQueue() for _ in range(self.count)]
        self._threads = [
            threading.Thread(target=self._work, args=(queue,), name=f"blocks-{i}", daemon=True)
            for i, queue in enumerate(self._queues)
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _work(queue: "PriorityQueue[tuple[int, int, _Task | None]]") -> None:
        while (task := queue.get()[2]) is not None:
            task()


@dataclass
class _Fetch:
    """A block on its way, by which thread and how urgently."""

    thread: int
    urgency: int = LATER + 1  # not queued yet
    block: "Future[PackedBlock]" = field(default_factory=Future)


class BlockBuffer:
    """Blocks of one dataset by number: the ``capacity`` last requested in memory, others fetched by threads.

    Without threads, ``get`` reads in the caller's thread. A fault (StoreError or FormatError) is remembered:
    the block counts as damaged for as long as this object lives, so that a run treats it the same each time.
    """

    def __init__(self, read: Callable[[int], PackedBlock], *, capacity: int, threads: FetchThreads) -> None:
        self._read, self._capacity, self._threads = read, capacity, threads
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, PackedBlock] = OrderedDict()
        self._faults: dict[int, StoreError | FormatError] = {}
        self._fetches: dict[int, _Fetch] = {}

    def __len__(self) -> int:
        """How many blocks are in memory."""
        return len(self._blocks)

    def get(self, number: int, *, thread: int = 0) -> PackedBlock:
        """The block, after waiting for it if necessary. StoreError or FormatError if it cannot be read."""
        block = self._blocks.get(number)  # nearly every call ends here: no lock, and only request() renews
        if block is not None:
            return block
        with self._lock:
            if number in self._faults:
                raise self._faults[number].with_traceback(None)
        if self._threads.count:
            future = self.request(number, thread=thread, urgency=NOW)
            return future.result() if future else self.get(number, thread=thread)
        try:
            block = self._read(number)
        except (StoreError, FormatError) as fault:
            self._faults[number] = fault
            raise
        with self._lock:
            self._keep(number, block)
        return block

    def request(self, number: int, *, thread: int, urgency: int) -> "Future[PackedBlock] | None":
        """Have ``thread`` fetch the block, unless it is in memory (None) or on its way already.

        A more urgent request for the same block moves it forward in the queue.
        """
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return None
            if number in self._faults or not self._threads.count:
                return None
            fetch = self._fetches.setdefault(number, _Fetch(thread))
            if urgency < fetch.urgency:
                fetch.urgency = urgency
                self._threads.put(fetch.thread, urgency, lambda: self._fetch(number, fetch.block))
        return fetch.block

    def cancel(self) -> None:
        """Cancel all fetches, so that nobody waits for threads that have ended."""
        with self._lock:
            for fetch in self._fetches.values():
                fetch.block.cancel()

    def _fetch(self, number: int, future: "Future[PackedBlock]") -> None:
        # Done if a more urgent request was served first; refused if it was cancelled.
        if future.done() or not future.set_running_or_notify_cancel():
            return
        try:
            block = self._read(number)
        except BaseException as fault:
            with self._lock:
                if isinstance(fault, StoreError | FormatError):
                    self._faults[number] = fault
                del self._fetches[number]
            future.set_exception(fault)
            return
        with self._lock:
            self._keep(number, block)
            del self._fetches[number]
        future.set_result(block)

    def _keep(self, number: int, block: PackedBlock) -> None:
        self._blocks[number] = block
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
