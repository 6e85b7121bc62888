"""The command ``python -m trainer.export``: any version as a folder that opens with transformers and here."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.process import paths
from cluster.storage import store
from configs import ConfigError, redact
from trainer.evaluation.tasks.kept import task_model
from trainer.models import pretrained
from trainer.models.network import Network
from trainer.sharing import card
from trainer.sharing.card_facts import CardFacts
from trainer.sharing.registry_facts import labelled_results, version_facts
from trainer.tracking.registry import Registry

_OURS = re.compile(r"[^/]+\.(json|md|py|safetensors)")  # the files of an export
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_TASK_FILES = (
    pretrained.CONFIG,
    pretrained.CARD,
    pretrained.HEADS,
    task_model.HEAD,
    task_model.TASK,
    pretrained.WEIGHTS,
)  # in the order of writing


@dataclass(frozen=True)
class ExportRequest:
    """The options of the command; each field has the name of its option."""

    model: str
    output: str
    overwrite: bool = False
    licence: str = ""
    track_uri: str | None = None


@dataclass(frozen=True)
class _Source:
    """Where a model's files lie, and which version it is, if it is one."""

    uri: str
    registry: Registry | None = None
    version: Any = None


def export_model(request: ExportRequest) -> list[str]:
    """Write the folder; sentences about what was written.

    Raises: ConfigError, StoreError, ValueError, TrackError, each one sentence. A local folder appears as a
    whole or not at all; elsewhere model.safetensors is written last.
    """
    _check(request)
    with _opened(request) as source:
        write, sentence = _work(request, source)
        there = _refuse_taken(request)
        with _published(request.output, there=there) as folder:
            write(folder)
    return [f"{redact(request.output)}: {redact(request.model)}, {sentence}"]


def _work(request: ExportRequest, source: _Source) -> tuple[Callable[[str], None], str]:
    """(what writes the files below a URI, what they are in words); all of it is read and checked first."""
    if store.exists(store.join(source.uri, task_model.TASK)):
        record = task_model.load(source.uri).record
        if request.licence:
            raise ConfigError(
                f"--licence is for encoders, and {redact(request.model)} is a fine-tuned model; write it "
                "into the card yourself"
            )
        return (
            lambda folder: _copy(source.uri, folder),
            f"fine-tuned for {record.task}; trainer.predict and trainer.load_task_model open it "
            "(transformers opens encoders only)",
        )
    network = pretrained.load(source.uri)
    text = _card(request, source, network)
    opens = "trainer.load_model opens it"
    if network.backbone.portable:
        opens = "transformers (trust_remote_code=True) and trainer.load_model open it"
    return lambda folder: pretrained.share(source.uri, folder, network, card=text), opens


def _card(request: ExportRequest, source: _Source, network: Network) -> str:
    """README.md: the one that is there, or a new one where that is of an earlier release; with the results
    that MLflow has by now."""
    path, text = store.join(source.uri, pretrained.CARD), ""
    if store.exists(path):
        text = store.read_bytes(path).decode(errors="replace")
    if not card.is_card(text):
        text = card.render(_facts(request, source, network))
    if source.registry:
        results = labelled_results(source.registry, source.version.name, str(source.version.version))
        text = card.with_labelled(text, results) if results else text
    return card.with_licence(text, request.licence) if request.licence else text


def _facts(request: ExportRequest, source: _Source, network: Network) -> CardFacts:
    if source.registry:
        return version_facts(source.registry, source.version, network)
    return CardFacts(
        name=store.basename(store.absolute(request.model).rstrip("/")),
        config=pretrained.shared_config(network),
        parameters=pretrained.parameter_count(network),
    )


@contextmanager
def _opened(request: ExportRequest) -> Iterator[_Source]:
    """The model's files; those of a version in a local folder."""
    if not request.model.startswith("models:"):
        yield _Source(request.model)
        return
    registry = Registry(request.track_uri)
    version = registry.version(request.model)
    with tempfile.TemporaryDirectory() as folder:
        local = str(registry.download(version, Path(folder)))
        try:
            yield _Source(local, registry, version)
        except ValueError as fault:
            if isinstance(fault, ConfigError) or local not in str(fault):
                raise
            raise ValueError(str(fault).replace(local, request.model)) from fault


def _check(request: ExportRequest) -> None:
    """ConfigError where an option is wrong."""
    model, output = request.model, request.output
    is_version = model.startswith("models:")
    paths.refuse_lost(outputs={"--output": output}, inputs=[] if is_version else [("--model", model)])
    if not is_version and store.identity(output) == store.identity(model):
        raise ConfigError(f"--output {redact(output)} is the model; give another folder")
    if request.licence and not _LICENCE.fullmatch(request.licence):
        raise ConfigError(
            f"--licence {request.licence!r} is no name that hubs know, such as apache-2.0, mit or cc-by-4.0"
        )
    _refuse_taken(request)


def _refuse_taken(request: ExportRequest) -> bool:
    """Whether an export is there, to be replaced. ConfigError: it must not be, or it is something else."""
    output = request.output
    if store.is_local(output) and store.local_path(output).is_file():
        raise ConfigError(f"--output {redact(output)} is a file; give a folder")
    there = store.list_files(output)
    if not there:
        return False
    others = [name for name in there if not _OURS.fullmatch(name)]
    if others or not {pretrained.CONFIG, pretrained.WEIGHTS} <= set(there):
        raise ConfigError(
            f"--output {redact(output)} holds files that are no export ({', '.join((others or there)[:3])}); "
            "give a new folder"
        )
    if not request.overwrite:
        raise ConfigError(
            f"--output {redact(output)} holds a model already; give a new folder, or --overwrite to replace "
            "it"
        )
    return True


@contextmanager
def _published(output: str, *, there: bool) -> Iterator[str]:
    """Where to write what becomes ``output``; what is ``there`` is replaced."""
    if not store.is_local(output):
        if there:
            store.remove(output)
        yield output
        return
    final = Path(os.path.realpath(store.local_path(output)))
    new, old = (final.with_name(f".{final.name}.{state}") for state in ("unfinished", "old"))
    shutil.rmtree(new, ignore_errors=True)  # what a killed command left
    try:
        yield str(new)
        if there:
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)
        try:
            os.rename(new, final)  # an empty folder gives way
        except OSError:
            if there:
                os.rename(old, final)
            raise
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def _copy(source: str, target: str) -> None:
    """The files of a fine-tuned model."""
    for name in _TASK_FILES:
        pretrained.copy_file(store.join(source, name), store.join(target, name))
