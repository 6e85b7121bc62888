"""An exported encoder as an MLflow model: column ``sequence`` in, columns ``e0``, ``e1``, … out.

MLflow imports this module to load the model; nothing here needs MLflow then.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from trainer.inference.embedding import embed
from trainer.inference.precision import best_device
from trainer.models import pretrained
from trainer.models.network import Network
from trainer.tracking.mlmodel import Pyfunc, write_mlmodel

INPUT = "sequence"
EXAMPLE = ("ACGTTGCATTAGCCGATAACGG", "gattacaNNgattaca")


class EncoderModel:
    """What ``mlflow.pyfunc.load_model`` of an encoder gives."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def predict(self, table: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """fp32 columns e0 … e(D-1): the mean over the letters, averaged over both strands.

        Raises:
            ValueError: a sequence is empty or has a letter that is no nucleotide's.
        """
        mean_ND = embed(self._network, list(table[INPUT])).mean_ND.numpy()
        return pd.DataFrame(mean_ND, columns=columns(mean_ND.shape[1]), index=table.index)


def columns(size: int) -> list[str]:
    """The names of the ``size`` numbers of an embedding."""
    return [f"e{i}" for i in range(size)]


def _load_pyfunc(folder: str) -> EncoderModel:
    """Called by MLflow with the folder of the model."""
    return EncoderModel(pretrained.load(folder).to(best_device()))


def write_encoder_mlmodel(folder: Path) -> None:
    """Make ``folder``, which holds the four files of an export, an MLflow model; the files stay.

    Raises:
        TrackError: MLflow refuses.
    """
    size = pretrained.read_config(str(folder))["hidden_size"]
    write_mlmodel(
        folder,
        Pyfunc(
            loader=__name__,
            inputs={INPUT: "string"},
            outputs=dict.fromkeys(columns(size), "float"),
            example=pd.DataFrame({INPUT: list(EXAMPLE)}),
        ),
    )
