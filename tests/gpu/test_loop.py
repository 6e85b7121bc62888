"""The whole training loop under nccl on one GPU: validation, checkpoints, going on from one, the export.

MLflow is not needed here: a stand-in takes what the loop tells of the run.
"""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.storage import store
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import small_config
from tests.gpu import where
from tests.gpu.where import DEVICE, few
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.engine.process_group import init_distributed
from trainer.models import pretrained
from trainer.run import artifacts
from trainer.run import train as pretraining
from trainer.run.checkpoint.save import SaveCallbacks
from trainer.run.config import TrainConfig

pytestmark = where.marks
STEPS, HALF = 6, 3
CASES = few([(stage, precision) for stage in (1, 3) for precision in ("bf16", "fp32")])


class InMemory:
    """In place of Artifacts: the metrics by step, and whether the run was published."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.published = False
        MADE.append(self)

    def exported(self, step: int) -> None:
        pass

    def validated(self, step: int) -> dict[str, float]:
        return self.metrics.get(step, {})

    def save_callbacks(self, check: Any, *, settled: Any) -> SaveCallbacks:
        return SaveCallbacks(metrics=bytes, before=check, after=lambda uri, sha256: None, say=print)

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        self.metrics.setdefault(step, {}).update(metrics)

    def sync(self) -> None:
        pass

    def publish(self) -> None:
        self.published = True

    def end(self, status: str) -> None:
        raise AssertionError(f"the run ended {status}")

    def __enter__(self) -> "InMemory":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


MADE: list[InMemory] = []


def train(uri: str, run_dir: str, stage: int, precision: str, steps: int, device_name: str) -> dict[str, Any]:
    """A run to ``steps``, from the newest checkpoint on where there is one."""
    values = small_config(
        uri,
        run__dir=run_dir,
        train__steps=steps,
        train__schedule_steps=STEPS,
        train__zero_stage=stage,
        train__precision=precision,
        val={"every": HALF, "windows": 24, "batch": 8},
        checkpoint={"every": HALF},
        track={"every": 1},
        health={"every": 2},
    )
    config, device = TrainConfig.model_validate(values), torch.device(device_name)
    init_distributed(device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "Artifacts", InMemory)
        assert pretraining.train(config, device=device, group=Group.of()) == 0
    weights = safetensors.torch.load(store.read_bytes(store.join(run_dir, pretrained.WEIGHTS)))
    return {"metrics": MADE[-1].metrics, "published": MADE[-1].published, "weights": weights}


def both_ways(uri: str, folder: str, device: str) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Of each case a run in one go, and one that ends half-way and is taken up again."""
    found = {}
    for stage, precision in CASES:
        name = f"{folder}/{stage}-{precision}"
        found[stage, precision] = [
            train(uri, run_dir, stage, precision, steps, device)
            for run_dir, steps in (
                (f"{name}-whole", STEPS),
                (f"{name}-halves", HALF),
                (f"{name}-halves", STEPS),
            )
        ]
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("loop")
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
    uri = write_dataset(folder / "data", contigs, block_bp=1024, soft=True)
    return on_ranks(1, both_ways, uri, str(folder), DEVICE, timeout_s=300, gpu=not where.REHEARSE)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_that_goes_on_from_its_checkpoint_is_the_run_in_one_go(
    runs: Any, case: tuple[int, str]
) -> None:
    whole, first, second = runs[case]
    assert whole["published"] and second["published"]
    # Sums on a GPU have no fixed order, so that bits may differ: by rounding, not by a lost moment or a wrong
    # sample.
    rel = 1e-4 if case[1] == "fp32" else 0.02
    for name in ("loss/total", "loss/mlm", "val/mlm_loss", "val/mlm_accuracy", "lr", "ema/momentum"):
        in_one_go = {step: of[name] for step, of in whole["metrics"].items() if name in of}
        taken_up = {
            step: of[name] for part in (first, second) for step, of in part["metrics"].items() if name in of
        }
        assert taken_up == pytest.approx(in_one_go, rel=rel), name
        assert in_one_go
    assert whole["metrics"][STEPS]["throughput/mfu"] > 0
    assert whole["metrics"][STEPS]["memory/peak_bytes"] > 0
    for name, weight in whole["weights"].items():
        assert torch.isfinite(weight).all()
        assert float((second["weights"][name] - weight).norm()) <= rel * float(weight.norm()) + 1e-6, name
