"""Blocks on their way: a cache on disk that keeps its limit and survives what happens to it, and workers."""

import hashlib
import multiprocessing
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.storage.store import StoreError
from data_prep import shards
from trainer.data.block_cache import LATER, NOW, SOON, Blocks, DiskCache, Workers

LIMIT = 10_000


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*"))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in kept(folder))


def total(folder: Path) -> int:
    return int((folder / "total").read_text())


def block(number: int) -> shards.PackedBlock:
    return shards.PackedBlock(shards.pack(np.full(8, number % 4, np.uint8), np.zeros(8, np.bool_)))


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "a" / "blocks", LIMIT)


def age(cache: DiskCache, number: int, seconds: int) -> None:
    path = cache.folder / key(number)[:2] / key(number)
    os.utime(path, (1e9 - seconds, 1e9 - seconds))


def test_what_is_put_comes_back_and_can_be_dropped(cache: DiskCache) -> None:
    assert cache.get(key(1)) is None
    cache.put(key(1), b"one")
    cache.put(key(1), b"one")
    cache.put(key(2), b"two")
    assert (cache.get(key(1)), cache.get(key(2))) == (b"one", b"two")
    assert total(cache.folder) == 6
    cache.drop(key(1))
    cache.drop(key(3))
    assert cache.get(key(1)) is None
    assert total(cache.folder) == 3


def test_the_least_recently_used_go_first_and_the_limit_holds(cache: DiskCache) -> None:
    for number in range(10):
        cache.put(key(number), bytes(1000))
        age(cache, number, 100 - number)
    assert cache.get(key(0)) is not None  # now the most recent
    for number in range(10, 50):
        cache.put(key(number), bytes(1000))
        assert size(cache.folder) <= LIMIT
        assert cache.get(key(0)) is not None
        age(cache, number, 60 - number)
    assert cache.get(key(10)) is None
    assert cache.get(key(49)) is not None
    cache.put(key(99), bytes(LIMIT + 1))
    assert cache.get(key(99)) is None
    assert size(cache.folder) >= LIMIT // 2


def test_a_crash_leaves_nothing_that_counts(cache: DiskCache) -> None:
    cache.put(key(1), bytes(3000))
    orphan = cache.folder / "ab" / "abcd.part"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(bytes(5000))
    (cache.folder / "total").write_text(f"{9900:020d}")  # a process died between writing the sum and the file
    cache.put(key(2), bytes(3000))
    assert not orphan.exists()
    assert cache.get(key(1)) is not None
    assert total(cache.folder) == 6000
    (cache.folder / "total").write_text("garbage")
    cache.put(key(3), bytes(1000))
    assert total(cache.folder) == 7000


def test_it_is_made_again_when_deleted(cache: DiskCache) -> None:
    cache.put(key(1), bytes(9000))
    shutil.rmtree(cache.folder)
    assert cache.get(key(1)) is None
    cache.put(key(2), bytes(9000))
    assert cache.get(key(2)) == bytes(9000)
    assert total(cache.folder) == 9000


def _fill(folder: Path, numbers: range) -> None:
    cache = DiskCache(folder, LIMIT)
    for number in numbers:
        cache.put(key(number), bytes([number % 256]) * 500)
        found = cache.get(key(number))
        assert found in (None, bytes([number % 256]) * 500)
        with cache._locked():
            assert size(folder) <= LIMIT


def test_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranges = [range(0, 120), range(60, 180), range(100, 220)]
    children = [context.Process(target=_fill, args=(tmp_path / "shared", numbers)) for numbers in ranges]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert 0 < size(tmp_path / "shared") <= LIMIT
    assert total(tmp_path / "shared") == size(tmp_path / "shared")
    assert not [path for path in kept(tmp_path / "shared") if path.suffix]


def test_a_full_disk_is_said_once_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache = DiskCache(tmp_path, LIMIT, say=said.append)
    cache.put(key(1), b"one")

    write = os.write
    monkeypatch.setattr(
        os, "write", lambda file, data: write(file, data[:1])
    )  # as a disk with room for one byte
    cache.put(key(2), b"two")
    cache.put(key(3), b"three")
    assert said == [
        f"cannot write the block cache in {tmp_path}: No space left on device; going on without it "
        "(data.cache_dir names another folder)"
    ]
    assert [path.name for path in kept(tmp_path)] == [key(1)]
    assert total(tmp_path) == 3
    assert cache.get(key(1)) == b"one"


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "blocks", LIMIT)
    with pytest.warns(
        RuntimeWarning, match="cannot write the block cache in .*: Not a directory; going on without"
    ):
        cache.put(key(1), b"one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(key(1)) is None
        cache.put(key(1), b"one")


class Source:
    """Reads blocks and remembers which thread read which; ``gate`` holds all reads up while it is not set."""

    def __init__(self, *, damaged: frozenset[int] = frozenset()) -> None:
        self.reads: list[tuple[int, str]] = []
        self.damaged, self.gate, self.begun = damaged, threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, number: int) -> shards.PackedBlock:
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
    """(source, capacity) -> Blocks with 0, 1 or 3 workers, which end with the test."""
    workers = Workers(request.param)
    yield lambda source, capacity: Blocks(source, capacity=capacity, workers=workers)
    workers.close()


def test_a_block_is_read_once_and_kept_up_to_the_capacity(make: Callable[..., Blocks]) -> None:
    source = Source()
    blocks = make(source, 3)
    for number in (0, 1, 2, 0, 1, 2):
        assert blocks.get(number).codes(0, 1)[0] == number % 4
    assert source.order == [0, 1, 2]
    blocks.want(0, worker=0, urgency=SOON)  # renewed, so 1 is the oldest
    blocks.get(3)
    assert len(blocks) == 3
    for number in (0, 2, 3):
        blocks.get(number)
    assert source.order == [0, 1, 2, 3]
    blocks.get(1)
    assert source.order == [0, 1, 2, 3, 1]


def test_a_damaged_block_stays_damaged_and_hurts_only_who_asks(make: Callable[..., Blocks]) -> None:
    source = Source(damaged=frozenset([5]))
    blocks = make(source, 3)
    blocks.want(5, worker=0, urgency=LATER)
    blocks.get(4)
    for _ in range(2):
        with pytest.raises(shards.FormatError, match="block 5 is damaged"):
            blocks.get(5)
    assert sorted(source.order) == [4, 5]


def test_urgent_blocks_come_first_and_nothing_is_read_twice() -> None:
    source, workers = Source(), Workers(1)
    blocks = Blocks(source, capacity=10, workers=workers)
    source.gate.clear()
    blocks.want(0, worker=0, urgency=LATER)
    assert source.begun.wait(30)
    for number, urgency in ((1, LATER), (2, SOON), (3, LATER), (3, NOW), (3, NOW), (1, SOON)):
        coming = blocks.want(number, worker=0, urgency=urgency)
    source.gate.set()
    assert coming
    coming.result()
    assert source.order == [0, 3, 2, 1]
    workers.close()


def test_each_worker_reads_its_own() -> None:
    source, workers = Source(), Workers(3)
    blocks = Blocks(source, capacity=100, workers=workers)
    for number in range(30):
        blocks.want(number, worker=number % 3, urgency=LATER)
    for number in range(30):
        blocks.get(number, worker=0)  # whoever asks, it is read by the worker that was told first
    assert sorted(source.reads) == [(number, f"blocks-{number % 3}") for number in range(30)]
    workers.close()


def test_nobody_waits_for_workers_that_have_ended() -> None:
    source, workers = Source(), Workers(1)
    blocks = Blocks(source, capacity=10, workers=workers)
    source.gate.clear()
    blocks.want(0, worker=0, urgency=NOW)
    assert source.begun.wait(30)
    waiting = blocks.want(1, worker=0, urgency=NOW)
    assert waiting
    workers.close(wait_s=0)
    blocks.give_up()
    assert waiting.cancelled()
    source.gate.set()
    with pytest.raises(AssertionError, match="the workers have ended"):
        blocks.get(2)


def test_any_other_fault_reaches_who_asks() -> None:
    def broken(_: int) -> shards.PackedBlock:
        raise ZeroDivisionError("a bug")

    workers = Workers(1)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        Blocks(broken, capacity=1, workers=workers).get(0)
    workers.close()


def test_store_errors_are_remembered() -> None:
    calls = []

    def gone(number: int) -> shards.PackedBlock:
        calls.append(number)
        raise StoreError("cannot read it")

    blocks = Blocks(gone, capacity=1, workers=Workers(0))
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot read it"):
            blocks.get(0)
    assert calls == [0]
