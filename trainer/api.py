"""A pretrained model as functions of plain strings. docs/api.md has an example of each.

Shapes: N sequences, D features.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.inference import embedding
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
    model: Network, sequences: Sequence[str], *, pooling: str = "mean"
) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """fp32 [N, D]: a vector of each sequence, averaged over the two strands, in order.

    Args:
        sequences: A, C, G, T, N in either case, of any lengths; other IUPAC letters become N.
        pooling: ``mean`` or ``max`` over the letters of the last hidden states.

    Raises:
        ValueError: there is no sequence, one is empty or has another letter, or no such pooling.
        MemoryError: a sequence is too long for the device.
    """
    if pooling not in ("mean", "max"):
        raise ValueError(f"pooling {pooling!r} is not mean or max")
    vectors = embedding.embed(model, sequences)
    return (vectors.mean_ND if pooling == "mean" else vectors.max_ND).numpy()


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
