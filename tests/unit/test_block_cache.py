"""The cache on disk keeps its limit and survives what happens to its folder."""

import hashlib
import os
import shutil
import warnings
from pathlib import Path

import pytest

from tests.ranks import forkserver
from trainer.data.block_cache import DiskCache

LIMIT = 10_000


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*"))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in kept(folder))


def total(folder: Path) -> int:
    return int((folder / "total").read_text())


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
    context = forkserver()
    ranges = [range(0, 120), range(60, 180), range(100, 220)]
    children = [
        context.Process(target=_fill, args=(tmp_path / "shared", numbers), daemon=True) for numbers in ranges
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert 0 < size(tmp_path / "shared") <= LIMIT
    assert total(tmp_path / "shared") == size(tmp_path / "shared")
    assert not [path for path in kept(tmp_path / "shared") if path.suffix]


def test_a_full_disk_gives_one_warning_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    cache = DiskCache(tmp_path, LIMIT, warn=messages.append)
    cache.put(key(1), b"one")

    write = os.write
    monkeypatch.setattr(
        os, "write", lambda file, data: write(file, data[:1])
    )  # as a disk with room for one byte
    cache.put(key(2), b"two")
    cache.put(key(3), b"three")
    assert messages == [
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
