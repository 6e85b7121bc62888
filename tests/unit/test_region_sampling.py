"""Windows centred on regions: where they lie, in which shares they come, and the same on any number of ranks
and after a resume."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import markov_sequence, write_dataset
from tests.unit.test_loader import damage, same
from trainer.core import random
from trainer.core.collectives import Group
from trainer.data.batch import Batch
from trainer.data.config import Data
from trainer.data.dataset import Dataset
from trainer.data.leaves import NO_TAG, leaves_of
from trainer.data.loader import Reader, open_reader
from trainer.data.region_sampling import RegionSampler
from trainer.data.sampling import EPOCHS_A_PHASE, Sampler, SamplingPlan

LENGTH, FLANK, BLOCK = 64, 10, 512
EXONS = [(0, 100, 160), (0, 500, 530), (0, 3_000, 3_001), (0, 6_000, 8_000), (1, 0, 40), (1, 2_900, 3_000)]
PEAKS = [(0, 10_000 + 97 * i, 10_030 + 97 * i) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, ``a`` and ``b``, and BED files of both (exons) and of the first alone (peaks)."""
    folder = tmp_path_factory.mktemp("toys")
    for name, sizes in (("a", (20_000, 3_000, 30)), ("b", (9_000, 3_500))):
        contigs = [markov_sequence(bp, seed=len(name) * bp) for bp in sizes]
        write_dataset(folder / name, {"train": contigs}, block_bp=BLOCK)
    manifest = folder / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"toy"', '"first"'))
    for name, lines, assembly in (("exons", EXONS, ""), ("peaks", PEAKS, "first")):
        rows = [f"train{contig}\t{start}\t{end}\t{assembly}\t5\n" for contig, start, end in lines]
        (folder / f"{name}.bed").write_text("".join(rows))
    return folder


def reader(
    folder: Path,
    names: str = "ab",
    *,
    rank: int = 0,
    size: int = 1,
    batch: int = 24,
    seed: int = 3,
    warn: Any = None,
    **data: Any,
) -> Reader:
    beds = [
        {"uri": str(folder / "exons.bed"), "weight": 3},
        {"uri": str(folder / "peaks.bed"), "weight": 2, "by": "interval"},
    ]
    chosen = Data.model_validate(
        {
            "uri": [{"uri": str(folder / name), "weight": 2 - number} for number, name in enumerate(names)],
            "length": LENGTH,
            "lanes": 12,
            "regions": {"anywhere": 0.25, "beds": beds},
        }
        | data
    )
    plan = SamplingPlan.of(chosen, seed=seed, global_batch=batch, flank=FLANK)
    datasets = [Dataset(part.uri, "train") for part in chosen.uri]
    return open_reader(chosen, datasets, plan=plan, group=Group(rank, size), warn=warn or (lambda _: None))


def steps(read: Reader, count: int) -> Iterator[Batch]:
    return map(read.batch, range(count))


def region_samplers(read: Reader) -> list[RegionSampler]:
    return [sampler for sampler in read.samplers.values() if isinstance(sampler, RegionSampler)]


def epoch_of(sampler: Sampler, epochs: int = 1) -> list[tuple[int, int, int, int, int]]:
    """(epoch, block, window, start, end) of all lanes' samples in the first epochs."""
    found = []
    for lane in range(sampler.lanes):
        count = 0
        while (open_set := sampler.open_set(lane, count)).epoch - sampler.first_epoch < epochs:
            assert open_set.first == count
            found += [(open_set.epoch, *row[:4]) for row in open_set.samples_M5.tolist()]
            count = open_set.stop
    return found


def test_centres_lie_in_their_regions_and_windows_in_their_blocks(folder: Path) -> None:
    """The flanks are real: a window is moved only at the edge of its block."""
    read = reader(folder)
    samplers = region_samplers(read)
    assert [sampler.dataset for sampler in samplers] == [2, 3, 4], "exons of both, peaks of the first"
    for sampler, lines in zip(samplers, (EXONS, EXONS, PEAKS), strict=True):
        data = read.datasets[sampler.dataset % 2]
        inside, moved, total = set(), 0, 0
        samples_M5 = np.array(epoch_of(sampler, 2))
        centre_M = np.concatenate(
            [sampler.centres(epoch, *samples_M5[samples_M5[:, 0] == epoch, 1:3].T) for epoch in (0, 1)]
        )
        samples_M5 = samples_M5[np.argsort(samples_M5[:, 0], kind="stable")]
        for (_, block, _, start, end), centre in zip(samples_M5.tolist(), centre_M.tolist(), strict=True):
            entry = data.blocks[block][1]
            contig, at = int(entry.contig[-1]), entry.start + centre
            (region,) = [r for r, line in enumerate(lines) if line[0] == contig and line[1] <= at < line[2]]
            inside.add(region)
            assert start >= 0 and end <= entry.bp and end - start == min(LENGTH, entry.bp)
            margin = FLANK if entry.bp >= LENGTH + 2 * FLANK else 0
            middle = start + LENGTH // 2
            if middle != centre:
                moved += 1
                assert start == margin if centre < middle else end == entry.bp - margin
            total += 1
        assert len(inside) == sum(
            start < data.manifest.sources[0].contigs.get(f"train{c}", 0) for c, start, _ in lines
        )
        assert moved < total / 2 and total > 4_000


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2_900), st.integers(1, 700)), min_size=1, max_size=12
    ),
    st.sampled_from([1, 3, 12]),
    st.sampled_from([16, 64, 200]),
    st.integers(0, 40),
    st.sampled_from(["bp", "interval"]),
)
def test_an_epoch_reads_every_window_of_the_regions_once(
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[int, int, int]],
    lanes: int,
    length: int,
    flank: int,
    by: str,
) -> None:
    lines = [(c, s, s + bp) for c, s, bp in drawn if s < (20_000, 3_000, 30)[c]] or [(0, 5, 6)]
    path = tmp_path_factory.mktemp("bed") / "x.bed"
    path.write_text("".join(f"train{c}\t{s}\t{e}\n" for c, s, e in lines))
    values = {"anywhere": 0, "beds": [{"uri": str(path), "by": by}]}
    data = Data.model_validate(
        {"uri": str(folder / "a"), "length": length, "lanes": lanes, "regions": values}
    )
    plan = SamplingPlan.of(data, seed=1, global_batch=lanes, flank=flank)
    read = open_reader(
        data, [Dataset(str(folder / "a"), "train")], plan=plan, group=Group(0, 1), warn=lambda _: None
    )
    (sampler,) = region_samplers(read)
    seen = Counter(row[:3] for row in epoch_of(sampler))
    blocks = np.flatnonzero(sampler.windows_N).tolist()
    assert seen.keys() == {(0, b, w) for b in blocks for w in range(sampler.windows_N[b])}
    assert set(seen.values()) == {1}
    for block in blocks:
        window_M = np.arange(sampler.windows_N[block])
        block_M = np.full_like(window_M, block)
        start_M, end_M = sampler.intervals(5, block_M, window_M)
        entry = read.datasets[0].blocks[block][1]
        assert (start_M >= 0).all() and (end_M <= entry.bp).all()
        assert (end_M - start_M == min(length, entry.bp)).all()
        for centre in entry.start + sampler.centres(5, block_M, window_M):
            assert any(c == int(entry.contig[-1]) and s <= centre < e for c, s, e in lines)


def test_an_epoch_covers_a_long_region_evenly(folder: Path) -> None:
    """Windows lie in strata, one in each; over epochs every letter is a centre as often as any other."""
    sampler = region_samplers(reader(folder, "a"))[0]
    data = Dataset(str(folder / "a"), "train")
    block = next(i for i, (_, b) in enumerate(data.blocks) if b.contig == "train0" and b.start == 6_656)
    windows = int(sampler.windows_N[block])
    counts = np.zeros(BLOCK, np.int64)
    for epoch in range(60):
        centre_M = sampler.centres(epoch, np.full(windows, block), np.arange(windows))
        edges = np.arange(windows + 1) * BLOCK // windows
        assert ((edges[:-1] <= centre_M) & (centre_M <= edges[1:])).all()
        counts += np.bincount(centre_M, minlength=BLOCK)
    expected = 60 * windows / BLOCK
    assert np.abs(counts - expected).max() < 6 * expected**0.5
    one, two = (sampler.centres(e, np.full(windows, block), np.arange(windows)) for e in (0, 1))
    assert (one != two).any(), "drawn anew in each epoch"


def test_shares_are_exact_at_every_moment_and_tags_tell_them(folder: Path) -> None:
    read = reader(folder)
    expected = {NO_TAG: 0.25, 0: 0.75 * 3 / 5, 1: 0.75 * 2 / 5}
    leaves = {0: 0.25 * 2 / 3, 1: 0.25 / 3, 2: 0.45 * 2 / 3, 3: 0.45 / 3, 4: 0.3}
    seen: Counter[int] = Counter()
    tags: Counter[int] = Counter()
    assert read.shares(0) == {}
    for step, batch in enumerate(steps(read, 60), 1):
        assert batch.tags_B.dtype == torch.int64 and len(batch.tags_B) == 24
        assert torch.equal(batch.tags_B, batch.ids_B4[:, 0] // 2 - 1)
        seen.update(batch.ids_B4[:, 0].tolist())
        tags.update(batch.tags_B.tolist())
        total = 24 * step
        # A lane is less than the depth of the tree off.
        assert all(abs(seen[leaf] - share * total) < 12 * 4 for leaf, share in leaves.items())
        assert read.shares(step) == {tag: pytest.approx(tags[tag] / total) for tag in expected}
        assert torch.equal(batch.windows.key_B, random.fold(3, *batch.ids_B4.T))
    assert all(abs(tags[tag] / total - share) < 0.02 for tag, share in expected.items())


def test_leaves_have_numbers_that_do_not_depend_on_shares(folder: Path) -> None:
    read = reader(folder)
    sets = [(leaf.number, leaf.dataset, leaf.tag) for leaf in read.leaves]
    assert sets == [(0, 0, -1), (1, 1, -1), (2, 0, 0), (3, 1, 0), (4, 0, 1)]
    assert sum(leaf.weight for leaf in read.leaves) == 1
    beds = [{"uri": str(folder / "exons.bed")}]
    alone = reader(folder, regions={"anywhere": 0, "beds": beds})
    assert [leaf.number for leaf in alone.leaves] == [2, 3]
    assert set(alone.batch(0).ids_B4[:, 0].tolist()) <= {2, 3}
    assert [leaf.weight for leaf in leaves_of([0.1, 3], (), anywhere=1.0)] == [Fraction(0.1), Fraction(3)]


def test_without_beds_nothing_changes_and_with_them_a_dataset_keeps_its_order(folder: Path) -> None:
    """What is read from anywhere is the beginning of what would be read without regions."""
    plain, mixed = reader(folder, "a", regions={}), reader(folder, "a")
    assert type(plain.samplers[0]) is type(mixed.samplers[0]) is Sampler
    for lane in range(3):
        for count in (0, 7, 40):
            one, two = plain.samplers[0].open_set(lane, count), mixed.samplers[0].open_set(lane, count)
            assert np.array_equal(one.samples_M5, two.samples_M5)
    assert set(plain.batch(0).tags_B.tolist()) == {NO_TAG}
    assert plain.shares(5) == {NO_TAG: 1.0}


def test_every_window_is_the_genomes_with_its_flanks(folder: Path) -> None:
    read = reader(folder, length=[{"from_step": 0, "length": 64}, {"from_step": 6, "length": 100}])
    codes = [[data.codes(number) for number in range(len(data.blocks))] for data in read.datasets]
    for step, batch in enumerate(steps(read, 12)):
        w, length = batch.windows, 64 if step < 6 else 100
        for row, (leaf, epoch, block, window) in enumerate(batch.ids_B4.tolist()):
            sampler, entry = read.samplers[leaf], read.datasets[leaf % 2].blocks[block][1]
            (start,), (end,) = sampler.intervals(epoch, np.array([block]), np.array([window]))
            assert end - start == min(length, entry.bp)
            low, high = int(w.low_B[row]), int(w.high_B[row])
            at = start - FLANK
            assert np.array_equal(
                w.codes_BS[row, low:high].numpy(), codes[leaf % 2][block][at + low : at + high]
            )
            assert w.place_B3[row, 1:].tolist() == [entry.start + start, entry.start + end]
            assert epoch // EPOCHS_A_PHASE == step // 6


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 300), st.sampled_from([12, 24, 36]))
def test_ranks_together_read_the_batch_of_one(folder: Path, seed: int, step: int, batch: int) -> None:
    whole = reader(folder, seed=seed, batch=batch).batch(step)
    rows = {tuple(key): row for row, key in enumerate(whole.ids_B4.tolist())}
    for size in (2, 4):
        found: set[tuple[int, ...]] = set()
        for rank in range(size):
            part = reader(folder, seed=seed, batch=batch, rank=rank, size=size).batch(step)
            keys = list(map(tuple, part.ids_B4.tolist()))
            at = torch.tensor([rows[key] for key in keys])
            for name in ("codes_BS", "low_B", "high_B", "key_B", "place_B3"):
                assert torch.equal(getattr(part.windows, name), getattr(whole.windows, name)[at]), name
            assert torch.equal(part.tags_B, whole.tags_B[at])
            found |= set(keys)
        assert found == rows.keys()


def test_any_step_is_reached_directly_and_a_saved_position_goes_on(folder: Path) -> None:
    how: dict[str, Any] = {"length": [{"from_step": 0, "length": 64}, {"from_step": 15, "length": 48}]}
    forward = list(reader(folder, **how).batches(0, 40))
    ids = torch.cat([batch.ids_B4 for batch in forward])
    assert len(torch.unique(ids, dim=0)) == len(ids)
    jumping = reader(folder, **how)
    for step in (30, 0, 14, 15, 39):
        assert same(jumping.batch(step), forward[step])
        saved = jumping.position(step)
        resumed = reader(folder, workers=2, **how)
        assert resumed.step_of(saved) == step
        for one, two in zip(resumed.batches(step, min(40, step + 3)), forward[step:], strict=False):
            assert same(one, two) and torch.equal(one.tags_B, two.tags_B)
        resumed.close()
    other = reader(folder, **how, regions={"beds": [{"uri": str(folder / "exons.bed")}]})
    with pytest.raises(ValueError, match=r"does not fit this config: .* data\.regions, data\.length"):
        other.step_of(reader(folder, **how).position(8))


def test_memory_is_bounded_by_the_open_blocks_of_all_leaves(folder: Path) -> None:
    read = reader(folder, "a")
    sets = [read.samplers[number].largest_set for number in (0, 1, 2)]
    assert read._blocks[0]._capacity == 2 * 12 * sum(sets)
    assert len(read._blocks) == 1, "one buffer for all leaves of a dataset"
    read.batch(50)
    assert len(read._blocks[0]) <= read._blocks[0]._capacity


def test_a_damaged_block_is_replaced_by_another_of_the_same_regions(folder: Path, tmp_path: Path) -> None:
    whole, copy = str(folder / "a"), tmp_path / "a"
    copy.mkdir()
    for file in (folder / "a").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = Dataset(whole, "train")
    number = next(i for i, (_, b) in enumerate(data.blocks) if b.start == 6_656)
    damage(str(copy), number)
    for name in ("exons", "peaks"):
        (tmp_path / f"{name}.bed").write_bytes((folder / f"{name}.bed").read_bytes())
    said: list[str] = []
    read = reader(tmp_path, "a", on_corrupt="skip", warn=said.append)
    replaced = 0
    for batch, sound in zip(steps(read, 60), steps(reader(folder, "a"), 60), strict=True):
        assert torch.equal(batch.ids_B4, sound.ids_B4) and torch.equal(batch.tags_B, sound.tags_B)
        assert batch.skipped == {(d, e, b) for d, e, b, _ in batch.ids_B4.tolist() if b == number}
        for row in (sound.ids_B4[:, 2] == number).nonzero()[:, 0].tolist():
            _, start, end = batch.windows.place_B3[row].tolist()
            if batch.tags_B[row] == 0:
                near = [line for line in EXONS if start < line[2] + FLANK and line[1] - FLANK < end]
                assert near and not 6_656 <= start < 7_168
                replaced += 1
    assert replaced > 5 and sum("skipped shard" in text for text in said) == 1
