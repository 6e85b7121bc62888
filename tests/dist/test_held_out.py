"""Validation is the same numbers on any number of ranks and at any ZeRO stage, however few windows a rank
has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep import alphabet
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import small_config
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.data.dataset import open_datasets
from trainer.distill.health import held_out_readings
from trainer.engine.process_group import init_distributed
from trainer.evaluation.held_out import Validator
from trainer.run import train, train_state
from trainer.run.config import TrainConfig

STAGES = (0, 3)
VAL = {  # windows, rows of a batch; of (9, 4) one of two ranks has a batch more than the other
    "a batch more": (9, 4),
    "fewer windows than ranks": (1, 4),
    "a row each": (5, 1),
    "more than health looks at": (300, 48),
}


def measured(cases: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """What validation says of the first weights, of each case at each stage; what it scores, by case."""
    device, found, digests = torch.device("cpu"), dict[str, dict[str, float]](), dict[str, str]()
    init_distributed(device)
    group = Group.of()
    for stage in STAGES:
        first = TrainConfig.model_validate(
            {**next(iter(cases.values())), "train": {"steps": 1, "zero_stage": stage, "global_batch": 24}}
        )
        engine, teacher = train.build(first, device=device, group=group)
        states = train_state.first_state(first, teacher, device=device).centres
        readings = held_out_readings(first.loss.terms(), states)
        for name, values in cases.items():
            config = TrainConfig.model_validate(values)
            validator = Validator(config.data, config.val, config.views, device=device, group=group)
            datasets = list(open_datasets(config.data, "train").values())
            digests[name] = validator.windows_sha256
            found[f"{name}, ZeRO-{stage}"] = (
                validator.masked(teacher.module)
                | validator.masked(engine.network, "val/student_")
                | validator.health(teacher.module, readings)
                | validator.baselines(datasets)
            )
    return found, digests


@pytest.mark.timeout(600)
def test_every_rank_calls_the_network_equally_often_and_the_numbers_stay(tmp_path: Path) -> None:
    one = write_dataset(
        tmp_path / "one",
        {
            "train": [markov_sequence(9_000, seed=1)],
            "val": [
                markov_sequence(30_000, seed=2),
                markov_sequence(40, seed=3),
                np.full(90, alphabet.N, np.uint8),
            ],
        },
    )
    two = write_dataset(
        tmp_path / "two", {"train": [markov_sequence(9_000, seed=4)], "val": [markov_sequence(200, seed=5)]}
    )
    cases = {
        name: small_config(one, val={"windows": windows, "batch": batch})
        for name, (windows, batch) in VAL.items()
    }
    mixture = [{"uri": one, "weight": 3.0}, {"uri": two, "weight": 1.0}]
    cases["a mixture"] = small_config(one, data__uri=mixture, val={"windows": 3, "batch": 2})
    by_world = {world: on_ranks(world, measured, cases, timeout_s=300) for world in (1, 2, 4)}
    alone, windows = by_world[1][0]
    assert len(set(windows.values())) == len(cases)  # each case scores others
    for name in cases:
        assert alone[f"{name}, ZeRO-0"]["val/mlm_loss"] > 0.5
    for world, ranks in by_world.items():
        for rank, (found, digests) in enumerate(ranks):
            assert digests == windows, f"rank {rank} of {world}"
            for name, values in found.items():
                expected = alone[f"{name.rpartition(',')[0]}, ZeRO-0"]
                assert values == pytest.approx(expected, rel=1e-4, abs=1e-5), (
                    f"{name}, rank {rank} of {world}"
                )
