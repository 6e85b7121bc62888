"""Every shipped way to train: dry-run at full size, trained and exported small, its losses held against
golden ones.

The numbers are a contract: a refactor changes none of them. Who means to change the method writes them anew,
with ``python -m tests.unit.test_presets --write``, and commits the difference with its reason.
"""

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import configs
from tests.datasets import markov_sequence, write_dataset
from tests.exports import files_of
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.engine.process_group import init_distributed
from trainer.losses.config import projection_heads
from trainer.losses.patch import Letters
from trainer.models import pretrained
from trainer.models.config import build_backbone
from trainer.models.network import Crops, Network
from trainer.run import world_size
from trainer.run.config import TrainConfig
from trainer.run.train import train
from trainer.tracking.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
WRITE = "python -m tests.unit.test_presets --write"
GOLDEN_STEPS, STEPS = 20, 50
# fp32 on a CPU: another BLAS, or another width of its vectors, moves these losses by less than 1e-5.
TOLERANCE = 1e-4

LOSSES = {
    "demo": {"mlm", "patch"},
    "small": {"mlm", "patch"},
    "findna": {"mlm", "distill"},
    "findna-plus": {"mlm", "distill", "patch", "contrastive", "koleo"},
}
# The method stays; sizes, and the rate that goes with them, are those of seconds.
SMALL_MODEL = {
    "findna": [
        "model.num_layers=3",
        "model.num_groups=6",
        "model.group_channels=6",
        "model.intermediate_size=48",
        "model.num_summary=3",
    ],
    "dilated-conv": ["model.hidden_size=36", "model.dilations=[1, 4]"],
}
SMALL = [
    "data.length=80",
    "data.lanes=12",
    "train.global_batch=24",
    "train.precision=fp32",
    "train.lr=4e-3",
    f"train.steps={STEPS}",
    "val.every=25",
    "val.windows=24",
    "track.every=25",
    "health.every=25",
    "loss.distill={prototypes: 48, mlp_size: 24, bottleneck: 16}",
]
SMALL_PATCH = "loss.patch={prototypes: 32, mlp_size: 24, bottleneck: 16, pairs: 6}"
ALSO = {
    "demo": [SMALL_PATCH],
    "small": [SMALL_PATCH],
    "findna": [],
    "findna-plus": [
        "loss.contrastive={mlp_size: 24, embedding: 16}",
        "views.crops.length=24",
        SMALL_PATCH,
    ],
}
# The method changed by a hair: preset, the change, the first step whose losses tell, and which of them.
CHANGED = {
    "a loss's weight": ("findna", "loss.distill.weight=1.001", 1, {"total"}),
    "the centre's momentum": ("findna", "loss.distill.centre_momentum=0.89", 2, {"distill"}),
    "the weight of repeats": ("findna-plus", "loss.mlm.soft_weight=0.11", 1, {"mlm"}),
    "the teacher's momentum": ("findna-plus", "ema.momentum=0.95", 2, {"distill", "patch"}),
}
CHANGED_STEPS = 6


def preset(name: str, *overrides: str) -> TrainConfig:
    return configs.load(TrainConfig, ROOT / "configs" / "train" / f"{name}.yaml", overrides)


def small(name: str, run: str, folder: Path, *overrides: str) -> TrainConfig:
    return preset(
        name,
        *SMALL_MODEL[preset(name).model.name],
        *SMALL,
        *ALSO[name],
        f"data.uri={folder / 'data'}",
        f"run.dir={folder / run}",
        f"run.name={run}",
        f"track.uri=sqlite:///{folder}/mlflow.db",
        "track.report_every=0",
        "track.experiment=findna",
        "track.registered_model=findna",
        *overrides,
    )


def train_all(runs: list[TrainConfig]) -> None:
    """On a rank of its own, since DeepSpeed leaves state behind in a process."""
    device = torch.device("cpu")
    init_distributed(device)
    for config in runs:
        train(config, device=device, group=Group.of())


def losses_of(folder: Path, run: str) -> dict[str, list[float]]:
    """loss -> its value at step 1, 2, …, as MLflow has it."""
    registry = Registry(f"sqlite:///{folder}/mlflow.db")
    experiment = registry.client.get_experiment_by_name("findna").experiment_id
    (found,) = registry.runs(experiment, f"attributes.run_name = '{run}'")
    assert found.info.status == "FINISHED"
    histories: dict[str, list[float]] = {}
    for metric in sorted(name for name in found.data.metrics if name.startswith("loss/")):
        history = registry.history(found.info.run_id, metric)
        assert history["step"].tolist() == list(range(1, int(found.data.params["train.steps"]) + 1)), metric
        histories[metric.removeprefix("loss/")] = history["value"].tolist()
    return histories


def run_all(folder: Path, *, changed: bool) -> dict[str, dict[str, list[float]]]:
    """run -> its losses: every preset for 50 steps and, if wanted, its changes for a few steps of the same
    schedule."""
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(5_000, seed=2)]}
    write_dataset(folder / "data", contigs, soft=True)
    runs = [small(name, name, folder) for name in LOSSES]
    if changed:
        few = [f"train.steps={CHANGED_STEPS}", f"train.schedule_steps={STEPS}", "track.registered_model=null"]
        runs += [
            small(name, run, folder, override, *few)
            for run, (name, override, *_) in zip(CHANGED_RUNS, CHANGED.values(), strict=True)
        ]
    on_ranks(1, train_all, runs)
    return {config.run.name: losses_of(folder, config.run.name) for config in runs}


CHANGED_RUNS = [f"changed-{number}" for number in range(len(CHANGED))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("presets")


@pytest.fixture(scope="module")
def losses(folder: Path) -> dict[str, dict[str, list[float]]]:
    return run_all(folder, changed=True)


def golden(name: str) -> dict[str, list[float]]:
    path = GOLDEN / f"{name}.json"
    assert path.is_file(), f"there are no golden losses at {path}; write them with {WRITE}"
    found: dict[str, list[float]] = json.loads(path.read_text())
    return found


def differences(
    got: dict[str, list[float]], wanted: dict[str, list[float]], steps: int
) -> Iterator[tuple[int, str]]:
    """(step, loss) of what differs in the first ``steps`` steps, by step; all of a loss that only one of them
    has."""
    for step in range(steps):
        for name in sorted(got.keys() | wanted.keys()):
            values = [run[name][step] if name in run else math.nan for run in (got, wanted)]
            if not math.isclose(*values, rel_tol=TOLERANCE):
                yield step + 1, name


@pytest.mark.parametrize("name", LOSSES)
def test_the_full_size_is_sound(name: str) -> None:
    config = preset(name)
    assert config.loss.weights().keys() == LOSSES[name]
    with torch.device("meta"):
        backbone, terms = build_backbone(config.model), config.loss.terms()
        network = Network(backbone, heads=projection_heads(terms, backbone.hidden_size))
        crops = config.views.crops
        codes_BL = torch.zeros(2, config.data.last_length, dtype=torch.uint8)
        letters = Letters(torch.zeros(2, config.loss.patch.pairs, dtype=torch.int64))
        crops_XL = torch.zeros(2 * crops.number, crops.length, dtype=torch.uint8)
        outputs = network(
            codes_BL,
            requests={name: letters if name == "patch" else None for name in network.heads},
            crops=Crops(crops_XL, None, ("distill",)) if crops.number else None,
        )
    assert outputs.logits_BLV.shape == (*codes_BL.shape, 4)
    if "distill" in LOSSES[name]:
        assert outputs.heads["distill"].cosines.shape == (
            2,
            config.model.num_summary,
            config.loss.distill.prototypes,
        )
    assert outputs.heads.keys() == LOSSES[name] - {"mlm", "koleo"}
    if crops.number:
        assert outputs.crops["distill"].cosines.shape[:2] == (2 * crops.number, config.model.num_summary)
    if name.startswith("findna"):
        assert abs(pretrained.parameter_count(backbone) / 12.65e6 - 1) < 3e-3


@pytest.mark.parametrize(
    ("name", "worlds", "not_these"),
    [
        ("demo", [1, 2, 3, 4, 6, 8, 12, 16, 24, 48], [5, 32]),
        ("small", [1, 2, 4, 8, 16], [3, 32]),
        ("findna", [1, 2, 4, 8, 16], [3, 32]),
        ("findna-plus", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 192], [5, 128]),
    ],
)
def test_numbers_of_processes(name: str, worlds: list[int], not_these: list[int]) -> None:
    config = preset(name)
    for world in worlds:
        assert world_size.faults(config.train, lanes=config.data.lanes, world=world) == []
        rows = config.train.rows_at_once(world)
        assert rows * config.train.accumulation(world) * world == config.train.global_batch
    for world in not_these:
        (fault,) = world_size.faults(config.train, lanes=config.data.lanes, world=world)
        assert fault.endswith(f"numbers of processes that work: {', '.join(map(str, worlds))}")


@pytest.mark.parametrize("name", LOSSES)
def test_fifty_steps_log_every_loss_and_learn(losses: dict[str, dict[str, list[float]]], name: str) -> None:
    found = losses[name]
    assert found.keys() == LOSSES[name] | {"total"}
    assert all(len(values) == STEPS and all(map(math.isfinite, values)) for values in found.values())
    weights = preset(name).loss.weights()
    for step in range(STEPS):
        total = sum(weight * found[loss][step] for loss, weight in weights.items())
        assert found["total"][step] == pytest.approx(total, rel=1e-6)
    assert sum(found["mlm"][-5:]) / 5 < sum(found["mlm"][:5]) / 5 - 0.05


@pytest.mark.parametrize("name", LOSSES)
def test_fifty_steps_end_in_an_export(losses: dict[str, Any], folder: Path, name: str) -> None:
    assert name in losses
    exported = folder / name
    assert {path.name for path in exported.iterdir()} == {
        *files_of(preset(name).model.name),
        "train_config.json",
        "checkpoints",
        "finished.json",
        "run.lock",
        "track",
    }
    network = pretrained.load(str(exported))
    assert network(torch.zeros(1, 80, dtype=torch.uint8)).logits_BLV.isfinite().all()
    heads = safetensors.torch.load_file(exported / pretrained.HEADS)
    assert {head.split(".")[1] for head in heads} == LOSSES[name] - {"mlm", "koleo"}
    resolved = json.loads((exported / "train_config.json").read_text())
    assert resolved["views"] == configs.dump(small(name, name, folder))["views"]
    registry = Registry(f"sqlite:///{folder}/mlflow.db")
    versions = [registry.version(f"models:/findna/{number}") for number in range(1, len(LOSSES) + 1)]
    assert name in [registry.run(version.run_id).info.run_name for version in versions]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_golden_ones(losses: dict[str, dict[str, list[float]]], name: str) -> None:
    wanted, got = golden(name), losses[name]
    assert wanted.keys() == LOSSES[name] | {"total"}
    assert {len(values) for values in wanted.values()} == {GOLDEN_STEPS}
    for step, loss in differences(got, wanted, GOLDEN_STEPS):
        pytest.fail(
            f"{name}, step {step}: {loss} is {got[loss][step - 1]:.8g}, and {wanted[loss][step - 1]:.8g} in "
            f"tests/golden; if the method was meant to change, write them anew with {WRITE}"
        )


@pytest.mark.parametrize(("run", "change"), list(zip(CHANGED_RUNS, CHANGED, strict=True)))
def test_a_changed_method_is_told_by_the_golden_losses(
    losses: dict[str, dict[str, list[float]]], run: str, change: str
) -> None:
    name, _, first, which = CHANGED[change]
    found = list(differences(losses[run], golden(name), CHANGED_STEPS))
    assert found, f"{change} changed no loss"
    assert found[0][0] >= first, "it told before it could"
    assert which <= {loss for _, loss in found}


def test_missing_golden_losses_are_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "GOLDEN", tmp_path)
    with pytest.raises(
        AssertionError, match=rf"no golden losses at {tmp_path}/demo\.json; write them with {WRITE}"
    ):
        golden("demo")


def write() -> None:
    """Golden losses of every preset from runs of this code."""
    with tempfile.TemporaryDirectory() as folder:
        for name, found in run_all(Path(folder), changed=False).items():
            rows = [
                f' "{loss}": {json.dumps([float(f"{value:.7g}") for value in values[:GOLDEN_STEPS]])}'
                for loss, values in sorted(found.items())
            ]
            (GOLDEN / f"{name}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
            print(f"{name}: {', '.join(found)}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {WRITE}")
    from tests.unit import test_presets

    test_presets.write()
