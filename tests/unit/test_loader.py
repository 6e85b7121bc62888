"""The reader: the same global batch however it is read, every window the genome's, and damage named."""

import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage import store
from cluster.storage.retry import TransientError
from configs import ConfigError, dump, validate
from data_prep import alphabet, shards
from data_prep.blocks import PackedBlock, pack
from data_prep.shards import SplitBlocks
from tests.datasets import levels_at, markov_sequence, write_dataset
from tests.s3 import S3
from trainer.core import random
from trainer.core.collectives import Group
from trainer.data.batch import Batch
from trainer.data.block_cache import DiskCache, python_warning
from trainer.data.dataset import Dataset, EmptySplitError, open_datasets
from trainer.data.loader import Reader, open_reader
from trainer.data.sampling import EPOCHS_A_PHASE, Phase, Sampler, SamplingPlan
from trainer.run.config import TrainConfig

LENGTH, FLANK = 64, 10
SIZES = ((20_000, 7_001, 30, 3_000), (9_000, 50), (4_096,))


def contigs(number: int) -> list[np.ndarray]:
    return [markov_sequence(bases, seed=10 * number + i) for i, bases in enumerate(SIZES[number])]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("toys")
    val = [markov_sequence(5_000, seed=9)]
    return [
        write_dataset(folder / str(i), {"train": contigs(i), "val": val}, block_bp=1024)
        for i in range(len(SIZES))
    ]


@pytest.fixture
def remote(toys: list[str]) -> Iterator[str]:
    """The first toy in fsspec's memory filesystem: not local, and no server."""
    for name in store.list_files(toys[0]):
        store.write_bytes(f"memory://toy/{name}", store.read_bytes(store.join(toys[0], name)))
    yield "memory://toy"
    store.remove("memory://toy")


def reader(
    uris: Sequence[str],
    *,
    seed: int = 3,
    rank: int = 0,
    size: int = 1,
    lanes: int = 12,
    batch: int = 24,
    weights: Sequence[float] | None = None,
    phases: Sequence[tuple[int, int]] = ((0, LENGTH),),
    threads: int = 0,
    cache: DiskCache | None = None,
    **how: Any,
) -> Reader:
    plan = SamplingPlan(
        weights=weights or [1.0] * len(uris),
        phases=[Phase(*phase) for phase in phases],
        seed=seed,
        flank=FLANK,
        lanes=lanes,
        global_batch=batch,
    )
    datasets = [Dataset(uri, "train", cache=cache) for uri in uris]
    return Reader(datasets, plan=plan, group=Group(rank, size), threads=threads, **how)


def same(one: Batch, two: Batch) -> bool:
    pairs = [(one.ids_B4, two.ids_B4), *zip(parts(one), parts(two), strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def parts(batch: Batch) -> list[torch.Tensor]:
    windows = batch.windows
    return [windows.codes_BS, windows.low_B, windows.high_B, windows.key_B, windows.place_B3]


def test_a_locus_is_the_references_whatever_dataset_it_lies_in(tmp_path: Path) -> None:
    """So that a genome that stands twice in a mixture has no false negatives across the two."""
    letters = [markov_sequence(3000, seed=0), markov_sequence(900, seed=1)]
    fine, coarse = (
        Dataset(write_dataset(tmp_path / str(bp), {"train": letters}, block_bp=bp), "train")
        for bp in (500, 1000)
    )
    assert [fine.locus(number)[1] for number in range(8)] == [0, 500, 1000, 1500, 2000, 2500, 0, 500]
    assert len({fine.locus(number)[0] for number in range(6)}) == 1
    assert fine.locus(6)[0] == coarse.locus(3)[0] != fine.locus(0)[0] == coarse.locus(0)[0]
    other = fine.manifest.sources[0].__class__(**{**vars(fine.manifest.sources[0]), "sha256": "1" * 64})
    changed = Dataset(fine.uri, "train")
    changed.manifest = changed.manifest.__class__(**{**vars(changed.manifest), "sources": (other,)})
    assert changed.locus(0)[0] != fine.locus(0)[0]


def test_every_window_is_the_genomes_with_its_flanks(toys: list[str]) -> None:
    read = reader(toys, weights=[3, 2, 1], phases=[(0, LENGTH), (10, 100)])
    genomes = [
        {f"train{i}": codes for i, codes in enumerate(contigs(number))} for number in range(len(SIZES))
    ]
    seen: Counter[int] = Counter()
    for step in range(20):
        batch, length = read.batch(step), LENGTH if step < 10 else 100
        w = batch.windows
        assert w.codes_BS.shape == (24, length + 2 * FLANK)
        for row, (number, epoch, block, window) in enumerate(batch.ids_B4.tolist()):
            entry = read.datasets[number].blocks[block][1]
            (start,), (end,) = read.samplers[number].intervals(epoch, np.array([block]), np.array([window]))
            low, high = int(w.low_B[row]), int(w.high_B[row])
            genome, at = genomes[number][entry.contig], entry.start + start - FLANK
            assert np.array_equal(w.codes_BS[row, low:high].numpy(), genome[at + low : at + high])
            assert (w.codes_BS[row, :low] == alphabet.PAD).all()
            assert (w.codes_BS[row, high:] == alphabet.PAD).all()
            assert low <= FLANK <= high - (end - start)
            assert end - start == min(length, entry.bp)
            contig, first = read.datasets[number].locus(block)
            assert first == entry.start
            assert w.place_B3[row].tolist() == [contig, entry.start + start, entry.start + end]
            if entry.bp > 3 * length:
                assert (low, high) == (0, length + 2 * FLANK)
            assert epoch // EPOCHS_A_PHASE == step // 10
            seen[number] += 1
        assert torch.equal(w.key_B, random.fold(3, *batch.ids_B4.T))
        assert w.soft_BS is None
    assert set(seen) == {0, 1, 2}


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(12, 24), (24, 12), (12, 36), (48, 12)]),
    st.lists(st.floats(0.1, 10), min_size=1, max_size=3),
    st.sampled_from([[64], [64, 40], [100, 20, 64]]),
    st.integers(0, 2**62),
    st.integers(0, 40),
)
def test_ranks_together_read_the_batch_of_one(
    toys: list[str], shape: tuple[int, int], weights: list[float], lengths: list[int], seed: int, step: int
) -> None:
    lanes, batch = shape
    phases = [(7 * i, length) for i, length in enumerate(lengths)]
    how: dict[str, Any] = {"seed": seed, "lanes": lanes, "batch": batch, "weights": weights, "phases": phases}
    uris = toys[: len(weights)]
    whole = reader(uris, **how).batch(step)
    for size in (2, 3, 4, 6):
        ranks = [reader(uris, rank=rank, size=size, **how).batch(step) for rank in range(size)]
        places = [
            [row for row in range(batch) if (step_samples(phases, step, batch) + row) % lanes % size == rank]
            for rank in range(size)
        ]
        assert [len(rank.ids_B4) for rank in ranks] == [batch // size] * size
        for rank, rows in zip(ranks, places, strict=True):
            assert torch.equal(rank.ids_B4, whole.ids_B4[rows])
            for mine, all_ in zip(parts(rank), parts(whole), strict=True):
                assert torch.equal(mine, all_[rows])


def step_samples(phases: Sequence[tuple[int, int]], step: int, batch: int) -> int:
    return (step - max(start for start, _ in phases if start <= step)) * batch


def test_each_dataset_keeps_its_own_epochs_and_its_share(toys: list[str]) -> None:
    read = reader(toys, weights=[5, 3, 2], lanes=4, batch=8)
    ids = torch.cat([read.batch(step).ids_B4 for step in range(250)])
    counts = np.array(read.position(250)["counts"])
    assert np.abs(counts.T - 500 * np.array([0.5, 0.3, 0.2])).max() < 2
    for number in range(3):
        mine = [tuple(row) for row in ids[ids[:, 0] == number][:, 1:].tolist()]
        assert len(mine) == counts[number].sum()
        assert len(set(mine)) == len(mine), "no window twice in an epoch"
        windows = read.samplers[number].windows_N
        whole = {(0, b, w) for b in range(len(windows)) for w in range(windows[b])}
        if number:  # the smaller ones have been read through
            assert whole <= set(mine)


def test_batches_are_a_function_of_the_step(toys: list[str]) -> None:
    how: dict[str, Any] = {"weights": [2, 1], "phases": [(0, 64), (12, 48)]}
    forward = list(reader(toys[:2], **how).batches(0, 40))
    jumping = reader(toys[:2], **how)
    for step in (30, 0, 11, 12, 39, 3):
        assert same(jumping.batch(step), forward[step])
    assert not torch.equal(reader(toys[:2], seed=4, **how).batch(0).ids_B4, forward[0].ids_B4)
    ids = torch.cat([batch.ids_B4 for batch in forward])
    assert len(torch.unique(ids, dim=0)) == len(ids), "ids are unique over phases"


def test_what_a_step_reads_is_prepared_in_the_readers_thread(toys: list[str]) -> None:
    threads = []

    def prepare(batch: Batch) -> int:
        threads.append(threading.current_thread().name)
        return int(batch.windows.key_B.sum())

    plain, found = reader(toys), list(reader(toys, prepare=prepare).batches(2, 5))
    assert {name.split("_")[0] for name in threads} == {"reader"} and len(threads) == 3
    for step, batch in enumerate(found, 2):
        assert same(batch, plain.batch(step))
        assert batch.prepared == int(batch.windows.key_B.sum())
    assert plain.batch(2).prepared is None


def test_a_fault_in_what_is_prepared_comes_to_who_reads(toys: list[str]) -> None:
    def prepare(batch: Batch) -> None:
        raise ValueError("no pairs can be made of these windows")

    with pytest.raises(ValueError, match="no pairs can be made of these windows"):
        next(reader(toys, prepare=prepare).batches(0, 2))


def test_a_saved_position_goes_on_where_it_was(toys: list[str]) -> None:
    how: dict[str, Any] = {"weights": [2, 1], "phases": [(0, 64), (12, 48)]}
    uninterrupted = list(reader(toys[:2], **how).batches(0, 25))
    for stop in (0, 5, 12, 20):
        first = reader(toys[:2], **how)
        done = list(first.batches(0, stop)) if stop else []
        saved = first.position(stop)
        assert np.array(saved["counts"]).sum() == 24 * (stop if stop < 12 else stop - 12)
        second = reader(toys[:2], rank=0, size=1, **how)
        done += list(second.batches(second.step_of(saved), 25))
        assert all(same(a, b) for a, b in zip(done, uninterrupted, strict=True))


@pytest.mark.parametrize(
    "change", [{"lanes": 24}, {"batch": 36}, {"weights": [1, 1]}, {"phases": [(0, 64), (5, 48)]}]
)
def test_a_position_of_another_order_is_refused(toys: list[str], change: dict[str, Any]) -> None:
    how: dict[str, Any] = {"weights": [2, 1], "phases": [(0, 64), (12, 48)]}
    saved = reader(toys[:2], **how).position(8)
    with pytest.raises(
        ValueError, match=r"saved at step 8 does not fit this config: its .* train\.global_batch must"
    ):
        reader(toys[:2], **(how | change)).step_of(saved)


def test_order_does_not_depend_on_threads_cache_or_prefetch(
    toys: list[str], remote: str, tmp_path: Path
) -> None:
    plain = list(reader(toys[:1]).batches(0, 60))
    cache = DiskCache(tmp_path / "blocks", 1 << 20)
    ways: list[dict[str, Any]] = [
        {"threads": 1},
        {"threads": 4},
        {"threads": 4, "cache": cache},
        {"threads": 0, "cache": cache},
    ]
    for how in ways:
        read = reader([remote], **how)
        assert all(same(a, b) for a, b in zip(read.batches(0, 60), plain, strict=True))
        read.close()


@pytest.mark.parametrize(("size", "rank"), [(1, 0), (2, 1), (4, 2)])
def test_no_lane_is_read_by_two_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, rank: int
) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(800 * 256, seed=1)]}, block_bp=256)
    readers: dict[int, str] = {}
    block = Dataset.block

    def spy(self: Dataset, number: int) -> PackedBlock:
        assert number not in readers, "no block is read twice"
        readers[number] = threading.current_thread().name
        return block(self, number)

    monkeypatch.setattr(Dataset, "block", spy)
    read = reader([uri], size=size, rank=rank, threads=3, phases=[(0, 32)])
    lanes = range(rank, 12, size)
    assert [read.thread_of(lane) for lane in lanes] == [i % 3 for i in range(len(lanes))]
    list(read.batches(0, 60))  # well inside the first epoch: each block belongs to one lane
    read.close()
    lane_of: dict[int, int] = {}
    for lane in lanes:
        open_set = read.samplers[0].open_set(lane, 0)
        while open_set.epoch == 0:
            lane_of |= dict.fromkeys(open_set.blocks, lane)
            open_set = read.samplers[0].open_set(lane, open_set.stop)
    assert len(readers) > 16 * len(lanes)
    for number, name in readers.items():
        assert name == f"blocks-{read.thread_of(lane_of[number])}"


def test_the_next_set_is_fetched_before_it_is_needed(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(200 * 512, seed=1)]}, block_bp=512)
    read = reader([uri], lanes=2, batch=2, threads=2)
    read.batch(0)
    for lane in range(2):
        current = read.samplers[0].open_set(lane, 0)
        following = read.samplers[0].open_set(lane, current.stop)
        for block in current.blocks + following.blocks:
            coming = read._blocks[0].request(block, thread=read.thread_of(lane), urgency=2)
            if coming:
                coming.result(30)
    inside = len(read._blocks[0])
    assert inside == len({b for lane in range(2) for s in sets(read, lane) for b in s})
    assert inside <= 2 * 2 * read.samplers[0].largest_set
    read.close()


def sets(read: Reader, lane: int) -> list[list[int]]:
    current = read.samplers[0].open_set(lane, 0)
    return [current.blocks, read.samplers[0].open_set(lane, current.stop).blocks]


def test_memory_holds_no_more_than_the_open_sets_need(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(300 * 256, seed=1)]}, block_bp=256)
    for threads in (0, 2):
        read = reader([uri], lanes=2, batch=4, phases=[(0, 32)], threads=threads)
        for batch in read.batches(0, 400):
            assert len(batch.ids_B4) == 4
            assert len(read._blocks[0]) <= 2 * 2 * 31
        read.close()


def test_more_lanes_than_blocks_still_gives_every_lane_samples(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(3000, seed=1)]}, block_bp=1024)
    assert len(reader([uri], lanes=48, batch=96).batch(0).ids_B4) == 96


def test_split_gives_micro_batches_in_order(toys: list[str]) -> None:
    batch = reader(toys[:1]).batch(0)
    parts = batch.split(10)
    assert [len(part.key_B) for part in parts] == [10, 10, 4]
    assert torch.equal(torch.cat([part.codes_BS for part in parts]), batch.windows.codes_BS)
    assert torch.equal(torch.cat([part.place_B3 for part in parts]), batch.windows.place_B3)
    assert [(part.flank, part.soft_BS) for part in parts] == [(FLANK, None)] * 3


def test_windows_bring_their_weights_when_asked(tmp_path: Path) -> None:
    weighted = write_dataset(tmp_path / "a", {"train": contigs(0)}, block_bp=1024, track=True)
    without = write_dataset(tmp_path / "b", {"train": contigs(1)}, block_bp=1024)
    plain, read = reader([weighted, without]), reader([weighted, without], track=True)
    seen = set[int]()
    for step in range(10):
        batch = read.batch(step)
        assert same(batch, plain.batch(step))
        assert plain.batch(step).windows.level_BS is None
        for row, (dataset, *_) in enumerate(batch.ids_B4.tolist()):
            seen.add(dataset)
            low, high = int(batch.windows.low_B[row]), int(batch.windows.high_B[row])
            first = int(batch.windows.place_B3[row, 1]) - FLANK + low
            wanted = np.full(LENGTH + 2 * FLANK, 15, np.uint8)
            if dataset == 0:
                wanted[low:high] = levels_at(np.arange(first, first + high - low))
            assert batch.windows.level_BS is not None
            assert batch.windows.level_BS[row].tolist() == wanted.tolist()
    assert seen == {0, 1}


def test_weights_of_datasets_without_any_are_refused_or_told(tmp_path: Path) -> None:
    weighted = write_dataset(tmp_path / "a", {"train": contigs(0)}, block_bp=1024, track=True)
    without = write_dataset(tmp_path / "b", {"train": contigs(1)}, block_bp=1024)

    def opened(*uris: str, rank: int = 0) -> list[str]:
        told: list[str] = []
        config = train_config({"uri": [{"uri": uri} for uri in uris], "length": LENGTH, "lanes": 12})
        datasets = list(open_datasets(config.data, "train").values())
        plan, group = plan_of(config), Group(rank, 2)
        open_reader(config.data, datasets, plan=plan, group=group, track=True, warn=told.append).close()
        return told

    assert opened(weighted) == []
    assert opened(weighted, without) == ["no track: each letter of toy counts 1"]
    assert opened(weighted, without, rank=1) == []
    with pytest.raises(
        ConfigError,
        match=r"loss.mlm.track_floor is given, but no letter of .*/b has a weight in its train split; build",
    ):
        opened(without)
    # One of two assemblies has a track, and all of it is held out.
    manifest = Dataset(without, "train").manifest
    (toy,) = manifest.sources
    held = replace(toy, name="held")
    (shard,) = Dataset(weighted, "train").manifest.shards["train"]
    val = replace(shard, blocks=[replace(block, assembly="held") for block in shard.blocks])
    mixed = replace(manifest, shards=manifest.shards | {"val": (val,)})
    path = Path(without, shards.MANIFEST)
    path.write_bytes(replace(mixed, sources=(toy, replace(held, filters={"track": {}}))).to_bytes())
    with pytest.raises(ConfigError, match=r"no letter of .*/b has a weight in its train split"):
        opened(without)
    path.write_bytes(replace(mixed, sources=(replace(toy, filters={"track": {}}), held)).to_bytes())
    assert opened(without) == [], "the letters of the other are not read"


def test_windows_bring_their_soft_mask_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # every A and C in lower case
        patch.setattr("tests.datasets.pack", lambda codes, *_: pack(codes, codes < 2))
        uri = write_dataset(tmp_path, {"train": contigs(0)}, block_bp=1024)
    plain, read = reader([uri]), reader([uri], soft=True)
    for step in range(10):
        batch = read.batch(step)
        assert same(batch, plain.batch(step))
        assert batch.windows.soft_BS is not None
        assert torch.equal(batch.windows.soft_BS, (batch.windows.codes_BS < 2).to(torch.uint8))
        halves = [part.to(torch.device("cpu")).soft_BS for part in batch.split(12)]
        assert torch.equal(torch.cat([half for half in halves if half is not None]), batch.windows.soft_BS)


class Reads:
    """How often each URI was read, and what to do instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: Counter[tuple[str, int | None]] = Counter()
        read = store.read_bytes

        def spy(uri: str, start: int | None = None, end: int | None = None) -> bytes:
            self.ranges[uri, start] += 1
            return read(uri, start, end)

        monkeypatch.setattr(store, "read_bytes", spy)

    @property
    def blocks(self) -> int:
        return sum(count for (_, start), count in self.ranges.items() if start is not None)


def test_a_remote_block_is_fetched_once_by_all_readers(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path / "blocks", 1 << 20)
    reads = Reads(monkeypatch)
    total = len(Dataset(remote, "train").blocks)
    for _ in range(2):
        dataset = Dataset(remote, "train", cache=cache)
        for number in range(total):
            dataset.codes(number)
    assert reads.blocks == total
    assert set(reads.ranges.values()) <= {1, 3}  # the manifest was read by each
    damaged = sorted((tmp_path / "blocks").glob("??/*"))
    damaged[0].write_bytes(damaged[0].read_bytes()[:-1] + b"\xff")
    damaged[1].write_bytes(b"")
    shutil.rmtree(damaged[2].parent)
    again = [Dataset(remote, "train", cache=cache).codes(number) for number in range(total)]
    assert reads.blocks == total + 3
    assert all(
        np.array_equal(codes, Dataset(remote, "train").codes(number)) for number, codes in enumerate(again)
    )
    assert len(sorted((tmp_path / "blocks").glob("??/*"))) == total


def test_the_cache_may_be_deleted_in_mid_run(toys: list[str], remote: str, tmp_path: Path) -> None:
    plain = list(reader(toys[:1]).batches(0, 30))
    read = reader([remote], cache=DiskCache(tmp_path / "blocks", 6000), threads=2)
    for step, batch in enumerate(read.batches(0, 30)):
        assert same(batch, plain[step])
        if step % 7 == 3:
            shutil.rmtree(tmp_path / "blocks", ignore_errors=True)
    read.close()
    assert sum(path.stat().st_size for path in (tmp_path / "blocks").glob("??/*")) <= 6000


def damage(uri: str, *numbers: int) -> None:
    for number in numbers:
        shard, entry = Dataset(uri, "train").blocks[number]
        path = Path(uri, shard.name)
        found = bytearray(path.read_bytes())
        found[entry.offset + entry.size - 1] ^= 1
        path.write_bytes(found)


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    uri = write_dataset(tmp_path / "d", {"train": [markov_sequence(40 * 512, seed=1)]}, block_bp=512)
    damage(uri, 7, 8)
    return uri


def test_a_damaged_block_is_named_and_fatal(damaged: str) -> None:
    for threads in (0, 2):
        read = reader([damaged], lanes=2, threads=threads)
        with pytest.raises(
            shards.FormatError, match=r"train-000000\.tar, block train0:(3584-4096|4096-4608): .*crc32"
        ):
            list(read.batches(0, 30))
        read.close()


def test_with_skip_it_is_named_once_counted_and_replaced_the_same_way_by_all(
    damaged: str, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    write_dataset(whole, {"train": [markov_sequence(40 * 512, seed=1)]}, block_bp=512)
    sound = list(reader([str(whole)], lanes=4).batches(0, 30))
    messages: list[str] = []
    read = reader([damaged], lanes=4, threads=2, on_skip=messages.append)
    batches = list(read.batches(0, 30))
    read.close()
    assert len(messages) == 2
    assert all("train-000000.tar, block train0:" in text and "crc32" in text for text in messages)
    for batch in batches:  # of its own step alone, though the next one is read already
        assert batch.skipped == {(d, e, b) for d, e, b, _ in batch.ids_B4.tolist() if b in (7, 8)}
    assert len(frozenset().union(*(batch.skipped for batch in batches))) > 2
    codes = [Dataset(str(whole), "train").codes(number) for number in range(40)]
    replaced = 0
    for batch, expected in zip(batches, sound, strict=True):
        assert torch.equal(batch.ids_B4, expected.ids_B4)
        assert torch.equal(batch.windows.key_B, expected.windows.key_B)
        for row, (_, _, block, _) in enumerate(batch.ids_B4.tolist()):
            got = batch.windows.codes_BS[row].numpy()
            if block not in (7, 8):
                assert np.array_equal(got, expected.windows.codes_BS[row].numpy())
                continue
            replaced += 1
            inner = got[FLANK : FLANK + LENGTH].tobytes()
            _, start, end = batch.windows.place_B3[
                row
            ].tolist()  # of what is read, not of what should have been
            number = start // 512
            assert number not in (7, 8)
            assert inner == codes[number][start - 512 * number : end - 512 * number].tobytes()
    assert replaced > 10
    for size in (1, 2, 4):  # other ranks, another start, no workers: the same replacements
        others = [
            reader([damaged], lanes=4, rank=rank, size=size, on_skip=messages.append) for rank in range(size)
        ]
        for step in (29, 11):
            rows = {
                tuple(i): codes.tolist()
                for other in others
                for batch in [other.batch(step)]
                for i, codes in zip(batch.ids_B4.tolist(), batch.windows.codes_BS, strict=True)
            }
            skipped = [other.batch(step).skipped for other in others]
            assert frozenset().union(*skipped) == batches[step].skipped
            assert sum(map(len, skipped)) == len(batches[step].skipped), "a block is of one rank"
            assert rows == {
                tuple(i): codes.tolist()
                for i, codes in zip(
                    batches[step].ids_B4.tolist(), batches[step].windows.codes_BS, strict=True
                )
            }


def test_a_set_without_a_sound_block_is_fatal_even_with_skip(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(3 * 512, seed=1)]}, block_bp=512)
    damage(uri, 0, 1, 2)
    with (
        pytest.warns(RuntimeWarning, match=r"skipped shard .*train-000000\.tar, block train0:.*crc32"),
        pytest.raises(shards.FormatError, match="crc32"),
    ):
        reader([uri], lanes=1, on_skip=python_warning).batch(0)


def test_blocks_that_cannot_be_read_or_do_not_fit_their_manifest_are_named(
    toys: list[str], tmp_path: Path
) -> None:
    shutil.copytree(toys[0], tmp_path / "copy")
    dataset = Dataset(str(tmp_path / "copy"), "train")
    payload = pack(np.zeros(12, np.uint8), np.zeros(12, np.bool_))
    shard, entry = dataset.blocks[0]
    entry = replace(entry, size=len(payload))
    (_, *others) = dataset.manifest.shards["train"]
    dataset.blocks = SplitBlocks([replace(shard, blocks=(entry, *shard.blocks[1:])), *others])
    path = tmp_path / "copy" / shard.name
    whole = bytearray(path.read_bytes())
    whole[entry.offset : entry.offset + len(payload)] = payload
    path.write_bytes(whole)
    with pytest.raises(
        shards.FormatError, match="block train0:0-1024: a block has 12 bases, its manifest says 1024"
    ):
        dataset.codes(0)
    path.unlink()
    with pytest.raises(store.StoreError, match=r"cannot read .*train-000000\.tar"):
        dataset.codes(3)


def test_missing_dataset_and_empty_split_say_so(toys: list[str], tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match=r"no dataset at .*manifest\.json is missing there"):
        Dataset(str(tmp_path), "train")
    with pytest.raises(
        EmptySplitError, match=r"has no block in its test split; give split\.test and build it again"
    ):
        Dataset(toys[0], "test")
    config = train_config({"uri": [{"uri": uri} for uri in toys[:2]]})
    with pytest.raises(EmptySplitError, match="has no block in its test split"):
        open_datasets(config.data, "test")
    with pytest.raises(EmptySplitError, match=r"none of the datasets .*0, .*1 has a block in its test split"):
        open_datasets(config.data, "test", some_empty=True)


def train_config(data: dict[str, Any]) -> TrainConfig:
    values = {"run": {"dir": "unused", "seed": 3}, "data": data, "train": {"steps": 1, "global_batch": 24}}
    return validate(TrainConfig, values, source="test")


def plan_of(config: TrainConfig, *, flank: int = FLANK) -> SamplingPlan:
    return SamplingPlan.of(
        config.data, seed=config.run.seed, global_batch=config.train.global_batch, flank=flank
    )


def test_the_config_makes_the_reader(toys: list[str], remote: str, tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "uri": [{"uri": toys[1], "weight": 2}, {"uri": remote, "weight": 1}],
        "lanes": 12,
        "length": [{"from_step": 0, "length": 64}, {"from_step": 5, "length": 48}],
        "cache_dir": str(tmp_path / "cache"),
    }
    config = train_config(data)
    datasets = list(open_datasets(config.data, "train").values())
    with_keys = open_reader(config.data, datasets, plan=plan_of(config), group=Group(0, 1))
    assert with_keys._threads.count == 4
    plain = reader([toys[1], toys[0]], weights=[2, 1], phases=[(0, 64), (5, 48)])
    assert all(same(a, b) for a, b in zip(with_keys.batches(0, 8), plain.batches(0, 8), strict=True))
    with_keys.close()
    assert list((tmp_path / "cache").glob("??/*"))
    local = train_config({"uri": toys[0]})
    datasets = list(open_datasets(local.data, "train").values())
    plain = open_reader(local.data, datasets, plan=plan_of(local), group=Group(0, 1))
    assert plain._threads.count == 0
    assert not plain.soft
    assert open_reader(local.data, datasets, plan=plan_of(local), group=Group(0, 1), soft=True).soft
    assert dump(local)["data"]["uri"] == toys[0]
    assert dump(local)["data"]["length"] == 1000
    assert dump(config)["data"]["length"] == data["length"]
    assert train_config(dump(config)["data"]) == config


def test_the_cache_folder_is_by_default_in_dna_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_CACHE", "/there")
    assert train_config({"uri": "a"}).data.cache_folder == Path("/there/blocks")
    monkeypatch.delenv("DNA_CACHE")
    assert train_config({"uri": "a"}).data.cache_folder == Path.home() / ".cache" / "dna-distill" / "blocks"
    assert train_config({"uri": "a", "cache_dir": "/mine"}).data.cache_folder == Path("/mine")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"uri": ""}, "data.uri: must be a URI or a list of {uri, weight} (given '')"),
        ({"uri": 3}, "data.uri: must be a URI or a list of {uri, weight} (given 3)"),
        ({"uri": []}, "data.uri: at least one dataset is needed"),
        (
            {"uri": [{"uri": "a"}, {"uri": "a", "weight": 2}]},
            "data.uri: given twice: a; give each dataset once",
        ),
        ({"uri": [{"uri": "a", "weight": 0}]}, "data.uri.0.weight: input should be greater than 0 (given 0)"),
        ({"uri": [{"uri": "a", "wieght": 1}]}, "data.uri.0.wieght: unknown key, did you mean 'weight'?"),
        ({"uri": [{"weight": 1}]}, "data.uri.0.uri: missing"),
        (
            {"length": 15},
            "data.length: must be an integer of at least 16 or a list of {from_step, length} (given 15)",
        ),
        ({"length": True}, "data.length: must be an integer of at least 16"),
        ({"length": []}, "data.length: the first from_step must be 0, not missing"),
        ({"length": [{"from_step": 1, "length": 64}]}, "data.length: the first from_step must be 0, not 1"),
        (
            {"length": [{"from_step": s, "length": 64} for s in (0, 9, 9)]},
            "data.length: from_step must increase from entry to entry: 0, 9, 9",
        ),
        (
            {"length": [{"from_step": 0, "length": 8}]},
            "data.length.0.length: input should be greater than or equal to 16",
        ),
        ({"workers": -1}, "data.workers: input should be greater than or equal to 0"),
        ({"cache_bytes": -1}, "data.cache_bytes: input should be greater than or equal to 0"),
        ({"on_corrupt": "ignore"}, "data.on_corrupt: input should be 'fail' or 'skip' (given 'ignore')"),
    ],
)
def test_wrong_data_keys_get_one_sentence(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as fault:
        train_config({"uri": "a"} | data)
    assert sentence in str(fault.value)
    assert "1 fault\n" in str(fault.value)


@pytest.fixture
def on_s3(toys: list[str], s3: S3) -> str:
    """The first toy in an S3 bucket."""
    for name in store.list_files(toys[0]):
        store.put_file(Path(toys[0], name), store.join(s3.uri, name))
    return s3.uri


def test_s3_gives_the_batches_of_local_disk_through_faults_that_pass(
    toys: list[str], on_s3: str, s3: S3, tmp_path: Path
) -> None:
    plain = list(reader(toys[:1]).batches(0, 20))
    for i, kind in enumerate(("503", "500", "cut", "reset")):
        s3.fault(kind, key=r"\.tar", times=1, skip=4 * i)
    read = reader([on_s3], threads=3, cache=DiskCache(tmp_path / "blocks", 1 << 20))
    assert all(same(a, b) for a, b in zip(read.batches(0, 20), plain, strict=True))
    read.close()
    assert s3.proxy.count("GET", r"\.tar") >= len(read.datasets[0].blocks)
    s3.proxy.clear()
    again = reader([on_s3], cache=DiskCache(tmp_path / "blocks", 1 << 20))
    assert all(same(a, b) for a, b in zip(again.batches(0, 20), plain, strict=True))
    assert s3.proxy.count("GET", r"\.tar") == 0, "a second reader has all of it from the cache"


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("flip", r"shard s3://.*/train-000000\.tar, block train\d:\d+-\d+: .*"),
        ("denied", r"cannot read s3://.*/train-000000\.tar: .*"),
        ("503", r"cannot read s3://.*/train-000000\.tar: .*gave up after 5 tries"),
    ],
)
def test_s3_faults_that_stay_are_named_and_nothing_damaged_is_kept(
    on_s3: str, s3: S3, tmp_path: Path, kind: str, sentence: str
) -> None:
    s3.fault(kind, key=r"\.tar")
    for threads in (0, 2):
        read = reader([on_s3], threads=threads, cache=DiskCache(tmp_path / "blocks", 1 << 20))
        with pytest.raises((store.StoreError, shards.FormatError), match=sentence):
            read.batch(0)
        read.close()
    assert list((tmp_path / "blocks").glob("??/*")) == []


def test_a_store_that_is_down_is_fatal_even_with_skip(on_s3: str, s3: S3) -> None:
    messages: list[str] = []
    s3.fault("503", key=r"\.tar")
    read = reader([on_s3], on_skip=messages.append)
    with pytest.raises(TransientError, match="gave up after 5 tries"):
        read.batch(0)
    assert len(messages) == 1
    assert s3.proxy.count("GET", r"\.tar") == 10, "two blocks were tried"


def test_windows_longer_than_blocks_are_refused(toys: list[str]) -> None:
    uri = toys[0]
    config = TrainConfig.model_validate(
        {
            "run": {"dir": "x"},
            "train": {"steps": 9, "global_batch": 24},
            "data": {
                "uri": uri,
                "lanes": 12,
                "length": [{"from_step": 0, "length": 64}, {"from_step": 4, "length": 1010}],
            },
        }
    )
    said = (
        r"data.length 1010 with 10 bp on either side does not fit the blocks of 1024 bp in .*; build it "
        r"with a"
    )
    with pytest.raises(ValueError, match=said):
        open_reader(config.data, [Dataset(uri, "train")], plan=plan_of(config, flank=10), group=Group(0, 1))
    open_reader(
        config.data, [Dataset(uri, "train")], plan=plan_of(config, flank=7), group=Group(0, 1)
    ).close()


def test_an_epoch_reads_most_of_a_block_of_few_windows() -> None:
    for fit in range(1, 30):
        plan = SamplingPlan([1.0], [Phase(0, 64)], seed=0, flank=10, lanes=1, global_batch=1)
        sampler = Sampler(np.array([64 * fit + 30]), np.ones(1), plan=plan, dataset=0, phase=0)
        assert int(sampler.windows_N[0]) == (fit if fit <= 8 else fit - 1)
