"""A dataset that grows: which of its shards a new plan takes over, and how the new ones are called.

A shard is taken over if the plan has one of the same split and stretches, with letters of the same source.
New shards get numbers that no manifest of the dataset has ever had, so that each earlier manifest stays
valid.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_prep.config import WEIGHTS
from data_prep.manifests import is_kept, open_manifest, read_manifest
from data_prep.shards import SPLITS, Manifest, Shard, Source
from data_prep.split.intervals import Span

GROWTH = "growth.json"  # the plan of a growth that has not ended
_NO_LETTERS = ("contigs", "include", "exclude", WEIGHTS)  # filters that change no letter of a stretch
_BY_ALIAS = {"repeats", "track", "haplotype"}  # of files that may name contigs otherwise


@dataclass(frozen=True)
class Base:
    """The dataset that grows: its ``manifest``, whose file has sha256 ``digest``, and ``earlier`` ones."""

    manifest: Manifest
    digest: str
    earlier: tuple[Manifest, ...]

    @classmethod
    def of(cls, uri: str, there: Iterable[str]) -> "Base":
        """The finished dataset at ``uri``, a folder of the files ``there``. StoreError, FormatError: its
        manifest, or one that it keeps, cannot be used."""
        opened = open_manifest(uri)
        earlier = tuple(read_manifest(uri, name)[0] for name in sorted(filter(is_kept, there)))
        return cls(opened.manifest, opened.digest, earlier)

    @cached_property
    def listed(self) -> dict[str, tuple[str, Shard, Manifest]]:
        """name -> (split, shard, a manifest that lists it), the present manifest before others."""
        return {
            shard.name: (split, shard, manifest)
            for manifest in (*self.earlier, self.manifest)
            for split in SPLITS
            for shard in manifest.shards[split]
        }

    def names(
        self, groups: Sequence[tuple[str, Sequence[Span]]], sources: Sequence[Source]
    ) -> list[tuple[str, Shard | None]]:
        """Of each planned shard (split, stretches), its name, and the shard that is there already."""
        letters = {id(each): _letters_of(each.sources) for each in (self.manifest, *self.earlier)}
        there = {
            _key(split, [Span.of(block) for block in shard.blocks], letters[id(manifest)]): shard
            for split, shard, manifest in self.listed.values()
        }
        wanted = _letters_of(sources)
        free, found = Counter[str](), list[tuple[str, Shard | None]]()
        for name in self.listed:
            split, number = name.removesuffix(".tar").split("-")
            free[split] = max(free[split], int(number) + 1)
        for split, spans in groups:
            shard = there.get(_key(split, spans, wanted))
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
    old, new = ({source.name: source for source in each.sources} for each in (base.manifest, manifest))
    return Grown(
        sum(shard.name in base.listed for split in SPLITS for shard in manifest.shards[split]),
        tuple(name for name in new if name not in old),
        tuple(name for name in new if name in old and _letters(new[name]) != _letters(old[name])),
        tuple(name for name in old if name not in new),
    )


def _key(split: str, spans: Sequence[Span], letters: Mapping[str, str]) -> tuple[Any, ...]:
    return split, tuple(spans), letters[spans[0].assembly]


def _letters_of(sources: Sequence[Source]) -> dict[str, str]:
    """name -> what determines the letters of each source."""
    return {source.name: _letters(source) for source in sources}


def _letters(source: Source) -> str:
    """What determines the letters of a source, at whatever place."""
    unused = _NO_LETTERS if source.filters.keys() & _BY_ALIAS else (*_NO_LETTERS, "aliases")
    filters: Mapping[str, Any] = {key: of for key, of in source.filters.items() if key not in unused}
    return json.dumps([source.name, source.sha256, filters], sort_keys=True)
