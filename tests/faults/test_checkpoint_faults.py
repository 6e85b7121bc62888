"""Checkpoints that are damaged, and disks and stores that fail under them: what is said, what is gone on
from, and that it is the state of the step that it claims to be.

Every run here is of one config, so that its state after a step is known: ``base``.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch

from cluster.storage import store
from tests import s3 as s3_service
from tests.datasets import markov_sequence, write_dataset
from tests.dist import runs
from tests.dist.steps import small_config
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.distill.result import StepResult
from trainer.run.checkpoint import manifests, save
from trainer.run.checkpoint.save import SaveCallbacks, Saver

WORLD, LAST = 2, 3
METRICS = b'{"step": 1}\n'
Doing = Callable[[dict[str, Any]], contextlib.AbstractContextManager[None]]


# What the ranks run.


def stretches(
    cases: dict[str, dict[str, Any]], environment: dict[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """``runs.stretch`` of each case, with the injection that its ``doing`` names: what it gives, or its
    ``fault``.

    ``warned``: lines of the saver.
    """
    os.environ |= environment or {}
    return {name: _stretch(**case) for name, case in cases.items()}


def _stretch(doing: str = "", **case: Any) -> dict[str, Any]:
    hooks: dict[str, Any] = {"warned": [], "metrics": lambda: METRICS}
    hooks["say"] = hooks["warned"].append
    with contextlib.ExitStack() as stack:
        for name in doing.split():
            stack.enter_context(DOINGS[name](hooks))
        made = SaveCallbacks(
            **{name: hooks[name] for name in ("metrics", "before", "after", "say") if name in hooks}
        )
        stack.enter_context(mock.patch.object(runs, "Saver", functools.partial(Saver, callbacks=made)))
        try:
            found = runs.stretch(**case)
            del found["whole"]
        except (RuntimeError, ValueError, OSError) as fault:
            found = {"fault": f"{type(fault).__name__}: {fault}"}
    return found | {"warned": hooks["warned"], "seen": hooks.get("seen")}


@contextlib.contextmanager
def _small_files(hooks: dict[str, Any], steps: tuple[int, ...]) -> Iterator[None]:
    """Rank 1 cannot write files above 4 KiB while it saves ``steps``: of a full disk the kernel would say as
    little."""
    put, rank = save._put, Group.of().rank
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def instead(uri: str, tensors: Any) -> Any:
        if rank != 1 or not any(f"step-{step:08d}" in uri for step in steps):
            return put(uri, tensors)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            return put(uri, tensors)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with mock.patch.object(save, "_put", instead):
        yield


@contextlib.contextmanager
def _full_disk(hooks: dict[str, Any]) -> Iterator[None]:
    """The disk is full from the first checkpoint on until the first warning; ``seen``: what the failed save
    left."""
    filler, warned = list[Path](), hooks["warned"]

    def fill(uri: str, sha256: str) -> None:
        if filler:
            return
        filler.append(Path(uri).parents[1] / "filler")
        with contextlib.suppress(OSError), open(filler[0], "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def say(text: str) -> None:
        warned.append(text)
        hooks["seen"] = sorted(os.listdir(filler[0].parent / manifests.FOLDER))
        filler[0].unlink()

    hooks |= {"after": fill, "say": say}
    yield


@contextlib.contextmanager
def _lost(hooks: dict[str, Any], call: int) -> Iterator[None]:
    """run.dir is another run's at the ``call``-th time that it is asked for. Each save asks twice."""
    calls = 0

    def before() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise RuntimeError("run.dir is held by another run now")

    hooks["before"] = before
    yield


@contextlib.contextmanager
def _held_back(hooks: dict[str, Any]) -> Iterator[None]:
    """Nothing is written until the run waits for the save."""
    put, wait, go = save._put, Saver.wait, threading.Event()

    def late(uri: str, tensors: Any) -> Any:
        assert go.wait(60)
        return put(uri, tensors)

    def waiting(saver: Saver) -> None:
        if saver._thread:
            hooks["seen"] = saver._thread.is_alive()
            go.set()
        wait(saver)

    with mock.patch.object(save, "_put", late), mock.patch.object(Saver, "wait", waiting):
        yield


@contextlib.contextmanager
def _skipping(hooks: dict[str, Any]) -> Iterator[None]:
    """Step 2 has no finite loss; ``seen``: what is known of such steps after a resume."""
    train_step, resume = runs.train_step, runs.resume
    calls = 0

    def not_finite(*args: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        result = train_step(*args, **how)
        if calls != 2:
            return result
        losses = {"total": math.nan, "mlm": 0.1}
        read = dataclasses.replace(result._reduced, finite=False, losses=losses)
        return StepResult(lambda: read, result.states, result.health)

    def resumed(run_dir: str, engine: Any, state: Any, **how: Any) -> Any:
        nonlocal calls
        found = resume(run_dir, engine, state, **how)
        calls = state.step
        hooks["seen"] = {
            step: ({name: str(loss) for name, loss in losses.items()}, ids_B4.tolist())
            for step, (losses, ids_B4) in state.skipped_ids.items()
        }
        return found

    with mock.patch.object(runs, "train_step", not_finite), mock.patch.object(runs, "resume", resumed):
        yield


@contextlib.contextmanager
def _store_fault(hooks: dict[str, Any], name: str, part: str, fault: Exception) -> Iterator[None]:
    """store.NAME raises for a URI that has ``part`` in it."""
    original = getattr(store, name)

    def instead(uri: str, *args: Any) -> Any:
        if part in uri:
            raise fault
        return original(uri, *args)

    with mock.patch.object(store, name, instead):
        yield


DOINGS: dict[str, Doing] = {
    "rank-1-cannot-write-2": lambda hooks: _small_files(hooks, (2,)),
    "rank-1-cannot-write": lambda hooks: _small_files(hooks, (2, 3)),
    "full-disk": _full_disk,
    "lost-before-save-2": lambda hooks: _lost(hooks, 3),
    "lost-before-manifest-2": lambda hooks: _lost(hooks, 4),
    "held-back": _held_back,
    "skipping": _skipping,
    "no-pointer": lambda hooks: _store_fault(
        hooks, "write_bytes", "latest.json", store.StoreError("it is so")
    ),
    "killed-before-pointer": lambda hooks: _store_fault(
        hooks, "write_bytes", "latest.json", RuntimeError("killed")
    ),
    "kept": lambda hooks: _store_fault(hooks, "remove", "step-00000001/", store.StoreError("it is so")),
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    contigs = {"train": [markov_sequence(4_000, seed=1)], "val": [markov_sequence(1_000, seed=2)]}
    return write_dataset(tmp_path_factory.mktemp("toy"), contigs, block_bp=512, soft=True)


def config(uri: str, run_dir: object, **changes: Any) -> dict[str, Any]:
    return small_config(
        uri, run__dir=str(run_dir), data__workers=0, checkpoint={"keep_last": LAST}, **changes
    )


@pytest.fixture(scope="module")
def base(uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[str, str]]]:
    """(run.dir with checkpoints of steps 1, 2 and 3 of 2 ranks, hashes of the whole state after every
    step)."""
    folder = tmp_path_factory.mktemp("base") / "run"
    case = {"values": config(uri, folder), "until": LAST, "save_at": (1, 2, 3)}
    one = on_ranks(WORLD, stretches, {"base": case})[0]["base"]
    assert (one["warned"], names(folder)) == ([], ["latest.json", *map(step_name, (1, 2, 3))])
    return folder, one["hashes"]


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def names(run_dir: Path) -> list[str]:
    return sorted(os.listdir(run_dir / manifests.FOLDER))


def contents(run_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()
    }


# What is done to a checkpoint that lies there; ``at`` is run.dir/checkpoints.

RANKS = [manifests.rank_file(rank, WORLD) for rank in range(WORLD)]


def cut(at: Path, step: int, name: str) -> None:
    path = at / step_name(step) / name
    os.truncate(path, path.stat().st_size - 1)


def flip(at: Path, step: int, name: str) -> None:
    path = at / step_name(step) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def lose(at: Path, step: int, name: str) -> None:
    (at / step_name(step) / name).unlink()


def seal(at: Path, step: int = LAST, **changes: Any) -> None:
    """Another manifest, whose sha256 is right."""
    path = at / step_name(step) / manifests.MANIFEST
    content = json.loads(path.read_bytes()) | changes
    del content["sha256"]
    path.write_text(json.dumps({"sha256": manifests._digest(content), **content}))


def rewrite(at: Path, name: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """``change`` is given the tensors of the newest's file and its fragments; hashes and sizes are right
    afterwards."""
    path = at / step_name(LAST) / name
    files = json.loads((path.parent / manifests.MANIFEST).read_bytes())["files"]
    tensors = safetensors.torch.load_file(path)
    change(tensors, files[name]["fragments"])
    path.write_bytes(safetensors.torch.save(tensors))
    data = path.read_bytes()
    files[name] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(at, files=files)


def shorter(tensors: dict[str, Any], places: dict[str, Any]) -> None:
    name = next(iter(places))
    tensors[f"exp_avg/{name}"] = tensors[f"exp_avg/{name}"][:-1].clone()


def two_dimensions(tensors: dict[str, Any], places: dict[str, Any]) -> None:
    name = next(iter(places))
    tensors[f"master/{name}"] = tensors[f"master/{name}"][None]


def doubles(tensors: dict[str, Any], places: dict[str, Any]) -> None:
    name = next(iter(places))
    tensors[f"teacher/{name}"] = tensors[f"teacher/{name}"].double()


def another_name(tensors: dict[str, Any], places: dict[str, Any]) -> None:
    name = next(iter(places))
    for kind in ("teacher", "master", "exp_avg", "exp_avg_sq"):
        tensors[f"{kind}/another"] = tensors.pop(f"{kind}/{name}")
    places["another"] = places.pop(name)


def fewer(tensors: dict[str, Any], places: dict[str, Any]) -> None:
    places.pop(next(iter(places)))


def another_centre(tensors: dict[str, Any], places: dict[str, Any]) -> None:
    tensors["centre/distill"] = tensors["centre/distill"][:, :-1].clone()


def pointer(at: Path, content: str | None) -> None:
    (at / manifests.POINTER).unlink() if content is None else (at / manifests.POINTER).write_text(content)


def all_cut(at: Path) -> None:
    for step in (1, 2, 3):
        cut(at, step, manifests.SHARED)


def several(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda at: [damage(at) for damage in damages] and None


# name -> (damage, step that is gone on from, what is wrong with the newest)
PASSED: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "cut": (lambda at: cut(at, 3, RANKS[1]), 2, rf"{RANKS[1]} has \d+ bytes instead of \d+"),
    "flipped in rank 0": (lambda at: flip(at, 3, RANKS[0]), 2, f"{RANKS[0]} has another sha256 than when"),
    "flipped in rank 1": (lambda at: flip(at, 3, RANKS[1]), 2, f"{RANKS[1]} has another sha256 than when"),
    "flipped in shared": (
        lambda at: flip(at, 3, manifests.SHARED),
        2,
        "shared.safetensors has another sha256",
    ),
    "flipped metrics": (
        lambda at: flip(at, 3, manifests.METRICS),
        2,
        "metrics.jsonl has another sha256 than when",
    ),
    "no manifest": (lambda at: lose(at, 3, manifests.MANIFEST), 2, "it was not finished: it has no manifest"),
    "flipped manifest": (
        lambda at: flip(at, 3, manifests.MANIFEST),
        2,
        "manifest.json (has another|cannot be read)",
    ),
    "cut manifest": (lambda at: cut(at, 3, manifests.MANIFEST), 3, ""),  # of its last line's end only
    "half a manifest": (
        lambda at: os.truncate(at / step_name(3) / manifests.MANIFEST, 999),
        2,
        "manifest.json cannot",
    ),
    "no file of rank 1": (lambda at: lose(at, 3, RANKS[1]), 2, f"{RANKS[1]} is missing"),
    "no shared": (lambda at: lose(at, 3, manifests.SHARED), 2, "shared.safetensors is missing"),
    "two of three": (
        several(lambda at: cut(at, 3, RANKS[0]), lambda at: flip(at, 2, RANKS[0])),
        1,
        rf"{RANKS[0]} has \d+ bytes instead of \d+",
    ),
    "another step's": (
        lambda at: (at / step_name(3)).rename(at / step_name(4)),
        2,
        "its manifest is that of step 3",
    ),
    "a shorter fragment": (
        lambda at: rewrite(at, RANKS[0], shorter),
        2,
        rf"{RANKS[0]} lacks exp_avg/\S+ with \d+ entries",
    ),
    "no pointer": (lambda at: pointer(at, None), 3, ""),
    "stale pointer": (lambda at: pointer(at, '{"step": 2}'), 3, ""),
    "garbage for a pointer": (lambda at: pointer(at, "\0"), 3, ""),
    "pointer to nothing": (lambda at: pointer(at, '{"step": 9}'), 3, ""),
}
ALL = (
    r"EverywhereError: no checkpoint of \S+ can be read, though that of step 3 was published "
    r"\(\S+/step-00000003: "
    r"shared.safetensors has \d+ bytes instead of \d+\); bring it back, or give another run.dir to begin anew"
)
# name -> (damage, kind and sentence of the refusal)
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "all": (all_cut, ALL),
    "all and no pointer": (several(all_cut, lambda at: pointer(at, None)), ALL),
    "all and garbage": (several(all_cut, lambda at: pointer(at, "x")), ALL),
    "gone": (
        lambda at: [shutil.rmtree(at / step_name(step)) for step in (1, 2, 3)],
        r"EverywhereError: no checkpoint of \S+ can be read, though that of step 3 was published \(its "
        r"folder is "
        r"gone\); bring it back",
    ),
    "wiring": (
        lambda at: seal(at, wiring="f" * 64),
        r"ValueError: \S+/step-00000003 was saved by a model of wiring f{12}, this one's is [0-9a-f]{12}; "
        r"go on with the version of this package that saved it",
    ),
    "dataset": (
        lambda at: seal(at, datasets={"toy": "1" * 64}),
        r"ValueError: \S+/step-00000003 was trained on toy with sha256 1{12}, which is 0{12} now; give "
        r"the data that it was trained on, or another run.dir",
    ),
    "one dataset more": (
        lambda at: seal(at, datasets={"toy": "0" * 64, "x": "2" * 64}),
        r"ValueError: \S+ was trained on x with sha256 222222222222, which is none now",
    ),
    "version": (
        lambda at: seal(at, format_version=2),
        r"EverywhereError: \S+/step-00000003: it has format version 2 and this code reads 1; go on with the "
        r"version of this package that wrote it",
    ),
    "two dimensions": (
        lambda at: rewrite(at, RANKS[0], two_dimensions),
        r"ValueError: the saved master has \S+ from 0 on as torch.float32 of shape \(1, \d+\)",
    ),
    "doubles": (
        lambda at: rewrite(at, RANKS[0], doubles),
        r"ValueError: the saved teacher has \S+ from 0 on as torch.float64 of shape",
    ),
    "another name": (
        lambda at: rewrite(at, RANKS[0], another_name),
        "ValueError: the saved master has 1 parameters that this one has not: another; build",
    ),
    "fewer fragments": (
        lambda at: rewrite(at, RANKS[0], fewer),
        r"ValueError: the saved master lacks \d+ of \d+ entries of \S+ from 0 on; load the frag",
    ),
    "another centre": (
        lambda at: rewrite(at, manifests.SHARED, another_centre),
        "ValueError: the saved run has other centres or buffers than this one: centre/distill",
    ),
}


def said_by_some(faults: list[str], sentence: str) -> None:
    """Each rank's fault is ``sentence``, or another rank's: the same, which the first says, or none of its
    own."""
    aloud = [fault for fault in faults if not fault.startswith("ElsewhereError")]
    assert aloud and all(re.match(sentence, fault) for fault in aloud), faults
    others = "of the other ranks cannot go on, and say why"
    assert all(others in fault or fault.partition(": ")[2] in aloud[0] for fault in faults), faults


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.faults), 2])
def test_what_is_damaged_is_passed_over_and_what_is_another_runs_is_refused(
    uri: str, base: tuple[Path, dict[int, dict[str, str]]], tmp_path: Path, world: int
) -> None:
    cases, before = {}, {}
    for name, damage in [(name, what[0]) for name, what in (*PASSED.items(), *REFUSED.items())]:
        run_dir = tmp_path / name.replace(" ", "-")
        shutil.copytree(base[0], run_dir)
        damage(run_dir / manifests.FOLDER)
        before[name] = contents(run_dir)
        cases[name] = {"values": config(uri, run_dir), "until": 0, "resumed": True}
    found = on_ranks(world, stretches, cases)
    for name, (_, step, sentence) in PASSED.items():
        for rank in range(world):
            assert found[rank][name].get("hashes") == {step: base[1][step]}, (name, found[rank][name])
        said = [each[name]["said"] for each in found]
        assert bool(said[0]) == bool(sentence), (name, said)
        wanted = wanted_of(name)
        others = r"warning: passed over the checkpoint \S+: 1 of the other ranks cannot read their parts"
        newest = [line for lines in said for line in lines[:1] if step_name(2) not in line]
        assert not sentence or any(re.match(wanted, line) for line in newest), (name, said)
        assert all(re.match(f"{wanted}|{others}", line) for line in newest), (name, said)
    if world == 2:  # a rank reads what it needs, and no other rank's file
        for name, finders in {
            "flipped in rank 0": [[True], []],
            "flipped in rank 1": [[False], [True]],
            "flipped in shared": [[True], [True]],
        }.items():
            assert [
                [bool(re.match(wanted_of(name), line)) for line in each[name]["said"]] for each in found
            ] == finders
    for name, (_, sentence) in REFUSED.items():
        faults = [each[name].get("fault", "none") for each in found]
        said_by_some(faults, sentence)
    for name, files in before.items():
        assert contents(tmp_path / name.replace(" ", "-")) == files, name


def wanted_of(name: str) -> str:
    return rf"warning: passed over the checkpoint \S+/step-0000000[34]: {PASSED[name][2]}"


def test_disks_that_fail_and_runs_that_end_while_they_save(
    uri: str, base: tuple[Path, dict[int, dict[str, str]]], tmp_path: Path
) -> None:
    hashes, cases = base[1], dict[str, dict[str, Any]]()

    def case(name: str, doing: str, *, key: str = "", **changes: Any) -> Path:
        run_dir = tmp_path / name
        case = {"values": config(uri, run_dir), "until": 3, "save_at": (1, 2, 3), "doing": doing} | changes
        cases[key or name] = case
        return run_dir

    def again(name: str, **changes: Any) -> None:
        case(
            name,
            **({"doing": "", "key": f"{name} again", "until": 0, "save_at": (), "resumed": True} | changes),
        )

    failing = case("failing", "rank-1-cannot-write-2")
    again("failing")
    ending = case("ending", "rank-1-cannot-write")
    cases["ending"]["values"]["checkpoint"] = {"max_failed": 2}
    again("ending")
    before = case("before", "lost-before-save-2")
    manifest = case("manifest", "lost-before-manifest-2")
    again("manifest")
    case("manifest", "", key="manifest once more", until=2, save_at=(2,), resumed=True)
    pointed = case("pointer", "killed-before-pointer")
    again("pointer")
    case("held-back", "held-back", save_at=(1,))
    again("held-back")
    case("kept", "kept")
    cases["kept"]["values"]["checkpoint"] = {"keep_last": 2}
    cases["kept"]["values"]["run"]["dir"] = f"file://{tmp_path}/kept"
    case("no-pointer", "no-pointer")
    again("no-pointer")
    case("skipping", "skipping", save_at=(2,))
    again("skipping", doing="skipping")
    cases["skipping again"]["until"] = 3
    found = on_ranks(WORLD, stretches, cases)
    first, second = ({name: each.get("fault", "") for name, each in of_rank.items()} for of_rank in found)
    warned = {name: each["warned"] for name, each in found[0].items()}
    assert all(each["warned"] == [] for each in found[1].values()), "rank 0 speaks for all"

    here = "the checkpoint of step {} is not saved: rank 1 could not write its part"
    assert warned["failing"] == [
        f"warning: {here.format(2)}; the checkpoint before it stands, and the run goes on"
    ]
    assert names(failing) == ["latest.json", *map(step_name, (1, 3))]
    assert found[0]["failing again"]["hashes"] == {3: hashes[3]}

    assert [line.split(";")[0] for line in warned["ending"]] == [
        f"warning: {here.format(step)}" for step in (2, 3)
    ]
    end = (
        "; that is 2 checkpoints in a row, so the run ends here and can be taken up again from the last one "
        "that was "
        "saved"
    )
    assert first["ending"] == f"RuntimeError: {here.format(3)}{end}"
    why = f"cannot write {manifests.stage(str(ending), 3)}/{RANKS[1]}: File too large"
    assert second["ending"] == f"RuntimeError: the checkpoint of step 3 is not saved: {why}{end}"
    assert names(ending) == ["latest.json", step_name(1)]
    assert found[0]["ending again"]["hashes"] == {1: hashes[1]}

    for name in ("before", "manifest"):
        assert first[name] == "RuntimeError: run.dir is held by another run now"
        assert second[name] == "ElsewhereError: rank 0 cannot go on, and says why"
    assert names(before) == ["latest.json", step_name(1)], "nothing was written"
    assert json.loads((before / manifests.FOLDER / manifests.POINTER).read_bytes())["step"] == 1

    assert found[0]["manifest again"]["hashes"] == {1: hashes[1]}, (
        "files without their manifest are no checkpoint"
    )
    one, other = (contents(folder / manifests.FOLDER / step_name(2)) for folder in (manifest, base[0]))
    for content in (one, other):
        del content[manifests.MANIFEST]  # it has the run.dir
    assert one == other, "the second try left the bytes of a run that nothing befell"
    assert names(manifest) == ["latest.json", *map(step_name, (1, 2))]

    assert first["pointer"] == "RuntimeError: killed"
    assert second["pointer"] == "ElsewhereError: rank 0 cannot go on, and says why"
    assert names(pointed) == [step_name(1)], "renamed, and not pointed to"
    assert found[0]["pointer again"]["hashes"] == {1: hashes[1]}

    for of_rank in found:
        assert of_rank["held-back"]["seen"] is True, "the save was not under way while the steps went on"
        assert set(of_rank["held-back"]["trained"]) == {1, 2, 3}
        assert of_rank["held-back again"]["hashes"] == {1: hashes[1]}
    saved = [f"warning: it is so; the checkpoint of step {step} is saved all the same" for step in (1, 2, 3)]
    assert (warned["kept"], warned["no-pointer"]) == (saved[2:], saved)
    assert names(tmp_path / "kept") == ["latest.json", *map(step_name, (1, 2, 3))]
    assert found[0]["no-pointer again"]["hashes"] == {3: hashes[3]}
    skipping = found[0]["skipping"]
    assert (skipping["skipped"], skipping["applied"]) == (1, 2)
    for rank, of_rank in enumerate(found):
        one, other = of_rank["skipping"], of_rank["skipping again"]
        assert other["hashes"] == {step: one["hashes"][step] for step in (2, 3)}
        assert (other["skipped"], other["applied"], other["trained"][3]) == (1, 2, one["trained"][3])
        ids = one["trained"][2]["ids"][rank::WORLD]
        assert other["seen"] == {2: ({"total": "nan", "mlm": "0.1"}, ids)}, (
            "for the list of samples, should it go on"
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB: room for some checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(uri: str, small_disk: Path) -> None:
    values = config(uri, small_disk / "run")
    cases = {
        "full": {"values": values, "until": 3, "save_at": (1, 2, 3), "doing": "full-disk"},
        "again": {"values": values, "until": 0, "resumed": True},
    }
    found = on_ranks(1, stretches, cases)[0]
    (warning,) = found["full"]["warned"]
    partial = manifests.stage(values["run"]["dir"], 2)
    assert re.fullmatch(
        rf"warning: the checkpoint of step 2 is not saved: cannot write {partial}/\S+: No space left "
        r"on device; the checkpoint before it stands, and the run goes on",
        warning,
    ), warning
    assert found["full"]["seen"] == ["latest.json", step_name(1)], (
        "what could not be finished does not fill the disk"
    )
    assert names(small_disk / "run") == ["latest.json", *map(step_name, (1, 3))]
    assert found["again"]["hashes"] == {3: found["full"]["hashes"][3]}


def test_zero_3_with_and_without_parameters_that_it_keeps_whole(uri: str, tmp_path: Path) -> None:
    """Of the network's parameters all are below DeepSpeed's default of 100,000 entries, and none below 0."""
    cases = dict[str, dict[str, Any]]()
    for least in (None, 0):
        values = config(uri, tmp_path / str(least), train__zero_stage=3)
        if least is not None:
            values["train"]["deepspeed"] = {
                "zero_optimization": {"stage3_param_persistence_threshold": least}
            }
        cases[f"{least}"] = {"values": values, "until": 3, "save_at": (1,), "look_at": 1}
        cases[f"{least} resumed"] = {"values": values, "until": 3, "resumed": True}
    found = on_ranks(WORLD, stretches, cases)[0]
    for least in (None, 0):
        one, other = found[f"{least}"], found[f"{least} resumed"]
        assert (other["first"], other["said"], one["warned"]) == (1, [], [])
        assert other["hashes"] == one["hashes"] and set(one["hashes"]) == {1, 2, 3}
        assert other["trained"] == {step: one["trained"][step] for step in (2, 3)}
    assert found["None"]["hashes"] == found["0"]["hashes"]


@pytest.mark.faults
def test_stores_that_stumble_and_stores_that_are_away(
    uri: str, base: tuple[Path, dict[int, dict[str, str]]], s3: s3_service.S3
) -> None:
    hashes, cases = base[1], dict[str, dict[str, Any]]()
    environment = s3_service.environment(s3.proxy) | {
        "DNA_STORE_RETRY_SECONDS": "0.05",
        "DNA_STORE_TIMEOUT_SECONDS": "1",
    }

    def case(name: str, **changes: Any) -> None:
        cases[name] = {"values": config(uri, f"{s3.uri}/{name}"), "until": 2, "save_at": (1, 2)} | changes

    def under(name: str) -> set[str]:
        return {
            key.removeprefix(f"{name}/checkpoints/") for key in s3.objects() if key.startswith(f"{name}/")
        }

    for name in ("busy", "away", "slow", "leftover"):
        case(name)
    cases["leftover"]["values"]["checkpoint"] = {"keep_last": 1}
    case("lost", doing="lost-before-save-2")
    theirs = f"lost/checkpoints/{step_name(2)}/theirs"
    stray = [
        f"leftover/checkpoints/{step_name(2)}/{name}" for name in (manifests.rank_file(3, 4), RANKS[1], "x/y")
    ]
    for key in (theirs, *stray):
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"half of it")
    for method, key, times in (("PUT", RANKS[1], 3), ("PUT", manifests.MANIFEST, 3), ("GET", "list-type", 2)):
        s3.fault("503", method, f"busy/.*{key}", times=times)
    s3.fault("503", "PUT", f"away/.*{step_name(2)}/{RANKS[1]}")
    s3.fault("timeout", "PUT", f"slow/.*{step_name(2)}/rank", times=2)
    s3.fault("lost", "PUT", f"slow/.*{step_name(2)}/shared", times=1)
    found = on_ranks(WORLD, stretches, cases, environment)
    warned = {name: each["warned"] for name, each in found[0].items() if each["warned"]}
    assert warned == {
        "away": [
            "warning: the checkpoint of step 2 is not saved: rank 1 could not write its part; the "
            "checkpoint before it stands, and the run goes on"
        ]
    }
    assert {name: each["fault"] for name, each in found[0].items() if "fault" in each} == {
        "lost": "RuntimeError: run.dir is held by another run now"
    }
    assert theirs in s3.objects() and not any("step-00000002/rank" in name for name in under("lost"))
    own = {manifests.MANIFEST, manifests.SHARED, manifests.METRICS, *RANKS}
    assert under("leftover") == {manifests.POINTER} | {f"{step_name(2)}/{name}" for name in own}

    # What became of them; uploads that ended half way; and a store that is away has no damage.
    s3.proxy.clear()
    refused = {
        "list": rf"EverywhereError: cannot list {s3.uri}/no-list/checkpoints: ",
        "manifest": rf"EverywhereError: cannot read \S+{step_name(2)}/manifest.json: ",
        "rank": rf"ValueError: cannot read \S+{step_name(2)}/{RANKS[1]}: ",
    }
    for key in under("busy"):
        for name in ("half", "first", *(f"no-{what}" for what in refused)):
            if (name, key) != ("half", f"{step_name(2)}/{manifests.MANIFEST}") and (
                name != "first" or key.startswith(f"{step_name(1)}/s")
            ):
                s3.client.copy(
                    {"Bucket": s3.bucket, "Key": f"busy/checkpoints/{key}"},
                    s3.bucket,
                    f"{name}/checkpoints/{key}",
                )
    s3.fault("503", "GET", "list-type.*no-list")
    for name, key in (("manifest", manifests.MANIFEST), ("rank", RANKS[1])):
        s3.fault("503", "GET", f"no-{name}/.*{step_name(2)}/{key}")
    s3.fault("slow", "GET", "slow/.*rank", rate=200_000)
    wanted = {"busy": 2, "away": 1, "slow": 2, "leftover": 2, "lost": 1, "half": 1}
    cases.clear()
    for name in (*wanted, "first", *(f"no-{what}" for what in refused)):
        case(name, until=0, save_at=(), resumed=True)
    again = on_ranks(WORLD, stretches, cases, environment)
    for name, step in wanted.items():
        assert again[0][name]["hashes"] == again[1][name]["hashes"] == {step: hashes[step]}, name
    assert again[0]["first"]["first"] == 0, "nothing was ever published there: it begins anew"
    said = {name: each["said"] for name, each in again[0].items() if each.get("said")}
    assert said == {
        name: [
            f"warning: passed over the checkpoint {manifests.place(f'{s3.uri}/{name}', step)}: it was not "
            "finished: it has no manifest"
        ]
        for name, step in (("half", 2), ("first", 1), ("away", 2), ("lost", 2))
    }
    for what, sentence in refused.items():
        faults = [each[f"no-{what}"].get("fault", "none") for each in again]
        said_by_some(faults, f"{sentence}.*gave up after 5 tries")
