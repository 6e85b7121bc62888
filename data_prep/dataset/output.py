"""The folder that a dataset is written to: what it holds already, and the order in which files are written.

``build.json`` is written first and holds the plan: the same command goes on from the shards of a build that
was cut short, and another plan is refused. ``manifest.json`` is written last, after a check of all that it
names.

A dataset that grows has a manifest all the time: the earlier one until ``manifest.json`` is replaced, in one
moment, by the new one. Then the files that follow from it are written, and until that is done ``growth.json``
holds the plan, so that the same command goes on after a kill at any moment.
"""

import contextlib
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from cluster.storage import store
from cluster.storage.lock import exclusive
from configs import ConfigError, redact
from data_prep.config import WEIGHTS
from data_prep.dataset.growth import GROWTH, Base
from data_prep.dataset.plan import Chunk, Plan
from data_prep.dataset.read import load_manifest
from data_prep.manifests import is_kept, kept_name
from data_prep.partners import described, file_of, settings_of
from data_prep.shards import BUILD_INFO, INDEX_STEM, INDEX_SUFFIX, MANIFEST, SPLITS, Manifest, Shard
from data_prep.sources.reference import cache_dir
from data_prep.split.intervals import bed_bytes
from data_prep.split.leakage import Leakage

LEAKAGE = "leakage.json"
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")
_UNFINISHED = re.compile(rf"\.{_SHARD.pattern}\..+")  # as store.publish names what it writes
_OURS = re.compile(
    rf"{_UNFINISHED.pattern}|{_SHARD.pattern}|({'|'.join(SPLITS)})\.bed|(leakage|manifest|growth)\.json"
    rf"|{INDEX_STEM}[0-9a-f]+{re.escape(INDEX_SUFFIX)}|manifest-[0-9a-f]+\.json|partners(-[0-9a-f]+)?\.bin"
)
_ADVICE = "pass overwrite=true to replace it, or another output"
_GROW = "pass overwrite=true to replace it, grow=true to change it into this one, or another output"
_TAKEN = "another build took {} meanwhile, so this one wrote no manifest"


def is_ours(name: str) -> bool:
    """Whether a build writes files of this name, build.json aside."""
    return bool(_OURS.fullmatch(name))


def refuse_folder(uri: str) -> None:
    """ValueError where a file is to be written and ``uri`` is a folder."""
    if uri.endswith("/") or (store.is_local(uri) and store.local_path(uri).is_dir()):
        raise ValueError(f"{uri} is a folder; give the name of a file in it")


def compressed(file: IO[bytes], name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Writes into ``file``, as gzip where its ``name`` ends in .gz."""
    if not name.lower().endswith(".gz"):
        return contextlib.nullcontext(file)
    return gzip.GzipFile("", "wb", fileobj=file, mtime=0)  # type: ignore[return-value]


@dataclass(frozen=True)
class Files:
    """What a build made: the shards, which are written, and what is written after them."""

    shards: dict[str, tuple[Shard, ...]]
    report: Leakage | None = None
    partners: bytes | None = None


class Output:
    """The dataset at ``uri``, finished or not."""

    def __init__(self, uri: str, *, overwrite: bool, grow: bool = False) -> None:
        if store.is_local(uri) and store.exists(uri) and not store.local_path(uri).is_dir():
            raise ConfigError(f"output {uri} is a file; a dataset is a folder, so give another name")
        self.uri, self._overwrite, self._grow = uri, overwrite, grow
        self.there = store.sizes(uri)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock of this output on this machine. ValueError if another build has it."""
        place = hashlib.sha256(store.identity(self.uri).encode()).hexdigest()[:32]
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(exclusive(cache_dir() / f"output-{place}.lock", wait_s=0))
            except BlockingIOError as fault:
                raise ValueError(
                    f"another build on this machine is writing to {self.uri}; wait for it"
                ) from fault
            yield

    def base(self) -> Base | None:
        """The finished dataset here, where it is to grow or has grown: what is written anew then leaves its
        earlier manifests as they are."""
        self.there = store.sizes(self.uri)
        grows = self._grow or GROWTH in self.there or any(map(is_kept, self.there))
        return (
            Base.of(self.uri, self.there)
            if grows and not self._overwrite and MANIFEST in self.there
            else None
        )

    def finished(self, plan: Plan, *, report: bool, told: Sequence[str] = ()) -> Manifest | None:
        """The manifest, if the dataset of ``plan`` is here whole: every file in its full size, with
        ``report`` a leakage report, and in build.json what is to be ``told``.

        Raises:
            ValueError: another dataset is here, finished or not, or other files; not with overwrite.
        """
        self.there = store.sizes(self.uri)
        if not self.there or self._overwrite:
            return None
        if MANIFEST in self.there:
            manifest = load_manifest(self.uri)
            settings = json.loads(replace(manifest, shards={}).to_bytes())
            if not self._grow:
                _refuse_another(self.uri, "another dataset", settings, plan.manifest, advice=_GROW)
            if _differing(settings, plan.manifest) or GROWTH in self.there:
                return None
            if not set(told) <= (self._read_info() or {}).keys():
                return None
            sizes = {shard.name: shard.bytes for split in SPLITS for shard in manifest.shards[split]}
            if manifest.partners:
                sizes[file_of(manifest.partners)] = manifest.partners["bytes"]
            wanted = [*(f"{split}.bed" for split in SPLITS), *([LEAKAGE] if report else [])]
            whole = all(self.there.get(name) == size for name, size in sizes.items())
            return manifest if whole and self.there.keys() >= set(wanted) else None
        old = self._plan()
        if old is None:
            raise ValueError(
                f"{self.uri} is not empty and has no {MANIFEST} (other files, or an older build); {_ADVICE}"
            )
        _refuse_another(self.uri, "an unfinished build of another dataset", old, plan.manifest)
        return None

    def claim(self, plan: Plan, info: dict[str, Any]) -> set[str]:
        """The names of the shards of ``plan`` that an earlier build left. Other files of an earlier build are
        removed, its manifest first; of a dataset that grows nothing is."""
        if plan.base:
            self._write_plan(GROWTH, plan, info)
            planned = {chunk.name for chunk in plan.chunks() if self._is_to_write(chunk)}
            for name in filter(_SHARD.fullmatch, self.there):
                if name not in planned and name not in plan.base.listed:
                    store.remove(store.join(self.uri, name))
            return planned & self.there.keys()
        resumed = MANIFEST not in self.there and _differing(self._plan(), plan.manifest) == []
        keep = resumed or not self._overwrite
        found = {chunk.name for chunk in plan.chunks()} & self.there.keys() if keep else set()
        if MANIFEST in self.there:
            store.remove(store.join(self.uri, MANIFEST))
        self._write_plan(BUILD_INFO, plan, info)
        for name in filter(_OURS.fullmatch, self.there):
            if name not in found and name != MANIFEST:
                store.remove(store.join(self.uri, name))
        return found

    def _is_to_write(self, chunk: Chunk) -> bool:
        """Whether its shard is not there whole, as an earlier manifest has it."""
        return chunk.kept is None or self.there.get(chunk.name) != chunk.kept.bytes

    def kept(self, plan: Plan) -> dict[str, Shard]:
        """name -> the shards that a growth takes over as they are. Call it after ``claim``."""
        return {c.name: c.kept for c in plan.chunks() if c.kept and not self._is_to_write(c)}

    def settle(self, shards: Sequence[Shard]) -> None:
        """Checks that every shard is there in full size, and removes what killed workers left.

        Raises:
            ValueError: a shard is missing or of another size.
        """
        there = store.sizes(self.uri)
        for shard in shards:
            if shard.name not in there:
                raise ValueError(
                    f"{self.uri}: {shard.name} was written by a worker but is not seen from here; "
                    "workers and this process need one file system or an object store"
                )
            if there[shard.name] != shard.bytes:
                raise ValueError(
                    f"{self.uri}: {shard.name} was written with {shard.bytes} bytes and has "
                    f"{there[shard.name]}"
                )
        for name in filter(_UNFINISHED.fullmatch, there):
            store.remove(store.join(self.uri, name))

    def finish(self, plan: Plan, files: Files, info: dict[str, Any]) -> Manifest:
        """The manifest, written last, after BED files, report, partner table and build.json; of a dataset
        that grows before those, which follow from it.

        Raises:
            ValueError: a build with another plan took this output meanwhile.
        """
        self.there = store.sizes(self.uri)
        name = GROWTH if plan.base else BUILD_INFO
        if _differing(self._plan(name), plan.manifest) != []:
            raise ValueError(_TAKEN.format(self.uri))
        manifest = replace(plan.manifest, shards=files.shards)
        if files.partners is not None:
            assert plan.manifest.partners, "a table that the plan does not want"
            partners = described(
                plan.manifest.partners, files.partners, base=plan.base.manifest if plan.base else None
            )
            manifest = replace(manifest, partners=partners)
            self._write(file_of(partners), files.partners)
        if plan.base:
            self._write_manifest(manifest, plan.base)
        for split in SPLITS:
            self._write(f"{split}.bed", bed_bytes(plan.parts[split]))
        if files.report:
            self._write(LEAKAGE, files.report.to_bytes())
        self._write_plan(BUILD_INFO, plan, info)
        if plan.base:
            store.remove(store.join(self.uri, GROWTH))
        else:
            self._write_manifest(manifest, None)
        return manifest

    def _write_manifest(self, manifest: Manifest, base: Base | None) -> None:
        """Writes ``manifest``, after what it names; that of ``base`` stays under another name."""
        for name, data in manifest.to_files().items():
            if name == MANIFEST and base and hashlib.sha256(data).hexdigest() != base.digest:
                before = store.read_bytes(store.join(self.uri, MANIFEST))
                if hashlib.sha256(before).hexdigest() != base.digest:
                    raise ValueError(_TAKEN.format(self.uri))
                self._write(kept_name(base.digest), before)
            self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        store.write_bytes(store.join(self.uri, name), data)

    def _write_plan(self, name: str, plan: Plan, info: dict[str, Any]) -> None:
        tree = redact(info) | {"plan": json.loads(plan.manifest.to_bytes())}
        self._write(name, json.dumps(tree, indent=1).encode() + b"\n")
        self.there[name] = 0

    def _plan(self, name: str = BUILD_INFO) -> Any:
        """The plan in the file ``name``; None if there is none."""
        try:
            plan = (self._read_info(name) or {})["plan"]
            return plan if isinstance(plan["sources"], list) else None
        except (KeyError, TypeError):
            return None

    def _read_info(self, name: str = BUILD_INFO) -> dict[str, Any] | None:
        """What the file ``name`` tells; None if it is not there, or damaged."""
        if name not in self.there:
            return None
        try:
            found = json.loads(store.read_bytes(store.join(self.uri, name)))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def write_licences(self, licences: Mapping[str, str | None]) -> bool:
        """Whether build.json of the finished dataset had others of its references, and was written anew."""
        info = self._read_info()
        references = (info or {}).get("config", {}).get("references", [])
        if info is None or all(each.get("licence") == licences.get(each["name"]) for each in references):
            return False
        for each in references:
            each["licence"] = licences.get(each["name"])
        self._write(BUILD_INFO, json.dumps(info, indent=1).encode() + b"\n")
        return True

    def earlier_manifests(self) -> int:
        """How many earlier manifests are here."""
        return sum(map(is_kept, self.there))


def _refuse_another(uri: str, what: str, old: Any, new: Manifest, *, advice: str = _ADVICE) -> None:
    if differing := _differing(old, new):
        raise ValueError(f"{uri} holds {what} (it differs in {', '.join(differing)}); {advice}")


def _differing(old: Any, new: Manifest) -> list[str] | None:
    """The keys in which ``old`` (a manifest as JSON) differs from the plan ``new``; None if there is no
    ``old``."""
    if old is None:
        return None
    one, two = _comparable(old), _comparable(json.loads(new.to_bytes()))
    return [key for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]


def _comparable(tree: dict[str, Any]) -> dict[str, Any]:
    """``tree`` without what follows from the rest: the shards, counts and weights, which dropping changes."""
    sources = [
        {
            key: value
            for key, value in source.items()
            if key != "iupac_to_n" and not (key == "weight" and WEIGHTS in source["filters"])
        }
        for source in tree["sources"]
    ]
    return tree | {"shards": None, "sources": sources, "partners": settings_of(tree.get("partners"))}
