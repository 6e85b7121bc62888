"""The files of a checkpoint, and what makes a checkpoint whole.

    RUN_DIR/checkpoints/latest.json                  the step of the newest checkpoint
    RUN_DIR/checkpoints/step-00001200/
        rank-00000-of-00008.safetensors ...          teacher, masters and moments: each rank's fragments
        shared.safetensors                           what all ranks have alike: centres, buffers
        metrics.jsonl                                points that MLflow had not got yet
        manifest.json                                written last: sizes and sha256 of the rest, and of itself

Until it is complete, the folder has another name on a local disk, and no manifest on an object store.
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
FOLDER = "checkpoints"
POINTER = "latest.json"
MANIFEST = "manifest.json"
SHARED = "shared.safetensors"
METRICS = "metrics.jsonl"
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
    sha256 of its manifest; of a BED of regions, that of its text. ``wiring``: sha256 of the backbone's
    wiring. ``position``: the reader's. ``guard``: streaks of the collapse guard. ``skipped``: steps without a
    finite loss and gradient, of the whole run; ``skipped_losses``: step -> losses, of the steps skipped in a
    row up to now.
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
        """JSON that begins with the sha256 of the rest of it."""
        content = self.model_dump(mode="json")
        return json.dumps({"sha256": _digest(content), **content}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """The manifest in ``data``.

        Raises:
            DamagedError: it is not what was written. ValueError: another version of the format.
        """
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
class StoredCheckpoint:
    """A checkpoint's folder, whole or not, and the size of each file in it."""

    step: int
    uri: str
    sizes: Mapping[str, int]

    def manifest(self) -> Manifest:
        """Its manifest, if all files that it names are there in full size.

        Raises:
            DamagedError: they are not. ValueError: another version of the format.
        """
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
    """The folder that the checkpoint of ``step`` is read from."""
    return store.join(folder(run_dir), f"step-{step:08d}")


def stage(run_dir: str, step: int) -> str:
    """The folder that the checkpoint of ``step`` is written to."""
    if store.is_local(run_dir):
        return store.join(folder(run_dir), f".step-{step:08d}.partial")
    return place(run_dir, step)


def rank_file(rank: int, world: int) -> str:
    return f"rank-{rank:05d}-of-{world:05d}.safetensors"


def redact_keys(datasets: Mapping[str, str]) -> dict[str, str]:
    """``datasets`` by URIs that hold no secret."""
    return {redact(uri): digest for uri, digest in datasets.items()}


def find(run_dir: str) -> list[StoredCheckpoint]:
    """The checkpoints below ``run_dir``, newest first, whole or not; without those that are being written to
    a local disk."""
    sizes: dict[str, dict[str, int]] = {}
    for name, size in store.sizes(folder(run_dir)).items():
        head, _, rest = name.partition("/")
        if rest and _STEP.fullmatch(head):
            sizes.setdefault(head, {})[rest] = size
    found = [
        StoredCheckpoint(int(head.removeprefix("step-")), store.join(folder(run_dir), head), files)
        for head, files in sizes.items()
    ]
    return sorted(found, key=lambda one: one.step, reverse=True)


def published(run_dir: str, found: Sequence[StoredCheckpoint]) -> str | None:
    """Words for the newest checkpoint that was published, by those ``found`` and by latest.json; None if
    there never was one."""
    path = store.join(folder(run_dir), POINTER)
    steps = [one.step for one in found if MANIFEST in one.sizes or store.is_local(run_dir)]
    if store.exists(path):
        try:
            steps.append(int(json.loads(store.read_bytes(path))["step"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            steps.append(0)  # even a damaged pointer shows that there was one
    if not steps:
        return None
    return f"that of step {max(steps)}" if max(steps) else "one"


def leftovers(run_dir: str, *, step: int, keep_last: int, keep_every: int) -> Iterator[str]:
    """The URIs of the checkpoints that are not needed once that of ``step`` is published.

    Kept are, of those up to ``step``: the newest ``keep_last`` that are whole as far as sizes tell, the
    damaged ones between them, and all whose step ``keep_every`` (0: none) divides. A checkpoint that was
    never finished is not kept. A newer one than ``step`` is kept: it must be damaged, or the run would have
    gone on from it.
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
    """The URIs of unfinished checkpoints on a local disk, of a process that was killed or failed."""
    path = store.local_path(folder(run_dir))
    names = sorted(entry.name for entry in os.scandir(path)) if path.is_dir() else []
    return [store.join(folder(run_dir), name) for name in names if _PARTIAL.fullmatch(name)]


def _is_whole(one: StoredCheckpoint) -> bool:
    try:
        one.manifest()
    except ValueError:  # damaged, or of another version
        return False
    return True


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
