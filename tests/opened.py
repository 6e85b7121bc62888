"""What a fresh process takes to open a manifest: `python -m tests.opened URI` prints seconds, MiB, blocks.

Also the dataset of a hundred vertebrates that this is measured on.
"""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from data_prep.block_index import BlockColumns
from data_prep.manifests import open_manifest
from data_prep.shards import Manifest, Shard, Source

ROOT = Path(__file__).resolve().parents[1]
_SHARDS, _BLOCKS, _BLOCK_BP = 1200, 256, 1 << 18


def write_vertebrates(folder: Path) -> Manifest:
    """The manifest of 100 species of 96 contigs, 78 Gbp in 307,200 blocks, written to ``folder``."""
    shards, at = [], np.arange(_BLOCKS)
    for number in range(_SHARDS):
        places = tuple((f"species{number // 12}", f"chr{number % 12 * 8 + i}") for i in range(8))
        ones = np.ones(_BLOCKS, np.int64)
        columns = BlockColumns(
            at * 70_000, at // 8 * _BLOCK_BP, 65_000 * ones, _BLOCK_BP * ones, at % 8, places
        )
        shards.append(Shard(f"train-{number:06d}.tar", 1, "0" * 64, columns))
    contigs = {f"chr{i}": _BLOCKS // 8 * _BLOCK_BP for i in range(96)}
    sources = tuple(Source(f"species{i}", "0" * 64, contigs, 0, {}, 1.0) for i in range(100))
    manifest = Manifest(1, sources, _BLOCK_BP, 1 << 26, 0.5, {}, 0, {"train": (), "val": (), "test": ()})
    manifest = replace(manifest, shards=manifest.shards | {"train": tuple(shards)})
    for name, data in manifest.to_files().items():
        (folder / name).write_bytes(data)
    return manifest


def cost_of_opening(folder: Path) -> tuple[float, float, int]:
    """(seconds, MiB, blocks of train) of the dataset in ``folder``, by a process of its own."""
    command = [sys.executable, "-m", "tests.opened", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, megabytes, blocks = done.stdout.split()
    return float(seconds), float(megabytes), int(blocks)


def _peak() -> int:
    """The most bytes that this process has had in memory since it was last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    blocks = open_manifest(sys.argv[1]).manifest.blocks("train")
    print(time.perf_counter() - start, (_peak() - before) / (1 << 20), len(blocks))
