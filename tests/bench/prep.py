"""Measurements of data_prep: FASTA to shards against a per-base encoder, two workers against one, a whole
genome.

The genome is generated: as many letters as asked for, soft-masked and with N as hg38 is, in human-like
chromosomes.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from sklearn.preprocessing import LabelBinarizer

from cluster.tasks import jobs, ray_session
from data_prep.config import DataConfig
from data_prep.dataset.build import Built, build
from data_prep.shards import SPLITS
from data_prep.sources.survey import prepare
from tests.bench.harness import Row, sampled
from tests.bench.worker import cost

_LETTERS = np.frombuffer(b"ACGT", np.uint8)
_FOUR = (
    np.ascontiguousarray(_LETTERS[np.arange(256)[:, None] >> (2 * np.arange(4)) & 3]).view(np.uint32).ravel()
)
_WIDTH = 60
_PIECE = 60 << 18  # bp generated at a time: a multiple of the line width and of 4
_MASK_RUN = 300  # bp, on average, of a soft-masked run and of what lies between two, as in hg38


def write_genome(path: Path, bp: int) -> None:
    """A FASTA of about ``bp``: chromosomes of falling length, half of the letters in lower case, 3 % N."""
    rng = np.random.default_rng(0)
    shares = np.linspace(8, 1.5, 24)
    with open(path, "wb") as file:
        for number, share in enumerate(shares / shares.sum()):
            file.write(f">chr{number + 1} generated\n".encode())
            left = int(bp * share)
            while left:
                size = min(left, _PIECE)
                letters = _FOUR[rng.integers(0, 256, -(-size // 4), np.uint8)].view(np.uint8)[:size]
                runs = rng.geometric(1 / _MASK_RUN, size // 100 + 8)
                lower = np.repeat((np.arange(len(runs)) % 2 * 32).astype(np.uint8), runs)
                letters[: len(lower)] |= lower[:size]
                letters[: size // 33] = ord("N")
                lines = letters[: size // _WIDTH * _WIDTH].reshape(-1, _WIDTH)
                file.write(np.pad(lines, ((0, 0), (0, 1)), constant_values=10).tobytes())
                if size % _WIDTH:
                    file.write(letters[size // _WIDTH * _WIDTH :].tobytes() + b"\n")
                left -= size


def config(fasta: Path, output: Path, *, workers: int, held_out: bool = False) -> DataConfig:
    return DataConfig.model_validate(
        {
            "references": [{"name": "generated", "uri": str(fasta)}],
            "output": str(output),
            "workers": workers,
            "overwrite": True,
            "split": {"val": ["chr20"] if held_out else 0, "leakage": "report" if held_out else "off"},
        }
    )


def bp_of(built: Built) -> int:
    return sum(map(built.manifest.bp, SPLITS))


@contextmanager
def peak_uss() -> Iterator[dict[int, int]]:
    """process id -> largest unique memory in bytes, of the Ray workers below this process, sampled at 10
    Hz."""
    peaks: dict[int, int] = {}

    def look() -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                    peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_full_info().uss)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue

    with sampled(look, every_s=0.1):
        yield peaks


def per_base(letters: str, folder: Path) -> float:
    """Mbp/s of a LabelBinarizer that makes one-hot rows of every base of windows of 1,000, which are then
    saved."""
    binarizer = LabelBinarizer().fit(list("ACGTN"))
    start = time.perf_counter()
    windows = (letters[at : at + 1000].upper() for at in range(0, len(letters), 1000))
    np.save(folder / "one_hot.npy", np.concatenate([binarizer.transform(list(window)) for window in windows]))
    return len(letters) / 1e6 / (time.perf_counter() - start)


def worker_start(*, turns: int = 3) -> list[Row]:
    """Memory and time of a worker of Ray that has imported what a build needs: medians of fresh ones."""
    found = []
    for _ in range(turns):
        with ray_session.session(1):
            found += jobs.run(cost, [None], workers=1)
    memory, seconds = (statistics.median(column) for column in zip(*found, strict=True))
    return [
        Row("start of a build worker: memory", memory, 92, memory / 92, "MiB", "≤ 92", "the target"),
        Row("start of a build worker: CPU", seconds, 1.5, seconds / 1.5, "s", "≤ 1.5", "the target"),
    ]


def rows(*, bp: int = 1_000_000_000, whole_bp: int = 3_100_000_000, turns: int = 3) -> list[Row]:
    """FASTA to shards on one worker and on two, the size, and a genome of ``whole_bp`` with its memory and
    time."""
    start = worker_start()
    with tempfile.TemporaryDirectory(prefix="bench-prep-") as name, ray_session.session(2):
        folder = Path(name)
        os.environ["DNA_CACHE"] = str(folder / "cache")
        fasta, output = folder / "genome.fa", folder / "shards"
        write_genome(fasta, bp)
        prepare(str(fasta))  # the index is there
        seconds: dict[int, list[float]] = {1: [], 2: []}
        build(
            config(fasta, output, workers=2)
        )  # both workers have imported what they need, the file is in memory
        for _ in range(turns):
            for workers in seconds:
                built = build(config(fasta, output, workers=workers))
                seconds[workers].append(built.seconds)
        speed = {workers: bp_of(built) / 1e6 / statistics.median(times) for workers, times in seconds.items()}
        with open(fasta) as file:
            file.readline()
            letters = file.read(2_000_000).replace("\n", "")
        slow = statistics.median(per_base(letters, folder) for _ in range(turns))
        size = sum(shard.bytes for split in SPLITS for shard in built.manifest.shards[split]) / bp_of(built)
        gbp = f"{bp / 1e9:g} Gbp"
        found = [
            Row(
                f"FASTA to shards, {gbp}, one worker",
                speed[1],
                300,
                speed[1] / 300,
                "Mbp/s",
                "≥ 300",
                "the target",
            ),
            Row(
                "the same, per base",
                speed[1],
                slow,
                speed[1] / slow,
                "Mbp/s",
                "≥ 200 ×",
                "LabelBinarizer, windows of 1,000, saved",
            ),
            Row("size of the shards", size, 1.0, size, "bytes/bp", "≤ 0.27", "one byte a base"),
            Row("two Ray workers", speed[2], speed[1], speed[2] / speed[1], "Mbp/s", "≥ 1.7 ×", "one worker"),
        ]
        fasta.unlink()
        return start + found + _whole(folder, whole_bp)


def _whole(folder: Path, bp: int) -> list[Row]:
    fasta, output = folder / "whole.fa", folder / "whole"
    write_genome(fasta, bp)
    start = time.perf_counter()
    prepare(str(fasta))
    indexed = time.perf_counter() - start
    with peak_uss() as peaks:
        built = build(config(fasta, output, workers=2, held_out=True))
    pair = json.loads((output / "leakage.json").read_bytes())["pairs"][0]
    assert pair["bases"], "the leakage report has read nothing"
    peak = max(peaks.values()) / (1 << 20)
    gbp = f"{bp / 1e9:g} Gbp"
    total = indexed + built.seconds
    return [
        Row(
            f"peak USS of a worker, {gbp} with leakage report",
            peak,
            1024,
            peak / 1024,
            "MiB",
            "≤ 1024",
            "the target",
        ),
        Row(
            f"{gbp} from a plain FASTA, {indexed:.0f} s of it indexing",
            total,
            bp / 1e6 / total,
            1.0,
            "s",
            "finishes",
            "Mbp/s",
        ),
    ]
