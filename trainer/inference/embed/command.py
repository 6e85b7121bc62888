"""The command ``python -m trainer.embed``: every record of a FASTA as a row of a table of embeddings.

Shapes: R records, N windows of them, D hidden.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cluster.process import paths
from cluster.storage import store
from configs import ConfigError
from data_prep import alphabet
from data_prep.sources import fasta
from trainer.inference import output_format
from trainer.inference.embedding import embed
from trainer.inference.precision import best_device
from trainer.inference.registered_model import RegisteredModel, open_model
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network
from trainer.tracking.registry import Registry

DEFAULT_LENGTH = 1000
_CHUNK_WINDOWS = 4096  # windows that are held at once


@dataclass(frozen=True)
class EmbedRequest:
    """The options of the command; each field has the name of its option."""

    model: str
    input: str
    output: str
    length: int | None = None
    track_uri: str | None = None


def embed_file(request: EmbedRequest) -> list[str]:
    """Write the table; sentences about what was written.

    Raises: ConfigError, StoreError, ValueError, TrackError, MemoryError, each one sentence. No part of a file
    is left then.
    """
    table_format = _check(request)
    registry = Registry(request.track_uri)
    registry.version(request.model)  # before the input is read
    ambiguous = sum(record.ambiguous for record in fasta.records(request.input))  # all of it is checked first
    model = open_model(registry, request.model)
    length = request.length or _pretraining_length(registry, model)
    table = embed_fasta(model.network.to(best_device()), request.input, length=length)
    with store.publish(request.output) as file:
        output_format.write(table, file, end=table_format)
    sentences = [
        f"{request.output}: {len(table):,} sequences, {table['length'].sum():,} bp, {table.shape[1] - 2} "
        f"numbers each ({output_format.FORMATS[table_format]}; {model.name} version {model.version}, "
        f"windows of {length} bp)"
    ]
    if ambiguous:
        sentences.append(f"{ambiguous:,} ambiguous letters (IUPAC codes such as R or Y) were read as N")
    if table_format == ".npy":
        sentences.append("an .npy holds no names: row i is record i of the FASTA")
    return sentences


def _check(request: EmbedRequest) -> str:
    """The format of the output, a key of output_format.FORMATS. ConfigError where an option is wrong."""
    paths.refuse_lost(outputs={"--output": request.output}, inputs=[("--input", request.input)])
    table_format = output_format.format_of(request.output)
    if request.length is not None and request.length < 1:
        raise ConfigError(f"--length {request.length} must be at least 1")
    store.refuse_pipe(request.input)
    return table_format


def _pretraining_length(registry: Registry, model: RegisteredModel) -> int:
    if model.run_id is None:
        return DEFAULT_LENGTH
    return int(registry.run(model.run_id).data.params.get("data.length", DEFAULT_LENGTH))


def embed_fasta(network: Network, uri: str, *, length: int) -> pd.DataFrame:
    """Columns name, length, e0 … e(D-1): mean over the letters, both strands, of every record of a FASTA.

    A record longer than ``length`` is read in windows of it; their means are averaged by their lengths.
    """
    names: list[str] = []
    lengths: list[int] = []
    means: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = []
    for chunk in _chunks(fasta.records(uri), length):
        names += [record.name for record in chunk]
        lengths += [len(record.codes) for record in chunk]
        means.append(_embed_chunk(network, [record.codes for record in chunk], length=length))
    mean_RD = np.concatenate(means)
    table = pd.DataFrame(mean_RD, columns=[f"e{i}" for i in range(mean_RD.shape[1])])
    table.insert(0, "length", lengths)
    table.insert(0, "name", names)
    return table


def _chunks(found: Iterable[fasta.Record], length: int) -> Iterator[list[fasta.Record]]:
    """The records in lists that end where they have _CHUNK_WINDOWS windows."""
    chunk: list[fasta.Record] = []
    windows = 0
    for record in found:
        chunk.append(record)
        windows += -(-len(record.codes) // length)
        if windows >= _CHUNK_WINDOWS:
            yield chunk
            chunk, windows = [], 0
    if chunk:
        yield chunk


def _embed_chunk(
    network: Network, codes: Sequence[alphabet.Codes], *, length: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """fp32 [R, D]: the mean of each record's windows, by their lengths."""
    windows = [whole[i : i + length] for whole in codes for i in range(0, len(whole), length)]
    sequences = EncodedSequences.from_codes(windows)
    record_N = np.repeat(np.arange(len(codes)), [-(-len(whole) // length) for whole in codes])
    weight_N = sequences.length_N.numpy() / np.array([len(whole) for whole in codes])[record_N]
    mean_ND = embed(network, sequences).mean_ND.numpy()
    total_RD = np.zeros((len(codes), mean_ND.shape[1]))
    np.add.at(total_RD, record_N, mean_ND * weight_N[:, None])
    return total_RD.astype(np.float32)
