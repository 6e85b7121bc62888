"""``python -m cluster.bandwidth``: how fast ranks exchange, measured on the ranks that a launcher started.

Bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md there): bytes a second times 2(n-1)/n for all-reduce and
(n-1)/n for all-gather, so that figures for different numbers of ranks compare. Rank 0 prints one line of JSON. Between
nodes:

    python -m cluster train --config configs/cluster/hosts.yaml 'program=[-m,cluster.bandwidth]' \\
        'fit=[-m,cluster.bandwidth]' launch.hostfile=HOSTS --
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from cluster import process

_TURNS = 7


def measure(device: torch.device) -> dict[str, float]:
    """``all_reduce_us``, ``all_gather_us`` of 8 bytes; ``all_reduce_gb_s``, ``all_gather_gb_s`` of 64 MiB."""
    ranks = dist.get_world_size()
    found: dict[str, float] = {}
    for entries, unit in ((2, "us"), (16 << 20, "gb_s")):
        whole = torch.ones(entries, device=device)
        shard = torch.ones(max(1, entries // ranks), device=device)
        gathered = torch.empty(len(shard) * ranks, device=device)
        reduce_s = _seconds(partial(dist.all_reduce, whole), device)
        gather_s = _seconds(partial(dist.all_gather_single, gathered, shard), device)
        if unit == "us":
            found |= {"all_reduce_us": reduce_s * 1e6, "all_gather_us": gather_s * 1e6}
        else:
            share = (ranks - 1) / ranks
            found |= {"all_reduce_gb_s": 2 * share * whole.nbytes / reduce_s / 1e9,
                      "all_gather_gb_s": share * gathered.nbytes / gather_s / 1e9}  # fmt: skip
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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.bandwidth", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--at-most", type=int, help="only print this number: any number of ranks fits")
    args = parser.parse_args(arguments)
    if args.at_most is not None:
        print(args.at_most)
        return process.EXIT_OK

    def run() -> None:
        world = process.world_from_env()
        if "MASTER_ADDR" not in os.environ:
            raise ValueError("no launcher has said where the ranks meet (MASTER_ADDR); run python -m cluster doctor")
        gpu = torch.cuda.is_available()
        device = torch.device("cuda", world.local_rank) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(device)
        torch.set_num_threads(1)
        dist.init_process_group("nccl" if gpu else "gloo")
        found = measure(device)
        if world.is_main:
            print(json.dumps({"ranks": world.size, **found}), flush=True)
        dist.barrier()
        dist.destroy_process_group()

    return process.exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
