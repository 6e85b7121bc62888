"""trainer.finetune: four modes logged under one parent, test scored once, champion settled on dev."""

import json
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef

import configs
from tests.registered import CANDIDATE, NAME, TASK_ROWS, Registered, register, registered, registry
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.downstream import finetune
from trainer.evaluation.tasks.fitting import finetuning
from trainer.evaluation.tasks.kinds.classification import Classification
from trainer.evaluation.tasks.results.results_log import past_results
from trainer.finetune import main
from trainer.inference import batching
from trainer.tracking.registry import Registry


@pytest.fixture
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return registered(tmp_path_factory)


def load_task(where: Registered, *overrides: str) -> TaskConfig:
    return configs.load(TaskConfig, where.task, overrides)


def test_all_modes_end_to_end(
    where: Registered, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scored: Counter[int] = Counter()
    honest = Classification.score

    def counted(self: Classification, truth_N: np.ndarray, prediction_N: np.ndarray) -> dict[str, float]:
        scored[len(truth_N)] += 1
        return honest(self, truth_N, prediction_N)

    monkeypatch.setattr(Classification, "score", counted)
    code = main(
        [
            "--model",
            CANDIDATE,
            "--task",
            str(where.task),
            "--track-uri",
            where.uri,
            "--json",
            str(tmp_path / "rows.json"),
        ]
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    assert scored[TASK_ROWS["test"]] == 5, "test is scored once for each of five modes"
    rows = {row["mode"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert set(rows) == {"kmer", "onehot", "probe", "finetune", "scratch"}
    assert all(mode in out for mode in rows)
    assert rows["kmer"]["test/mcc"] == pytest.approx(
        _kmer_mcc(where, float(rows["kmer"]["chosen"].split()[1]))
    )
    assert rows["kmer"]["test/mcc"] > 0.5

    reader = registry(where)
    parents = reader.tagged("toys", {"finetune": "parent", "model.version": "1", "model.name": NAME})
    children = [
        run
        for run in reader.tagged("toys", {"finetune": "child"}, finished=True)
        if run.data.params["task"] == "motif"
    ]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    for run in children:
        row = rows[run.data.params["mode"]]
        assert (run.data.params["task"], run.data.params["seed"]) == ("motif", "0")
        for name in ("mcc", "accuracy", "f1_macro", "auroc"):
            assert run.data.metrics[f"test/{name}"] == row[f"test/{name}"]
            assert run.data.metrics[f"val/{name}"] == row[f"val/{name}"]
    assert re.search("champion of toy: version 1(, the first| stays)", err)
    assert reader.champion(NAME).version == reader.version(CANDIDATE).version

    # The same again with other test labels: nothing that was chosen changes, and the parent is found again.
    table = pd.read_csv(where.folder / "test.csv")
    table["label"] = np.roll(table["label"], 1)
    table.to_csv(tmp_path / "rolled.csv", index=False)
    again = finetune(reader, CANDIDATE, load_task(where, f"test={tmp_path / 'rolled.csv'}"))
    for result in again:
        row = rows[result.unit.mode]
        assert result.chosen == row["chosen"]
        assert result.val == {name: row[f"val/{name}"] for name in result.val}
    assert any(result.test["mcc"] != rows[result.unit.mode]["test/mcc"] for result in again)
    capsys.readouterr()
    third = finetune(reader, CANDIDATE, load_task(where, f"test={tmp_path / 'rolled.csv'}"))
    assert [result.flat() for result in third] == [result.flat() for result in again]
    assert capsys.readouterr().err.count("; already in run ") == len(again) == 5, "it is not computed again"
    assert len(reader.tagged("toys", {"finetune": "parent"})) == 1
    assert len([result for result in past_results(reader, NAME, "1") if result.unit.task == "motif"]) == 10


def test_results_may_be_kept_in_another_experiment_and_a_deleted_one_is_refused_before_the_work(
    where: Registered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{shutil.copy(where.uri.removeprefix('sqlite:///'), tmp_path / 'mlflow.db')}"
    reader = Registry(uri)
    toys = reader.client.get_experiment_by_name("toys").experiment_id
    command = [
        "--model",
        CANDIDATE,
        "--task",
        str(where.task),
        "--track-uri",
        uri,
        "modes=kmer",
        "name=moved",
    ]
    reader.client.delete_experiment(toys)
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err == (
        f"error: experiment toys at {uri} was deleted; restore it (MLFLOW_TRACKING_URI={uri} mlflow "
        f"experiments restore --experiment-id {toys}) or give another track.experiment\n"
    )
    assert main([*command, "track.experiment=elsewhere"]) == 0
    assert "champion of toy: unchanged, no mode that uses version 1" in capsys.readouterr().err
    (child,) = reader.tagged("elsewhere", {"finetune": "child"})
    assert child.data.params["task"] == "moved"
    reader.client.restore_experiment(toys)
    version = reader.version(CANDIDATE).version  # an int, of a database
    assert "moved" in {result.unit.task for result in past_results(reader, NAME, version)}, (
        "wherever they lie"
    )
    assert main([*command, "track.experiment=''"]) == 2
    assert "track.experiment: an experiment needs a name (given '')" in capsys.readouterr().err


def _kmer_mcc(where: Registered, c: float) -> float:
    train, test = (pd.read_csv(where.folder / f"{role}.csv") for role in ("train", "test"))
    counter = CountVectorizer(analyzer="char", ngram_range=(3, 3), lowercase=False)
    model = LogisticRegression(C=c, max_iter=2000).fit(
        counter.fit_transform(train["sequence"]), train["label"]
    )
    return float(matthews_corrcoef(test["label"], model.predict(counter.transform(test["sequence"]))))


def test_champion_falls_only_to_a_better_dev_score(
    where: Registered, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, task = registry(where), load_task(where, "modes=[probe]", "probe.C=[0.5]")
    reader.set_alias(NAME, "champion", "1")
    for seed in (1, 2):
        register(where.folder, where.uri, seed=seed, params={"run.dir": "none"})
    bias = {"dev": 0.0}
    honest = Classification.score

    def shifted(self: Classification, truth_N: np.ndarray, prediction_N: np.ndarray) -> dict[str, float]:
        found = honest(self, truth_N, prediction_N)
        on_dev = len(truth_N) == TASK_ROWS["dev"]
        return found | {"mcc": bias["dev"] if on_dev else 1 - bias["dev"]}

    monkeypatch.setattr(Classification, "score", shifted)

    def run(version: str, dev: float) -> str:
        bias["dev"] = dev
        finetune(reader, f"models:/{NAME}/{version}", task)
        return capsys.readouterr().err

    assert "not scored on motif" in run("2", 0.4)
    assert "version 1 stays" in run("1", 0.5)
    assert "(mean difference on dev -0.100," in run("2", 0.9), (
        "its test score is higher, which must not count, and what MLflow has is not computed again"
    )
    assert reader.champion(NAME).version in ("1", 1)
    assert "version 3 follows version 1 (mean difference on dev +0.100," in run("3", 0.6)
    champion = reader.champion(NAME)
    assert champion.version in ("3", 3)
    assert float(champion.tags["champion.difference"]) == pytest.approx(0.1)
    assert "## Champion\nchampion of toy: version 3 follows version 1 (" in champion.description
    reader.set_alias(NAME, "champion", "1")
    reader.set_alias(NAME, "candidate", "1")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_told_to_stop_it_ends_its_run(
    where: Registered,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signal_handlers: None,
) -> None:
    """In the middle of training: what is under way leaves no run, and the run before it stays FINISHED."""
    trained = finetuning._Trainer.epoch

    def stopped(trainer: finetuning._Trainer, *given: object) -> bool:
        signal.raise_signal(number)
        return trained(trainer, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning._Trainer, "epoch", stopped)
    mode = {"modes": "[kmer,finetune]", "name": f"stopped{number}"}
    assert (
        main(
            [
                "--model",
                CANDIDATE,
                "--task",
                str(where.task),
                "--track-uri",
                where.uri,
                *(f"{key}={value}" for key, value in mode.items()),
            ]
        )
        == code
    )
    err = capsys.readouterr().err
    assert re.search(
        "error: (told to stop|interrupted); finished results are in MLflow; the same command", err
    )
    runs = registry(where).runs(registry(where).client.get_experiment_by_name("toys").experiment_id, "")
    of_task = {
        run.data.params["mode"]: run.info.status
        for run in runs
        if run.data.params.get("task") == mode["name"]
    }
    assert of_task == {"kmer": "FINISHED"}
    assert not [run for run in runs if run.info.status == "RUNNING"]


def test_a_long_row_among_short_ones_needs_its_own_memory_alone(where: Registered, tmp_path: Path) -> None:
    """Padded to it, a batch of training would hold 20 x 40,000 letters."""
    widest = 0
    rows = (where.folder / "train.csv").read_text() + "ACGT" * 10_000 + ",a\n"
    (tmp_path / "train.csv").write_text(rows)
    made = batching.padded_batch

    def watched(*given: object, **more: object) -> batching.PaddedBatch:
        nonlocal widest
        batch = made(*given, **more)  # type: ignore[arg-type]
        widest = max(widest, batch.codes_BL.numel())
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "padded_batch", watched)
        task = load_task(
            where,
            f"train={tmp_path / 'train.csv'}",
            "name=long",
            "modes=[probe,finetune,scratch]",
            "finetune.epochs=1",
        )
        finetune(registry(where), CANDIDATE, task)
    assert widest == 40_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "models:/nobody@candidate"], 1, "registered model models:/nobody@candidate"),
        (["--model", f"models:/{NAME}/99"], 1, f"models:/{NAME}/99"),
        (["--model", "runs/x"], 2, "runs/x is no registered model; write models:/NAME@ALIAS"),
        (["--model", CANDIDATE, "test=/nowhere/test.csv"], 1, "/nowhere/test.csv: no such file"),
        (
            ["--model", CANDIDATE, "--json", "/"],
            2,
            "output / is a folder; give the name of a file in it, such",
        ),
        (["--model", CANDIDATE, "finetune.epoch=3"], 2, "did you mean 'epochs'"),
        (["--model", CANDIDATE, "label_column=class"], 1, "train.csv has no column 'class'"),
        (["--model", CANDIDATE, "test=x.bed"], 2, "reference: x.bed is a BED and needs the genome"),
        (["--model", CANDIDATE, "test=/nowhere/x.pq"], 1, "/nowhere/x.pq: no such file"),
        (["--model", CANDIDATE, "format=fasta"], 1, "train.csv is not a FASTA"),
        (
            ["--model", CANDIDATE, "label_column=[a, b]"],
            2,
            "label_column: kind classification reads one column",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    where: Registered, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--task", str(where.task), "--track-uri", where.uri]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert err.startswith("error: ")


def test_json_is_written_to_no_name_of_another_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "t.yaml"
    task.write_text("name: t\ntrain: none.csv\nlabels: [a, b]\n")
    for name in ("r.csv", "R.PARQUET"):
        assert main(["--model", "models:/none@x", "--task", str(task), "--json", name]) == 2
        assert f"--json {name} says another format; JSON is written, to a name that ends in .json" in (
            capsys.readouterr().err
        )
