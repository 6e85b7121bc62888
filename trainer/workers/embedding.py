"""Windows are embedded on Ray: chunks go to workers, and come back as vectors in any order.

A worker knows neither files nor MLflow: it is given the model's files and the letters of a chunk.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from cluster.process.progress import say
from cluster.tasks.pool import Needs, Pool
from cluster.tasks.ray_session import session
from configs import ConfigError
from trainer.inference.embed.chunks import Chunk
from trainer.inference.embed.vectors import Reading, Vectors, WindowBatch, read_windows
from trainer.inference.parts import Compute
from trainer.inference.precision import Resolved, best_device
from trainer.models import pretrained
from trainer.models.network import Network

_WAIT_S = 1.0
_AHEAD = 2  # chunks that Ray has for each worker, so that none waits for the driver


@dataclass(frozen=True)
class Workers:
    """``count`` workers of the cluster that RAY_ADDRESS names, else of a local Ray.

    Each takes a CPU, and a GPU where there are any.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"--workers {self.count} must be at least 1")

    def __call__(
        self,
        model: Mapping[str, bytes],
        reading: Reading,
        *,
        precision: Resolved,
        table_of: Callable[[Chunk, Vectors], pa.Table],
        on_letters: Callable[[int], object],
    ) -> Compute[Chunk]:
        """As ``trainer.inference.embed.command.Spread`` says.

        Raises:
            RuntimeError: Ray cannot be started or joined, or a worker died each time; what a worker raises.
        """

        def compute(chunks: Iterator[tuple[int, Chunk]]) -> Iterator[tuple[int, pa.Table]]:
            coming = next(chunks, None)
            if coming is None:  # all is there: Ray need not start
                return
            with session(self.count), Pool(on_retry=_tell) as pool:
                shared, needs = pool.share(SharedModel.of(model)), _needs(pool)
                given: dict[object, Chunk] = {}
                while coming or given:
                    while coming and len(given) < _AHEAD * self.count:
                        number, chunk = coming
                        given[number] = chunk
                        arguments = (chunk.windows, shared, reading, precision)
                        pool.submit(number, embed_windows, *arguments, needs=needs, order=number)
                        coming = next(chunks, None)
                    for ended in pool.wait(_WAIT_S):
                        if ended.fault:
                            raise ended.fault
                        chunk = given.pop(ended.key)
                        on_letters(chunk.letters)
                        yield int(str(ended.key)), table_of(chunk, ended.result)

        return compute


@dataclass(frozen=True)
class SharedModel:
    """The files of an exported network by name, and the sha256 of them."""

    files: Mapping[str, bytes]
    sha256: str

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "SharedModel":
        return cls(files, hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest())


def _needs(pool: Pool) -> Needs:
    """Of one chunk: a CPU, and a GPU where a node has one."""
    return Needs(1, 1) if not pool.fault_of(Needs(1, 1)) else Needs(1)


def _tell(number: object, reason: str) -> None:
    say(f"trying again: part {number}: {reason}")


def embed_windows(windows: WindowBatch, model: SharedModel, reading: Reading, precision: Resolved) -> Vectors:
    """On a worker: what ``read_windows`` gives of ``windows``."""
    torch.set_num_threads(1)
    return read_windows(_network(model), windows, reading, precision=precision)


_loaded: dict[str, Network] = {}  # by the sha256 of the files: the last model of this worker


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
