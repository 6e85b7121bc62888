"""The reader: its order is a function of (seed, sample number), and every window is the genome's."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import store
from data_prep import shards
from tests.datasets import markov_sequence, write_dataset
from trainer.collectives import Group
from trainer.data import OPEN_BLOCKS, Dataset, Reader, Sampler

LENGTH, FLANK = 64, 10


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[np.ndarray]]:
    contigs = [markov_sequence(bases, seed=i) for i, bases in enumerate((20_000, 7_001, 30, 3_000))]
    folder = tmp_path_factory.mktemp("toy")
    return write_dataset(folder, {"train": contigs, "val": [markov_sequence(5_000, seed=9)]}, block_bp=1024), contigs


def reader(uri: str, *, seed: int = 3, rank: int = 0, size: int = 1, lanes: int = 12, batch: int = 24) -> Reader:
    return Reader(Dataset(uri, "train"), seed=seed, length=LENGTH, flank=FLANK, lanes=lanes, global_batch=batch,
                  group=Group(rank, size))


def test_every_window_is_the_genomes_with_its_flanks(toy: tuple[str, list[np.ndarray]]) -> None:
    uri, contigs = toy
    read = reader(uri)
    genome = {f"train{i}": codes for i, codes in enumerate(contigs)}
    checked = 0
    for step in range(20):
        batch = read.batch(step)
        w = batch.windows
        for row, (_, epoch, block, window) in enumerate(batch.ids_B4.tolist()):
            entry = read.dataset.blocks[block][1]
            start, end = read.sampler.interval(epoch, block, window)
            low, high = int(w.low_B[row]), int(w.high_B[row])
            at = entry.start + start - FLANK
            assert np.array_equal(w.codes_BS[row, low:high].numpy(), genome[entry.contig][at + low : at + high])
            assert low <= FLANK
            assert high - FLANK >= end - start
            assert end - start == min(LENGTH, entry.bp)
            if entry.bp > 3 * LENGTH:
                assert (low, high) == (0, LENGTH + 2 * FLANK)
            checked += 1
    assert checked == 480


def test_batches_are_the_same_at_any_world_size_and_split_by_lane(toy: tuple[str, list[np.ndarray]]) -> None:
    uri, _ = toy
    for step in (0, 5, 40):
        whole = reader(uri).batch(step)
        for size in (2, 3, 4):
            parts = [reader(uri, rank=rank, size=size).batch(step) for rank in range(size)]
            assert {len(part.ids_B4) for part in parts} == {24 // size}
            mine = {
                tuple(i): (codes, key)
                for part in parts
                for i, codes, key in zip(part.ids_B4.tolist(), part.windows.codes_BS, part.windows.key_B, strict=True)
            }
            assert len(mine) == 24
            for i, codes, key in zip(whole.ids_B4.tolist(), whole.windows.codes_BS, whole.windows.key_B, strict=True):
                assert torch.equal(mine[tuple(i)][0], codes)
                assert mine[tuple(i)][1] == key


def test_an_epoch_visits_every_window_of_every_block_once(toy: tuple[str, list[np.ndarray]]) -> None:
    uri, _ = toy
    sampler = reader(uri).sampler
    seen: Counter[tuple[int, int, int]] = Counter()
    for lane in range(12):
        count = 0
        while (sample := sampler.sample(lane, count))[0] < 2:
            seen[sample] += 1
            count += 1
    expected = {(e, b, w) for e in (0, 1) for b in range(len(sampler.bp_N)) for w in range(sampler.windows_N[b])}
    assert seen.keys() == expected
    assert set(seen.values()) == {1}


def test_order_is_a_pure_function_of_seed_and_number(toy: tuple[str, list[np.ndarray]]) -> None:
    uri, _ = toy
    forward = [reader(uri).batch(step).ids_B4 for step in (0, 9, 30)]
    jumping = reader(uri)
    for step, expected in ((30, forward[2]), (0, forward[0]), (9, forward[1])):
        assert torch.equal(jumping.batch(step).ids_B4, expected)
    assert not torch.equal(reader(uri, seed=4).batch(0).ids_B4, forward[0])
    assert torch.equal(torch.stack([b.ids_B4 for b in reader(uri).batches(0, 3)][0:1])[0], forward[0])


def test_offsets_change_with_the_epoch(toy: tuple[str, list[np.ndarray]]) -> None:
    sampler = reader(toy[0]).sampler
    starts = {sampler.interval(epoch, 0, 0)[0] for epoch in range(20)}
    assert len(starts) > 10


def test_a_lane_mixes_open_blocks(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(200 * 512, seed=1)]}, block_bp=512)
    sampler = Sampler(Dataset(uri, "train"), seed=0, length=32, flank=0, lanes=4)
    blocks = [sampler.sample(1, count)[1] for count in range(100)]
    assert len(set(blocks)) >= OPEN_BLOCKS
    assert sum(a == b for a, b in pairwise(blocks)) < 20


def test_more_lanes_than_blocks_still_gives_every_lane_samples(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(3000, seed=1)]}, block_bp=1024)
    read = Reader(Dataset(uri, "train"), seed=0, length=64, flank=4, lanes=48, global_batch=96, group=Group(0, 1))
    assert len(read.batch(0).ids_B4) == 96


def test_split_gives_micro_batches_in_order(toy: tuple[str, list[np.ndarray]]) -> None:
    batch = reader(toy[0]).batch(0)
    parts = batch.split(10)
    assert [len(part.key_B) for part in parts] == [10, 10, 4]
    assert torch.equal(torch.cat([part.codes_BS for part in parts]), batch.windows.codes_BS)


def test_missing_dataset_says_so(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match=r"no dataset at .*manifest\.json is missing there"):
        Dataset(str(tmp_path), "train")


def test_empty_split_says_so(toy: tuple[str, list[np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="has no block in its test split"):
        Dataset(toy[0], "test")


def test_corrupt_shard_is_named(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(4096, seed=1)]}, block_bp=1024)
    dataset = Dataset(uri, "train")
    shard = tmp_path / "train-000000.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[dataset.blocks[2][1].offset + 100] ^= 1
    shard.write_bytes(damaged)
    dataset.codes(1)
    with pytest.raises(shards.FormatError, match=r"train-000000\.tar, block train0:2048-3072: .*crc32"):
        dataset.codes(2)
    shard.unlink()
    with pytest.raises(store.StoreError, match=r"cannot read .*train-000000\.tar"):
        dataset.codes(3)
