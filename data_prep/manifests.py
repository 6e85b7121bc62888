"""The manifest of a dataset, from its folder: the present one, or one that a growth has kept."""

import hashlib
import json
from dataclasses import dataclass

from cluster.storage import store
from data_prep.partners import file_of
from data_prep.shards import MANIFEST, SPLITS, FormatError, Manifest

_KEPT = "manifest-{}.json"
_DIGITS = 16


@dataclass(frozen=True)
class Opened:
    """A manifest and the sha256 of its file; ``is_kept``: the dataset has grown since."""

    manifest: Manifest
    digest: str
    is_kept: bool = False


class OtherManifestError(store.StoreError):
    """The dataset has another manifest than the one that was asked for, which is not kept."""


def kept_name(digest: str) -> str:
    """Name of the file that keeps the manifest of this sha256 once another one is the dataset's."""
    return _KEPT.format(digest[:_DIGITS])


def is_kept(name: str) -> bool:
    """Whether a file of this name keeps a manifest."""
    before, _, after = _KEPT.partition("{}")
    return name.startswith(before) and name.endswith(after) and len(name) == len(before + after) + _DIGITS


def open_manifest(uri: str, *, digest: str | None = None) -> Opened:
    """The manifest of the dataset at ``uri``; with ``digest`` the one of this sha256.

    Raises:
        StoreError: there is none. OtherManifestError: there is none of this sha256. FormatError: it cannot be
            used.
    """
    if not store.exists(store.join(uri, MANIFEST)):
        raise store.StoreError(f"no dataset at {uri}: {MANIFEST} is missing there; a build writes it last")
    manifest, found = read_manifest(uri, MANIFEST)
    if digest and found != digest:
        name = kept_name(digest)
        if not store.exists(store.join(uri, name)):
            raise OtherManifestError(
                f"the dataset at {uri} has manifest {found[:12]} now, not {digest[:12]}, and {name} is not "
                "there"
            )
        manifest, kept = read_manifest(uri, name)
        if kept != digest:
            raise FormatError(f"{store.join(uri, name)}: it has sha256 {kept[:12]}, not {digest[:12]}")
        return Opened(manifest, digest, is_kept=True)
    return Opened(manifest, found)


def read_manifest(uri: str, name: str) -> tuple[Manifest, str]:
    """The manifest in the file ``name`` of the dataset at ``uri``, and its sha256. StoreError, FormatError:
    it cannot be read, or is none."""
    data = store.read_bytes(store.join(uri, name))
    try:
        manifest = Manifest.from_bytes(data, lambda other: store.read_bytes(store.join(uri, other)))
    except FormatError as fault:
        raise FormatError(f"{store.join(uri, name)}: {fault}") from fault
    return manifest, hashlib.sha256(data).hexdigest()


def files_of(uri: str, name: str) -> set[str]:
    """The files that the manifest in the file ``name`` names: shards, index files, the partner table."""
    tree = json.loads(store.read_bytes(store.join(uri, name)))
    named = {shard["name"] for split in SPLITS for shard in tree["shards"][split]}
    named |= {entry["name"] for entry in tree.get("index", ())}
    return named | ({file_of(tree["partners"])} if tree.get("partners") else set())
