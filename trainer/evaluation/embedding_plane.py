"""The embeddings of held-out windows as points of a plane: their first two principal components.

Shapes: N windows, D hidden.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from data_prep import alphabet
from trainer.data.dataset import Dataset
from trainer.data.windows import choose_windows
from trainer.inference.embedding import embed
from trainer.inference.precision import best_device
from trainer.inference.registered_model import open_model
from trainer.inference.sequences import EncodedSequences
from trainer.tracking.registry import Registry

_WINDOWS = 400  # at most


@dataclass(frozen=True)
class EmbeddingPlane:
    """``gc_N``: the GC content of the windows. ``explained``: the share of the variance of each component."""

    points_N2: Any
    gc_N: Any
    explained: tuple[float, float]


def embedding_plane(
    registry: Registry, model_uri: str, *, dataset_uri: str, length: int, digest: str | None = None
) -> EmbeddingPlane:
    """Held-out windows of the dataset, mean-pooled by a registered model, both strands averaged.

    ``digest``: sha256 of the manifest that is wanted; default: the present one.

    Raises:
        StoreError, ValueError, TrackError: the dataset or the model cannot be read, or it holds too little.
    """
    dataset = Dataset(dataset_uri, "val", digest=digest)
    network = open_model(registry, model_uri).network
    places = choose_windows(dataset.bp().tolist(), length, _WINDOWS, margin=0)
    codes = [dataset.codes(block)[start:end] for block, start, end in places]
    if len(codes) < 3:
        raise ValueError(
            f"dataset {dataset_uri} has {len(codes)} held-out windows of {length} bp, 3 are needed"
        )
    mean_ND = embed(network.to(best_device()), EncodedSequences.from_codes(codes)).mean_ND
    components = PCA(2, random_state=0)
    points_N2 = components.fit_transform(mean_ND.double().numpy())
    gc_N = np.array([_gc(row) for row in codes])
    first, second = components.explained_variance_ratio_
    return EmbeddingPlane(points_N2, gc_N, (float(first), float(second)))


def _gc(codes: alphabet.Codes) -> float:
    count = np.bincount(codes, minlength=alphabet.SIZE)[: alphabet.BASES]
    return float((count[alphabet.C] + count[alphabet.G]) / max(1, count.sum()))
