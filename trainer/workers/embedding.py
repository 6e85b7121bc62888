"""Windows are embedded on Ray: chunks go to workers, and come back as vectors in any order.

A worker knows neither files nor MLflow: it is given the model's files and the letters of a chunk.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from cluster.process.progress import say
from cluster.tasks.pool import Needs, Pool
from cluster.tasks.ray_session import session
from trainer.inference.embed.chunks import Chunk
from trainer.inference.embed.vectors import Reading, Vectors, WindowBatch, read_windows
from trainer.inference.parts import Compute
from trainer.inference.precision import Resolved, best_device
from trainer.models import pretrained
from trainer.models.network import Network

_WAIT_S = 1.0
_AHEAD = 2  # chunks that are with Ray for each worker, so that none waits for the driver


@dataclass(frozen=True)
class SharedModel:
    """The files of an exported network by name, and the sha256 of its weights."""

    files: Mapping[str, bytes]
    sha256: str


def on_workers(
    model: SharedModel,
    reading: Reading,
    *,
    precision: Resolved,
    workers: int,
    rows: Callable[[Chunk, Vectors], pa.Table],
    on_letters: Callable[[int], object],
) -> Compute[Chunk]:
    """What computes chunks on so many workers of the cluster that RAY_ADDRESS names, else of a local Ray.

    Args:
        rows: makes the table of a chunk of its vectors, in this process.
        on_letters: told how many letters more are done.
    """

    def compute(chunks: Iterator[tuple[int, Chunk]]) -> Iterator[tuple[int, pa.Table]]:
        first = next(chunks, None)
        if first is None:  # all is there: Ray need not start
            return
        with session(workers), Pool(on_retry=_tell) as pool:
            shared, needs = pool.share(model), _needs(pool)
            under_way: dict[object, Chunk] = {}
            coming: tuple[int, Chunk] | None = first
            while coming or under_way:
                while coming and len(under_way) < _AHEAD * workers:
                    number, chunk = coming
                    under_way[number] = chunk
                    pool.submit(
                        number,
                        embed_windows,
                        chunk.windows,
                        shared,
                        reading,
                        precision,
                        needs=needs,
                        order=number,
                    )
                    coming = next(chunks, None)
                for ended in pool.wait(_WAIT_S):
                    if ended.fault:
                        raise ended.fault
                    done = under_way.pop(ended.key)
                    on_letters(done.letters)
                    yield int(str(ended.key)), rows(done, ended.result)

    return compute


def _needs(pool: Pool) -> Needs:
    """Of one chunk: a CPU, and a GPU where a node has one."""
    return Needs(1, 1) if not pool.fault_of(Needs(1, 1)) else Needs(1)


def _tell(number: object, reason: str) -> None:
    say(f"trying again: part {number}: {reason}")


def embed_windows(windows: WindowBatch, model: SharedModel, reading: Reading, precision: Resolved) -> Vectors:
    """On a worker: what ``read_windows`` gives of ``windows``."""
    torch.set_num_threads(1)
    return read_windows(_network(model), windows, reading, precision=precision)


_loaded: dict[str, Network] = {}  # by the sha256 of its weights; the last one


def _network(model: SharedModel) -> Network:
    """The network of ``model``; loaded once by each worker."""
    if model.sha256 not in _loaded:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in model.files.items():
                Path(folder, name).write_bytes(content)
            network = pretrained.load(folder).to(best_device())
        _loaded.clear()
        _loaded[model.sha256] = network
    return _loaded[model.sha256]
