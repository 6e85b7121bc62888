"""What a model card tells, as values. What is not known is None or empty, and the card says so."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import store
from configs import redact
from data_prep import shards


@dataclass(frozen=True)
class SourceFacts:
    """A reference genome. ``licence``: as the config of the dataset has it."""

    name: str
    sha256: str
    contigs: int
    bp: int
    licence: str | None = None


@dataclass(frozen=True)
class DataFacts:
    """A dataset. ``digest``: sha256 of its manifest. ``unread``: why nothing more is known."""

    uri: str
    digest: str
    weight: float = 1.0
    sources: Sequence[SourceFacts] = ()
    bp: Mapping[str, int] = field(default_factory=dict)
    held_out: Sequence[str] = ()
    unread: str = ""


@dataclass(frozen=True)
class ComputeFacts:
    """What the training took up to its step. ``devices``: in words. ``wall_s``: since it began, with all
    pauses."""

    bp: int | None = None
    flops: float | None = None
    devices: str = ""
    wall_s: float | None = None


@dataclass(frozen=True)
class CardFacts:
    """Of one export.

    Attributes:
        name: of the run or of the registered model.
        config: the export's config.json.
        parameters: entries of backbone and nucleotide head.
        uri: models:/NAME/VERSION, where it is one.
        step: of the training that it is the teacher of.
        settings: of that training, by dotted keys.
        held_out: metrics of held-out windows at that step, by their names in MLflow.
        labelled: results on labelled tasks, in markdown.
        licence: of the weights.
        code: the commit of the code that trained it.
    """

    name: str
    config: Mapping[str, Any]
    parameters: int
    uri: str = ""
    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Sequence[DataFacts] = ()
    compute: ComputeFacts = ComputeFacts()
    held_out: Mapping[str, float] = field(default_factory=dict)
    labelled: str = ""
    licence: str = ""
    code: str = ""


def data_facts(uri: str, manifest: shards.Manifest, digest: str, *, weight: float = 1.0) -> DataFacts:
    """Of the dataset at ``uri``; its build.json, where it is there, has the licences."""
    licences = _licences(uri)
    sources = [
        SourceFacts(
            source.name,
            source.sha256,
            len(source.contigs),
            sum(source.contigs.values()),
            licences.get(source.filters.get("haplotype", {}).get("reference", source.name)),
        )
        for source in manifest.sources
    ]
    bp = {split: manifest.bp(split) for split in shards.SPLITS}
    held_out = sorted({contig for _, contig in manifest.blocks("val").columns.places})
    return DataFacts(_shown(uri), digest, weight, sources, bp, held_out)


def unread_data(uri: str, digest: str, why: str) -> DataFacts:
    """Of a dataset whose manifest cannot be read any more."""
    return DataFacts(_shown(uri), digest, unread=str(redact(why)))


def _shown(uri: str) -> str:
    return str(redact(store.absolute(uri)))


def _licences(uri: str) -> dict[str, str]:
    """By reference; what cannot be read has none."""
    try:
        config = json.loads(store.read_bytes(store.join(uri, shards.BUILD_INFO)))["config"]
        return {each["name"]: each["licence"] for each in config["references"] if each.get("licence")}
    except (store.StoreError, ValueError, KeyError, TypeError, AttributeError):
        return {}
