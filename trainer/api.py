"""A pretrained model as functions of plain strings. docs/api.md has an example of each.

Shapes: N sequences, L letters, P summary positions, D hidden, V numbers of a vector.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch

from trainer.inference.embed.vectors import (
    Pooling,
    Reading,
    Strands,
    Vectors,
    WindowBatch,
    over_strands,
    read_windows,
)
from trainer.inference.sequences import EncodedSequences
from trainer.models import pretrained
from trainer.models.network import Network

if TYPE_CHECKING:
    import pandas as pd

    from trainer.evaluation.tasks.kept.task_model import TaskModel


def load_model(uri: str, *, device: str | torch.device = "cpu", track_uri: str | None = None) -> Network:
    """The exported network at ``uri``, in eval mode: backbone and nucleotide head, without projection heads.

    Args:
        uri: a folder, any fsspec URI such as s3://BUCKET/RUN, or models:/NAME@ALIAS and models:/NAME/VERSION.
        track_uri: MLflow for models:/; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.

    Raises:
        ValueError: it is of another format, model, wiring, or set of weights. StoreError: a file is missing
            or cannot be read. TrackError: MLflow has no such model.
    """
    if not uri.startswith("models:"):
        return pretrained.load(uri).to(device)
    # Only who asks for models:/ needs MLflow and what it brings.
    registry = import_module("trainer.tracking.registry").Registry(track_uri)
    opened = import_module("trainer.inference.registered_model").open_model(registry, uri)
    network: Network = opened.network
    return network.to(device)


def load_task_model(
    uri: str, *, device: str | torch.device = "cpu", track_uri: str | None = None
) -> "TaskModel":
    """The fine-tuned model at ``uri``; its ``predict`` takes a list of sequences and gives a table.

    Args:
        uri: models:/NAME-TASK@ALIAS, models:/NAME-TASK/VERSION, or a folder that holds its files.
        track_uri: MLflow for models:/; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.

    Raises:
        ValueError: it is an encoder, or of another format, kind, or set of weights. StoreError: a file is
            missing or cannot be read. TrackError: MLflow has no such model.
    """
    # Only who asks for a fine-tuned model needs scikit-learn, pandas and what MLflow brings.
    opened: TaskModel = import_module("trainer.evaluation.tasks.kept.registered_task").open_task_model(
        uri, track_uri=track_uri
    )
    return opened.to(device)


def embed_sequences(
    model: Network,
    sequences: Sequence[str],
    *,
    pooling: Pooling = "mean",
    layer: int | None = None,
    strands: Strands = "both",
) -> Vectors | list[Vectors]:
    """fp32 [N, V]: a vector of each sequence, in order; V is D, or P·D for ``summary``.

    Args:
        sequences: A, C, G, T, N in either case, of any lengths; other IUPAC letters become N.
        pooling: ``mean`` or ``max`` over the letters; ``summary``, the summary positions one behind the
            other; ``letters`` gives a list with an array [L, D] of each sequence in place of [N, V].
        layer: the hidden states after so many layers, 0 for the input map; None: after all.
        strands: ``both`` averaged, ``forward``, the given one alone, or ``separate``, [N, 2·V]: the given
            one, then the reverse one. A letter's reverse is the letter that it pairs with.

    Raises:
        ValueError: there is no sequence, one is empty or has another letter, or no such pooling, layer or
            strands.
        MemoryError: a sequence is too long for the device.
    """
    for what, chosen, known in (("pooling", pooling, Pooling), ("strands", strands, Strands)):
        if chosen not in get_args(known):
            *first, last = get_args(known)
            raise ValueError(f"{what} {chosen!r} is not {', '.join(first)} or {last}")
    reading = Reading(pooling, layer, strands)
    reading.check(model.backbone)
    encoded = EncodedSequences.from_strings(sequences)
    vectors = over_strands(read_windows(model, WindowBatch.whole(encoded), reading), strands)
    if pooling == "letters":
        return np.split(vectors, encoded.length_N.cumsum(0).numpy()[:-1])
    return vectors


def score_variants(
    model: Network,
    reference: str | Mapping[str, str],
    variants: Sequence[tuple[str, int, str, str]],
    *,
    length: int = 1000,
    scores: Sequence[str] = ("llr", "embedding_distance", "max_local_change"),
    strands: str = "both",
) -> "pd.DataFrame":
    """A row for each of ``variants``, in order: chrom, pos, ref, alt, ``scores``, and status, which is ok or
    says in words why there are no scores. docs/variants.md says what they are.

    Args:
        reference: the genome that they are on: a URI of a FASTA or .2bit, or its contigs as strings.
        variants: contig, position of the first letter of REF from 1, REF, ALT; as VCF has them.
        length: letters of the window around each; best that of pretraining.
        strands: ``both`` averaged, or ``forward``.

    Raises:
        ValueError: no such score or strands, or the reference is none. StoreError: it cannot be read.
        MemoryError: a window is too long for the device.
    """
    # Only who scores variants needs pandas, pyarrow and the readers of genomes.
    room = import_module("trainer.inference.variants.scoring")
    genome = import_module("trainer.inference.variants.genome").Genome.open(reference)
    rows = [room.Variant(*each) for each in variants]
    table = room.score_table(model, genome, rows, room.Scoring(length, tuple(scores), strands))
    frame: pd.DataFrame = table.to_pandas()
    return frame
