"""What a run.dir holds: nothing yet, a run to go on with, or one that is finished; and whether it is this
very run."""

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import configs
from cluster.storage import store
from configs import ConfigError, redact
from trainer.models import pretrained
from trainer.run.checkpoint import manifests
from trainer.run.checkpoint.manifests import DamagedError
from trainer.run.config import TrainConfig
from trainer.run.train_state import NOT_FINITE

RESOLVED = "train_config.json"
_MAY_DIFFER = (
    "run.dir",
    "train.steps",
    "train.micro_batch",
    "data.workers",
    "data.cache_dir",
    "data.cache_bytes",
)
_SECTIONS = ("checkpoint.", "track.")
FINISHED, LOCK, TRACK = "finished.json", "run.lock", "track"
_KEY = f"{TRACK}/key.json"  # which MLflow run is this run's
_OURS = (RESOLVED, FINISHED, LOCK, f"{TRACK}/", NOT_FINITE, f"{manifests.FOLDER}/")

Status = Literal["new", "unfinished", "undelivered", "finished"]


@dataclass(frozen=True)
class Looked:
    """``step``: of the newest checkpoint, 0 where there is none. ``again``: this very run was begun here
    before. One that is ``undelivered`` is finished, and MLflow has not got all of it.

    ``schedule_steps``: of the schedules that it began with, 0 for a new run. They stay, also if train.steps
    changes.
    """

    status: Status
    step: int = 0
    again: bool = True
    schedule_steps: int = 0


def look(config: TrainConfig) -> Looked:
    """What config.run.dir holds.

    Raises:
        ConfigError: it is another run than ``config``: every key that differs, with both values; or it holds
            other files than those of a run; or it is further than train.steps; or another version of the
            format wrote it.
    """
    run_dir, shown, wanted = config.run.dir, redact(config.run.dir), config.train.steps
    there = set(store.list_files(run_dir))
    begun = _json(run_dir, RESOLVED) if RESOLVED in there else None
    saved, step = (
        _newest(run_dir) if any(name.startswith(f"{manifests.FOLDER}/") for name in there) else (None, 0)
    )
    finished = _finished_steps(run_dir, there, begun, step)
    if saved is None and finished:
        saved = begun
    if saved is None and pretrained.WEIGHTS in there:
        raise ConfigError(f"run.dir: {shown} holds a model without the config of its run; give a new folder")
    if saved is None:
        # A process that is killed while it writes NAME leaves .NAME.xxxxxxxx.
        if begun is None and (
            foreign := sorted(n for n in there if not n.removeprefix(".").startswith(_OURS))
        ):
            raise ConfigError(
                f"run.dir: {shown} holds files of something else ({', '.join(foreign[:3])}); give "
                "a new folder"
            )
        same = (
            begun is not None
            and not differences(begun, config)
            and _schedule_steps(begun) == config.schedule_steps
        )
        return Looked("new", again=same)
    if faults := differences(saved, config):
        raise ConfigError(
            f"run.dir: {shown} holds another run; give a new folder, or the keys it began with:\n  "
            + "\n  ".join(faults)
        )
    trained = max(step, finished)
    if wanted < trained:
        raise ConfigError(
            f"train.steps: {wanted} are fewer than the {trained} that the run in {shown} has behind "
            "it; give at least as many, or a new folder"
        )
    if finished and wanted > trained and not step:
        raise ConfigError(
            f"train.steps: {shown} holds a run finished at {trained} steps and no checkpoint to go on "
            "from; give a new folder"
        )
    status: Status = "unfinished"
    if wanted == finished:
        note = _json(run_dir, FINISHED) if FINISHED in there else None
        status = "finished" if (note or {"delivered": not step}).get("delivered") else "undelivered"
    return Looked(status, step, schedule_steps=_schedule_steps(saved))


def _newest(run_dir: str) -> tuple[dict[str, Any] | None, int]:
    """(config, step) of the newest checkpoint whose manifest can be read."""
    for found in manifests.find(run_dir):
        try:
            manifest = found.manifest()
        except DamagedError:
            continue  # said when the run is taken up again
        except ValueError as fault:
            raise ConfigError(redact(f"run.dir: {fault}")) from fault
        return manifest.config, manifest.step
    return None, 0


def differences(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """The keys in which a dumped config is another run than ``config``: a line each with both values."""
    old, new = configs.flatten(dict(saved)), configs.flatten(configs.dump(config))
    steps = _schedule_steps(saved)
    old["train.schedule_steps"], new["train.schedule_steps"] = steps, config.train.schedule_steps or steps
    return [
        f"{key}: was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if key not in _MAY_DIFFER and not key.startswith(_SECTIONS) and old.get(key) != new.get(key)
    ]


def _schedule_steps(saved: Mapping[str, Any]) -> int:
    return int(saved["train"].get("schedule_steps") or saved["train"]["steps"])


def write(config: TrainConfig) -> None:
    """Leave the resolved config in run.dir."""
    data = json.dumps(configs.dump(config), indent=2, sort_keys=True).encode() + b"\n"
    store.write_bytes(store.join(config.run.dir, RESOLVED), data)


def tell_finished(config: TrainConfig, *, delivered: bool) -> None:
    """Leave the note that the run is finished, its export being in run.dir; ``delivered``: and MLflow has all
    of it."""
    note = {"steps": config.train.steps, "delivered": delivered}
    store.write_bytes(store.join(config.run.dir, FINISHED), json.dumps(note).encode() + b"\n")


def read_key(run_dir: str) -> str | None:
    """The tag ``run.key`` of this run's MLflow run; None if none was begun."""
    try:
        return str(json.loads(store.read_bytes(store.join(run_dir, _KEY)))["key"])
    except (store.StoreError, ValueError, KeyError, TypeError):
        return None


def write_key(run_dir: str, key: str) -> None:
    store.write_bytes(store.join(run_dir, _KEY), json.dumps({"key": key}).encode() + b"\n")


def _finished_steps(run_dir: str, there: Container[str], begun: Mapping[str, Any] | None, step: int) -> int:
    """The steps of the run that was finished here last; 0 if none was. ``step``: of the newest checkpoint."""
    if pretrained.WEIGHTS not in there:
        return 0
    note = _json(run_dir, FINISHED) if FINISHED in there else None
    if note is not None:
        return int(note["steps"])
    # A version without checkpoints left no note; one with them was killed before it, if its last step is
    # saved.
    return int(begun["train"]["steps"]) if begun and step in (0, begun["train"]["steps"]) else 0


def _json(run_dir: str, name: str) -> dict[str, Any] | None:
    """What a JSON file says; None if it is damaged."""
    try:
        found = json.loads(store.read_bytes(store.join(run_dir, name)))
        steps = found["steps"] if name == FINISHED else found["train"]["steps"]
        return found if isinstance(steps, int) else None
    except (ValueError, KeyError, TypeError):
        return None
