"""Labelled tasks while a run trains, on ranks: the same embeddings on any number of them, the same training
with and without, and each reading once when the run is killed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.process.exits import EXIT_USAGE
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import small_config
from tests.faults import doomed
from tests.ranks import endings, on_ranks
from tests.registered import write_task
from trainer.core.collectives import Group
from trainer.engine.process_group import init_distributed
from trainer.evaluation.config import Validation
from trainer.evaluation.online.slices import embed_together
from trainer.evaluation.tasks.fitting.probe_features import features_of, probe_features
from trainer.run import train
from trainer.run.config import TrainConfig
from trainer.run.online_readings import open_tasks
from trainer.tracking.registry import Registry

CURVES = ("online_probe_dev_mcc", "online_knn_dev_mcc", "floor_dev_mcc", "probe_mcc", "knn_mcc")


def embedded(values: dict[str, Any], stages: list[tuple[int, str]]) -> dict[Any, torch.Tensor]:
    """The teacher's embeddings of a task's rows, by stage and precision; "plain": without slices."""
    device, found = torch.device("cpu"), dict[Any, torch.Tensor]()
    init_distributed(device)
    group = Group.of()
    with open_tasks(Validation.model_validate(values["val"]), group, device=device) as tasks:
        assert (tasks.process is not None) == (group.rank == 0)
        (task,) = tasks.shared
    for stage, precision in stages:
        config = TrainConfig.model_validate(
            {**values, "train": values["train"] | {"zero_stage": stage, "precision": precision}}
        )
        _, teacher = train.build(config, device=device, group=group)
        by_kind = embed_together(teacher.module, task, group=group)
        found[stage, precision] = torch.cat(list(by_kind.values()), 1)
        if group.size == 1 and stage == 0:
            strand = task.rows.strand
            wanted = features_of(task.rows.pooling, teacher.module.backbone, strand=strand)
            alone = probe_features(teacher.module, task.rows.sequences, wanted, strand=strand)
            found["plain"] = torch.cat(alone, 1)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
    write_dataset(folder / "data", contigs, soft=True)
    write_task(folder)
    return folder


def test_embeddings_are_the_same_on_any_number_of_ranks_and_at_any_stage(folder: Path) -> None:
    values = small_config(
        str(folder / "data"), val={"tasks": [str(folder / "motif.yaml")], "tasks_rows": 150}
    )
    stages = [(stage, "fp32") for stage in (0, 1, 2, 3)] + [(1, "bf16")]
    found = {world: on_ranks(world, embedded, values, stages) for world in (1, 2, 4)}
    plain = found[1][0].pop("plain")
    assert len(plain) == 150 + 60 and (plain.std(0) > 0).float().mean() > 0.9
    for world, ranks in found.items():
        for rank, by_stage in enumerate(ranks):
            for (stage, precision), vectors in by_stage.items():
                where = f"rank {rank} of {world}, ZeRO-{stage}, {precision}"
                assert (vectors - plain).abs().max() < (1e-5 if precision == "fp32" else 0.3), where
                assert torch.equal(vectors, found[1][0][stage, precision]), where


def history(folder: Path, run: str, metric: str) -> list[tuple[int, float]]:
    registry = Registry(f"sqlite:///{folder}/mlflow.db")
    experiment = registry.client.get_experiment_by_name("findna").experiment_id
    (found,) = registry.runs(experiment, f"attributes.run_name = '{run}'")
    points = registry.client.get_metric_history(found.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


@pytest.mark.timeout(300)
def test_a_killed_run_has_each_reading_once_and_the_weights_of_a_run_without(folder: Path) -> None:
    def values(name: str, **val: Any) -> dict[str, Any]:
        return small_config(
            str(folder / "data"),
            run={"dir": str(folder / name), "name": name, "seed": 5},
            val={"windows": 8, "every": 1000} | val,
            checkpoint={"every": 4},
            track={"uri": f"sqlite:///{folder}/mlflow.db", "report_every": 0, "system_metrics": False},
            train__steps=8,
        )

    tasks = {"tasks": [str(folder / "motif.yaml")], "tasks_every": 3, "tasks_rows": 150}
    (without,) = endings(1, doomed.run, values("without"))
    (killed,) = endings(1, doomed.run, values("with", **tasks), [("forward", 8, 0)])
    (resumed,) = endings(1, doomed.run, values("with", **tasks))
    assert (without.code, killed.code, resumed.code) == (0, -9, 0), (without.fault, resumed.fault)
    assert resumed.value[0] == 0, resumed.value[1]
    sha256 = [
        hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("without", "with")
    ]
    assert sha256[0] == sha256[1]
    for curve in CURVES:
        points = history(folder, "with", f"downstream/motif/{curve}")
        assert [step for step, _ in points] == [0, 3, 6, 8], curve
    for name in ("online/step_s", "online/fit_s", "online/time_share"):
        assert [step for step, _ in history(folder, "with", name)] == [0, 3, 6, 8], name
        assert all(value > 0 for _, value in history(folder, "with", name)), name
    floors = {value for _, value in history(folder, "with", "downstream/motif/floor_dev_mcc")}
    assert len(floors) == 1 and floors.pop() > 0
    probe, short = (
        history(folder, "with", f"downstream/motif/{name}") for name in ("online_probe_dev_mcc", "probe_mcc")
    )
    assert probe == short


def test_a_task_that_cannot_be_read_ends_all_ranks_before_training(folder: Path) -> None:
    values = small_config(
        str(folder / "data"),
        run__dir=str(folder / "refused"),
        val={"windows": 8, "tasks": [str(folder / "missing.yaml")]},
    )
    first, second = endings(2, doomed.run, values)
    assert first.value[0] == second.value[0] == EXIT_USAGE
    assert first.value[1].count("error: val.tasks: config file") == 1
    assert "error" not in second.value[1]
    assert not (folder / "refused").exists()
