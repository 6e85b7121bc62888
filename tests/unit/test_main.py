"""The training command from outside: exit codes, one clear sentence, nothing half-written; and one whole
run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from data_prep.manifests import kept_name, open_manifest
from tests import commands
from tests.datasets import markov_sequence, write_dataset
from tests.exports import files_of
from trainer.data.dataset import Dataset
from trainer.main import main
from trainer.models import pretrained
from trainer.tracking.registry import Registry

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = [
    "model.hidden_size=20",
    "model.dilations=[1, 4]",
    "data.length=48",
    "loss.patch.prototypes=32",
    "train.precision=fp32",
    "val.windows=24",
    "val.every=4",
    "track.every=2",
    "track.report_every=0",  # a process of its own, seconds of CPU; test_browser.py has one
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(
        tmp_path_factory.mktemp("toy"),
        {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(5_000, seed=2)]},
    )


def launch(*arguments: str, cwd: Path, by: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """trainer/main.py in ``cwd``; ``by``: what starts it, else it is forked from a prepared process, for the
    CPU."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    given = ["--config", str(ROOT / "configs/train/demo.yaml"), *arguments]
    if not by:
        return commands.run(ROOT / "trainer/main.py", given, cwd=cwd, environment=environment)
    return subprocess.run(
        [*by, str(ROOT / "trainer/main.py"), *given],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def damage(shard: Path, offset: int) -> None:
    damaged = bytearray(shard.read_bytes())
    damaged[offset + 100] ^= 1
    shard.write_bytes(damaged)


def test_one_process_trains_exports_and_registers(toy: str, tmp_path: Path) -> None:
    arguments = [
        *TINY,
        f"data.uri={toy}",
        "run.dir=run",
        "train.steps=8",
        "train.zero_stage=2",
        "checkpoint.every=2",
        "checkpoint.keep_last=2",
    ]
    done = launch(*arguments, cwd=tmp_path, by=[sys.executable])
    assert done.returncode == 0, done.stderr
    assert "registered findna version 1 as candidate" in done.stderr
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    version = registry.version("models:/findna@candidate")
    run = registry.run(version.run_id)
    for name in (
        "loss/total",
        "loss/mlm",
        "loss/patch",
        "lr",
        "ema/momentum",
        "grad_norm",
    ):
        assert registry.history(run.info.run_id, name)["step"].tolist() == list(range(1, 9)), name
    assert registry.history(run.info.run_id, "val/mlm_accuracy")["step"].tolist() == [0, 4, 8]
    wanted = {
        "val/mlm_loss",
        "val/student_mlm_loss",
        "val/student_mlm_accuracy",
        "val/mlm_accuracy_majority",
        "val/mlm_accuracy_markov",
        "health/embedding_std",
        "health/effective_rank",
        "health/alignment",
        "health/uniformity",
        "throughput/bp_per_s",
        "throughput/step_ms",
        "throughput/data_wait_fraction",
        "throughput/device_wait_fraction",
        "throughput/host_fraction",
        "throughput/step_ms_p50",
        "throughput/step_ms_p95",
        "throughput/bp_per_s_per_rank",
        "throughput/goodput",
        "throughput/mfu",
        "memory/peak_bytes",
    }
    assert wanted <= run.data.metrics.keys()
    assert 0 < run.data.metrics["throughput/mfu"] < 1.5
    tags = run.data.tags
    assert {"dataset.manifest_sha256", "git.commit", "world_size", "zero_stage"} <= tags.keys()
    assert tags["checkpoint.uri"] == str(tmp_path / "run" / pretrained.WEIGHTS)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "8"

    exported = tmp_path / "run"
    for name in files_of("dilated-conv"):
        got = registry.download(version, tmp_path / "got") / name
        assert got.read_bytes() == (exported / name).read_bytes()
    assert not (exported / "exports" / "step-00000008").exists()  # MLflow has it
    tensors = safetensors.torch.load_file(exported / pretrained.WEIGHTS)
    assert not any(name.startswith("heads.") for name in tensors)
    heads = safetensors.torch.load_file(exported / pretrained.HEADS)
    assert {name.split(".")[1] for name in heads} == {"patch"}
    config = json.loads((exported / pretrained.CONFIG).read_text())
    assert config["model_type"] == "dilated-conv"
    assert config["hidden_size"] == 20
    pretrained.load(str(exported))
    card = (exported / pretrained.CARD).read_text()
    accuracy, markov = (run.data.metrics[f"val/mlm_accuracy{of}"] for of in ("", "_markov"))
    for known in (
        "8 steps of training",
        tags["dataset.manifest_sha256"],
        f"| **this model** | {accuracy:.4f} |",
        f"{markov:.4f}",
        "CPU, 1 process |",
        "| seed | 0 |",
        "minutes |",
    ):
        assert known in card, known
    assert "not known" not in card
    kept = sorted(p.name for p in (exported / "checkpoints").iterdir())
    assert kept == ["latest.json", "step-00000006", "step-00000008"]
    saved = safetensors.torch.load_file(
        exported / "checkpoints" / kept[-1] / "rank-00000-of-00001.safetensors"
    )
    for name, tensor in tensors.items():  # on one rank a fragment is the whole
        assert torch.equal(saved[f"teacher/{name}"].view_as(tensor), tensor), name

    again = launch(*arguments, cwd=tmp_path)
    assert again.returncode == 0
    assert "run holds this run, finished; nothing to do" in again.stderr
    assert registry.version("models:/findna@candidate").version == version.version
    refused = launch(*arguments, "train.lr=1e-4", cwd=tmp_path)
    assert refused.returncode == 2
    assert "error: run.dir: run holds another run" in refused.stderr
    assert "  train.lr: was 0.002, now 0.0001\n" in refused.stderr


def test_launcher_with_two_processes_gives_the_losses_of_one(toy: str, tmp_path: Path) -> None:
    arguments = [*TINY, f"data.uri={toy}", "train.steps=4", "track.registered_model=null"]
    histories: list[Any] = []
    held_out: list[dict[str, float]] = []
    launcher = [
        str(Path(sys.executable).with_name("deepspeed")),
        "--num_accelerators",
        "2",
        "--master_port",
        str(20_000 + os.getpid() % 20_000),
    ]
    for processes, by in ((0, [sys.executable]), (2, launcher)):
        named = [f"run.dir=run{processes}", f"run.name=run{processes}"]
        done = launch(*arguments, *named, cwd=tmp_path, by=by)
        assert done.returncode == 0, done.stdout + done.stderr
        registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
        (run,) = registry.runs(
            registry.client.get_experiment_by_name("findna").experiment_id,
            f"attributes.run_name = 'run{processes}'",
        )
        assert run.data.tags["world_size"] == str(max(1, processes))
        histories.append(registry.history(run.info.run_id, "loss/total")["value"].tolist())
        metrics = run.data.metrics
        held_out.append({name: metrics[name] for name in metrics if name.startswith(("val/", "health/"))})
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)
    assert len(held_out[0]) == 11
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-2)
    for name in ("val/scored_positions", "val/mlm_accuracy_majority", "val/mlm_accuracy_markov"):
        assert held_out[0][name] == held_out[1][name]
    weights = [safetensors.torch.load_file(tmp_path / f"run{p}" / pretrained.WEIGHTS) for p in (0, 2)]
    for name in weights[0]:
        # The rows of a batch are summed in another order; AdamW's first steps amplify that where gradients
        # are near 0.
        assert (weights[0][name] - weights[1][name]).abs().max() < 1e-3, name


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trian.steps=3", "trian: unknown key, did you mean 'train'?"),
        ("train.stesp=3", "train.stesp: unknown key, did you mean 'steps'?"),
        ("train.steps=0", "train.steps: input should be greater than or equal to 1 (given 0)"),
        ("train.zero_stage=4", "train.zero_stage: input should be less than or equal to 3 (given 4)"),
        (
            "train.deepspeed={fp16: {enabled: true}}",
            "train.deepspeed: fp16 cannot be set: set train.precision",
        ),
        (
            "loss={mlm: {weight: 0}, patch: {weight: 0}}",
            "every loss has weight 0",
        ),
        ("views.teacher.operations={rotate: 3}", "unknown rotate; must be of deletion, insertion, neighb"),
        ("train.steps", "not an override of the form dotted.key=value: train.steps"),
        (
            "track.registered_model=yeast/v1",
            "track.registered_model: MLflow takes no / or : in the name of a model (given 'yeast/v1')",
        ),
        (
            "track.registered_model='yeast:v1'",
            "track.registered_model: MLflow takes no / or : in the name of a model (given 'yeast:v1')",
        ),
        ("track.registered_model=..", "track.registered_model: is no name that MLflow takes for a model"),
        ("track.experiment=''", "track.experiment: an experiment needs a name (given '')"),
        (
            f"run.name={'x' * 251}",
            "run.name: the name of a run has at most 250 characters in MLflow's databases, not 251",
        ),
        (
            "track.uri=foo://me:word@x",
            "track.uri: is no MLflow server or database; give http://, https://, sqlite://,",
        ),
        (
            "track.uri=localhost:5000",
            "track.uri: has no scheme; write http://localhost:5000 (given 'localhost:5000')",
        ),
    ],
)
def test_wrong_config_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    assert main(["--config", str(ROOT / "configs/train/demo.yaml"), override, "val.every=0"]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert ("val.every" in said) == ("=" in override)  # every fault at once


@pytest.mark.parametrize(
    ("overrides", "code", "sentence"),
    [
        (
            ["train.micro_batch=7"],
            2,
            "train.micro_batch: 7 times 1 processes does not divide train.global_batch 48",
        ),
        (["data.uri=/nowhere/at/all"], 1, "no dataset at /nowhere/at/all: manifest.json is missing there"),
    ],
)
def test_user_mistakes_get_one_sentence_and_leave_nothing(
    toy: str, tmp_path: Path, overrides: list[str], code: int, sentence: str
) -> None:
    done = launch(*TINY, f"data.uri={toy}", "run.dir=run", "train.steps=2", *overrides, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == []


def test_a_mixture_with_lengths_by_step_and_a_damaged_block(toy: str, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "d", {"train": [markov_sequence(9_000, seed=3)]}, block_bp=1024)
    dataset = Dataset(other, "train")
    damage(tmp_path / "d" / "train-000000.tar", dataset.blocks[4][1].offset)
    lengths = "[{from_step: 0, length: 48}, {from_step: 3, length: 80}]"
    done = launch(
        *TINY,
        f"data.uri=[{{uri: {toy}, weight: 3}}, {{uri: {other}, weight: 2}}]",
        f"data.length={lengths}",
        "data.on_corrupt=skip",
        "data.workers=2",
        "run.dir=run",
        "train.steps=7",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert f"{other} has no val split: it is trained on, and left out of validation" in done.stderr
    assert done.stderr.count("skipped shard") == 1
    assert "train-000000.tar, block train0:4096-5120" in done.stderr
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    run = registry.run(registry.version("models:/findna@candidate").run_id)
    digests = run.data.tags["dataset.manifest_sha256"].split(",")
    assert digests == [Dataset(toy, "train").digest, dataset.digest]
    assert run.data.params["data.length"] == "80"
    assert "'from_step': 3" in run.data.params["data.length_by_step"]
    assert other in run.data.params["data.uri"]
    skipped = registry.history(run.info.run_id, "data/skipped_blocks")
    assert skipped["step"].tolist() == [2, 4, 6, 7]
    assert skipped["value"].tolist() == sorted(skipped["value"])
    assert skipped["value"].iloc[-1] >= 1
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| window by step | 48 from step 0, 80 from step 3 |" in card
    assert len(registry.history(run.info.run_id, "throughput/mfu")) == 3


def test_windows_by_region_and_a_bed_that_changed(toy: str, tmp_path: Path) -> None:
    """Its shares are metrics; as the run goes on, another file under the same name is refused."""
    (tmp_path / "peaks.bed").write_text("".join(f"train0\t{i}\t{i + 60}\n" for i in range(0, 30_000, 500)))
    arguments = [
        *TINY,
        f"data.uri={toy}",
        "data.regions.beds=[{uri: peaks.bed}]",
        "data.regions.anywhere=0.25",
        "run.dir=run",
        "checkpoint.every=2",
    ]
    done = launch(*arguments, "train.steps=2", "train.schedule_steps=6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    run = registry.run(registry.version("models:/findna@candidate").run_id)
    shares = {name: registry.history(run.info.run_id, f"data/share_{name}") for name in ("peaks", "anywhere")}
    assert [share["step"].tolist() for share in shares.values()] == [[2], [2]]
    peaks, anywhere = (float(share["value"].iloc[0]) for share in shares.values())
    assert peaks + anywhere == pytest.approx(1) and abs(anywhere - 0.25) < 0.15
    text = (tmp_path / "peaks.bed").read_bytes()
    assert run.data.tags["regions.sha256"] == hashlib.sha256(text).hexdigest()
    assert "peaks.bed" in run.data.params["data.regions.beds"]
    assert "centred on regions: 25 % anywhere, 75 % peaks. Losses" in run.data.tags["mlflow.note.content"]
    row = "| where windows are centred, by BED file | 25 % anywhere, 75 % peaks |"
    assert row in (tmp_path / "run" / "README.md").read_text()

    (tmp_path / "peaks.bed").write_bytes(text + b"train0\t7\t9\nval0\t7\t9\n")
    changed = launch(*arguments, "train.steps=6", cwd=tmp_path)
    assert changed.returncode == 1, changed.stderr
    assert "1 of 62 lines of peaks.bed give no window: 1 held out or left out (val0)" in changed.stderr
    digest = hashlib.sha256(text).hexdigest()[:12]
    assert f"was trained on peaks.bed with sha256 {digest}, which is " in changed.stderr
    assert "give the data that it was trained on, or another run.dir" in changed.stderr
    (tmp_path / "peaks.bed").write_text("val0\t7\t9\n")
    refused = launch(*arguments, "train.steps=6", cwd=tmp_path)
    assert refused.returncode == 2 and "data.regions.beds: no line lies in the train split" in refused.stderr
    (tmp_path / "peaks.bed").write_bytes(text)
    done = launch(*arguments, "train.steps=4", cwd=tmp_path)
    assert done.returncode == 0 and "going on after step 2" in done.stderr, done.stderr


def test_a_run_goes_on_with_what_its_dataset_was_when_it_began(toy: str, tmp_path: Path) -> None:
    uri = str(shutil.copytree(toy, tmp_path / "d"))
    whole, part = "run.dir=whole", "run.dir=part"
    common = (*TINY, f"data.uri={uri}", "checkpoint.every=2", "train.schedule_steps=4")
    assert launch(*common, whole, "train.steps=4", cwd=tmp_path).returncode == 0
    assert launch(*common, part, "train.steps=2", cwd=tmp_path).returncode == 0
    opened = open_manifest(uri)
    (kept := tmp_path / "d" / kept_name(opened.digest)).write_bytes(opened.manifest.to_bytes())
    (tmp_path / "d" / "manifest.json").write_bytes(replace(opened.manifest, seed=9).to_bytes())
    done = launch(*common, part, "train.steps=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        f"{uri} has grown since this run began, which goes on with what it began with: manifest "
        f"{opened.digest[:12]}"
    ) in done.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]
    kept.unlink()
    done = launch(*common, part, "train.steps=5", cwd=tmp_path)
    assert done.returncode == 1
    assert f"was trained on {uri} with sha256 {opened.digest[:12]}, which is" in done.stderr


def test_corrupt_shard_fails_with_its_name_and_marks_the_run(tmp_path: Path) -> None:
    contigs = {"train": [markov_sequence(9_000, seed=1)], "val": [markov_sequence(900, seed=2)]}
    uri = write_dataset(tmp_path / "d", contigs)
    damage(tmp_path / "d" / "train-000000.tar", Dataset(uri, "train").blocks[1][1].offset)
    done = launch(*TINY, f"data.uri={uri}", "run.dir=run", "train.steps=2", cwd=tmp_path)
    assert done.returncode == 1
    assert "train-000000.tar, block" in done.stderr
    assert "crc32" in done.stderr
    assert "Traceback" not in done.stderr
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = registry.runs(registry.client.get_experiment_by_name("findna").experiment_id, "")
    assert run.info.status == "FAILED"
    assert not (tmp_path / "run" / pretrained.WEIGHTS).exists()
