"""``python -m cluster study`` on a local Ray, whose training is played: all tasks, the report, stops."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import __main__ as cluster
from cluster.process.signals import Preempted
from cluster.storage.lock import hold
from cluster.tasks.pool import Ended
from tests.played import play
from tests.registered import registered_before, tiny_network, write_task
from trainer.models import pretrained
from trainer.run import run_status
from trainer.run.config import TrainConfig
from trainer.study import pretrainings as study_pretrainings
from trainer.study.__main__ import main
from trainer.study.pretrainings import Pretrainings
from trainer.tracking.mlflow_run import Run, RunSpec
from trainer.tracking.registry import Registry
from trainer.workers.driver import Driver

pytestmark = pytest.mark.usefixtures("local_ray")

Said = pytest.CaptureFixture[str]
MODEL = {
    "name": "findna",
    "num_layers": 2,
    "num_groups": 4,
    "group_channels": 6,
    "intermediate_size": 32,
    "num_summary": 2,
    "norm": "layer",
}


def leave_run(config: TrainConfig) -> None:
    """What a finished run leaves in run.dir and in MLflow, with weights by its seed and learning rate."""
    place = config.run.dir
    network = tiny_network(seed=config.run.seed + 10 * int(1000 * config.train.lr))
    run_status.write_config(config)
    run_status.write_key(place, f"key-{os.path.basename(place)}")
    pretrained.write(place, network, dict(network.state_dict()), card="played")
    key = run_status.read_key(place)
    with Run(RunSpec(config.track.uri, config.track.experiment, "run", key=key)) as run:
        run.log({"throughput/step_ms": 500.0}, step=1)
        run.attach(Path(place), "model")
        run.tag({"model.version": registered_before(run, str(config.track.registered_model))})
    run_status.write_finished(place, steps=config.train.steps, delivered=True)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study of two arms on two tasks; training is played."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(study_pretrainings, "run_pretraining", play)
    take_in = Pretrainings.take_in

    def taken_in(pretrainings: Pretrainings, ended: Ended) -> None:
        if ended.result and ended.result.code == 0:
            leave_run(pretrainings._running[ended.key].config)  # type: ignore[index]
        take_in(pretrainings, ended)

    monkeypatch.setattr(Pretrainings, "take_in", taken_in)
    text = write_task(tmp_path).read_text()
    for name in ("one", "two"):
        Path(f"{name}.yaml").write_text(text.replace("name: motif", f"name: {name}"))
    preset = {
        "run": {"dir": "x"},
        "data": {"uri": "none", "length": 64},
        "model": MODEL,
        "train": {"steps": 5},
    }
    Path("preset.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    study = {
        "name": "tiny",
        "output": "out",
        "pretrain": {
            "config": "preset.yaml",
            "flops": 1e11,
            "seeds": [0, 1],
            "set": {"loss.distill.weight": 0},
        },
        "arms": {"scratch": {"scratch": True}, "slow": {"train.lr": 0.001}, "fast": {"train.lr": 0.002}},
        "tasks": [
            {"configs": ["one.yaml"], "set": {"max_train_rows": [60, None], "finetune": {"epochs": 1}}},
            {"configs": ["two.yaml"], "set": {"modes": ["kmer", "onehot", "probe"]}},
        ],
        "groups": {"both": ["one", "two"]},
        "statistics": {"samples": 200},
    }
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return tmp_path


def starts(where: Path) -> Counter[str]:
    path = where / "starts.txt"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def rows(where: Path) -> list[dict[str, str]]:
    with open(where / "out/report/results.csv") as file:
        return list(csv.DictReader(file))


def test_a_study_from_arms_to_report_and_nothing_twice(where: Path, capsys: Said) -> None:
    assert main(["--config", "study.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "fast is " in out and "Report: out/report/index.html" in out and "Traceback" not in err
    assert starts(where) == Counter({f"{arm}-s{seed}": 1 for arm in ("slow", "fast") for seed in (0, 1)})
    found = Counter((row["task"], row["rows"], row["arm"], row["mode"]) for row in rows(where))
    ours = {
        ("one", number, arm, mode): 2
        for number in ("60", "all")
        for arm in ("slow", "fast")
        for mode in ("probe", "finetune")
    }
    ours |= {("one", number, "floor", mode): 1 for number in ("60", "all") for mode in ("kmer", "onehot")}
    ours |= {("one", number, "scratch", "scratch"): 1 for number in ("60", "all")}
    ours |= {("two", "all", arm, "probe"): 2 for arm in ("slow", "fast")}
    ours |= {("two", "all", "floor", mode): 1 for mode in ("kmer", "onehot")}
    assert found == Counter(ours)
    seeds = {(row["arm"], row["pretrain_seed"]) for row in rows(where)}
    assert seeds == {
        ("floor", ""),
        ("scratch", ""),
        *((arm, str(s)) for arm in ("slow", "fast") for s in (0, 1)),
    }
    page = (where / "out/report/index.html").read_text()
    for part in (
        "What the study shows",
        "Paired differences",
        "Few labels: finetune",
        "Cost",
        "AUROC",
        "fast-s1",
    ):
        assert part in page
    assert "What is missing" not in page
    check_mlflow()
    assert main(["--config", "study.yaml"]) == 0
    assert starts(where).total() == 4
    said = capsys.readouterr().err
    assert "fast-s1: pretrained before" in said and "already in run" in said
    assert main(["--config", "study.yaml", "--only", "report"]) == 0
    assert len(rows(where)) == sum(ours.values())


def check_mlflow() -> None:
    """One parent, finished, with the differences; the pretrainings are its children."""
    registry = Registry()
    (parent,) = registry.tagged("tiny", {"study": "tiny"}, finished=True)[:1]
    assert "study.key" in parent.data.tags
    assert "difference/fast_less_slow/finetune_all/mean" in parent.data.metrics
    assert "| fast" in parent.data.tags["mlflow.note.content"]
    children = registry.tagged("tiny", {"mlflow.parentRunId": parent.info.run_id, "study.arm": "fast"})
    assert {run.data.tags["study.seed"] for run in children} == {"0", "1"}


@pytest.mark.faults
def test_a_study_that_is_told_to_stop_goes_on_with_what_is_missing(
    where: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    take_in = Driver._take_in

    def told(driver: Driver, ended: Any) -> None:
        take_in(driver, ended)
        taken.append(ended.key)
        if len(taken) == 3:
            raise Preempted

    with monkeypatch.context() as patch:
        patch.setattr(Driver, "_take_in", told)
        assert main(["--config", "study.yaml"]) == 75
    assert "the same command goes on" in capsys.readouterr().err
    assert main(["--config", "study.yaml"]) == 0
    assert max(starts(where).values()) == 1
    assert "What is missing" not in (where / "out/report/index.html").read_text()


@pytest.mark.faults
def test_one_that_was_killed_is_started_again_and_one_that_fails_stops_no_other(
    where: Path, capsys: Said
) -> None:
    (where / "out/pretraining").mkdir(parents=True)
    (where / "out/pretraining/slow-s0.befalls").write_text("-9 ")
    (where / "out/pretraining/fast-s1.befalls").write_text("1 the data are wrong in row 7")
    given = ["--config", "study.yaml", "tasks=[{configs: [two.yaml], set: {modes: [kmer, probe]}}]"]
    assert main(given) == 1
    out, err = capsys.readouterr()
    assert "slow-s0: killed by signal 9 on here" in err and "going on from its newest checkpoint" in err
    assert "error: fast-s1: the data are wrong in row 7" in err
    assert "Not pretrained yet: fast-s1." in out
    assert starts(where) == Counter({"slow-s0": 2, "slow-s1": 1, "fast-s0": 1, "fast-s1": 1})
    assert main(given) == 0
    assert starts(where)["fast-s1"] == 2 and starts(where).total() == 6


def test_parts_alone(where: Path, capsys: Said) -> None:
    given = ["--config", "study.yaml", "tasks=[{configs: [two.yaml], set: {modes: [kmer, probe]}}]"]
    assert main([*given, "--only", "tasks"]) == 1
    assert "error: slow-s0: it is not pretrained yet" in capsys.readouterr().err
    assert main([*given, "--only", "pretrain"]) == 0
    assert starts(where).total() == 4
    assert main([*given, "--only", "report"]) == 0
    assert main([*given, "--only", "tasks"]) == 0
    assert len(rows(where)) == 5


def test_the_plan_is_printed_and_nothing_is_done(where: Path, capsys: Said) -> None:
    assert main(["--config", "study.yaml", "--plan"]) == 0
    out = capsys.readouterr().out
    assert out.count("pretraining slow-s") == 2 and "FLOPs of 1e+11; about" in out
    assert "units of tasks: 28 (3 kmer, 3 onehot, 12 probe, 8 finetune, 2 scratch)" in out
    assert not (where / "out").exists() and not (where / "mlflow.db").exists()


def test_mistakes_end_with_2_and_a_study_that_runs_already_with_1(where: Path, capsys: Said) -> None:
    assert main(["--config", "study.yaml", "pretrain.flop=1"]) == 2
    assert "pretrain.flop: unknown key, did you mean 'flops'?" in capsys.readouterr().err
    with hold("out", name="study.lock"):
        assert main(["--config", "study.yaml"]) == 1
    err = capsys.readouterr().err
    assert "error: " in err and "Traceback" not in err
    assert not starts(where)


def test_the_dataset_is_built_where_it_is_not_there(where: Path, capsys: Said) -> None:
    Path("data.yaml").write_text("references: [{name: a, uri: no.fa}]\noutput: dataset\n")
    assert main(["--config", "study.yaml", "data.config=data.yaml"]) == 1
    assert (
        "building the dataset: python -m data_prep build --config data.yaml output=dataset"
        in capsys.readouterr().err
    )
    assert not starts(where) and not (where / "mlflow.db").exists()


def test_the_command_is_reached_by_the_cluster_floor(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cluster"])
    with pytest.raises(SystemExit) as end:
        cluster.main(["study", "--help"])
    assert end.value.code == 0
    assert "--plan" in capsys.readouterr().out
