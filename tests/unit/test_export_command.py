"""python -m trainer.export: any version as a folder that opens, or one sentence and no folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.storage import store
from tests import kept
from tests.exports import SIZES, export, files_of, network_of
from tests.registered import NAME, Registered, own_database, registered, tiny_network
from trainer import export as command
from trainer import load_model, load_task_model
from trainer.evaluation.tasks.kept import task_model
from trainer.evaluation.tasks.results.results_log import ResultsLog, VersionLog
from trainer.inference.registered_model import open_model
from trainer.models import pretrained
from trainer.sharing import card, export_command
from trainer.tracking.registry import Registry

CODES = torch.arange(60, dtype=torch.uint8).view(2, 30) % 5


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return registered(tmp_path_factory)


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def old_export(folder: Path, **changes: Any) -> Path:
    """As releases before wrote it: four files, and config.json without what transformers needs."""
    export(folder, network_of("findna"), card="---\nlibrary_name: dna-distill\n---\n# old\n")
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"], config["pad_token_id"]
    config |= {"architectures": ["ChordMixer"], "num_labels": 4} | changes
    (folder / "config.json").write_text(json.dumps(config))
    for name in files_of("findna") - {*pretrained.FILES}:
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_folder_is_written_with_all_that_opens_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = network_of(name)
    source = export(tmp_path / "run", network)
    (source / "checkpoints").mkdir()
    (source / "checkpoints" / "latest.json").write_text("{}")
    output = tmp_path / "shared" / "model"
    assert run("--model", source, "--output", output) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: {source}, transformers (trust_remote_code=True) and trainer.load_model open it"
    ]
    assert {path.name for path in output.iterdir()} == files_of(name)
    assert [path.name for path in output.parent.iterdir()] == ["model"]
    for file in (pretrained.WEIGHTS, pretrained.HEADS):
        assert (output / file).read_bytes() == (source / file).read_bytes()
    assert torch.equal(load_model(str(output))(CODES).logits_BLV, network(CODES).logits_BLV)
    assert card.is_card((output / "README.md").read_text())


def test_an_export_of_an_earlier_release_gets_what_transformers_needs(tmp_path: Path) -> None:
    source, output = old_export(tmp_path / "old"), tmp_path / "new"
    assert run("--model", source, "--output", output, "--licence", "cc-by-4.0") == 0
    assert {path.name for path in output.iterdir()} == files_of("findna")
    config = json.loads((output / "config.json").read_text())
    assert config == pretrained.shared_config(network_of("findna"))
    text = (output / "README.md").read_text()
    assert "license: cc-by-4.0" in text and text.count("## Licence") == 1
    assert card.is_card(text) and "# old\n" in text, "its name is that of the folder"


def test_what_transformers_saved_is_exported(tmp_path: Path) -> None:
    """It has the keys of transformers, and neither a card nor projection heads."""
    source = export(tmp_path / "saved", network_of("findna"))
    for name in (pretrained.HEADS, pretrained.CARD):
        (source / name).unlink()
    assert run("--model", source, "--output", tmp_path / "again") == 0
    assert {path.name for path in (tmp_path / "again").iterdir()} == files_of("findna")


def test_a_card_that_stands_is_kept(tmp_path: Path) -> None:
    text = (
        card.render(card.CardFacts("mine", pretrained.shared_config(network_of("findna")), 5))
        + "\nMy words.\n"
    )
    source = export(tmp_path / "run", network_of("findna"), card=text)
    assert run("--model", source, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "README.md").read_text() == text


def test_a_version_is_exported_with_what_mlflow_knows(
    where: Registered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The registered one is of an earlier release: four files, no tags."""
    output = tmp_path / "out"
    model = f"models:/{NAME}@candidate"
    assert run("--model", model, "--output", output, "--track-uri", own_database(where, tmp_path)) == 0
    assert f"{output}: {model}, transformers" in capsys.readouterr().out
    text = (output / "README.md").read_text()
    assert f"models:/{NAME}/1" in text
    for figure in ("0.3300", "0.3000", "0.3600", "10,000 masked letters", "64 bp from toy"):
        assert figure in text, figure
    assert "No results were known" in text
    found = load_model(str(output))(CODES).logits_BLV
    assert torch.equal(found, tiny_network()(CODES).logits_BLV)


def test_results_on_labelled_tasks_are_written_into_the_card(where: Registered, tmp_path: Path) -> None:
    uri = own_database(where, tmp_path)
    registry = Registry(uri)
    version = VersionLog.open(registry, open_model(registry, f"models:/{NAME}/1"), "toys")
    prepared = kept.prepared(where)
    for mode in ("probe", "kmer"):
        outcome = kept.outcome(where, "classification", mode)
        log = ResultsLog(version, prepared.task, outcome.result.settings, outcome.result.rows, "0" * 64)
        assert log.record(outcome)
    assert run("--model", f"models:/{NAME}/1", "--output", tmp_path / "out", "--track-uri", uri) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    part = text.split(f"## {card.LABELLED}\n")[1].split("\n## ")[0]
    scores = [kept.outcome(where, "classification", mode).result.test["mcc"] for mode in ("probe", "kmer")]
    assert f"{100 * scores[0]:.1f}" in part and f"{100 * scores[1]:.1f} (kmer)" in part
    assert "| motif | probe |" in part and "No results" not in part


def test_a_fine_tuned_model_keeps_all_of_its_files(
    where: Registered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = kept.written(tmp_path / "task", kept.outcome(where, "classification", "probe").model)
    assert run("--model", source, "--output", tmp_path / "out") == 0
    assert (
        "fine-tuned for motif; trainer.predict and trainer.load_task_model open it" in capsys.readouterr().out
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*pretrained.FILES, task_model.HEAD, task_model.TASK}
    sequences = ["ACGTTGCATTAGC", "GATTACAGATTACA"]
    expected = load_task_model(str(source)).predict(sequences)
    assert load_task_model(str(tmp_path / "out")).predict(sequences).equals(expected)
    assert run("--model", source, "--output", tmp_path / "two", "--licence", "mit") == 2
    assert "--licence is for encoders" in capsys.readouterr().err


def test_an_output_that_holds_something_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = export(tmp_path / "run", network_of("findna"))
    output = export(tmp_path / "there", network_of("dilated-conv"))
    before = (output / pretrained.WEIGHTS).read_bytes()

    def refused(sentence: str, *options: object) -> None:
        assert run("--model", source, *options) == 2
        said = capsys.readouterr().err
        assert sentence in said and len(said.splitlines()) == 1, said

    refused("holds a model already; give a new folder, or --overwrite", "--output", output)
    assert (output / pretrained.WEIGHTS).read_bytes() == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    refused("holds files that are no export (a.txt)", "--output", tmp_path / "notes", "--overwrite")
    (output / "checkpoints").mkdir()
    (output / "checkpoints" / "state").write_text("a")
    refused("holds files that are no export (checkpoints/state)", "--output", output, "--overwrite")
    refused("is a file; give a folder", "--output", tmp_path / "notes" / "a.txt")
    refused("is the model; give another folder", "--output", f"{tmp_path}/./run/")
    refused("is no name that hubs know", "--output", tmp_path / "new", "--licence", "My own!")
    (output / "checkpoints" / "state").unlink()
    (tmp_path / "empty").mkdir()
    assert run("--model", source, "--output", tmp_path / "empty") == 0
    assert run("--model", source, "--output", output, "--overwrite") == 0
    assert {path.name for path in output.iterdir()} == files_of("findna"), "nothing of what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes", "run", "there"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / pretrained.WEIGHTS).unlink(), "model.safetensors: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda folder: change(folder, format_version=2), "has format version 2, this code reads 1"),
        (lambda folder: change(folder, model_type="bert"), "has model_type 'bert', known are"),
        (lambda folder: change(folder, num_groups=None), "config.json is damaged"),
        (lambda folder: (folder / pretrained.WEIGHTS).write_bytes(b"x"), "does not fit its config"),
        (lambda folder: (folder / "task.json").write_text("{}"), "no description of a fine-tuned model"),
    ],
)
def test_a_model_that_is_none_is_one_sentence(
    tmp_path: Path, spoil: Any, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = export(tmp_path / "run", network_of("findna"))
    spoil(source)
    assert run("--model", source, "--output", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1, said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def test_a_version_that_is_none_is_one_sentence(
    where: Registered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, code, sentence in (
        (f"models:/{NAME}@best", 1, "its aliases are @candidate"),
        ("models:/other/1", 1, f"its models are {NAME}"),
        ("models:/", 2, "write models:/NAME@ALIAS or models:/NAME/VERSION"),
    ):
        options = ("--model", model, "--output", tmp_path / "out", "--track-uri", where.uri)
        assert run(*options) == code, model
        assert sentence in capsys.readouterr().err
    assert run("--model", tmp_path / "none", "--output", tmp_path / "out") == 1
    assert "none/config.json: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_version_is_named_as_the_user_named_it(
    where: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(registry: Registry, version: Any, into: Path) -> Path:
        folder = export(into / "model", network_of("findna"))
        (folder / pretrained.WEIGHTS).write_bytes(b"x")
        return folder

    monkeypatch.setattr(Registry, "download", damaged)
    model = f"models:/{NAME}/1"
    assert run("--model", model, "--output", tmp_path / "out", "--track-uri", where.uri) == 1
    assert f"error: {model}/model.safetensors does not fit its config" in capsys.readouterr().err


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    source = export(tmp_path / "run", network_of("findna"))
    if there:
        export(tmp_path / "out", network_of("dilated-conv"))
    before = sorted(path.name for path in tmp_path.glob("**/*"))

    def full(source: str, target: str) -> None:
        raise store.StoreError(f"cannot write {target}: no space left on device")

    monkeypatch.setattr(pretrained, "copy_file", full)
    assert run("--model", source, "--output", tmp_path / "out", "--overwrite") == 1
    assert "no space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("**/*")) == before


def test_what_was_there_comes_back_if_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = export(tmp_path / "run", network_of("findna"))
    output, rename = export(tmp_path / "out", network_of("dilated-conv")), os.rename
    before = (output / pretrained.WEIGHTS).read_bytes()

    def refused(old: Any, new: Any) -> None:
        if Path(new) == output and not Path(old, "modeling_dilated_conv.py").exists():
            raise PermissionError(13, "Permission denied", str(new))
        rename(old, new)

    monkeypatch.setattr(os, "rename", refused)
    assert run("--model", source, "--output", output, "--overwrite") == 1
    assert "Permission denied" in capsys.readouterr().err
    assert (output / pretrained.WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_elsewhere_the_weights_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, written = export(tmp_path / "run", network_of("findna")), []
    write = store.publish

    def noted(uri: str) -> Any:
        written.append(store.basename(uri))
        return write(uri)

    monkeypatch.setattr(store, "publish", noted)
    for _ in range(2):
        assert run("--model", source, "--output", "memory://bucket/out", "--overwrite") == 0
    assert set(store.list_files("memory://bucket/out")) == files_of("findna")
    assert written[-1] == pretrained.WEIGHTS and written.count(pretrained.WEIGHTS) == 2
    again = tmp_path / "again"
    assert run("--model", "memory://bucket/out", "--output", again) == 0
    assert (again / pretrained.WEIGHTS).read_bytes() == (source / pretrained.WEIGHTS).read_bytes()
    assert load_model("memory://bucket/out")(CODES).logits_BLV.shape == (2, 30, 4)


def test_a_relative_output_of_a_ray_job_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run("--model", export(tmp_path / "run", network_of("findna")), "--output", "shared") == 2
    assert "--output: shared is relative" in capsys.readouterr().err
    assert not os.path.exists("shared")
    assert export_command.ExportRequest("a", "b").overwrite is False
