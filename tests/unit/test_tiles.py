"""trainer.core.tiles: pieces of work by one thread each, and torch's threads as they were before."""

import threading
from collections.abc import Iterator

import pytest
import torch

from trainer.core.tiles import each_alone, one_thread

CPU = torch.device("cpu")
PIECES = [slice(start, start + 5) for start in range(0, 50, 5)]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_piece_is_done_once_by_one_thread_and_without_gradient(threads: int) -> None:
    counts = torch.zeros(50, dtype=torch.int64)
    leaf, seen = torch.ones(50, requires_grad=True), []

    def work(piece: slice) -> None:
        counts[piece] += 1
        seen.append((torch.get_num_threads(), (2 * leaf[piece]).requires_grad, threading.current_thread()))

    for pieces in (PIECES, PIECES[:1], []):
        counts.zero_()
        each_alone(work, pieces, device=CPU)
        assert counts.tolist() == [1] * 5 * len(pieces) + [0] * (50 - 5 * len(pieces))
        assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    assert {of[:2] for of in seen} == {(1, False)}
    assert (threading.current_thread() in [of[2] for of in seen[:10]]) == (threads == 1)


def test_a_fault_comes_through_and_leaves_no_work_and_no_setting_behind(threads: int) -> None:
    running, done = [], []

    def work(piece: slice) -> None:
        running.append(piece)
        if piece.start == 5:
            raise ValueError("piece 5 is wrong")
        done.append(piece)

    with pytest.raises(ValueError, match="piece 5 is wrong"):
        each_alone(work, PIECES, device=CPU)
    assert len(running) == len(done) + 1, "a piece goes on"
    assert torch.get_num_threads() == threads


def test_one_thread_says_how_many_there_were_and_gives_them_back(threads: int) -> None:
    def interrupted() -> None:
        with one_thread(CPU) as before:
            assert (before, torch.get_num_threads()) == (threads, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with one_thread(torch.device("meta")) as before:
        assert (before, torch.get_num_threads()) == (1, threads), "what is not on a CPU has no use for it"
