"""Going on from the newest checkpoint that is whole, on any number of ranks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from cluster.storage import store
from configs import redact
from trainer.core import collectives
from trainer.engine import partition
from trainer.engine.engine import Engine
from trainer.engine.optimizer_state import KINDS
from trainer.run.checkpoint import files, manifests, snapshot
from trainer.run.checkpoint.manifests import DamagedError, Manifest, redact_keys
from trainer.run.checkpoint.snapshot import TEACHER, Needs
from trainer.run.train_state import TrainState


@dataclass(frozen=True)
class Resumed:
    """``step`` that the run goes on after, and the points of MLflow that were saved with it."""

    step: int
    uri: str
    position: dict[str, object]
    metrics: bytes


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint that seems whole; rank 0 sends it to all."""

    uri: str
    manifest: Manifest


@dataclass(frozen=True)
class _Part:
    """What one rank reads of a checkpoint: fragments by kind, the tensors that all have alike, and on rank 0
    the points for MLflow."""

    fragments: Mapping[str, partition.Fragments]
    shared: Mapping[str, Tensor]
    metrics: bytes


def resume(
    run_dir: str,
    engine: Engine,
    state: TrainState,
    *,
    datasets: Mapping[str, str],
    say: Callable[[str], None],
) -> Resumed | None:
    """Where the run goes on: ``state`` and the student are then as in the newest whole checkpoint below
    ``run_dir``. None if there is no checkpoint.

    A collective: rank 0 chooses, every rank reads what its own partition needs, and if any rank finds its
    part damaged, all try the checkpoint before. ``datasets``: URI -> sha256 of its manifest, and URI of a BED
    of regions -> sha256 of its text. ``say`` gets a warning for each checkpoint that is passed over.

    Raises:
        ValueError: on all ranks, the checkpoint is of another wiring or dataset, or the store does not
            answer.
        EverywhereError: it has another version of the format; or there were checkpoints, and none can be
            read.
    """
    group, needs, search = engine.group, Needs.of(engine), _Search(run_dir, say)
    candidates = search.candidates() if group.rank == 0 else iter(())
    while True:
        candidate: _Candidate | None = None
        with collectives.first_rank_decides(group, store.StoreError, ValueError):
            candidate = next(candidates, None)
        candidate = collectives.object_from_first(group, candidate)
        if candidate is None:
            return None
        collectives.raise_together(group, _mismatch(candidate, engine, datasets))
        part = _read_together(candidate, needs, engine, search)
        if part is not None:
            _restore(part, candidate.manifest, needs, engine, state)
            manifest = candidate.manifest
            return Resumed(manifest.step, candidate.uri, manifest.position, part.metrics)


class _Search:
    """The checkpoints of a run as rank 0 goes through them, and what was wrong with each."""

    def __init__(self, run_dir: str, say: Callable[[str], None]) -> None:
        self._run_dir, self._say = run_dir, say
        self._faults: list[str] = []

    def candidates(self) -> Iterator[_Candidate]:
        """Each checkpoint that seems whole, newest first.

        Raises:
            StoreError: the store does not answer. ValueError: another version of the format wrote one, or
            none
                is left, although one was published.
        """
        there = manifests.find(self._run_dir)
        published = manifests.published(self._run_dir, there)
        for found in there:
            try:
                manifest = found.manifest()
            except DamagedError as fault:
                self.pass_over(found.uri, str(fault))
            else:
                yield _Candidate(found.uri, manifest)
        if published:
            first = self._faults[0] if self._faults else "its folder is gone"
            raise ValueError(
                f"no checkpoint of {self._run_dir} can be read, though {published} was published "
                f"({first}); bring it back, or give another run.dir to begin anew"
            )

    def pass_over(self, uri: str, fault: str) -> None:
        """Warn of a checkpoint that cannot be used."""
        self._faults.append(f"{uri}: {fault}")
        self._say(redact(f"warning: passed over the checkpoint {uri}: {fault}"))


def _mismatch(candidate: _Candidate, engine: Engine, datasets: Mapping[str, str]) -> str | None:
    """What makes the checkpoint one of another run, in a sentence; None if nothing does."""
    uri, manifest = candidate.uri, candidate.manifest
    wiring, datasets = engine.network.backbone.wiring_sha256(), redact_keys(datasets)
    if manifest.wiring != wiring:
        return (
            f"{uri} was saved by a model of wiring {manifest.wiring[:12]}, this one's is {wiring[:12]}; go "
            "on with the version of this package that saved it"
        )
    for name in sorted(datasets.keys() | manifest.datasets.keys()):
        here, there = (digests.get(name, "none")[:12] for digests in (datasets, manifest.datasets))
        if here != there:
            return (
                f"{uri} was trained on {name} with sha256 {there}, which is {here} now; give the data that "
                "it was trained on, or another run.dir"
            )
    return None


def _read_together(candidate: _Candidate, needs: Needs, engine: Engine, search: _Search) -> _Part | None:
    """This rank's part; None on all ranks if the part of any is damaged. ValueError if a store does not
    answer.

    A store may be back soon: to pass over a checkpoint that is whole would lose steps.
    """
    group = engine.group
    part, damage, outage = None, None, None
    try:
        part = _read(candidate, needs, metrics=group.rank == 0)
    except store.TransientError as fault:
        outage = str(fault)
    except (DamagedError, store.StoreError) as fault:
        damage = str(fault)
    collectives.raise_together(group, outage)
    damaged = sum(collectives.gather_objects(group, damage is not None))
    if not damaged:
        return part
    if damage or group.rank == 0:
        search.pass_over(candidate.uri, damage or f"{damaged} of the other ranks cannot read their parts")
    return None


def _read(candidate: _Candidate, needs: Needs, *, metrics: bool) -> _Part:
    """What this rank needs, each file checked against its hash; ``metrics``: the points for MLflow, too.

    Only files that have entries of this rank's are read. DamagedError or StoreError, if one cannot be used.
    """
    manifest, ranges = candidate.manifest, needs.ranges()
    fragments: dict[str, dict[str, list[tuple[int, Tensor]]]] = {kind: {} for kind in (TEACHER, *KINDS)}
    for name, file in manifest.files.items():
        needed = {
            parameter: place
            for parameter, place in file.fragments.items()
            if _is_needed(parameter, place, ranges)
        }
        if not needed:
            continue
        tensors = files.read(name, _checked(candidate, name))
        for kind, by_parameter in fragments.items():
            for parameter, (start, length) in needed.items():
                tensor = tensors.get(f"{kind}/{parameter}")
                if tensor is None or tensor.numel() != length:
                    raise DamagedError(f"{name} lacks {kind}/{parameter} with {length} entries")
                by_parameter.setdefault(parameter, []).append((start, tensor))
    has_points = metrics and manifests.METRICS in manifest.files
    points = _checked(candidate, manifests.METRICS) if has_points else b""
    return _Part(fragments, files.read(manifests.SHARED, _checked(candidate, manifests.SHARED)), points)


def _checked(candidate: _Candidate, name: str) -> bytes:
    data = store.read_bytes(store.join(candidate.uri, name))
    candidate.manifest.files[name].check(name, data)
    return data


def _is_needed(parameter: str, place: tuple[int, int], ranges: Mapping[str, list[tuple[int, int]]]) -> bool:
    """Whether a fragment has entries that this rank needs. One of an unknown parameter is read, to be
    named."""
    start, length = place
    if parameter not in ranges:
        return True
    return any(start < first + count and first < start + length for first, count in ranges[parameter])


def _restore(part: _Part, manifest: Manifest, needs: Needs, engine: Engine, state: TrainState) -> None:
    """``state`` and the student become what was saved; a collective."""
    snapshot.restore_shared(part.shared, engine, state)
    snapshot.restore_shards(part.fragments, needs, engine, state, applied=manifest.applied)
    state.step, state.skipped = manifest.step, manifest.skipped
    state.guard.restore(manifest.guard)
    for step, (losses, _) in state.skipped_ids.items():
        losses |= {name: float(loss) for name, loss in manifest.skipped_losses[str(step)].items()}
