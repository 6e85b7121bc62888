"""Blocks in memory and on their way: each is read once, the most urgent first, and faults are remembered."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cluster.storage.store import StoreError
from data_prep import shards
from data_prep.blocks import PackedBlock, pack
from trainer.data.prefetch import LATER, NOW, SOON, BlockBuffer, FetchThreads


def block(number: int) -> PackedBlock:
    return PackedBlock(pack(np.full(8, number % 4, np.uint8), np.zeros(8, np.bool_)))


class Source:
    """Reads blocks and remembers which thread read which; ``gate`` holds all reads up while it is not set."""

    def __init__(self, *, damaged: frozenset[int] = frozenset()) -> None:
        self.reads: list[tuple[int, str]] = []
        self.damaged, self.gate, self.begun = damaged, threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, number: int) -> PackedBlock:
        self.begun.set()
        assert self.gate.wait(30)
        self.reads.append((number, threading.current_thread().name))
        if number in self.damaged:
            raise shards.FormatError(f"block {number} is damaged")
        return block(number)

    @property
    def order(self) -> list[int]:
        return [number for number, _ in self.reads]


@pytest.fixture(params=[0, 1, 3])
def make(request: pytest.FixtureRequest) -> Any:
    """(source, capacity) -> BlockBuffer with 0, 1 or 3 threads, which end with the test."""
    threads = FetchThreads(request.param)
    yield lambda source, capacity: BlockBuffer(source, capacity=capacity, threads=threads)
    threads.close()


def test_a_block_is_read_once_and_kept_up_to_the_capacity(make: Callable[..., BlockBuffer]) -> None:
    source = Source()
    blocks = make(source, 3)
    for number in (0, 1, 2, 0, 1, 2):
        assert blocks.get(number).codes(0, 1)[0] == number % 4
    assert source.order == [0, 1, 2]
    blocks.request(0, thread=0, urgency=SOON)  # renewed, so 1 is the oldest
    blocks.get(3)
    assert len(blocks) == 3
    for number in (0, 2, 3):
        blocks.get(number)
    assert source.order == [0, 1, 2, 3]
    blocks.get(1)
    assert source.order == [0, 1, 2, 3, 1]


def test_a_damaged_block_stays_damaged_and_hurts_only_who_asks(make: Callable[..., BlockBuffer]) -> None:
    source = Source(damaged=frozenset([5]))
    blocks = make(source, 3)
    blocks.request(5, thread=0, urgency=LATER)
    blocks.get(4)
    for _ in range(2):
        with pytest.raises(shards.FormatError, match="block 5 is damaged"):
            blocks.get(5)
    assert sorted(source.order) == [4, 5]


def test_urgent_blocks_come_first_and_nothing_is_read_twice() -> None:
    source, threads = Source(), FetchThreads(1)
    blocks = BlockBuffer(source, capacity=10, threads=threads)
    source.gate.clear()
    blocks.request(0, thread=0, urgency=LATER)
    assert source.begun.wait(30)
    for number, urgency in ((1, LATER), (2, SOON), (3, LATER), (3, NOW), (3, NOW), (1, SOON)):
        coming = blocks.request(number, thread=0, urgency=urgency)
    source.gate.set()
    assert coming
    coming.result()
    assert source.order == [0, 3, 2, 1]
    threads.close()


def test_each_thread_reads_its_own() -> None:
    source, threads = Source(), FetchThreads(3)
    blocks = BlockBuffer(source, capacity=100, threads=threads)
    for number in range(30):
        blocks.request(number, thread=number % 3, urgency=LATER)
    for number in range(30):
        blocks.get(number, thread=0)  # whoever asks, the thread of the first request reads it
    assert sorted(source.reads) == [(number, f"blocks-{number % 3}") for number in range(30)]
    threads.close()


def test_nobody_waits_for_threads_that_have_ended() -> None:
    source, threads = Source(), FetchThreads(1)
    blocks = BlockBuffer(source, capacity=10, threads=threads)
    source.gate.clear()
    blocks.request(0, thread=0, urgency=NOW)
    assert source.begun.wait(30)
    waiting = blocks.request(1, thread=0, urgency=NOW)
    assert waiting
    threads.close(wait_s=0)
    blocks.cancel()
    assert waiting.cancelled()
    source.gate.set()
    with pytest.raises(AssertionError, match="the threads have ended"):
        blocks.get(2)


def test_any_other_fault_reaches_who_asks() -> None:
    def broken(_: int) -> PackedBlock:
        raise ZeroDivisionError("a bug")

    threads = FetchThreads(1)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        BlockBuffer(broken, capacity=1, threads=threads).get(0)
    threads.close()


def test_store_errors_are_remembered() -> None:
    calls = []

    def gone(number: int) -> PackedBlock:
        calls.append(number)
        raise StoreError("cannot read it")

    blocks = BlockBuffer(gone, capacity=1, threads=FetchThreads(0))
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot read it"):
            blocks.get(0)
    assert calls == [0]
