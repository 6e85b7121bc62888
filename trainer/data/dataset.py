"""One split of a dataset: its manifest, and its blocks by number, each read by one range request."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from cluster.storage import store
from configs import ConfigError, redact
from data_prep import alphabet, partners, shards
from data_prep.blocks import PackedBlock
from data_prep.manifests import OtherManifestError, open_manifest
from data_prep.partners import PartnerTable
from trainer.data.block_cache import DiskCache, python_warning
from trainer.data.config import Data


class EmptySplitError(ValueError):
    """The dataset has no block in the split that was asked for."""


class Dataset:
    """One split of a dataset: its manifest and its blocks, each read by one range request."""

    def __init__(
        self, uri: str, split: str, *, cache: DiskCache | None = None, digest: str | None = None
    ) -> None:
        """``cache`` keeps the blocks that are read, for a remote dataset. ``digest``: sha256 of the manifest
        that is wanted, should the dataset have grown since; default: the present one.

        Raises:
            StoreError, FormatError: there is no manifest, or it is not one. EmptySplitError: the split has no
                block.
        """
        self.uri, self.split, self._cache = uri, split, cache
        opened = open_manifest(uri, digest=digest)
        self.manifest, self.digest, self.has_grown = opened.manifest, opened.digest, opened.is_kept
        self.blocks = self.manifest.blocks(split)
        if not self.blocks:
            raise EmptySplitError(
                f"dataset {uri} has no block in its {split} split; give split.{split} and build it again"
            )

    def block(self, number: int) -> PackedBlock:
        """The packed block, its crc32 checked.

        Raises:
            StoreError, FormatError: it cannot be read or is damaged; the sentence names shard and block.
        """
        shard, entry = self.blocks[number]
        key = hashlib.sha256(f"{shard.sha256} {entry.offset}".encode()).hexdigest() if self._cache else ""
        if self._cache and (kept := self._cache.get(key)) is not None:
            try:
                return self._checked(kept, entry)
            except shards.FormatError:  # the copy in the cache is damaged: read the original
                self._cache.drop(key)
        uri = store.join(self.uri, shard.name)
        payload = store.read_bytes(uri, entry.offset, entry.offset + entry.size)
        try:
            found = self._checked(payload, entry)
        except shards.FormatError as fault:
            raise shards.FormatError(f"{self.where(number)}: {fault}") from fault
        if self._cache:
            self._cache.put(key, payload)
        return found

    def codes(self, number: int) -> alphabet.Codes:
        """uint8 [bp], all letters of a block. StoreError or FormatError if it is damaged."""
        block = self.block(number)
        return block.codes(0, block.bases)

    def partners(self) -> PartnerTable | None:
        """The partner table; None if the dataset was built without. FormatError or StoreError if it cannot be
        used."""
        if self.manifest.partners is None:
            return None
        where = store.join(self.uri, partners.file_of(self.manifest.partners))
        try:
            return partners.load(self.manifest, store.read_bytes(where))
        except shards.FormatError as fault:
            raise shards.FormatError(f"{where}: {fault}; run data_prep verify") from fault

    def where(self, number: int) -> str:
        """Shard and interval of a block, for messages."""
        shard, entry = self.blocks[number]
        return f"shard {store.join(self.uri, shard.name)}, block {entry.contig}:{entry.start}-{entry.end}"

    def locus(self, number: int) -> tuple[int, int]:
        """(an int64 hash of a block's reference and contig, the block's start there in bp).

        The same in every dataset that was made of the same reference.
        """
        columns = self.blocks.columns
        return self._hashes[columns.place_N[number]], int(columns.start_N[number])

    @cached_property
    def _hashes(self) -> list[int]:
        """Of each place of the blocks' columns."""
        sha256 = {source.name: source.sha256 for source in self.manifest.sources}
        digests = [
            hashlib.sha256(f"{sha256[assembly]} {contig}".encode()).digest()
            for assembly, contig in self.blocks.columns.places
        ]
        return [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]

    @staticmethod
    def _checked(payload: bytes, entry: shards.Block) -> PackedBlock:
        found = PackedBlock(payload)
        if found.bases != entry.bp:
            raise shards.FormatError(f"a block has {found.bases} bases, its manifest says {entry.bp}")
        return found

    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[blocks]: how often an epoch reads each block, the weight of its source."""
        weights = {source.name: source.weight for source in self.manifest.sources}
        columns = self.blocks.columns
        return np.array([weights[assembly] for assembly, _ in columns.places], np.float64)[columns.place_N]

    def bp(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """int64 [blocks]: the size of each block."""
        return self.blocks.columns.bp_N.astype(np.int64)


def check_tracks(datasets: Sequence[Dataset], *, warn: Callable[[str], None]) -> None:
    """Calls ``warn`` with the assemblies of these splits that were built without a track: each of their
    letters counts 1.

    Raises:
        ConfigError: none was built with one.
    """
    tracked, without = False, dict[str, None]()
    for dataset in datasets:
        used = {assembly for assembly, _ in dataset.blocks.columns.places}
        for source in dataset.manifest.sources:
            if source.name in used and "track" in source.filters:
                tracked = True
            elif source.name in used:
                without[source.name] = None
    if not tracked:
        uris = ", ".join(redact(dataset.uri) for dataset in datasets)
        raise ConfigError(
            f"loss.mlm.track_floor is given, but no letter of {uris} has a weight in its "
            f"{datasets[0].split} split; build it with references.0.track, or leave the key out"
        )
    if without:
        warn(f"no track: each letter of {', '.join(without)} counts 1")


def open_datasets(
    data: Data,
    split: str,
    *,
    some_empty: bool = False,
    digests: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = python_warning,
) -> dict[int, Dataset]:
    """The datasets of ``data.uri`` by their place in it; remote ones are read through the cache on disk.

    With ``some_empty`` datasets without this split are left out, unless all of them are without it.
    ``digests``: of a run that goes on, URI without secrets -> sha256 of the manifest that it began with.
    Where a dataset has grown since, that manifest is opened; where it is not kept, the present one is opened,
    and it is for the caller to compare their sha256.

    Raises: what Dataset raises.
    """
    cache = DiskCache(data.cache_folder, data.cache_bytes, warn=warn) if data.cache_bytes else None
    found: dict[int, Dataset] = {}
    empty: list[EmptySplitError] = []
    for number, part in enumerate(data.uri):
        try:
            wanted = (digests or {}).get(redact(part.uri))
            found[number] = _open(part.uri, split, None if store.is_local(part.uri) else cache, wanted)
        except EmptySplitError as fault:
            if not some_empty:
                raise
            empty.append(fault)
    if len(empty) == 1 and not found:
        raise empty[0]
    if not found:
        uris = ", ".join(part.uri for part in data.uri)
        raise EmptySplitError(
            f"none of the datasets {uris} has a block in its {split} split; give split.{split} and "
            "build one of them again"
        )
    return found


def _open(uri: str, split: str, cache: DiskCache | None, digest: str | None) -> Dataset:
    try:
        return Dataset(uri, split, cache=cache, digest=digest)
    except OtherManifestError:
        return Dataset(uri, split, cache=cache)
