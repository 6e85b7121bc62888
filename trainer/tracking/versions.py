"""Exports of a training run become versions of its registered model: each once, and none ever changes.

A version is known by its run and its step. Steps come in order, so one that is below the newest of its run
was registered before, even if it was pruned since.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.core.console import say
from trainer.tracking import mlflow_client
from trainer.tracking.candidate import Decision, HeldOut, decide
from trainer.tracking.logged_models import LoggedModels, step_of
from trainer.tracking.messages import Export
from trainer.tracking.mlflow_client import all_pages, library, track_errors
from trainer.tracking.mlflow_run import ResumableRun
from trainer.tracking.provenance import NOTE
from trainer.tracking.registry import Registry
from trainer.tracking.version_text import (
    ACCURACY,
    MODEL_DESCRIPTION,
    MODEL_VERSIONS,
    WINDOWS_TAG,
    Facts,
    versions_text,
)

ALIAS = "candidate"
_MODEL_ID = "model.id"  # tag of a version: its logged model
_ENCODER, _ENCODER_VERSION = "encoder.name", "encoder.version"  # tags of fine-tuned models' versions


@dataclass(frozen=True)
class Registering:
    """How exports become versions.

    Attributes:
        fetch: puts the export of a step, as an MLflow model, into a local folder; False if it is gone.
        remove: deletes the export of a step, once MLflow has it.
        candidate: when the alias moves.
        keep: the newest versions of the run that stay; 0: all.
    """

    fetch: Callable[[int, Path], bool]
    remove: Callable[[int], None]
    candidate: Literal["better", "always"]
    keep: int


class Versions:
    """The logged models and versions of a training run. Used by the uploader's thread alone."""

    def __init__(self, run: ResumableRun, settings: Registering) -> None:
        self._run, self._settings = run, settings
        self._models = LoggedModels(run, settings.fetch)
        self._registry: Registry | None = None

    def deliver(self, export: Export) -> None:
        """``export`` is registered, if it was not before, and those that are not kept are removed.

        May be called again after any outcome.

        Raises:
            TrackError: MLflow refuses, or does not answer. StoreError: the export cannot be read.
        """
        model = self._run.spec.registered_model
        with track_errors(f"registered model {model}" if model else f"logged models of {self._run.id}"):
            if model:
                mlflow_client.refuse_prompt(self._run.client, model, uri=self._run.spec.uri)
            if export.step >= self._newest():
                self._register(export)
            if model:
                self._prune(model)
        self._settings.remove(export.step)

    def _newest(self) -> int:
        """The newest step of the run that was registered; -1 where none was."""
        found = self._own() if self._run.spec.registered_model else self._models.all()
        return max(map(step_of, found), default=-1)

    def _own(self) -> list[Any]:
        """All versions of the run, of any name, oldest first."""
        where = f"run_id = '{self._run.id}'"
        found = all_pages(
            lambda page_token: self._run.client.search_model_versions(where, page_token=page_token)
        )
        return sorted(found, key=lambda version: (version.creation_timestamp, int(version.version)))

    def _register(self, export: Export) -> None:
        facts = self._facts(export)
        logged = self._models.ready(facts)
        if logged is None:
            say(f"warning: the export of step {export.step} is gone; it gives no version")
            return
        if self._run.spec.registered_model is None:
            return
        found = self._of_step(facts.step)
        made = not found
        if made:
            found = self._create(facts, logged)
        version, *duplicates = found  # MLflow's client calls again where an answer is lost
        for duplicate in duplicates:
            self._run.client.delete_model_version(duplicate.name, duplicate.version)
        self._complete(version, facts, logged, made=made)

    def _facts(self, export: Export) -> Facts:
        run = self._run.client.get_run(self._run.id)
        points = self._run.points_of(export.step, prefix="val/")
        return Facts(
            model=self._run.spec.registered_model or run.info.run_name,
            step=export.step,
            bp=export.bp,
            run_id=self._run.id,
            run_name=run.info.run_name,
            run_tags=run.data.tags,
            metrics={key: point.value for key, point in points.items()},
        )

    def _of_step(self, step: int) -> list[Any]:
        return [version for version in self._own() if step_of(version) == step]

    def _create(self, facts: Facts, logged: Any) -> list[Any]:
        """The new version, with all its tags from its first moment on, so that nobody sees it without."""
        client = self._run.client
        try:
            client.create_registered_model(facts.model, description=MODEL_DESCRIPTION)
        except library().exceptions.MlflowException as fault:
            if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        client.create_model_version(
            facts.model,
            logged.artifact_location,
            self._run.id,
            tags=facts.tags(self._decide(facts)) | {_MODEL_ID: logged.model_id},
            model_id=logged.model_id,
        )
        return self._of_step(facts.step)

    def _decide(self, facts: Facts) -> Decision:
        new = HeldOut(f"step {facts.step}", facts.metrics.get(ACCURACY), facts.run_tags.get(WINDOWS_TAG))
        standing = self._standing(facts.model)
        held_out = None
        if standing is not None:
            accuracy = standing.tags.get("val.mlm_accuracy")
            held_out = HeldOut(
                f"version {standing.version}",
                None if accuracy is None else float(accuracy),
                standing.tags.get(WINDOWS_TAG),
            )
        always = self._settings.candidate == "always"
        return decide(new, held_out, model=facts.model, always=always)

    def _standing(self, model: str) -> Any | None:
        """The version with the alias."""
        number = self._run.client.get_registered_model(model).aliases.get(ALIAS)
        return None if number is None else self._run.client.get_model_version(model, str(number))

    def _complete(self, version: Any, facts: Facts, logged: Any, *, made: bool) -> None:
        """Description, alias, and what run and logged model say of the version, where they are missing."""
        client, name, number = self._run.client, version.name, str(version.version)
        is_candidate, reason = version.tags["candidate"] == "yes", version.tags["candidate.reason"]
        standing = self._standing(name) if is_candidate else None
        if is_candidate and (standing is None or made or int(standing.version) < int(number)):
            decision = self._decide(facts)  # again: another run may have moved the alias since
            if decision.moves:
                client.set_registered_model_alias(name, ALIAS, number)
            else:
                is_candidate, reason = False, decision.reason
                client.set_model_version_tag(name, number, "candidate.reason", reason)
                client.set_model_version_tag(name, number, "candidate", "no")
        text = facts.description(number, reason)
        if not version.description:
            client.update_model_version(name, number, text)
        client.set_logged_model_tags(
            logged.model_id, {MODEL_VERSIONS: versions_text(name, number), NOTE: text}
        )
        self._run.tag({"model.version": number})
        if made:
            as_what = " as candidate" if is_candidate else ""
            why = "" if is_candidate else f"; {reason}"
            say(f"registered {name} version {number}{as_what} (run {self._run.id}){why}")

    def _prune(self, model: str) -> None:
        """Remove the versions that are not kept, and the logged models whose versions are gone."""
        own = self._own()
        ours = sorted((v for v in own if v.name == model and step_of(v) >= 0), key=step_of, reverse=True)
        for version in ours[self._settings.keep :] if self._settings.keep else ():
            if not self._is_used(version, own):
                self._run.client.delete_model_version(model, version.version)
                own.remove(version)
        used = {version.tags.get(_MODEL_ID) for version in own} | {version.source for version in own}
        newest = max(map(step_of, own), default=-1)
        for logged in self._models.all():
            if step_of(logged) < newest and not used & {
                logged.model_id,
                logged.artifact_location,
                f"models:/{logged.model_id}",
            }:
                self._models.discard(logged)

    def _is_used(self, version: Any, own: list[Any]) -> bool:
        """Whether an alias, a copy, a fine-tuned model or a fine-tuning run points to ``version``."""
        name, number = version.name, str(version.version)
        client = self._run.client
        if number in map(str, client.get_registered_model(name).aliases.values()):
            return True
        copies = {version.source, f"models:/{name}/{number}", f"models:/{version.tags.get(_MODEL_ID)}"}
        if any(other.source in copies for other in own if other is not version):
            return True
        where = f"tags.`{_ENCODER_VERSION}` = '{number}'"
        tuned = all_pages(lambda page_token: client.search_model_versions(where, page_token=page_token))
        if any(other.tags.get(_ENCODER) == name for other in tuned):
            return True
        self._registry = self._registry or Registry(self._run.spec.uri)
        return bool(self._registry.tagged(None, {"model.version": number, "model.name": name}))
