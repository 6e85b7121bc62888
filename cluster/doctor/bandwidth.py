"""``python -m cluster.doctor.bandwidth``: how fast the ranks of a launcher exchange data.

Bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md there): bytes a second times 2(n-1)/n for
all-reduce and (n-1)/n for all-gather, so that different numbers of ranks can be compared. Rank 0 prints one
line of JSON. python -m cluster doctor --help shows how to measure between nodes.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from cluster.process import compat, exits, world
from cluster.process.command import exit_code

_TURNS = 7
_LIMIT_S = 120.0


def measure(device: torch.device) -> dict[str, float]:
    """``all_reduce_us``, ``all_gather_us`` of 8 bytes; ``all_reduce_gb_s``, ``all_gather_gb_s`` of 64 MiB."""
    ranks = dist.get_world_size()
    found: dict[str, float] = {}
    for entries, unit in ((2, "us"), (16 << 20, "gb_s")):
        whole = torch.ones(entries, device=device)
        shard = torch.ones(max(2, entries // ranks), device=device)  # 8 bytes of each rank
        gathered = torch.empty(len(shard) * ranks, device=device)
        reduce_s = _seconds(partial(dist.all_reduce, whole), device)
        gather_s = _seconds(partial(compat.all_gather, gathered, shard), device)
        if unit == "us":
            found |= {"all_reduce_us": reduce_s * 1e6, "all_gather_us": gather_s * 1e6}
        else:
            share = (ranks - 1) / ranks
            found |= {
                "all_reduce_gb_s": 2 * share * whole.nbytes / reduce_s / 1e9,
                "all_gather_gb_s": share * gathered.nbytes / gather_s / 1e9,
            }
    return found


def _seconds(collective: Callable[[], object], device: torch.device) -> float:
    """Median of a call, after a warm-up."""
    times = []
    for turn in range(_TURNS + 1):
        dist.barrier()
        start = time.perf_counter()
        collective()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def join(world: world.World) -> None:
    """Measure, as one of the ranks that meet at MASTER_ADDR and MASTER_PORT; rank 0 prints a line of JSON."""
    gpu = torch.cuda.is_available()
    if gpu and world.local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs here, and this is process "
            f"{world.local_rank + 1} of this machine; start one rank a GPU"
        )
    device = torch.device("cuda", world.local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=_LIMIT_S - 10),  # so that the rank can report the error itself
    )
    found = measure(device)
    if world.is_main:
        print(json.dumps({"ranks": world.size, "backend": dist.get_backend(), **found}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def _join_as_command(world: world.World) -> int:
    """The exit code of ``join``, whose errors name the rank."""

    def run() -> None:
        try:
            join(world)
        except (OSError, ValueError, RuntimeError) as fault:
            raise RuntimeError(f"rank {world.rank}: {exits.brief(str(fault), 300)}") from fault

    return exit_code(run)


def _start(count: int) -> int:
    """Run ``count`` ranks on this machine; after the first that fails the others are killed. The exit
    code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    # As the agent does; by default gloo takes the interface of the host's name.
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    # Forked, to import torch only once; nothing has used a GPU before.
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_run, args=(world.World(rank, count, rank),)) for rank in range(count)]
    for one in started:
        one.start()
    try:
        left, deadline = list(started), time.monotonic() + _LIMIT_S
        while left:
            if not multiprocessing.connection.wait(
                [one.sentinel for one in left], deadline - time.monotonic()
            ):
                late = ", ".join(str(started.index(one)) for one in left)
                exits.print_error(f"no end in {_LIMIT_S:g} s of rank {late}")
                return exits.EXIT_FAILED
            for one in [one for one in left if one.exitcode is not None]:
                left.remove(one)
                if code := one.exitcode:
                    if code < 0:  # otherwise it has printed why
                        exits.print_error(
                            f"rank {started.index(one)} was killed by {signal.Signals(-code).name}"
                        )
                    return exits.EXIT_FAILED
        return exits.EXIT_OK
    finally:
        for one in started:
            one.kill()
            one.join()


def _run(world: world.World) -> None:
    sys.exit(_join_as_command(world))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.doctor.bandwidth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, help="start so many on this machine, without a launcher")
    parser.add_argument("--at-most", type=int, help="only print this number: any number of ranks fits")
    args, others = parser.parse_known_args(arguments)
    if args.at_most is not None:  # the supervisor asks, with its program's arguments behind
        print(args.at_most)
        return exits.EXIT_OK
    if others or (args.ranks is not None and args.ranks < 1):
        parser.error(f"not understood: {' '.join(others) or f'--ranks {args.ranks}'}")
    if args.ranks:
        return _start(args.ranks)
    if "MASTER_ADDR" not in os.environ:
        parser.error("no launcher has said where the ranks meet (MASTER_ADDR); give --ranks")
    return _join_as_command(world.world_from_env())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
