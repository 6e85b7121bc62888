"""How fast shards become the two masked views that a step reads: from local disk, by region against from
anywhere, and from S3 against local disk."""

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
from data_prep.levels import Levels
from data_prep.split.intervals import Span
from tests import s3
from tests.bench import views
from tests.bench.harness import Row
from trainer.core.collectives import Group
from trainer.data.block_cache import DiskCache
from trainer.data.config import Regions
from trainer.data.dataset import Dataset
from trainer.data.loader import Reader
from trainer.data.regions import open_regions
from trainer.data.sampling import Phase, SamplingPlan
from trainer.views.alignment import letter_weights
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


def write_random_dataset(
    uri: str, *, bases: int, block_bp: int = BLOCK_BP, level_N: Levels | None = None
) -> str:
    """``uri``, where now lies a dataset of one contig of ``bases`` bp, soft-masked as hg38 is, with the
    weights of the levels ``level_N``, if given."""
    rng = np.random.default_rng(0)
    written, parts = [], list[tuple[Span, bytes]]()
    for start in range(0, bases, block_bp):
        runs = rng.geometric(1 / 300, block_bp // 50)
        soft_mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)[:block_bp]
        levels = None if level_N is None else level_N[start : start + block_bp]
        payload = pack(rng.integers(0, 4, block_bp).astype(np.uint8), soft_mask, levels)
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


def write_bed(path: Path, *, bases: int, share: float, seed: int) -> str:
    """``path``, where now lies a BED of intervals of 200 to 3,000 bp that cover ``share`` of the contig."""
    rng = np.random.default_rng(seed)
    bp = rng.integers(200, 3001, round(bases * share / 1600))
    start = np.sort(rng.integers(0, bases - 3000, len(bp)))
    path.write_text("".join(f"chr1\t{a}\t{a + b}\n" for a, b in zip(start, bp, strict=True)))
    return str(path)


def open_bench_reader(
    uri: str,
    *,
    cache: DiskCache | None = None,
    threads: int = 0,
    regions: Regions | None = None,
    ranks: int = 1,
    track: bool = False,
) -> Reader:
    """The reader of the first of ``ranks``; with ``regions`` of their windows, and of such from anywhere."""
    datasets = [Dataset(uri, "train", cache=cache)]
    plan = SamplingPlan(
        weights=[1.0],
        phases=[Phase(0, LENGTH)],
        seed=0,
        flank=flank_for(VIEWS.student.operations, VIEWS.teacher.operations),
        lanes=LANES,
        global_batch=ROWS * ranks,
        anywhere=regions.anywhere if regions else 1.0,
    )
    sets = open_regions(regions, datasets) if regions else ()
    return Reader(datasets, plan=plan, group=Group(0, ranks), threads=threads, regions=sets, track=track)


def read_and_show(reader: Reader, steps: range) -> None:
    """The batches of ``steps`` as training makes them (view_batch.make_view_pairs), with the teacher's view
    masked too; with the weights of the student's letters, where windows bring them."""
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
        if batch.windows.level_BS is not None:
            letter_weights(pair.student, batch.windows, soft_weight=1.0, track_floor=0.1)


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


def reader_regions_ratio(*, bases: int = 1 << 27, steps: int = 100, turns: int = 20) -> tuple[float, float]:
    """Mbp/s of windows of which 90 % are centred on the regions of two BED files (5 and 2 % of the letters),
    and of windows from anywhere: medians of ``turns``, in turns, each step another than before.

    Of one of 12 ranks: one alone has 48 lanes, whose open blocks together are more than this genome has.
    """
    rates: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        uri = write_random_dataset(str(Path(folder, "data")), bases=bases)
        beds = [
            {
                "uri": write_bed(Path(folder, f"{name}.bed"), bases=bases, share=share, seed=seed),
                "weight": weight,
            }
            for seed, (name, share, weight) in enumerate((("ccre", 0.05, 4), ("exon", 0.02, 5)))
        ]
        regions = Regions.model_validate({"beds": beds})
        both = [open_bench_reader(uri, regions=chosen, ranks=12) for chosen in (regions, None)]
        for turn, which in itertools.product(range(turns + 1), (0, 1)):
            start = time.perf_counter()
            read_and_show(both[which], range(turn * steps, (turn + 1) * steps))
            if turn:  # the first warms up
                rates[which].append(steps * ROWS * LENGTH / 1e6 / (time.perf_counter() - start))
        for source in both:
            source.close()
    return statistics.median(rates[0]), statistics.median(rates[1])


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
    chosen, plain = reader_regions_ratio()
    name = "reader: 90 % of the windows by region, two BED files"
    found.append(Row(name, chosen, plain, chosen / plain, "Mbp/s", "≥ 0.9 ×", "windows from anywhere"))
    # One pass over all blocks: each is fetched once and read to its end. DNA_TEST_S3 names a store; else it
    # is moto.
    with s3.proxy() as proxy, tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in (s3.environment(proxy) | {"AWS_ENDPOINT_URL": proxy.target.geturl()}).items():
            patch.setenv(name, value)
        for block_bp, target in ((1 << 20, "≥ 0.8 ×"), (1 << 18, "≥ 0.8 ×")):
            with s3.bucket(proxy) as bucket:
                local = str(Path(folder, str(block_bp)))
                for uri in (bucket.uri, local):
                    write_random_dataset(uri, bases=1 << 27, block_bp=block_bp)
                remote, near = reader_s3_ratio(bucket.uri, local, steps=(1 << 27) // (ROWS * LENGTH))
            name = f"reader from S3 on loopback, blocks of {block_bp >> 10} kibp"
            found.append(Row(name, remote, near, remote / near, "Mbp/s", target, "the same from local disk"))
    return found
