"""Each loss by itself, by its weight alone: it trains, is measured, validated, saved, resumed and exported;
the teacher reads only where the loss asks for it."""

import math
from typing import Any
from unittest import mock

import pytest
import torch

from tests.datasets import markov_sequence, write_dataset
from tests.dist.runs import stretch
from tests.dist.steps import set_up, small_config
from tests.ranks import on_ranks
from trainer.distill import step
from trainer.distill.health import held_out_readings
from trainer.evaluation.held_out import Validator
from trainer.losses.registry import LOSSES
from trainer.models import pretrained

SAVED, LAST = 2, 4
NOTHING = {f"loss__{name}__weight": 0.0 for name in LOSSES} | {"views__crops__number": 0}
SMALL = {"mlp_size": 9, "embedding": 7}
TAUGHT: dict[str, dict[str, Any]] = {
    "distill": {"loss__distill__weight": 1.0, "views__crops__number": 2},
    "distill, taught": {
        "loss__distill__weight": 1.0,
        "loss__distill__reads": "pooled",
        "loss__distill__centre_bottleneck": True,
        "loss__distill__balance": "sinkhorn",
        "loss__distill__predictor": True,
        "loss__distill__teacher_temperature_start": 0.08,
        "loss__distill__teacher_temperature_warmup": 0.1,
    },
    "patch": {"loss__patch__weight": 1.0},
    "contrastive": {"loss__contrastive__weight": 1.0},
    "vicreg": {"loss__vicreg": {"weight": 1.0, **SMALL}},
    "sigreg": {"loss__sigreg": {"weight": 1.0, "slices": 5, **SMALL}},
}
UNTAUGHT: dict[str, dict[str, Any]] = {
    "mlm": {"loss__mlm__weight": 1.0},
    "koleo": {"loss__koleo__weight": 1.0},
    "contrastive, its own other view": {
        "loss__contrastive__weight": 1.0,
        "loss__contrastive__keys": "student",
    },
    "vicreg without invariance": {"loss__vicreg": {"weight": 1.0, "invariance": 0.0, **SMALL}},
    "sigreg, its own other view": {
        "loss__sigreg": {"weight": 1.0, "slices": 5, "target": "student", **SMALL}
    },
    "sigreg without a target": {"loss__sigreg": {"weight": 1.0, "slices": 5, "share": 1.0, **SMALL}},
}


def alone(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each case: its stretch and the resumed one, the teacher's calls, validation, the export."""
    found = {}
    for name, values in cases.items():
        with mock.patch.object(step, "teacher_forward", wraps=step.teacher_forward) as teacher_forward:
            whole = stretch(values, until=LAST, save_at=(SAVED,), look_at=SAVED)
            calls = teacher_forward.call_count
            resumed = stretch(values, until=LAST, resumed=True, look_at=SAVED)
        config, engine, now, reader = set_up(values)
        reader.close()
        validator = Validator(config.data, config.val, config.views, device=engine.device, group=engine.group)
        readings = held_out_readings(config.loss.terms(), now.centres)
        teacher = now.teacher.module
        folder = f"{config.run.dir}/export"
        pretrained.write(folder, teacher, dict(now.teacher.full_tensors()), card="card")
        codes_BL = torch.arange(60, dtype=torch.uint8).view(2, 30) % 4
        with torch.no_grad():
            same = torch.equal(teacher(codes_BL).logits_BLV, pretrained.load(folder)(codes_BL).logits_BLV)
        found[name] = {
            "whole": whole,
            "resumed": resumed,
            "calls": calls,
            "held out": validator.masked(teacher) | validator.health(teacher, readings),
            "export is the teacher": same,
        }
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    contigs = {"train": [markov_sequence(4_000, seed=1)], "val": [markov_sequence(1_000, seed=2)]}
    uri = write_dataset(folder / "toy", contigs, block_bp=512, soft=True)
    common = {"val": {"windows": 8, "batch": 8}, "train__steps": 60}
    cases = {
        name: small_config(uri, **{**NOTHING, **changes, **common, "run__dir": str(folder / str(number))})
        for number, (name, changes) in enumerate((TAUGHT | UNTAUGHT).items())
    }
    found: dict[str, dict[str, Any]] = on_ranks(1, alone, cases)[0]
    return found


@pytest.mark.parametrize("name", [*TAUGHT, *UNTAUGHT])
def test_a_loss_works_by_itself(runs: dict[str, dict[str, Any]], name: str) -> None:
    found, loss = runs[name], name.split(",")[0].split(" ")[0]
    for number, trained in found["whole"]["trained"].items():
        losses = {key for key in trained["metrics"] if key.startswith("loss/")}
        assert losses == {f"loss/{loss}", "loss/total"}
        assert all(math.isfinite(value) for value in trained["metrics"].values()), (number, trained)
        if number > SAVED:
            assert found["resumed"]["trained"][number] == trained
    assert found["resumed"]["hashes"] == found["whole"]["hashes"]
    assert found["calls"] == (LAST if name in TAUGHT else 0)
    assert {"val/mlm_accuracy", "health/embedding_std"} <= found["held out"].keys()
    assert all(math.isfinite(value) for value in found["held out"].values())
    assert found["export is the teacher"]


def test_a_teacher_that_is_not_asked_follows_all_the_same(runs: dict[str, dict[str, Any]]) -> None:
    """It is what is exported."""
    first, last = (runs["mlm"]["whole"]["hashes"][number]["teacher"] for number in (SAVED, LAST))
    assert first != last
