"""A loss and a backbone from outside the package, each one file and one line: trained, exported, loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs import ConfigError, validate
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import method, set_up, small_config
from tests.examples.agreement import Agreement
from tests.examples.tiny_conv import TinyConv, TinyConvConfig
from tests.ranks import on_ranks
from trainer.distill.step import train_step
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting import modes
from trainer.evaluation.tasks.fitting.prepared import prepare
from trainer.evaluation.tasks.results.results import Unit
from trainer.evaluation.tasks.rows import data
from trainer.losses.registry import LOSSES
from trainer.models import pretrained
from trainer.models.registry import MODELS
from trainer.run import train_state
from trainer.run.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5


def register(patch: pytest.MonkeyPatch) -> None:
    """The two lines that a contributor adds."""
    patch.setitem(LOSSES, "agreement", Agreement)
    patch.setitem(MODELS, "tiny-conv", TinyConv)


def values(uri: str, **changes: Any) -> dict[str, Any]:
    added = {"model": {"name": "tiny-conv", "channels": 10}, "loss__agreement": {"weight": 0.5, "size": 7}}
    return small_config(uri, **added | changes)


def trained(uri: str, folder: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Losses by step, the teacher's logits of some rows, and those of its export, read back."""
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        config, engine, now, reader = set_up(values(uri, **changes))
        losses = []
        for step in range(STEPS):
            batch = reader.batch(step)
            micro = batch.split(config.train.rows_at_once(engine.group.size))
            result = train_step(engine, now.teacher, micro, method=method(config), states=now.centres)
            train_state.apply(now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4)
            losses.append(result.losses)
        reader.close()
        tensors = dict(now.teacher.full_tensors())
        codes_BL = torch.arange(60, dtype=torch.uint8).view(2, 30) % 4
        with torch.no_grad():
            expected = now.teacher.module.eval()(codes_BL).logits_BLV
        found = expected
        if engine.group.rank == 0:
            pretrained.write(folder, now.teacher.module, tensors, card="card")
            with torch.no_grad():
                found = pretrained.load(folder)(codes_BL).logits_BLV
        scores = fine_tuned(folder) if engine.group.size == 1 else {}
        return {"losses": losses, "expected": expected.clone(), "found": found.clone(), "scores": scores}


def fine_tuned(folder: str) -> dict[str, float]:
    """Test MCC of the export on a toy task, by mode: which of two letters a sequence is rich in."""
    generator = np.random.default_rng(0)
    rows = []
    for label, letters in (("a", "AAAACGT"), ("c", "ACCCCGT")):
        rows += [f"{''.join(generator.choice(list(letters), 40))},{label}" for _ in range(60)]
    table = Path(folder) / "rows.csv"
    table.write_text("\n".join(["sequence,label", *rows]) + "\n")
    values = {
        "name": "toy",
        "test": str(table),
        "labels": ["a", "c"],
        "finetune": {"lr": 3e-2, "epochs": 4, "batch": 16},
    }
    task = TaskConfig.model_validate(values)
    network, config = pretrained.load(folder), pretrained.read_config(folder)
    prepared = prepare(network, config, task=task, data=data.load(task), device=torch.device("cpu"))
    return {
        mode: modes.compute_unit(prepared, Unit("tiny", "1", "toy", mode, 0)).result.test["mcc"]
        for mode in ("probe", "finetune", "scratch")
    }


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("outside")
    return write_dataset(folder, {"train": [markov_sequence(30_000, seed=1)]}, block_bp=1024, soft=True)


@pytest.fixture(scope="module")
def runs(uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("exports")
    changes = {1: {"train__micro_batch": 8}, 2: {}}
    return {n: on_ranks(n, trained, uri, str(folder / str(n)), changes[n])[0] for n in (1, 2)} | {
        "folder": folder
    }


def test_the_loss_is_trained_on_and_is_the_same_on_any_number_of_ranks(runs: dict[Any, Any]) -> None:
    one, two = (runs[n]["losses"] for n in (1, 2))
    assert all("agreement" in losses for losses in one)
    first, last = one[0]["agreement"], one[-1]["agreement"]
    assert last < first, "five steps pull the vectors together"
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        assert a == pytest.approx(b, rel=1e-5), f"step {step}"


def test_the_backbone_is_exported_and_read_back(runs: dict[Any, Any]) -> None:
    for n in (1, 2):
        assert torch.equal(runs[n]["found"], runs[n]["expected"])
    folder = runs["folder"] / "1"
    config = json.loads((folder / pretrained.CONFIG).read_text())
    assert (config["model_type"], config["channels"], config["kernel_size"]) == ("tiny-conv", 10, 5)
    assert config["hidden_size"] == 10 and "num_groups" not in config
    with pytest.raises(ValueError, match="has model_type 'tiny-conv', known are dilated-conv, findna"):
        pretrained.load(str(folder))  # by those who did not register it


def test_the_export_is_fine_tuned(runs: dict[Any, Any]) -> None:
    scores = runs[1]["scores"]
    assert scores.keys() == {"probe", "finetune", "scratch"}
    assert min(scores.values()) > 0.8, "the letters of a sequence are easy to tell"


def test_a_size_that_was_added_later_has_its_default_in_older_exports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = {"model_type": "tiny-conv", "channels": 10}
    with pytest.raises(KeyError, match="kernel_size"):
        TinyConvConfig.from_export(old)
    monkeypatch.setattr(TinyConvConfig, "ADDED_LATER", frozenset({"width"}))
    assert TinyConvConfig.from_export(old) == TinyConvConfig(channels=10, width=5)


def test_padding_changes_no_logit_of_the_backbone() -> None:
    model = TinyConv(TinyConvConfig(channels=8))
    codes_BL = torch.randint(0, 4, (1, 20), dtype=torch.uint8)
    padded_BL = torch.nn.functional.pad(codes_BL, (0, 9), value=7)
    alone, padded = model(codes_BL), model(padded_BL, length_B=torch.tensor([20]))
    torch.testing.assert_close(padded.letters_BLD[:, :20], alone.letters_BLD)
    torch.testing.assert_close(padded.summary_BPD, alone.summary_BPD)


@pytest.mark.parametrize("name", ["agreement", "tiny_conv"])
def test_contributing_shows_the_examples_that_are_tested(name: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"```python\n{(ROOT / 'tests/examples' / f'{name}.py').read_text()}```\n" in text


def test_their_keys_are_checked_as_all_others(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = values(uri)
    known = r"model.name: must be one of dilated-conv, findna \(given 'tiny-conv'\)"
    with pytest.raises(ConfigError, match=known):
        validate(TrainConfig, plain, source="x")
    register(monkeypatch)
    assert validate(TrainConfig, plain, source="x").loss.weights()["agreement"] == 0.5
    of_another = values(uri, model={"name": "tiny-conv", "num_layers": 2})
    with pytest.raises(ConfigError, match=r"model.num_layers: unknown key for this model.name$"):
        validate(TrainConfig, of_another, source="x")
    wrong = values(uri, model={"name": "tiny-conv", "chanels": 10}, loss__agreement={"size": 0, "sice": 1})
    with pytest.raises(ConfigError) as fault:
        validate(TrainConfig, wrong, source="x")
    lines = str(fault.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "model.chanels: unknown key, did you mean 'channels'?",
        "loss.agreement.size: input should be greater than or equal to 1 (given 0)",
        "loss.agreement.sice: unknown key, did you mean 'size'?",
    ]
