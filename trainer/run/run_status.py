"""What run.dir holds (nothing yet, a run to go on with, or a finished run), and whether it is the run of this
config.

``read_contents`` reads, ``decide`` decides: all that is read comes first, and the decision needs no storage.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import configs
from cluster.storage import store
from configs import ConfigError, redact
from trainer.models import pretrained
from trainer.run.checkpoint import manifests
from trainer.run.checkpoint.manifests import DamagedError
from trainer.run.config import TrainConfig

RESOLVED = "train_config.json"
FINISHED, LOCK, TRACK = "finished.json", "run.lock", "track"
NOT_FINITE = "not_finite.json"  # which samples a loss was not finite of
EXPORTS = "exports"  # on their way to MLflow
_KEY = f"{TRACK}/key.json"  # which MLflow run is this run's
_OURS = (RESOLVED, FINISHED, LOCK, f"{TRACK}/", NOT_FINITE, f"{manifests.FOLDER}/", f"{EXPORTS}/")

# What may differ from the config that the run began with: keys, and whole sections.
_MAY_DIFFER = (
    "run.dir",
    "train.steps",
    "train.micro_batch",
    "train.compile",
    "model.kernel",
    "data.workers",
    "data.cache_dir",
    "data.cache_bytes",
    "val.tasks",
    "val.tasks_every",
    "val.tasks_rows",
)
_SECTIONS = ("checkpoint.", "track.")

Kind = Literal["new", "unfinished", "undelivered", "finished"]


@dataclass(frozen=True)
class RunStatus:
    """``step``: of the newest checkpoint, 0 where there is none. ``same_run``: this very run began here
    before. A run that is ``undelivered`` is finished, but MLflow does not have all of it.

    ``schedule_steps``: of the schedules that it began with, 0 for a new run. They stay, also if train.steps
    changes.
    """

    kind: Kind
    step: int = 0
    same_run: bool = True
    schedule_steps: int = 0
    datasets: Mapping[str, str] = field(default_factory=dict)  # that it reads: URI -> sha256 of its manifest


@dataclass(frozen=True)
class FinishedNote:
    """What finished.json says: the run's last step, and whether MLflow has all of the run."""

    steps: int
    delivered: bool


@dataclass(frozen=True)
class SavedRun:
    """What the manifest of the newest readable checkpoint says: its step, the config as dumped, and of each
    dataset (its URI without secrets) the sha256 of its manifest."""

    step: int
    config: Mapping[str, Any]
    datasets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """What run.dir holds. ``begun``: the dumped config of the run that began here last. What is missing or
    damaged is None.

    ``other_version``: why the newest checkpoint cannot be read by this version of the package.
    """

    files: frozenset[str] = frozenset()
    begun: Mapping[str, Any] | None = None
    finished: FinishedNote | None = None
    saved: SavedRun | None = None
    other_version: str | None = None


def inspect(config: TrainConfig) -> RunStatus:
    """What config.run.dir holds. ConfigError as ``decide``, StoreError if it cannot be read."""
    return decide(read_contents(config.run.dir), config)


def begun_precision(run_dir: str) -> str | None:
    """What the run that began in ``run_dir`` computes in; None if there is none. StoreError if it cannot be
    read."""
    if not store.exists(store.join(run_dir, RESOLVED)):
        return None
    begun = _read_json(run_dir, RESOLVED)
    return begun["train"].get("precision") if begun and _is_dumped_config(begun) else None


def read_contents(run_dir: str) -> Contents:
    """What ``run_dir`` holds. StoreError if it cannot be read."""
    files = frozenset(store.list_files(run_dir))
    begun = _read_json(run_dir, RESOLVED) if RESOLVED in files else None
    if begun is not None and not _is_dumped_config(begun):
        begun = None
    saved, other_version = None, None
    if any(name.startswith(f"{manifests.FOLDER}/") for name in files):
        try:
            saved = _newest_checkpoint(run_dir)
        except ValueError as fault:
            other_version = str(fault)
    note = _read_json(run_dir, FINISHED) if FINISHED in files else None
    return Contents(files, begun, _finished_note(note), saved, other_version)


def decide(contents: Contents, config: TrainConfig) -> RunStatus:
    """What ``contents`` of config.run.dir mean for a run of ``config``.

    Raises:
        ConfigError: it is another run than ``config``: every key that differs, with both values; or it holds
            other files than those of a run; or it is further than train.steps; or another version of the
            format wrote it.
    """
    name, wanted = redact(config.run.dir), config.train.steps
    if contents.other_version:
        raise ConfigError(redact(f"run.dir: {contents.other_version}"))
    step = _saved_step(contents)
    finished = _finished_steps(contents)
    saved = contents.saved.config if contents.saved else contents.begun if finished else None
    if saved is None:
        return _decide_without_state(contents, config)
    if faults := differences(saved, config):
        raise ConfigError(
            f"run.dir: {name} holds another run; give a new folder, or the keys it began with:\n  "
            + "\n  ".join(faults)
        )
    trained = max(step, finished)
    if wanted < trained:
        raise ConfigError(
            f"train.steps: {wanted} are fewer than the {trained} that the run in {name} has behind "
            "it; give at least as many, or a new folder"
        )
    if finished and wanted > trained and not step:
        raise ConfigError(
            f"train.steps: {name} holds a run finished at {trained} steps and no checkpoint to go on "
            "from; give a new folder"
        )
    kind: Kind = "unfinished"
    if wanted == finished:
        # Without a note: a version without checkpoints has told MLflow all; one with them was killed before.
        delivered = contents.finished.delivered if contents.finished else not step
        kind = "finished" if delivered else "undelivered"
    datasets = contents.saved.datasets if contents.saved else {}
    return RunStatus(kind, step, schedule_steps=_schedule_steps(saved), datasets=datasets)


def _decide_without_state(contents: Contents, config: TrainConfig) -> RunStatus:
    """The same where there is neither a checkpoint nor a finished run: a new run, unless it must not
    begin."""
    name, begun = redact(config.run.dir), contents.begun
    if pretrained.WEIGHTS in contents.files:
        raise ConfigError(f"run.dir: {name} holds a model without the config of its run; give a new folder")
    if begun is None:
        # A process that is killed while it writes NAME leaves .NAME.xxxxxxxx.
        foreign = sorted(file for file in contents.files if not file.removeprefix(".").startswith(_OURS))
        if foreign:
            raise ConfigError(
                f"run.dir: {name} holds files of something else ({', '.join(foreign[:3])}); give a new folder"
            )
        return RunStatus("new", same_run=False)
    same_run = not differences(begun, config) and _schedule_steps(begun) == config.schedule_steps
    return RunStatus("new", same_run=same_run)


def differences(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """The keys in which a dumped config is another run than ``config``: a line each with both values.

    A key that the code did not have when the config was saved counts as its default. The keys of a loss that
    is used by neither do not count.
    """
    new = configs.flatten(configs.dump(config))
    old = _defaults(config) | configs.flatten(dict(saved))
    steps = _schedule_steps(saved)
    old["train.schedule_steps"], new["train.schedule_steps"] = steps, config.train.schedule_steps or steps
    return [
        f"{key}: was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if key not in _MAY_DIFFER
        and not key.startswith(_SECTIONS)
        and old.get(key) != new.get(key)
        and not _of_unused_loss(key, old, new)
    ]


def _defaults(config: TrainConfig) -> dict[str, Any]:
    """The flat config that has only the required keys of ``config``, and its backbone's name."""
    required = {
        "run": {"dir": config.run.dir},
        "data": {"uri": config.data.uri[0].uri},
        "train": {"steps": config.train.steps},
        "model": {"name": config.model.name},
        "track": {"uri": config.track.uri},  # its default is read from the environment
    }
    return configs.flatten(configs.dump(TrainConfig.model_validate(required)))


def _of_unused_loss(key: str, *configs_: Mapping[str, Any]) -> bool:
    section, _, rest = key.partition(".")
    weight = f"loss.{rest.partition('.')[0]}.weight"
    return section == "loss" and not any(config.get(weight) for config in configs_)


def _schedule_steps(saved: Mapping[str, Any]) -> int:
    return int(saved["train"].get("schedule_steps") or saved["train"]["steps"])


def write_config(config: TrainConfig) -> None:
    """Write the resolved config to run.dir."""
    data = json.dumps(configs.dump(config), indent=2, sort_keys=True).encode() + b"\n"
    store.write_bytes(store.join(config.run.dir, RESOLVED), data)


def write_finished(run_dir: str, *, steps: int, delivered: bool) -> None:
    """Write the note that the run is finished, once its export is in run.dir. ``delivered``: MLflow has all
    of it."""
    note = {"steps": steps, "delivered": delivered}
    store.write_bytes(store.join(run_dir, FINISHED), json.dumps(note).encode() + b"\n")


def read_key(run_dir: str) -> str | None:
    """The tag ``run.key`` of this run's MLflow run; None if none was begun."""
    try:
        return str(json.loads(store.read_bytes(store.join(run_dir, _KEY)))["key"])
    except (store.StoreError, ValueError, KeyError, TypeError):
        return None


def write_key(run_dir: str, key: str) -> None:
    store.write_bytes(store.join(run_dir, _KEY), json.dumps({"key": key}).encode() + b"\n")


def _newest_checkpoint(run_dir: str) -> SavedRun | None:
    """The newest checkpoint whose manifest can be read. ValueError if another version of the format wrote
    it."""
    for found in manifests.find(run_dir):
        try:
            manifest = found.manifest()
        except DamagedError:
            continue  # the resume names it
        return SavedRun(manifest.step, manifest.config, manifest.datasets)
    return None


def _finished_steps(contents: Contents) -> int:
    """The steps of the run that was finished here last; 0 if none was."""
    if pretrained.WEIGHTS not in contents.files:
        return 0
    if contents.finished:
        return contents.finished.steps
    # A version without checkpoints left no note. A version with checkpoints was killed before it wrote the
    # note, if the last step is saved.
    steps = int(contents.begun["train"]["steps"]) if contents.begun else 0
    return steps if _saved_step(contents) in (0, steps) else 0


def _saved_step(contents: Contents) -> int:
    return contents.saved.step if contents.saved else 0


def _finished_note(note: Mapping[str, Any] | None) -> FinishedNote | None:
    if note is None or not isinstance(note.get("steps"), int):
        return None
    return FinishedNote(note["steps"], delivered=bool(note.get("delivered")))


def _is_dumped_config(content: Mapping[str, Any]) -> bool:
    train = content.get("train")
    return isinstance(train, dict) and isinstance(train.get("steps"), int)


def _read_json(run_dir: str, name: str) -> dict[str, Any] | None:
    """The object in a JSON file; None if it is damaged."""
    try:
        content = json.loads(store.read_bytes(store.join(run_dir, name)))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
