"""What a run.dir holds: nothing yet, a run to go on with, or one that is finished; and whether it is this very run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import configs
from cluster import store
from configs import ConfigError
from trainer import export
from trainer.checkpoint import layout
from trainer.checkpoint.layout import DamagedError
from trainer.config import TrainConfig
from trainer.state import NOT_FINITE

RESOLVED = "train_config.json"
_MAY_DIFFER = ("run.dir", "train.steps", "train.micro_batch", "data.workers", "data.cache_dir", "data.cache_bytes")
_SECTIONS = ("checkpoint.", "track.")
LOCK, TRACK = "run.lock", "track"
_OURS = (RESOLVED, LOCK, f"{TRACK}/", NOT_FINITE, f"{layout.FOLDER}/")

Status = Literal["new", "unfinished", "finished"]


@dataclass(frozen=True)
class Looked:
    """``step``: of the newest checkpoint, 0 where there is none. ``again``: this very run was begun here before."""

    status: Status
    step: int = 0
    again: bool = True


def look(config: TrainConfig) -> Looked:
    """What config.run.dir holds.

    Raises:
        ConfigError: it is another run than ``config``: every key that differs, with both values; or it holds other
            files than those of a run; or it is further than train.steps.
    """
    run_dir, wanted = config.run.dir, config.train.steps
    there = set(store.list_files(run_dir))
    finished, begun = export.WEIGHTS in there, _resolved(run_dir) if RESOLVED in there else None
    saved, step = _newest(run_dir) if any(name.startswith(f"{layout.FOLDER}/") for name in there) else (None, 0)
    if saved is None and finished:
        saved = begun
    if saved is None and not finished:
        if begun is None and (foreign := sorted(name for name in there if not name.startswith(_OURS))):
            raise ConfigError(f"run.dir: {run_dir} holds files of something else ({', '.join(foreign[:3])}); give "
                              "a new folder")  # fmt: skip
        return Looked("new", again=begun is not None and not differences(begun, config))
    if saved is None:
        raise ConfigError(f"run.dir: {run_dir} holds a model without the config of its run; give a new folder")
    if faults := differences(saved, config):
        raise ConfigError(f"run.dir: {run_dir} holds another run; give a new folder, or the keys it began with:\n  "
                          + "\n  ".join(faults))  # fmt: skip
    trained = max(step, int(saved["train"]["steps"]) if finished else 0)
    if wanted < trained:
        raise ConfigError(f"train.steps: {wanted} are fewer than the {trained} that the run in {run_dir} has behind "
                          "it; give at least as many, or a new folder")  # fmt: skip
    if finished and wanted > trained and not step:
        raise ConfigError(f"train.steps: {run_dir} holds a run finished at {trained} steps and no checkpoint to go on "
                          "from; give a new folder")  # fmt: skip
    return Looked("finished" if finished and wanted == trained else "unfinished", step)


def _newest(run_dir: str) -> tuple[dict[str, Any] | None, int]:
    """(config, step) of the newest checkpoint whose manifest can be read."""
    for found in layout.find(run_dir):
        try:
            manifest = found.manifest()
        except DamagedError:
            continue  # said when the run is taken up again
        return manifest.config, manifest.step
    return None, 0


def differences(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """The keys in which a dumped config is another run than ``config``: a line each with both values."""
    old, new = configs.flatten(dict(saved)), configs.flatten(configs.dump(config))
    steps = old.get("train.schedule_steps") or old.get("train.steps")
    old["train.schedule_steps"], new["train.schedule_steps"] = steps, config.schedule_steps
    faults = []
    for key in sorted(old.keys() | new.keys()):
        if key in _MAY_DIFFER or key.startswith(_SECTIONS) or old.get(key) == new.get(key):
            continue
        advice = f"; give train.schedule_steps={steps}" if key == "train.schedule_steps" else ""
        faults.append(f"{key}: was {old.get(key)!r}, now {new.get(key)!r}{advice}")
    return faults


def write(config: TrainConfig) -> None:
    """Leave the resolved config in run.dir."""
    data = json.dumps(configs.dump(config), indent=2, sort_keys=True).encode() + b"\n"
    store.write_bytes(store.join(config.run.dir, RESOLVED), data)


def _resolved(run_dir: str) -> dict[str, Any] | None:
    try:
        found = json.loads(store.read_bytes(store.join(run_dir, RESOLVED)))
        return found if isinstance(found["train"]["steps"], int) else None
    except (ValueError, KeyError, TypeError):
        return None
