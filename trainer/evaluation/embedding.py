"""Sequences as vectors: mean and max over the letters, both strands averaged; and the command that writes a
table.

``python -m trainer.embed --model models:/findna@champion --input regions.fa --output embeddings.parquet``

Shapes: N sequences, B rows of a batch, L letters, D hidden, 2 strands.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data_prep import alphabet
from trainer.evaluation import records
from trainer.models import pretrained
from trainer.models.network import Network, mean_pool
from trainer.tracking.registry import Registry

Precision = Literal["auto", "fp32", "bf16"]
BATCH_BP = 8192  # letters of a batch: enough to fill two cores, small enough to stay near the cache
CHUNK_WINDOWS = 4096  # windows of a FASTA that are held at once
DEFAULT_LENGTH = 1000


@dataclass(frozen=True)
class Rows:
    """Sequences end to end in ``codes_M``, uint8 [M letters]; row i is ``length_N[i]`` of them from
    ``start_N[i]``."""

    codes_M: alphabet.Codes
    start_N: Tensor
    length_N: Tensor

    @classmethod
    def of(cls, codes: Sequence[alphabet.Codes]) -> "Rows":
        """Rows of ``codes``, uint8 [n] each."""
        length_N = torch.tensor([len(row) for row in codes])
        return cls(np.concatenate(codes), length_N.cumsum(0) - length_N, length_N)

    def batch(
        self, index_B: Tensor, strand_B: Tensor | int, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """(codes_BL, length_B) of some rows on a strand (0, or 1: the other, read 5' to 3' too), with PAD
        behind the letters up to the longest of them; None for length_B if all are as long."""
        length_B, start_B = self.length_N[index_B], self.start_N[index_B]
        longest = int(length_B.max())
        codes_BL = np.full((len(index_B), longest), alphabet.PAD, np.uint8)
        strands = torch.as_tensor(strand_B).expand(len(index_B))
        for row, (start, length, strand) in enumerate(
            zip(start_B.tolist(), length_B.tolist(), strands.tolist(), strict=True)
        ):
            letters = self.codes_M[start : start + length]
            codes_BL[row, :length] = alphabet.reverse_complement(letters) if strand else letters
        even = int(length_B.min()) == longest
        return torch.from_numpy(codes_BL).to(device), None if even else length_B.to(device)

    def alike(self, index_B: Tensor) -> list[Tensor]:
        """Places in a batch in parts, such that padding no more than doubles the letters of a part; few
        parts."""
        length_B = self.length_N[index_B]
        if len(index_B) * int(length_B.max()) <= 2 * int(length_B.sum()):
            return [torch.arange(len(index_B))]
        order_B = torch.argsort(length_B, descending=True, stable=True)
        parts = []
        while len(order_B):
            near = int((2 * length_B[order_B] >= length_B[order_B[0]]).sum())
            parts.append(order_B[:near])
            order_B = order_B[near:]
        return parts

    def by_length(self) -> Iterator[Tensor]:
        """Indices of batches of at most BATCH_BP letters (or one row), similar lengths together."""
        order_N = torch.argsort(self.length_N, stable=True)
        start = 0
        while start < len(order_N):
            rows = 1
            while (
                start + rows < len(order_N)
                and (rows + 1) * int(self.length_N[order_N[start + rows]]) <= BATCH_BP
            ):
                rows += 1
            yield order_N[start : start + rows]
            start += rows


@dataclass(frozen=True)
class RegisteredModel:
    """A registered version, its network in eval mode, and its config.json."""

    version: Any
    network: Network
    config: dict[str, Any]


def open_model(registry: Registry, model_uri: str) -> RegisteredModel:
    """The model that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` means.

    Raises: ValueError or TrackError, one sentence: no such model, or its files do not fit this code.
    """
    version = registry.version(model_uri)
    with tempfile.TemporaryDirectory() as folder:
        local = str(registry.download(version, Path(folder)))
        return RegisteredModel(version, pretrained.load(local), pretrained.read_config(local))


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """``precision``, with auto made bf16 where ``device`` multiplies bf16 natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def computing_in(precision: str, device: torch.device) -> torch.autocast:
    """A context in which matrix products run in ``precision`` (fp32 or bf16)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def memory_for(length_B: Tensor) -> Iterator[None]:
    """Where the block asks for more memory than there is: MemoryError, a sentence that says how long the rows
    are."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if (
            isinstance(fault, RuntimeError)
            and not isinstance(fault, torch.OutOfMemoryError)
            and ("allocate memory" not in str(fault))
        ):  # torch's words for it on a CPU
            raise
        raise MemoryError(
            f"{len(length_B)} sequence{'s' * (len(length_B) != 1)} at once, the longest of "
            f"{int(length_B.max()):,} letters; leave it out or cut it"
        ) from fault


@torch.no_grad()
def both_strands(
    rows: Rows, function: Callable[[Tensor, Tensor | None], Tensor], *, device: torch.device
) -> Tensor:
    """fp32 [N, …] on CPU: ``function(codes_BL, length_B)`` of every row, averaged over its two strands, in
    order."""
    parts, order = [], []
    for index_B in rows.by_length():
        with memory_for(rows.length_N[index_B]):
            strands = [function(*rows.batch(index_B, strand, device)).float() for strand in (0, 1)]
        parts.append((strands[0] + strands[1]).cpu() / 2)
        order.append(index_B)
    stacked = torch.cat(parts)
    result = torch.empty_like(stacked)
    result[torch.cat(order)] = stacked
    return result


def embed(
    network: Network, rows: Rows, *, device: torch.device, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """(mean_ND, max_ND), fp32: over the letters, padding left out, each averaged over the two strands."""
    hidden = network.backbone.hidden_size

    def pool(codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
        with computing_in(precision, device):
            letters_BLD = network.backbone(codes_BL, length_B=length_B).letters_BLD.float()
        mean_BD = mean_pool(letters_BLD, length_B)
        if length_B is not None:
            padding_BL = torch.arange(letters_BLD.shape[1], device=device) >= length_B[:, None]
            letters_BLD = letters_BLD.masked_fill(padding_BL[..., None], -torch.inf)
        return torch.cat([mean_BD, letters_BLD.amax(1)], -1)

    both = both_strands(rows, pool, device=device)
    return both[:, :hidden], both[:, hidden:]


def embed_fasta(network: Network, uri: str, *, length: int, device: torch.device) -> pd.DataFrame:
    """Columns name, length, e0 … e(D-1): mean over the letters, both strands, of every record of a FASTA.

    A record longer than ``length`` is read in windows of it; their means are averaged by their lengths.
    """
    names, lengths, means = [], [], []
    pending: list[alphabet.Codes] = []

    def flush() -> None:
        if not pending:
            return
        windows = [codes[i : i + length] for codes in pending for i in range(0, len(codes), length)]
        rows = Rows.of(windows)
        owner_N = np.repeat(np.arange(len(pending)), [-(-len(codes) // length) for codes in pending])
        weight_N = rows.length_N.numpy() / np.array([len(codes) for codes in pending])[owner_N]
        mean_ND = embed(network, rows, device=device)[0].numpy()
        total = np.zeros((len(pending), mean_ND.shape[1]))
        np.add.at(total, owner_N, mean_ND * weight_N[:, None])
        means.append(total.astype(np.float32))
        pending.clear()

    waiting = 0
    for name, codes, _ in records.read(uri):
        names.append(name)
        lengths.append(len(codes))
        pending.append(codes)
        waiting += -(-len(codes) // length)
        if waiting >= CHUNK_WINDOWS:
            flush()
            waiting = 0
    flush()
    values = np.concatenate(means)
    table = pd.DataFrame(values, columns=[f"e{i}" for i in range(values.shape[1])])
    table.insert(0, "length", lengths)
    table.insert(0, "name", names)
    return table
