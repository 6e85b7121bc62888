"""Exports written beside the training: the same bytes on any number of ranks and under any ZeRO stage, beside
checkpoints, and on a disk that fails."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch

from tests.datasets import markov_sequence, write_dataset
from tests.dist.runs import DATASETS
from tests.dist.steps import set_up, small_config
from tests.ranks import on_ranks
from trainer.models import pretrained
from trainer.run import export
from trainer.run.checkpoint import manifests
from trainer.run.checkpoint.save import SaveCallbacks, Saver
from trainer.run.export import Exporter

STAGES = (0, 1, 2, 3)


def exported(values: dict[str, Any]) -> dict[str, Any]:
    """sha256 of each file by step, and of the teacher as the library writes it; saves go on beside."""
    config, engine, now, reader = set_up(values)
    said: list[int] = []
    exporter = Exporter(config, engine, exported=said.append)
    saver = Saver(config, engine, datasets=DATASETS, callbacks=SaveCallbacks(before=exporter.written))
    for step in (1, 2, 3):
        now.step = step
        exporter.begin(now)
        saver.save(now, reader.position(step))
    exporter.wait()
    saver.wait()
    tensors = dict(now.teacher.full_tensors())
    now.step = 4
    exporter.finish(now)
    reader.close()
    if engine.group.rank:
        return {}
    run_dir = config.run.dir
    folders = [export.place(run_dir, step) for step in said] + [run_dir]
    part = {name: tensor for name, tensor in tensors.items() if not name.startswith("heads.")}
    whole = safetensors.torch.save(part, metadata={"format": "pt"})
    return {
        "steps": said,
        "waiting": export.waiting(run_dir),
        "weights": {sha256(Path(folder, pretrained.WEIGHTS).read_bytes()) for folder in folders},
        "heads": {sha256(Path(folder, pretrained.HEADS).read_bytes()) for folder in folders},
        "whole": sha256(whole),
        "saved": sorted(os.listdir(Path(run_dir, manifests.FOLDER))),
    }


def every_stage(uri: str, folder: str) -> dict[int, dict[str, Any]]:
    return {
        stage: exported(small_config(uri, run__dir=f"{folder}/{stage}", train__zero_stage=stage))
        for stage in STAGES
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, {"train": [markov_sequence(20_000, seed=1)]}, soft=True)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_same_bytes_on_any_ranks_and_stages_while_checkpoints_are_saved(
    dataset: str, tmp_path: Path
) -> None:
    digests = set()
    for world in (1, 2, 4):
        found, *_ = on_ranks(world, every_stage, dataset, str(tmp_path / str(world)))
        for stage, run in found.items():
            assert run["steps"] == run["waiting"] == [1, 2, 3, 4], (world, stage)
            assert "step-00000003" in run["saved"]
            assert run["weights"] == {run["whole"]}, (world, stage)
            digests.add((run["whole"], *run["heads"]))
    assert len(digests) == 1


def on_a_full_disk(values: dict[str, Any]) -> tuple[list[int], list[int], str]:
    """The first export meets a full disk in the middle of its weights."""
    config, engine, now, reader = set_up(values)
    said: list[int] = []
    exporter = Exporter(config, engine, exported=said.append)
    write, calls = pretrained._write_safetensors, 0

    def full(file: Any, shapes: Any, tensors: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            next(tensors)
            raise OSError(28, "No space left on device")
        return write(file, shapes, tensors)

    with mock.patch.object(pretrained, "_write_safetensors", full):
        for step in (1, 2):
            now.step = step
            exporter.begin(now)
            exporter.wait()
    with mock.patch.object(pretrained, "write_stream", side_effect=OSError(28, "No space left")):
        now.step = 3
        try:
            exporter.finish(now)
            ended = ""
        except RuntimeError as fault:
            ended = f"{type(fault).__name__}: {fault}"
    reader.close()
    return said, export.waiting(config.run.dir), ended


def test_a_full_disk_costs_one_version_and_no_run(dataset: str, tmp_path: Path) -> None:
    answers = on_ranks(2, on_a_full_disk, small_config(dataset, run__dir=str(tmp_path / "run")))
    assert answers[0][:2] == ([2], [2])
    assert all(ended.startswith("EverywhereError: ") and "No space left" in ended for *_, ended in answers)
    assert not (tmp_path / "run" / "exports" / "step-00000001").exists()


def stall(values: dict[str, Any]) -> bool:
    """Whether the step went on before anything was written."""
    config, engine, now, reader = set_up(values)
    exporter, write, went_on = Exporter(config, engine), pretrained.write_stream, []

    def late(*args: Any, **kwargs: Any) -> Any:
        while not went_on:
            time.sleep(0.01)
        return write(*args, **kwargs)

    with mock.patch.object(pretrained, "write_stream", late):
        now.step = 1
        exporter.begin(now)
        now.teacher.shards[0].zero_()  # the next step changes the teacher
        went_on.append(True)
        exporter.wait()
    reader.close()
    return bool(pretrained.load(export.place(config.run.dir, 1)).state_dict())


def test_the_step_waits_for_a_copy_alone(dataset: str, tmp_path: Path) -> None:
    assert on_ranks(1, stall, small_config(dataset, run__dir=str(tmp_path / "run"))) == [True]
