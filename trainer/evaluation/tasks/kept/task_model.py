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

import configs
from cluster.storage import store
from configs import Section
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.linear import ProbeHead, StandardisedLinear
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures, probe_features
from trainer.evaluation.tasks.fitting.recipe import HeadConfig
from trainer.evaluation.tasks.fitting.task_network import Head, TaskNetwork
from trainer.evaluation.tasks.kinds.kind import Array, LinearModel, TaskKind
from trainer.evaluation.tasks.kinds.registry import KINDS
from trainer.evaluation.tasks.results.results import Result
from trainer.evaluation.tasks.rows.data import Split
from trainer.inference.embedding import Strand
from trainer.inference.precision import Resolved
from trainer.inference.sequences import EncodedSequences
from trainer.models import pretrained
from trainer.models.network import Network

TASK, HEAD = "task.json", "head.safetensors"

_PREPROCESSING = (
    "letters A, C, G, T, N in either case; U is T; other IUPAC letters are N; no length is cut; {}"
)
_ONE_STRAND = _PREPROCESSING.format("the given strand alone is read")
_SIDE_BY_SIDE = _PREPROCESSING.format("what the two strands give is read side by side, the given one first")


@dataclass(frozen=True)
class Probe:
    """A frozen encoder, and a linear model on what it gives, standardised."""

    network: Network
    head: ProbeHead
    strand: Strand

    def read(self, sequences: EncodedSequences, *, precision: Resolved) -> Tensor:
        """float64 [N, K] on the CPU; ``precision`` is the encoder's."""
        (vectors_NF,) = probe_features(
            self.network, sequences, [self.head.features], precision=precision, strand=self.strand
        )
        return torch.from_numpy(self.head.linear(vectors_NF.numpy()))


class TaskRecord(Section):
    """task.json: what a fine-tuned model is, where it comes from, and how well it did.

    Attributes:
        kind_state: what the kind took from the train split.
        precision: in which it was trained and scored; that of its encoder for a probe.
        encoder, encoder_version: the registered model that it was made from.
        settings: the digest of all that shapes its scores.
        dev_sha256: of the dev rows; scores on the same rows compare.
        strand: what is read of a sequence.
        head: what reads the letters of a network that was trained as a whole.
        features: what a probe reads of its encoder.
        preprocessing: what is done to a sequence, in words.
        config: the task's config.

    What models of before do not have has a default that means what was before.
    """

    format_version: Literal[1] = 1
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
    strand: Strand = "both"
    head: HeadConfig = HeadConfig()
    features: ProbeFeatures = ProbeFeatures()
    preprocessing: str = _PREPROCESSING.format("what the two strands give is averaged")
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


def of(
    reader: TaskNetwork | ProbeHead | None, network: Network, kind: TaskKind, record: TaskRecord
) -> TaskModel:
    """The model that a unit fitted; ``network`` is the encoder."""
    assert reader is not None, f"mode {record.mode} gives a model that can be kept"
    whole = Probe(network, reader, record.strand) if isinstance(reader, ProbeHead) else reader
    return TaskModel(whole, kind, record)


def record_of(
    result: Result,
    *,
    reader: TaskNetwork | ProbeHead | None,
    task: TaskConfig,
    kind: TaskKind,
    precision: Resolved,
    dev: Split,
) -> TaskRecord:
    """task.json of the model that a unit fitted; ``precision`` is what it was scored in."""
    unit = result.unit
    changed: dict[str, Any] = {}
    if isinstance(reader, TaskNetwork):
        changed["head"] = reader.head.config
    elif reader and reader.features.pooling != "mean_max":
        changed["features"] = reader.features
    if task.strand == "given":
        changed |= {"strand": task.strand, "preprocessing": _ONE_STRAND}
    elif isinstance(reader, ProbeHead) and reader.features.pooling == "bins":
        changed["preprocessing"] = _SIDE_BY_SIDE
    return TaskRecord(
        task=unit.task,
        kind=result.kind,
        labels=task.labels,
        kind_state=dict(kind.state),
        mode=unit.mode,
        seed=unit.seed,
        precision=precision,
        encoder=unit.model,
        encoder_version=str(unit.version),
        settings=result.settings,
        rows=result.rows,
        dev_sha256=rows_sha256(dev),
        chosen=result.chosen,
        scores=result.scores(),
        config=configs.dump(task),
        **changed,
    )


def pack(model: TaskModel, *, card: str) -> dict[str, bytes]:
    """The files of ``model`` by name; ``card`` is README.md. Equal models have equal bytes."""
    reader = model.reader
    weights = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in reader.network.state_dict().items()
    }
    return pretrained.files(reader.network, weights, card=card) | {
        HEAD: pretrained.packed(_head(reader)),
        TASK: model.record.model_dump_json(indent=2).encode() + b"\n",
    }


def _head(reader: TaskNetwork | Probe) -> dict[str, Tensor]:
    if isinstance(reader, Probe):
        standardised = reader.head.linear
        arrays = {
            "standardise.mean": standardised.mean_F,
            "standardise.scale": standardised.scale_F,
            "linear.weight": standardised.linear.weight_KF,
            "linear.bias": standardised.linear.bias_K,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in reader.head.state_dict().items()}


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
        make = _probe if record.mode == "probe" else _network
        reader = make(network, tensors, kind, record)
    except (safetensors.SafetensorError, RuntimeError, ValueError) as fault:
        reason = " ".join(str(fault).split())
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


def _probe(network: Network, tensors: dict[str, Tensor], kind: TaskKind, record: TaskRecord) -> Probe:
    features, outputs = record.features.size(network.backbone, strand=record.strand), kind.outputs
    shapes = {
        "linear.bias": (outputs,),
        "linear.weight": (outputs, features),
        "standardise.mean": (features,),
        "standardise.scale": (features,),
    }
    found = {name: tuple(tensors[name].shape) for name in sorted(tensors)}
    if found != shapes:
        raise ValueError(f"it holds {found} and should hold {shapes}")
    bias_K, weight_KF, mean_F, scale_F = (tensors[name].numpy() for name in shapes)
    linear = StandardisedLinear(mean_F, scale_F, LinearModel(weight_KF, bias_K))
    return Probe(network, ProbeHead(record.features, linear), record.strand)


def _network(network: Network, tensors: dict[str, Tensor], kind: TaskKind, record: TaskRecord) -> TaskNetwork:
    head = Head(
        record.head,
        hidden_size=network.backbone.hidden_size,
        outputs=kind.outputs,
        generator=torch.Generator(),
    )
    head.load_state_dict(tensors, strict=True)
    return TaskNetwork(network, head, strand=record.strand).eval()


def rows_sha256(split: Split) -> str:
    """Of the sequences and the truth of a split, in their order."""
    truth = np.ascontiguousarray(split.truth_N.astype(split.truth_N.dtype.newbyteorder("<")))
    return hashlib.sha256("\n".join(split.letters).encode() + b"\n" + truth.tobytes()).hexdigest()
