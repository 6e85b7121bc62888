"""Where checkpoints lie and what makes one whole.

    RUN_DIR/checkpoints/latest.json                  -> the newest, by name
    RUN_DIR/checkpoints/step-00001200/
        rank-00000-of-00008.safetensors ...          teacher, masters and moments: each rank's fragments
        shared.safetensors                           what all ranks have alike: centres, buffers
        metrics.jsonl                                points that MLflow had not got yet
        manifest.json                                last: sizes and sha256 of the rest, and of itself

On a local disk the folder has another name until all of it is there; on an object store it has no manifest
until then.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.storage import store
from configs import redact

FORMAT_VERSION = 1
FOLDER, POINTER, MANIFEST, SHARED, METRICS = (
    "checkpoints",
    "latest.json",
    "manifest.json",
    "shared.safetensors",
    "metrics.jsonl",
)
_STEP = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"\.step-\d{8,}\.partial")


class DamagedError(ValueError):
    """A checkpoint is not whole; the message says which file and why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Strict):
    """Size and sha256 of a file, and where its fragments begin: name -> (first entry, entries)."""

    size: int
    sha256: str
    fragments: dict[str, tuple[int, int]] = {}

    def check(self, name: str, data: bytes) -> None:
        """DamagedError if ``data`` is not what was written."""
        if len(data) != self.size:
            raise DamagedError(f"{name} has {len(data)} bytes instead of {self.size}")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DamagedError(f"{name} has another sha256 than when it was written")


class Manifest(_Strict):
    """All of a checkpoint but its tensors.

    ``step``: batches done; ``applied``: steps that AdamW took. ``config``: as dumped. ``datasets``: URI ->
    sha256 of its manifest. ``wiring``: sha256 of the backbone's wiring. ``position``: the reader's.
    ``guard``: its streaks. ``skipped``: steps without a finite loss and gradient; ``skipped_losses``: step ->
    losses, of those on end up to now.
    """

    format_version: int = FORMAT_VERSION
    step: int
    applied: int
    world: int
    config: dict[str, Any]
    datasets: dict[str, str]
    wiring: str
    position: dict[str, Any]
    guard: dict[str, int]
    skipped: int = 0
    skipped_losses: dict[str, dict[str, str]] = {}
    files: dict[str, File]

    def to_bytes(self) -> bytes:
        """JSON with the sha256 of the rest of it, so that it vouches for itself."""
        content = self.model_dump(mode="json")
        return json.dumps({"sha256": _digest(content), **content}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """DamagedError if it is not what was written; ValueError if another version of this code wrote it."""
        try:
            content = json.loads(data)
            declared = content.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise DamagedError(f"{MANIFEST} cannot be read ({type(fault).__name__}: {fault})") from fault
        if declared != _digest(content):
            raise DamagedError(f"{MANIFEST} has another sha256 than when it was written")
        if content.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"it has format version {content.get('format_version')} and this code reads "
                f"{FORMAT_VERSION}; go on with the version of this package that wrote it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as fault:
            raise DamagedError(
                f"{MANIFEST} differs from its version in {fault.error_count()} fields"
            ) from fault


@dataclass(frozen=True)
class Found:
    """A checkpoint's folder and the bytes of each file in it."""

    step: int
    uri: str
    sizes: Mapping[str, int]

    def manifest(self) -> Manifest:
        """Its manifest, whose files are there in full size. DamagedError if they are not."""
        if MANIFEST not in self.sizes:
            raise DamagedError("it was not finished: it has no manifest")
        data = store.read_bytes(store.join(self.uri, MANIFEST))
        try:
            manifest = Manifest.from_bytes(data)
        except DamagedError:
            raise
        except ValueError as fault:
            raise ValueError(f"{self.uri}: {fault}") from fault
        if manifest.step != self.step:
            raise DamagedError(f"its manifest is that of step {manifest.step}")
        needed = {SHARED, *(rank_file(rank, manifest.world) for rank in range(manifest.world))}
        if unnamed := sorted(needed - manifest.files.keys()):
            raise DamagedError(f"{MANIFEST} does not name {unnamed[0]}")
        for name, file in manifest.files.items():
            if name not in self.sizes:
                raise DamagedError(f"{name} is missing")
            if self.sizes[name] != file.size:
                raise DamagedError(f"{name} has {self.sizes[name]} bytes instead of {file.size}")
        return manifest


def folder(run_dir: str) -> str:
    return store.join(run_dir, FOLDER)


def place(run_dir: str, step: int) -> str:
    """Where the checkpoint of ``step`` is read."""
    return store.join(folder(run_dir), f"step-{step:08d}")


def stage(run_dir: str, step: int) -> str:
    """Where the checkpoint of ``step`` is written."""
    return (
        store.join(folder(run_dir), f".step-{step:08d}.partial")
        if store.is_local(run_dir)
        else place(run_dir, step)
    )


def rank_file(rank: int, world: int) -> str:
    return f"rank-{rank:05d}-of-{world:05d}.safetensors"


def redact_keys(datasets: Mapping[str, str]) -> dict[str, str]:
    """``datasets`` by URIs that hold no secret."""
    return {redact(uri): digest for uri, digest in datasets.items()}


def find(run_dir: str) -> list[Found]:
    """The checkpoints below ``run_dir``, newest first, whole or not; those still under another name are left
    out."""
    sizes: dict[str, dict[str, int]] = {}
    for name, size in store.sizes(folder(run_dir)).items():
        head, _, rest = name.partition("/")
        if rest and _STEP.fullmatch(head):
            sizes.setdefault(head, {})[rest] = size
    found = [
        Found(int(head.removeprefix("step-")), store.join(folder(run_dir), head), files)
        for head, files in sizes.items()
    ]
    return sorted(found, key=lambda one: one.step, reverse=True)


def published(run_dir: str, found: Sequence[Found]) -> str | None:
    """Words for the newest checkpoint that is known to have been whole, of those ``found`` or that
    latest.json names; None where there never was one."""
    path = store.join(folder(run_dir), POINTER)
    steps = [one.step for one in found if MANIFEST in one.sizes or store.is_local(run_dir)]
    if store.exists(path):
        try:
            steps.append(int(json.loads(store.read_bytes(path))["step"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            steps.append(0)  # damaged as it is, it tells that there was one
    if not steps:
        return None
    return f"that of step {max(steps)}" if max(steps) else "one"


def leftovers(run_dir: str, *, step: int, keep_last: int, keep_every: int) -> Iterator[str]:
    """URIs that are not needed once the checkpoint of ``step`` is published.

    Kept are the newest ``keep_last`` up to it that are whole as far as sizes tell, what is damaged between
    them, and all whose step ``keep_every`` (0: none) divides. What was never finished goes, and what is newer
    than ``step`` stays, since only damage can have made it be passed over.
    """
    left = keep_last
    for one in find(run_dir):
        if one.step > step:
            continue
        every = bool(keep_every) and one.step % keep_every == 0
        if MANIFEST not in one.sizes or not (left or every):
            yield one.uri
        elif left and _is_whole(one):
            left -= 1


def partials(run_dir: str) -> list[str]:
    """URIs of what was being written to a local disk, when the process was killed or could not finish it."""
    path = store.local_path(folder(run_dir))
    names = sorted(entry.name for entry in os.scandir(path)) if path.is_dir() else []
    return [store.join(folder(run_dir), name) for name in names if _PARTIAL.fullmatch(name)]


def _is_whole(one: Found) -> bool:
    try:
        one.manifest()
    except ValueError:  # damaged, or of another version
        return False
    return True


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
