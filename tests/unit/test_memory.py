"""Memory that is freed stays with the process that asks for it."""

import ctypes
import resource
from multiprocessing.connection import Connection

import pytest
import torch

from cluster.process.memory import keep_freed_memory
from tests.ranks import forkserver

BYTES, TENSORS, TURNS = 8 << 20, 12, 4


def page_faults() -> int:
    """Of the last of ``TURNS`` turns, in each of which some tensors come and go together."""
    counts = []
    for _ in range(TURNS):
        tensors = [torch.ones(BYTES, dtype=torch.uint8) for _ in range(TENSORS)]
        assert len(tensors) == TENSORS
        del tensors
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[-2]


def count(answers: Connection) -> None:
    answers.send((keep_freed_memory(), page_faults()))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's mallopt is not there")
def test_what_is_freed_is_used_again() -> None:
    """In a process of its own, since it is for good."""
    context = forkserver()
    ours, theirs = context.Pipe()
    process = context.Process(target=count, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    kept, faults = ours.recv()
    process.join()
    assert kept
    assert faults < BYTES // resource.getpagesize()  # those of one tensor


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    ("accepted", "kept", "asked"),
    [
        ({(-3, 1 << 30), (-1, (1 << 31) - 1)}, True, 2),
        ({(-3, 32 << 20), (-1, (1 << 31) - 1)}, True, 3),  # glibc before 2.35
        (set(), False, 2),
    ],
)
def test_the_second_setting_is_made_only_with_the_first(
    accepted: set[tuple[int, int]], kept: bool, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Library:
        def mallopt(self, *setting: int) -> int:
            calls.append(setting)
            return int(setting in accepted)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert keep_freed_memory() is kept
    assert len(calls) == asked
