"""The order of samples: exact shares, every window once an epoch, and the same whichever way it is asked
for."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.mixture import Mixture
from trainer.data.sampling import (
    EPOCHS_A_PHASE,
    LARGEST_SET,
    OPEN_BLOCKS,
    Phase,
    Sampler,
    SamplingPlan,
)

weights = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


def sampler(
    bp: list[int],
    *,
    lanes: int,
    length: int = 64,
    flank: int = 10,
    seed: int = 3,
    phase: int = 0,
    weight: list[float] | None = None,
    dataset: int = 0,
) -> Sampler:
    plan = SamplingPlan(
        weights=[1.0] * (dataset + 1),
        phases=[Phase(i, length) for i in range(phase + 1)],
        seed=seed,
        flank=flank,
        lanes=lanes,
        global_batch=lanes,
    )
    weight_N = np.array(weight or [1.0] * len(bp))
    return Sampler(np.array(bp), weight_N, plan=plan, dataset=dataset, phase=phase)


def lane_epochs(of: Sampler, lane: int, epochs: int) -> list[tuple[int, int, int]]:
    """(epoch, block, window) of a lane's samples in its first ``epochs`` epochs, in their order."""
    found: list[tuple[int, int, int]] = []
    while True:
        open_set = of.open_set(lane, len(found))
        assert open_set.first == len(found)
        if open_set.epoch - of.first_epoch >= epochs:
            return found
        found += [(open_set.epoch, block, window) for block, window, *_ in open_set.samples_M5.tolist()]


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(1, 12), st.integers(0, 2**40 - 100), st.integers(0, 2**31))
def test_shares_are_exact_for_every_lane_at_every_moment(
    weights: list[float], lanes: int, start: int, seed: int
) -> None:
    mixture = Mixture(weights, seed=seed, lanes=lanes)
    count_N = np.full(lanes, start)
    counts = mixture.counts(count_N)
    assert (counts.sum(0) == start).all()
    off = np.abs(counts - start * (np.array(weights) / sum(weights))[:, None])
    # Half a unit of 2⁻⁴⁰ a sample may add half a sample at a count of 2⁴⁰; floats lose 2⁻⁵³ of it.
    assert off.max() < (1 if len(weights) < 3 else len(weights) - 1) + 0.501
    for step in range(20):
        lane = step % lanes
        before = mixture.counts(count_N)
        (dataset,), (number,) = mixture.split(np.array([lane]), count_N[[lane]])
        assert number == before[dataset, lane]
        count_N[lane] += 1
        after = mixture.counts(count_N)
        after[dataset, lane] -= 1
        assert (after == before).all()


def test_two_datasets_are_never_a_whole_sample_off() -> None:
    mixture = Mixture([0.7, 0.3], seed=1, lanes=4)
    for count in range(500):
        assert np.abs(mixture.counts(np.full(4, count)) - count * np.array([[0.7], [0.3]])).max() < 1
    starts = {tuple(mixture.split(np.full(40, lane), np.arange(40))[0].tolist()) for lane in range(4)}
    assert len(starts) > 1, "lanes do not all change datasets at once"


def test_products_of_eighty_bits_are_exact() -> None:
    mixture = Mixture([2.0, 1.0], seed=5, lanes=3)
    (node, first, second, share, u) = mixture._nodes[0]
    assert (node, {first, second}) == (2, {0, 1})
    for count in (0, 1, 2**20 - 1, 2**20, 2**31 + 7, 2**39 + 12345, 2**40 - 1):
        got = mixture.counts(np.full(3, count))
        assert got[first].tolist() == [(count * share + int(start)) >> 40 for start in u]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(20, 3000), min_size=1, max_size=60),
    st.sampled_from([1, 2, 5, 12]),
    st.sampled_from([16, 64, 200]),
    st.integers(0, 40),
    st.integers(0, 3),
)
def test_an_epoch_visits_every_window_of_every_block_once(
    bp: list[int], lanes: int, length: int, flank: int, phase: int
) -> None:
    of = sampler(bp, lanes=lanes, length=length, flank=flank, phase=phase)
    seen = Counter(sample for lane in range(lanes) for sample in lane_epochs(of, lane, 2))
    expected = {
        (phase * EPOCHS_A_PHASE + e, b, w)
        for e in (0, 1)
        for b in range(len(bp))
        for w in range(of.windows_N[b])
    }
    assert seen.keys() == expected
    assert set(seen.values()) == {1}


def test_weights_say_how_often_an_epoch_reads_a_block() -> None:
    of = sampler([1000] * 40, lanes=4, weight=[0.5] * 20 + [2.0] * 20)
    seen = Counter(block for lane in range(4) for _, block, _ in lane_epochs(of, lane, 10))
    windows = int(of.windows_N[0])
    assert all(seen[block] == 20 * windows for block in range(20, 40))
    assert 0.35 < sum(seen[block] for block in range(20)) / (20 * 10 * windows) < 0.65


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(100, 3000), min_size=1, max_size=80), st.sampled_from([1, 3, 8]), st.data())
def test_any_sample_is_reached_directly(bp: list[int], lanes: int, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, lanes - 1))
    in_order = lane_epochs(sampler(bp, lanes=lanes), lane, 2 + lanes)
    for count in data.draw(st.lists(st.integers(0, len(in_order) - 1), max_size=5)):
        found = sampler(bp, lanes=lanes).open_set(lane, count)
        block, window, *_ = found.samples_M5[count - found.first].tolist()
        assert (found.epoch, block, window) == in_order[count]


def test_windows_lie_in_their_blocks_and_do_not_overlap() -> None:
    of = sampler([5000, 70, 30, 84], lanes=1, length=64, flank=10)
    for epoch in range(5):
        for block, bp in enumerate(of.bp_N.tolist()):
            window_M = np.arange(of.windows_N[block])
            start_M, end_M = of.intervals(epoch, np.full_like(window_M, block), window_M)
            assert (start_M >= 0).all()
            assert (end_M <= bp).all()
            assert (end_M - start_M == min(bp, 64)).all()
            assert (start_M[1:] >= end_M[:-1]).all()
    starts = {int(of.intervals(epoch, np.array([0]), np.array([0]))[0][0]) for epoch in range(20)}
    assert len(starts) > 10, "offsets change with the epoch"


def test_a_lane_mixes_at_least_sixteen_open_blocks() -> None:
    of = sampler([1024] * 300, lanes=4, length=32, flank=0)
    count, sizes = 0, set()
    while (open_set := of.open_set(1, count)).epoch == 0:
        sizes.add(len(open_set.blocks))
        blocks = open_set.samples_M5[:, 0].tolist()
        assert len(set(blocks)) == len(open_set.blocks)
        assert sum(a == b for a, b in pairwise(blocks)) < len(blocks) / 6
        count = open_set.stop
    assert min(sizes) >= OPEN_BLOCKS
    assert max(sizes) <= of.largest_set <= LARGEST_SET


def test_seed_dataset_and_phase_change_the_order() -> None:
    first = [
        lane_epochs(sampler([1000] * 50, lanes=2, **change), 0, 1)
        for change in ({}, {"seed": 4}, {"dataset": 1}, {"phase": 1})
    ]
    orders = {tuple((block, window) for _, block, window in lane) for lane in first}
    assert len(orders) == 4
    keys = {
        sampler([1000] * 50, lanes=2, **change).open_set(0, 0).samples_M5[0, 4]
        for change in ({}, {"dataset": 1}, {"phase": 1})
    }
    assert len(keys) == 3


def test_replacements_are_other_blocks_and_a_function_of_the_sample() -> None:
    of = sampler([2000] * 64, lanes=2)
    open_set = of.open_set(1, 5)
    chosen = []
    for at in range(20):
        block = open_set.samples_M5[at, 0]
        found = list(of.replacements(open_set, at))
        assert found == list(sampler([2000] * 64, lanes=2).replacements(open_set, at))
        blocks = [other for other, _, _ in found]
        others = set(open_set.blocks) - {block}
        assert set(blocks[: len(others)]) == others, "the open set first"
        assert len(set(blocks)) == len(blocks)
        assert block not in blocks
        assert len(others) < len(blocks) <= len(others) + OPEN_BLOCKS
        assert all(end - start == 64 and start >= 0 and end <= 2000 for _, start, end in found)
        chosen.append(found[0][:2])
    assert len(set(chosen)) > 10


def test_a_set_of_one_block_is_replaced_by_those_that_follow() -> None:
    of = sampler([500] * 20, lanes=20)
    found = [other for other, _, _ in of.replacements(of.open_set(0, 0), 0)]
    assert len(found) == OPEN_BLOCKS
    alone = sampler([500], lanes=1)
    assert list(alone.replacements(alone.open_set(0, 0), 0)) == []


@pytest.mark.parametrize(("step", "phase"), [(0, 0), (9, 0), (10, 1), (11, 1), (500, 2)])
def test_phase_of_a_step(step: int, phase: int) -> None:
    phases = [Phase(0, 16), Phase(10, 32), Phase(20, 64)]
    plan = SamplingPlan([1.0], phases, seed=0, flank=0, lanes=4, global_batch=8)
    assert plan.phase_at(step) == phase
    assert plan.samples_before(step) == 8 * (step - phases[phase].from_step)


@pytest.mark.parametrize("samples", [0, 1, 11, 12, 100])
def test_lane_counts(samples: int) -> None:
    plan = SamplingPlan([1.0], [Phase(0, 16)], seed=0, flank=0, lanes=12, global_batch=1)
    assert plan.lane_counts(samples).tolist() == [
        sum(j % 12 == lane for j in range(samples)) for lane in range(12)
    ]
