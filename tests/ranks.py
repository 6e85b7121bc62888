"""Run a function on N processes of one gloo group on this machine, and bring back what each returns.

Also for N = 1: DeepSpeed and torch.distributed leave state behind that must not reach other tests.
"""

import contextlib
import gc
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ending:
    """How a rank ended: what its function gave, or the traceback of what it raised; ``code`` as a process has
    it."""

    value: Any
    fault: str
    code: int | None


def on_ranks(
    world: int, function: Callable[..., Any], *args: Any, timeout_s: float = 240, gpu: bool = False
) -> list[Any]:
    """[function(*args) of rank 0, of rank 1, ...]; the function is called with the process group initialised.

    ``gpu``: the ranks see the GPU, and the group is of nccl for tensors on it beside gloo. Else they do not,
    since DeepSpeed takes any network to a GPU that it sees.

    A failing rank fails the test with its traceback. Every process started here has ended on return.
    """
    with _started(world, function, args, gpu) as (answers, processes):
        results: dict[int, Any] = {}
        faults: list[str] = []
        while len(results) < world and not faults:
            assert _wait(answers, processes, timeout_s), f"no answer from {world} ranks in {timeout_s} s"
            rank, result, fault = pickle.loads(answers.get())
            results[rank] = result
            if fault:
                faults.append(f"rank {rank}:\n{fault}")
        assert not faults, "\n".join(faults)
    return [results[rank] for rank in range(world)]


def endings(world: int, function: Callable[..., Any], *args: Any, timeout_s: float = 110) -> list[Ending]:
    """How each rank ended, where some are meant to die: the test goes on whatever it was."""
    with _started(world, function, args, False) as (answers, processes):
        found: dict[int, tuple[Any, str | None]] = {}
        deadline = time.monotonic() + timeout_s
        while any(process.is_alive() for process in processes) or not answers.empty():
            assert time.monotonic() < deadline, (
                f"{world} ranks have not ended in {timeout_s} s; heard of {found}"
            )
            if answers._reader.poll(0.05):
                rank, result, fault = pickle.loads(answers.get())
                found.setdefault(rank, (result, fault))  # what comes after is of the group that others left
        codes = [process.exitcode for process in processes]
    nothing = (None, None)
    return [
        Ending(found.get(r, nothing)[0], found.get(r, nothing)[1] or "", code) for r, code in enumerate(codes)
    ]


@contextlib.contextmanager
def _started(
    world: int, function: Callable[..., Any], args: tuple[Any, ...], gpu: bool
) -> Iterator[tuple[Any, list[Any]]]:
    """(queue of pickled (rank, result, traceback), processes); all of them have ended afterwards."""
    context = multiprocessing.get_context("spawn") if gpu else forkserver()  # CUDA does not survive a fork
    answers = context.SimpleQueue()
    # Rank 0 listens on a port that is free now; the store fails loudly should another take it first.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # As bytes, like the answers: torch would pass tensors by file descriptor, which dies with the process.
    task = pickle.dumps((function, args))
    processes = [
        context.Process(target=_rank, args=(rank, world, port, answers, task, gpu), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        yield answers, processes
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def forkserver() -> Any:
    """Processes forked from one that has only imported what a training run does, which takes 10 s of CPU each
    time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "trainer.main",
            "torch._dynamo",
            "deepspeed.runtime.zero.muon.muon_optimizer",
            "pytest",
            "mlflow.store.tracking.sqlalchemy_store",
            "mlflow.store.model_registry.sqlalchemy_store",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:  # DeepSpeed chooses its accelerator once, when it is imported
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        multiprocessing.forkserver.ensure_running()
    return context


def _wait(answers: Any, processes: list[Any], timeout_s: float) -> bool:
    for _ in range(int(timeout_s * 20)):
        if answers._reader.poll(0.05):
            return True
        if not any(process.is_alive() for process in processes):
            return bool(answers._reader.poll(0.05))
    return False


def _rank(rank: int, world: int, port: int, answers: Any, task: bytes, gpu: bool) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage again and again, each time among all that was imported
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
    }  # DeepSpeed looks for them
    try:
        store = dist.TCPStore("127.0.0.1", port, world, is_master=rank == 0, timeout=timedelta(seconds=60))
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        limit = timedelta(seconds=120)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
        function, args = pickle.loads(task)
        result = function(*args)
        answers.put(pickle.dumps((rank, result, None)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answers.put(pickle.dumps((rank, None, traceback.format_exc())))
