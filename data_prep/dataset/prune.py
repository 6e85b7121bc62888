"""The files that earlier manifests of a dataset need, removed where nobody goes on with them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.storage import store
from data_prep.dataset.growth import GROWTH
from data_prep.dataset.output import LEAKAGE, Output, is_ours
from data_prep.manifests import files_of, is_kept
from data_prep.shards import BUILD_INFO, MANIFEST, SPLITS

_BESIDE = {MANIFEST, BUILD_INFO, LEAKAGE, *(f"{split}.bed" for split in SPLITS)}


@dataclass(frozen=True)
class Pruned:
    """What was removed: earlier manifests, all files with them, and their bytes."""

    manifests: int
    files: int
    bytes: int


def prune(uri: str, *, keep: Sequence[str] = ()) -> Pruned:
    """Removes the manifests that growths have kept, but those whose sha256 begins with one of ``keep``, and
    what only they need. A run that began with one of them cannot go on then.

    Cut short, it leaves the dataset whole, and the same command removes the rest.

    Raises:
        StoreError: there is no dataset. ValueError: a growth has not ended, or none is one of ``keep``.
    """
    output = Output(uri, overwrite=False)
    with output.alone():
        there = store.sizes(uri)
        if MANIFEST not in there:
            raise store.StoreError(f"no dataset at {uri}: {MANIFEST} is missing there")
        if GROWTH in there:
            raise ValueError(f"{uri}: a growth has not ended; run the same build to its end first")
        earlier = sorted(filter(is_kept, there))
        staying = [name for name in earlier if any(_begins(name, digest) for digest in keep)]
        for digest in keep:
            if not any(_begins(name, digest) for name in earlier):
                has = ", ".join(earlier) or "no earlier one"
                raise ValueError(f"{uri} keeps no manifest of sha256 {digest}; it has {has}")
        needed = _BESIDE.union(staying, *(files_of(uri, name) for name in (MANIFEST, *staying)))
        gone = [name for name in there if is_ours(name) and name not in needed]
        gone.sort(key=is_kept, reverse=True)  # manifests first: none may name what is not there
        for name in gone:
            store.remove(store.join(uri, name))
    manifests = len(earlier) - len(staying)
    return Pruned(manifests, len(gone), sum(there[name] for name in gone))


def _begins(name: str, digest: str) -> bool:
    """Whether the kept manifest ``name`` may have the sha256 ``digest``, of which the beginning suffices."""
    own = name.removesuffix(".json").rpartition("-")[2]
    return bool(digest) and (own.startswith(digest) or digest.startswith(own))
