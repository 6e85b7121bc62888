"""How fast shards become the two masked views that a step reads: from local disk, and from S3 against local
disk."""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import store
from data_prep import shards
from data_prep.blocks import pack
from data_prep.dataset.write import write_shard
from data_prep.split.intervals import Span
from tests import s3
from tests.bench import views
from tests.bench.harness import Row
from trainer.core.collectives import Group
from trainer.data.block_cache import DiskCache
from trainer.data.dataset import Dataset
from trainer.data.loader import Reader
from trainer.data.sampling import Phase, SamplingPlan
from trainer.views.config import ViewConfig, Views
from trainer.views.edits import flank_for
from trainer.views.masking import mask
from trainer.views.view_batch import make_view_pairs

LENGTH, ROWS, LANES = 1000, 64, 48
BLOCK_BP, SHARD_BP = 1 << 18, 1 << 24
VIEWS = Views(
    student=ViewConfig(reverse_complement=0.5),
    teacher=ViewConfig(operations={"deletion": 20, "insertion": 20, "shift": 20}),
)


def write_random_dataset(uri: str, *, bases: int, block_bp: int = BLOCK_BP) -> str:
    """``uri``, where now lies a dataset of one contig of ``bases`` bp, soft-masked as hg38 is."""
    rng = np.random.default_rng(0)
    written, parts = [], list[tuple[Span, bytes]]()
    for start in range(0, bases, block_bp):
        runs = rng.geometric(1 / 300, block_bp // 50)
        soft_mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)[:block_bp]
        payload = pack(rng.integers(0, 4, block_bp).astype(np.uint8), soft_mask)
        parts.append((Span("random", "chr1", start, start + block_bp), payload))
        if len(parts) * block_bp >= SHARD_BP or start + block_bp >= bases:
            written.append(write_shard(store.join(uri, f"train-{len(written):06d}.tar"), parts))
            parts = []
    source = shards.Source("random", "0" * 64, {"chr1": bases}, 0, {}, 1.0)
    manifest = shards.Manifest(
        shards.FORMAT_VERSION,
        (source,),
        block_bp,
        SHARD_BP,
        1.0,
        {},
        0,
        {"train": tuple(written), "val": (), "test": ()},
    )
    store.write_bytes(store.join(uri, shards.MANIFEST), manifest.to_bytes())
    return uri


def open_bench_reader(uri: str, *, cache: DiskCache | None = None, threads: int = 0) -> Reader:
    flank = flank_for(VIEWS.student.operations, VIEWS.teacher.operations)
    plan = SamplingPlan(
        weights=[1.0], phases=[Phase(0, LENGTH)], seed=0, flank=flank, lanes=LANES, global_batch=ROWS
    )
    return Reader([Dataset(uri, "train", cache=cache)], plan=plan, group=Group(0, 1), threads=threads)


def read_and_show(reader: Reader, steps: range) -> None:
    """The batches of ``steps`` as training makes them (view_batch.make_view_pairs), with the teacher's view
    masked too."""
    for batch in reader.batches(steps.start, steps.stop):
        (pair,) = make_view_pairs(batch.windows, VIEWS)
        masking = VIEWS.masking
        mask(
            pair.teacher,
            batch.windows,
            name="teacher",
            rate=masking.rate,
            mask_share=masking.mask_share,
            random_share=masking.random_share,
        )


def reader(*, bases: int = 1 << 25, steps: int = 200, turns: int = 5) -> float:
    """Mbp/s of source sequence from tars on local disk to two masked views, one thread: the median of
    ``turns``."""
    with tempfile.TemporaryDirectory() as folder:
        source = open_bench_reader(write_random_dataset(folder, bases=bases))
        seconds = []
        for turn in range(turns + 1):  # the first warms up
            start = time.perf_counter()
            read_and_show(source, range(turn * steps, (turn + 1) * steps))
            seconds.append(time.perf_counter() - start)
        source.close()
    return steps * ROWS * LENGTH / 1e6 / statistics.median(seconds[1:])


def choosing_and_cutting(*, bases: int = 1 << 25, steps: int = 500) -> float:
    """Microseconds a window for all that the reader itself does: choosing, fetching, cutting, stacking."""
    with tempfile.TemporaryDirectory() as folder:
        source = open_bench_reader(write_random_dataset(folder, bases=bases))
        start = time.perf_counter()
        for step in range(steps):
            source.batch(step)
        return (time.perf_counter() - start) / (steps * ROWS) * 1e6


def reader_s3_ratio(s3_uri: str, local_uri: str, *, steps: int = 1000, turns: int = 3) -> tuple[float, float]:
    """Mbp/s over S3 with nothing cached, and from local disk, of the same dataset: medians of ``turns``, in
    turns."""
    rates: tuple[list[float], list[float]] = ([], [])
    for turn, (uri, into) in itertools.product(
        range(turns + 1), zip((s3_uri, local_uri), rates, strict=True)
    ):
        with tempfile.TemporaryDirectory() as folder:
            cache = None if store.is_local(uri) else DiskCache(Path(folder), 1 << 30)
            source = open_bench_reader(uri, cache=cache, threads=0 if cache is None else 4)
            start = time.perf_counter()
            read_and_show(source, range(steps))
            if turn:  # the first warms up
                into.append(steps * ROWS * LENGTH / 1e6 / (time.perf_counter() - start))
            source.close()
    return statistics.median(rates[0]), statistics.median(rates[1])


def rows() -> list[Row]:
    """The reader against EvoAug, which is given ready-made one-hot windows, and from S3 against local
    disk."""
    fast, slow = reader(), views.two_views().reference
    found = [
        Row(
            "reader: tar to two masked views, L = 1000",
            fast,
            slow,
            fast / slow,
            "Mbp/s",
            "≥ 30, ≥ 3 ×",
            "the same augmentations, EvoAug",
        ),
    ]
    # One pass over all blocks: each is fetched once and read to its end. DNA_TEST_S3 names a store; else it
    # is moto.
    with s3.proxy() as proxy, tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in (s3.environment(proxy) | {"AWS_ENDPOINT_URL": proxy.target.geturl()}).items():
            patch.setenv(name, value)
        for block_bp, target in ((1 << 20, "≥ 0.8 ×"), (1 << 18, "–")):
            with s3.bucket(proxy) as bucket:
                local = str(Path(folder, str(block_bp)))
                for uri in (bucket.uri, local):
                    write_random_dataset(uri, bases=1 << 27, block_bp=block_bp)
                remote, near = reader_s3_ratio(bucket.uri, local, steps=(1 << 27) // (ROWS * LENGTH))
            name = f"reader from S3 on loopback, blocks of {block_bp >> 10} kibp"
            found.append(Row(name, remote, near, remote / near, "Mbp/s", target, "the same from local disk"))
    return found
