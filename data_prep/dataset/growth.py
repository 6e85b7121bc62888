"""A dataset that grows: which of its shards a new plan takes over, and how the new ones are called.

A shard is taken over if the plan has one of the same split and stretches, with letters of the same source.
New shards get numbers that no manifest of the dataset has ever had, so that each earlier manifest stays
valid.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import store
from data_prep.manifests import is_kept, open_manifest
from data_prep.shards import MANIFEST, SPLITS, Manifest, Shard, Source
from data_prep.split.intervals import Span

GROWTH = "growth.json"  # the plan of a growth that has not ended
_CHOOSE = ("contigs", "include", "exclude")  # filters that choose stretches and change no letter of one


@dataclass(frozen=True)
class Base:
    """The dataset that grows: its ``manifest``, whose file has sha256 ``digest``, and the names of all shards
    that this one or an earlier one lists."""

    manifest: Manifest
    digest: str
    listed: frozenset[str]

    @classmethod
    def of(cls, uri: str, there: Iterable[str]) -> "Base":
        """The finished dataset at ``uri``, a folder of the files ``there``. StoreError, FormatError: its
        manifest cannot be used."""
        opened = open_manifest(uri)
        manifests = [name for name in there if name == MANIFEST or is_kept(name)]
        listed = {name for each in manifests for name in _shard_names(store.join(uri, each))}
        return cls(opened.manifest, opened.digest, frozenset(listed))

    def names(
        self, groups: Sequence[tuple[str, Sequence[Span]]], sources: Sequence[Source]
    ) -> list[tuple[str, Shard | None]]:
        """Of each planned shard (split, stretches), its name, and the shard that is there already."""
        there = {
            _key(split, [Span.of(block) for block in shard.blocks], self.manifest.sources): shard
            for split in SPLITS
            for shard in self.manifest.shards[split]
        }
        free, found = Counter[str](), list[tuple[str, Shard | None]]()
        for name in self.listed:
            split, number = name.removesuffix(".tar").split("-")
            free[split] = max(free[split], int(number) + 1)
        for split, spans in groups:
            shard = there.get(_key(split, spans, sources))
            found.append((shard.name if shard else f"{split}-{free[split]:06d}.tar", shard))
            free[split] += shard is None
        return found


@dataclass(frozen=True)
class Grown:
    """What a growth did: shards taken over, and the assemblies that are new, changed or gone."""

    kept_shards: int
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


def grown(base: Base, manifest: Manifest) -> Grown:
    """How ``manifest`` differs from that of ``base``."""
    before = {split: {shard.name for shard in base.manifest.shards[split]} for split in SPLITS}
    old, new = ({source.name: source for source in each.sources} for each in (base.manifest, manifest))
    return Grown(
        sum(shard.name in before[split] for split in SPLITS for shard in manifest.shards[split]),
        tuple(name for name in new if name not in old),
        tuple(name for name in new if name in old and _letters(new[name]) != _letters(old[name])),
        tuple(name for name in old if name not in new),
    )


def _shard_names(uri: str) -> list[str]:
    shards = json.loads(store.read_bytes(uri))["shards"]
    return [shard["name"] for split in SPLITS for shard in shards[split]]


def _key(split: str, spans: Sequence[Span], sources: Sequence[Source]) -> tuple[Any, ...]:
    source = next(source for source in sources if source.name == spans[0].assembly)
    return split, tuple(spans), _letters(source)


def _letters(source: Source) -> str:
    """What determines the letters of a source, at whatever place."""
    filters: Mapping[str, Any] = {key: of for key, of in source.filters.items() if key not in _CHOOSE}
    return json.dumps([source.name, source.sha256, filters], sort_keys=True)
