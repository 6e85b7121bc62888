"""A fine-tuned model as files, and back, strictly: the encoder's four, the head, and task.json.

Shapes: N sequences, K numbers that the model gives for a sequence, F features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from cluster.storage import store
from configs import Section
from trainer.evaluation.embedding import embed
from trainer.evaluation.precision import Resolved
from trainer.evaluation.sequences import EncodedSequences
from trainer.evaluation.tasks.data import Split
from trainer.evaluation.tasks.finetuning import TaskNetwork
from trainer.evaluation.tasks.kind import Array, TaskKind
from trainer.evaluation.tasks.linear import LinearModel, Standardisation
from trainer.evaluation.tasks.registry import KINDS
from trainer.models import pretrained
from trainer.models.network import Network

FORMAT_VERSION = 1
TASK, HEAD = "task.json", "head.safetensors"


@dataclass(frozen=True)
class Probe:
    """A frozen encoder, the standardisation of its embeddings, and a linear model on them."""

    network: Network
    standardise: Standardisation
    linear: LinearModel

    def read(self, sequences: EncodedSequences, *, precision: Resolved) -> Tensor:
        """float64 [N, K] on the CPU; ``precision`` is that of the embeddings."""
        features_NF = torch.cat(embed(self.network, sequences, precision=precision), 1).double().numpy()
        return torch.from_numpy(self.linear(self.standardise(features_NF)))


class TaskRecord(Section):
    """task.json: what a fine-tuned model is, where it comes from, and how well it did.

    Attributes:
        kind_state: what the kind took from the train split.
        precision: in which it was trained and scored; that of its embeddings for a probe.
        encoder, encoder_version: the registered model that it was made from.
        settings: the digest of all that shapes its scores.
        dev_sha256: of the dev rows; scores on the same rows compare.
        preprocessing: what is done to a sequence, in words.
        config: the task's config.
    """

    format_version: Literal[1] = FORMAT_VERSION
    task: str
    kind: str
    labels: tuple[str, ...]
    kind_state: dict[str, Any]
    mode: Literal["probe", "finetune"]
    seed: int
    precision: Resolved
    encoder: str
    encoder_version: str
    settings: str
    rows: dict[str, int]
    dev_sha256: str
    chosen: str
    scores: dict[str, float] = Field(min_length=1)
    preprocessing: str = (
        "letters A, C, G, T, N in either case; U is T; other IUPAC letters are N; no length is cut; what the "
        "two strands give is averaged"
    )
    config: dict[str, Any]


@dataclass(frozen=True)
class TaskModel:
    """A fine-tuned model that predicts."""

    reader: TaskNetwork | Probe
    kind: TaskKind
    record: TaskRecord

    def predict(self, sequences: Sequence[str], *, precision: Resolved = "fp32") -> pd.DataFrame:
        """A row for each sequence: ``label`` and ``p_<label>`` of each label; of a regression ``value``.

        Raises:
            ValueError: there is no sequence, or one is none. MemoryError: one is too long for the device.
        """
        encoded = EncodedSequences.from_strings(sequences)
        return pd.DataFrame(self.kind.table(self.predictions(encoded, precision=precision)))

    def predictions(self, sequences: EncodedSequences, *, precision: Resolved = "fp32") -> Array:
        """As TaskKind.predict gives them, whose scores are those that the record has if ``precision`` is."""
        return self.kind.predict(self.reader.read(sequences, precision=precision))

    def to(self, device: torch.device | str) -> "TaskModel":
        """This model, whose network is moved to ``device``."""
        (self.reader if isinstance(self.reader, TaskNetwork) else self.reader.network).to(device)
        return self

    @property
    def columns(self) -> dict[str, str]:
        """What ``predict`` gives: the type, string or double, of each column by its name."""
        nothing = self.kind.table(self.kind.predict(torch.zeros(0, self.kind.outputs)))
        return {name: "string" if column.dtype == object else "double" for name, column in nothing.items()}


def pack(model: TaskModel, *, card: str) -> dict[str, bytes]:
    """The files of ``model`` by name; ``card`` is README.md. Equal models have equal bytes."""
    reader = model.reader
    weights = pretrained.split_tensors(reader.network.state_dict().items(), keep=True)
    return pretrained.files(reader.network, weights, card=card) | {
        HEAD: pretrained.packed(_head(reader)),
        TASK: model.record.model_dump_json(indent=2).encode() + b"\n",
    }


def _head(reader: TaskNetwork | Probe) -> dict[str, Tensor]:
    if isinstance(reader, Probe):
        arrays = {
            "standardise.mean": reader.standardise.mean_F,
            "standardise.scale": reader.standardise.scale_F,
            "linear.weight": reader.linear.weight_KF,
            "linear.bias": reader.linear.bias_K,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    parts = {"standardise": reader.standardise, "head": reader.head}
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def load(uri: str) -> TaskModel:
    """The fine-tuned model whose files lie at ``uri``, in eval mode on the CPU.

    Raises:
        StoreError: a file is missing or cannot be read. ValueError: another format, kind, model or set of
            weights, by name; or it is an encoder, without a task.
    """
    record = read_record(uri)
    kind = KINDS[record.kind](record.labels).with_state(record.kind_state)
    network, path = pretrained.load(uri), store.join(uri, HEAD)
    try:
        tensors = safetensors.torch.load(store.read_bytes(path))
        reader = _probe(network, tensors) if record.mode == "probe" else _network(network, tensors, kind)
        if isinstance(reader, Probe):
            _check_sizes(reader, kind)
    except (safetensors.SafetensorError, RuntimeError, KeyError, ValueError) as fault:
        reason = " ".join(f"{type(fault).__name__} {fault}".split())
        raise ValueError(f"{path} does not fit {TASK}: {reason}") from fault
    return TaskModel(reader, kind, record)


def read_record(uri: str) -> TaskRecord:
    """task.json at ``uri``. ValueError if there is none, or another format version, kind, or set of keys."""
    path = store.join(uri, TASK)
    if not store.exists(path):
        if store.exists(store.join(uri, pretrained.CONFIG)):
            raise ValueError(
                f"{uri} is an encoder without a task: it has no {TASK}; fine-tune it (python -m "
                "trainer.finetune) and name the model NAME-TASK that this registers"
            )
        raise ValueError(f"{uri} holds no model: it has no {TASK}")
    content = store.read_bytes(path)
    try:
        record = TaskRecord.model_validate_json(content)
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{path} is no description of a fine-tuned model that this code reads: "
            f"{where and where + ': '}{first['msg']}"
        ) from fault
    if record.kind not in KINDS:
        raise ValueError(f"{path}: kind {record.kind!r} is not known, known are {', '.join(sorted(KINDS))}")
    return record


def _probe(network: Network, tensors: dict[str, Tensor]) -> Probe:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    probe = Probe(
        network,
        Standardisation(arrays.pop("standardise.mean"), arrays.pop("standardise.scale")),
        LinearModel(arrays.pop("linear.weight"), arrays.pop("linear.bias")),
    )
    if arrays:
        raise ValueError(f"it also holds {', '.join(sorted(arrays))}")
    return probe


def _check_sizes(probe: Probe, kind: TaskKind) -> None:
    features = 2 * probe.network.backbone.hidden_size
    found = [probe.linear.weight_KF.shape, probe.linear.bias_K.shape, probe.standardise.mean_F.shape]
    wanted = [(kind.outputs, features), (kind.outputs,), (features,)]
    if [*found, probe.standardise.scale_F.shape] != [*wanted, (features,)]:
        raise ValueError(f"its shapes {found} should be {wanted}")


def _network(network: Network, tensors: dict[str, Tensor], kind: TaskKind) -> TaskNetwork:
    whole = TaskNetwork(network, kind.outputs, torch.Generator())
    encoder = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    whole.load_state_dict(encoder | tensors, strict=True)
    return whole.eval()


def rows_sha256(split: Split) -> str:
    """Of the sequences and the truth of a split, in their order."""
    truth = np.ascontiguousarray(split.truth_N.astype(split.truth_N.dtype.newbyteorder("<")))
    return hashlib.sha256("\n".join(split.letters).encode() + b"\n" + truth.tobytes()).hexdigest()
