"""Going on from the newest checkpoint that is whole, on any number of ranks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.process.exits import EverywhereError
from cluster.storage import store
from configs import redact
from trainer.core import collectives
from trainer.engine import partition
from trainer.engine.engine import Engine
from trainer.engine.optimizer_state import KINDS
from trainer.run.checkpoint import files, manifests, snapshot
from trainer.run.checkpoint.manifests import DamagedError, Manifest, redact_keys
from trainer.run.checkpoint.snapshot import TEACHER, Needs
from trainer.run.train_state import State

_NOTHING, _FAULT = "", "fault: "  # what rank 0 may say in place of a checkpoint


@dataclass(frozen=True)
class Resumed:
    """``step`` that the run goes on after, and the points that MLflow had not got yet."""

    step: int
    uri: str
    position: dict[str, object]
    metrics: bytes


def resume(
    run_dir: str, engine: Engine, state: State, *, datasets: Mapping[str, str], say: Callable[[str], None]
) -> Resumed | None:
    """``state`` and the student as the newest whole checkpoint below ``run_dir`` has them; None if there is
    none.

    A collective: rank 0 chooses, every rank reads what its own partition needs, and if any finds its part
    damaged, all go to the checkpoint before. ``datasets``: URI -> sha256 of its manifest. ``say`` hears of
    those passed over.

    Raises:
        ValueError: on all ranks, the checkpoint is of another wiring or dataset, or the store does not
        answer.
        EverywhereError: it has another version of the format; or there were checkpoints, and none can be
        read.
    """
    group, device = engine.group, engine.device
    tried = _Tries(run_dir, say)
    choices = tried.choices() if group.rank == 0 else iter(())
    while True:
        text = collectives.text_from_first(group, next(choices, _NOTHING), device=device)
        if text.startswith(_FAULT):
            raise EverywhereError(text.removeprefix(_FAULT))
        if text == _NOTHING:
            return None
        uri, _, content = text.partition("\n")
        manifest = Manifest.from_bytes(content.encode())
        collectives.raise_together(group, _another(uri, manifest, engine, datasets), device=device)
        needs = Needs.of(engine)
        parts, fault, outage = None, None, None
        try:
            parts = _read(uri, manifest, needs, metrics=group.rank == 0)
        except store.TransientError as reason:
            outage = str(
                reason
            )  # of a store that may be back soon; to pass over what is whole would lose steps
        except (DamagedError, store.StoreError) as reason:
            fault = str(reason)
        collectives.raise_together(group, outage, device=device)
        faults = torch.tensor(int(fault is not None), device=device)
        broken = int(collectives.sum_over_ranks(group, faults))
        if parts and not broken:
            break
        if fault or group.rank == 0:
            tried.passed_over(uri, fault or f"{broken} of the other ranks cannot read their parts")
    saved, common, metrics = parts
    snapshot.put_back_shared(common, engine, state)
    snapshot.put_back(saved, needs, engine, state, applied=manifest.applied)
    state.step, state.skipped = manifest.step, manifest.skipped
    state.guard.restore(manifest.guard)
    for step, (losses, _) in state.skipped_ids.items():
        losses |= {name: float(loss) for name, loss in manifest.skipped_losses[str(step)].items()}
    return Resumed(manifest.step, uri, manifest.position, metrics)


class _Tries:
    """The checkpoints of a run as rank 0 goes through them, and what was wrong with each."""

    def __init__(self, run_dir: str, say: Callable[[str], None]) -> None:
        self._run_dir, self._say = run_dir, say
        self._faults: list[str] = []

    def choices(self) -> Iterator[str]:
        """URI, a line's end, and the manifest of each that seems whole, newest first; or why the run cannot
        begin."""
        try:
            there = manifests.find(self._run_dir)
            published = manifests.published(self._run_dir, there)
            for found in there:
                try:
                    manifest = found.manifest()
                except DamagedError as fault:
                    self.passed_over(found.uri, str(fault))
                else:
                    yield f"{found.uri}\n{manifest.to_bytes().decode()}"
        except (store.StoreError, ValueError) as fault:
            yield f"{_FAULT}{fault}"
            return
        if published:
            first = self._faults[0] if self._faults else "its folder is gone"
            yield (
                f"{_FAULT}no checkpoint of {self._run_dir} can be read, though {published} was published "
                f"({first}); bring it back, or give another run.dir to begin anew"
            )

    def passed_over(self, uri: str, fault: str) -> None:
        self._faults.append(f"{uri}: {fault}")
        self._say(redact(f"warning: passed over the checkpoint {uri}: {fault}"))


def _another(uri: str, manifest: Manifest, engine: Engine, datasets: Mapping[str, str]) -> str | None:
    """What makes the checkpoint one of another run, in a sentence."""
    wiring, datasets = engine.network.backbone.wiring_sha256(), redact_keys(datasets)
    if manifest.wiring != wiring:
        return (
            f"{uri} was saved by a model of wiring {manifest.wiring[:12]}, this one's is {wiring[:12]}; go "
            f"on with "
            "the version of this package that saved it"
        )
    for name in sorted(datasets.keys() | manifest.datasets.keys()):
        here, there = (digests.get(name, "none")[:12] for digests in (datasets, manifest.datasets))
        if here != there:
            return (
                f"{uri} was trained on {name} with manifest {there}, which is {here} now; give the dataset "
                f"that it "
                "was trained on, or another run.dir"
            )
    return None


def _read(
    uri: str, manifest: Manifest, needs: Needs, *, metrics: bool
) -> tuple[dict[str, partition.Fragments], dict[str, Tensor], bytes]:
    """(fragments by kind, shared tensors, points for MLflow if ``metrics``), each file checked against its
    hash.

    Only files that have entries of this rank's are read. DamagedError or StoreError, if one cannot be used.
    """
    ranges = needs.ranges()
    saved: dict[str, dict[str, list[tuple[int, Tensor]]]] = {kind: {} for kind in (TEACHER, *KINDS)}
    for name, file in manifest.files.items():
        wanted = {
            parameter: place
            for parameter, place in file.fragments.items()
            if _meets(place, ranges, parameter)
        }
        if not wanted:
            continue
        tensors = files.read(name, _checked(uri, manifest, name))
        for kind, by_name in saved.items():
            for parameter, (start, length) in wanted.items():
                part = tensors.get(f"{kind}/{parameter}")
                if part is None or part.numel() != length:
                    raise DamagedError(f"{name} lacks {kind}/{parameter} with {length} entries")
                by_name.setdefault(parameter, []).append((start, part))
    points = (
        _checked(uri, manifest, manifests.METRICS) if metrics and manifests.METRICS in manifest.files else b""
    )
    return dict(saved), files.read(manifests.SHARED, _checked(uri, manifest, manifests.SHARED)), points


def _checked(uri: str, manifest: Manifest, name: str) -> bytes:
    data = store.read_bytes(store.join(uri, name))
    manifest.files[name].check(name, data)
    return data


def _meets(place: tuple[int, int], ranges: Mapping[str, list[tuple[int, int]]], parameter: str) -> bool:
    """Whether a fragment has entries that this rank needs; one that no parameter is known for is read, to be
    named."""
    start, length = place
    if parameter not in ranges:
        return True
    return any(start < first + count and first < start + length for first, count in ranges[parameter])
