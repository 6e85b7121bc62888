"""trainer.embed holds neither all rows nor all windows: 1 Mb in records of 100 kb."""

import resource
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from tests import embedded
from tests.embedded import HIDDEN, embed, letters_of, small_chunks, write_fasta
from tests.ranks import forkserver
from trainer.inference.embed import shape

LETTERS = 1_000_000
ROWS_MB = LETTERS * HIDDEN * 4 >> 20  # of all letters in fp32


def growth(answers: Connection, where: str, folder: Path) -> None:
    """MB by which the peak of this process grows, by the name of the output."""
    torch.set_num_threads(1)
    short = write_fasta(folder / "short.fa", letters_of({"a": 3000}))
    long = write_fasta(folder / "long.fa", letters_of({f"r{i}": LETTERS // 10 for i in range(10)}))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch, 1 << 14)
        patch.setattr(shape, "GROUP_BYTES", 1 << 20)
        for name, pooling in (("mean.parquet", "mean"), ("letters.zarr", "letters")):
            options = ("--pooling", pooling, "--strands", "forward")
            embed(where, short, folder / f"short-{name}", *options)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            embed(where, long, folder / name, *options)
            found[name] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answers.send(found)


def test_memory_does_not_grow_with_the_input(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In a process of its own, whose peak is its own."""
    context = forkserver()
    ours, theirs = context.Pipe()
    where = embedded.model(tmp_path_factory)
    process = context.Process(target=growth, args=(theirs, where, tmp_path), daemon=True)
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    assert found["mean.parquet"] < 24
    assert found["letters.zarr"] < 48 < ROWS_MB
