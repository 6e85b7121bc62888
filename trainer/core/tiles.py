"""Pieces of work on a CPU, each done by one thread from its beginning to its end.

How MKL cuts and sums a product depends on the number of threads that share it, and so does which entries of a
vector get the rounding of its last few. What one thread does alone has the same bits whatever the number of
threads.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: MKL promises a repeated product the same bits where its operands begin at multiples


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[int]:
    """One thread for each operation on a CPU, in all of this process: MKL knows one number for all of its
    callers.

    Gives the number that was there before and will be there again; 1 for a GPU, which it does not touch.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        yield threads
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def each_alone(function: Callable[[slice], None], pieces: Sequence[slice], *, device: torch.device) -> None:
    """``function`` of each piece, without gradient, as many at a time as torch has threads; in turn on a
    GPU."""
    with torch.no_grad(), one_thread(device) as threads:
        if threads == 1 or len(pieces) == 1:
            for piece in pieces:
                function(piece)
            return
        futures: list[Future[None]] = []
        try:
            futures += (_workers(os.getpid(), threads).submit(_alone, function, piece) for piece in pieces)
            for future in futures:
                future.result()
        finally:  # where one has failed, or a signal has come, none is left behind with the threads of all
            for future in futures:
                future.cancel()
            wait(futures)


def aligned(tensor: Tensor) -> Tensor:
    """``tensor`` as torch lays one out by itself, in order and aligned; a copy only where it is not."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


@functools.cache
def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """Kept, since MKL keeps memory for each thread. ``process``: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="tiles")


def _alone(function: Callable[[slice], None], piece: slice) -> None:
    torch.set_num_threads(1)  # OpenMP's number is each thread's own
    with torch.no_grad():
        function(piece)
