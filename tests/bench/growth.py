"""What it costs to add an assembly to a dataset of 44, and to open the manifest of a hundred vertebrates.

The 44 are the ENCODE files of DNA_DATA where they are there, else generated ones of the same size.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.bench.harness import Row
from tests.bench.prep import write_genome
from tests.opened import cost_of_opening, write_vertebrates

ROOT = Path(__file__).resolve().parents[2]
_GENERATED_BP = 1_300_000


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return [_growth(Path(folder)), *_manifest(Path(folder))]


def _growth(folder: Path, *, turns: int = 3) -> Row:
    """The command that adds an assembly to 44, against the command that builds a dataset of it alone; sources
    are in the cache. Most of either is the start of Ray."""
    references, what = _references(folder)
    *others, last = references
    _build(folder, "44", others)
    alone, grown = list[float](), list[float]()
    for turn in range(turns + 1):  # the first fills the cache
        for name, of, into in (("alone", [last], alone), ("grown", references, grown)):
            shutil.rmtree(folder / name, ignore_errors=True)
            if name == "grown":
                shutil.copytree(folder / "44", folder / name)
            seconds = _build(folder, name, of)
            if turn:
                into.append(seconds)
    before, after = (
        {path.name: path.read_bytes() for path in (folder / name).glob("*.tar")} for name in ("44", "grown")
    )
    assert before.items() < after.items(), "a shard that was there has changed"
    ours, reference = statistics.median(grown), statistics.median(alone)
    return Row(
        f"one assembly added to {what}", ours, reference, ours / reference, "s", "≤ 1.5", "built alone"
    )


def _references(folder: Path) -> tuple[list[dict[str, Any]], str]:
    encode = Path(os.environ.get("DNA_DATA", "../shared/data")) / "genomes" / "encode"
    encode = encode.absolute()  # the command runs elsewhere
    paths = sorted(encode.glob("*.fa.gz"))
    if not paths:
        write_genome(folder / "one.fa", _GENERATED_BP)
        paths = [folder / f"g{number}.fa" for number in range(45)]
        for path in paths:
            shutil.copy(folder / "one.fa", path)
    else:
        paths.append(encode / ".." / "ecoli_K12_MG1655.fna.gz")  # larger than each of them
    what = f"{len(paths) - 1} of ENCODE" if encode.is_dir() else f"{len(paths) - 1} generated ones"
    return [
        {"name": path.name.split(".")[0], "uri": str(path), "repeated_names": "number"} for path in paths
    ], what


def _build(folder: Path, name: str, references: Sequence[dict[str, Any]]) -> float:
    """Seconds of the command that builds or grows the dataset ``name``."""
    values = {
        "references": references,
        "output": str(folder / name),
        "block_bp": 1 << 16,
        "shard_bp": 1 << 24,
        "split": {"val": 0.1, "leakage": "off"},
        "workers": 2,
        "grow": True,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    start = time.perf_counter()
    command = [sys.executable, "-m", "data_prep", "build", "--config", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def _manifest(folder: Path) -> list[Row]:
    """Opened by a fresh process."""
    (folder / "manifest").mkdir()
    write_vertebrates(folder / "manifest")
    found = [cost_of_opening(folder / "manifest") for _ in range(3)]
    seconds, megabytes = (statistics.median(of[i] for of in found) for i in range(2))
    name = f"manifest of 78 Gbp, {found[0][2]:,} blocks"
    return [
        Row(f"{name}: opened", seconds, 0.5, seconds / 0.5, "s", "< 1", "the target"),
        Row(f"{name}: memory", megabytes, 100, megabytes / 100, "MiB", "< 1", "the target"),
    ]
