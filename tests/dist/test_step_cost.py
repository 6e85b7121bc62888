"""Operators and reads of one training step of each preset, under ceilings: what a step costs the host.

One step as on a GPU, run on a CPU: views come from the reader's thread in one parcel, the optimiser is fused,
the host reads once, when all is queued. The presets are made narrow; the numbers depend on layers, losses and
parameters alone. A preset that costs less than its ceiling by much is to lower it.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.counting import Count, queued
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import method, set_up
from tests.ranks import on_ranks
from trainer.distill.step import train_step
from trainer.run import reading, train_state

pytestmark = pytest.mark.timeout(300)  # all presets run in the first test

PRESETS = Path(__file__).resolve().parents[2] / "configs/train"
# (preset, precision, ZeRO stage): the most operators, views left out.
CEILINGS = {
    ("findna", "bf16", 1): 1054,
    ("findna-plus", "bf16", 1): 3926,
    ("small", "fp32", 1): 469,
    ("small", "bf16", 2): 510,
    ("demo", "fp32", 1): 469,
}
Case = tuple[str, str, int]


def narrow(case: Case, uri: str) -> dict[str, Any]:
    name, precision, stage = case
    values: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    values["data"] = {"uri": uri, "length": 128, "lanes": 4}
    values["train"] |= {"global_batch": 4, "precision": precision, "zero_stage": stage, "steps": 100}
    values["run"] = {"dir": "unused"}
    if values["model"]["name"] == "findna":
        values["model"] |= {"group_channels": 4, "intermediate_size": 16}
    else:
        values["model"] |= {"hidden_size": 16}
    if "crops" in values["views"]:
        values["views"]["crops"]["length"] = 32
    for loss in values["loss"].values():
        loss |= {key: 32 for key in ("prototypes", "mlp_size") if key in loss}
    return values


def counted(case: Case, uri: str) -> dict[str, Any]:
    """What the third step of ``case`` does: by then everything that is made once is there."""
    with queued():
        config, engine, now, reader = set_up(narrow(case, uri), ahead=True)
        for step in range(3):
            batch, count = reader.batch(step), Count()
            with count:
                inputs = reading.step_inputs(config, engine, batch)
                result = train_step(engine, now.teacher, inputs, method=method(config), states=now.centres)
                metrics = train_state.apply(
                    now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4
                )
        assert metrics["grad_norm"] > 0
    return {
        "ops": count.total,
        "reads": {" at ".join(where): number for where, number in count.reads.items()},
        "by name": count.ops["step"],
    }


def count_all(uri: str) -> dict[Case, dict[str, Any]]:
    return {case: counted(case, uri) for case in CEILINGS}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, dict[str, Any]]:
    contigs = [markov_sequence(60_000, seed=1)]
    uri = write_dataset(tmp_path_factory.mktemp("toy"), {"train": contigs}, block_bp=8192, soft=True)
    return on_ranks(1, count_all, uri)[0]


@pytest.mark.parametrize("case", CEILINGS, ids=str)
def test_a_step_stays_under_its_ceiling(found: Any, case: Case) -> None:
    costs = found[case]
    assert costs["ops"] <= CEILINGS[case], f"{costs['ops']} operators: {costs['by name'].most_common(12)}"


@pytest.mark.parametrize("case", CEILINGS, ids=str)
def test_the_host_reads_once_a_step(found: Any, case: Case) -> None:
    reads = found[case]["reads"]
    assert sum(reads.values()) == 1, reads
    assert [where.split(":")[0] for where in reads] == ["tolist at trainer/core/device.py"]
