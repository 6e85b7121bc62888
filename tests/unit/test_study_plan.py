"""What a study would run: steps for the same FLOPs, overrides, tasks; every fault of a config."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import configs
from configs import ConfigError
from configs.values import argument
from trainer.engine import config as engine_config
from trainer.models import pretrained
from trainer.run import run_status
from trainer.run.config import TrainConfig
from trainer.study import estimate, precision
from trainer.study.budget import Cost, cost_of, spent, steps_within
from trainer.study.config import StudyConfig, flat, words
from trainer.study.plan import make_plan
from trainer.study.pretrainings import program_of, statuses

ROOT = Path(configs.__file__).parents[1]
Study = Callable[..., dict[str, Any]]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The values of a study that can be planned, with changes; its files lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    preset = {
        "run": {"dir": "elsewhere"},
        "data": {"uri": "dataset", "length": 64},
        "model": {"name": "dilated-conv", "hidden_size": 8, "dilations": [1, 2]},
        "loss": {"distill": {"weight": 0}, "contrastive": {"weight": 0.2, "mlp_size": 8, "embedding": 8}},
        "train": {"steps": 5, "global_batch": 12},
    }
    Path("preset.yaml").write_text(yaml.safe_dump(preset))
    for name in ("a_1", "a_2", "b"):
        Path(f"{name}.yaml").write_text(f"name: {name}\ntrain: {name}.csv\nlabels: [x, y]\nseeds: [0, 1]\n")

    def values(**changes: Any) -> dict[str, Any]:
        given = {
            "name": "tiny",
            "output": "out",
            "pretrain": {"config": "preset.yaml", "flops": 1e9},
            "arms": {"scratch": {"scratch": True}, "masked": {"loss.contrastive.weight": 0}, "both": None},
            "tasks": [{"configs": ["a_*.yaml", "b.yaml"]}],
        }
        for key, value in changes.items():
            section, _, inner = key.partition("__")
            given[section] = {**given[section], inner: value} if inner else value  # type: ignore[dict-item]
        return given

    return values


def planned(values: dict[str, Any]) -> Any:
    return make_plan(configs.validate(StudyConfig, values, source="study"))


@dataclass(frozen=True)
class Part:
    from_step: int
    length: int


@pytest.mark.parametrize(
    ("flops", "lengths", "steps", "used"),
    [
        (1000, [Part(0, 10)], 100, 1000),
        (1009, [Part(0, 10)], 100, 1000),
        (9, [Part(0, 10)], 0, 0),
        (1000, [Part(0, 10), Part(50, 20)], 75, 1000),
        (499, [Part(0, 10), Part(50, 20)], 49, 490),
        (519, [Part(0, 10), Part(50, 20)], 50, 500),
        (1000, [Part(0, 10), Part(10, 20), Part(20, 100)], 27, 1000),
    ],
)
def test_steps_for_a_number_of_flops(flops: float, lengths: list[Part], steps: int, used: float) -> None:
    assert steps_within(flops, lengths=lengths, flops_of=float) == steps
    assert spent(steps, lengths=lengths, flops_of=float) == used


def test_each_arm_gets_as_many_steps_as_fit_and_the_teacher_costs_some(study: Study) -> None:
    plan = planned(study(pretrain__seeds=[0, 7]))
    assert [str(one) for one in plan.pretrainings] == ["masked-s0", "masked-s7", "both-s0", "both-s7"]
    masked, both = plan.pretrainings[0], plan.pretrainings[2]
    assert masked.cost.steps > both.cost.steps > 1
    for one in plan.pretrainings:
        a_step = cost_of(one.config, 1e9).flops / one.cost.steps
        assert 1e9 - a_step < one.cost.flops <= 1e9
        assert one.config.train.steps == one.config.train.schedule_steps == one.cost.steps


def test_the_overrides_are_those_of_an_ordinary_run(study: Study) -> None:
    arms = {"both": {"loss": {"mlm": {"weight": 0.5}}, "train.lr": "1e-3"}}
    plan = planned(study(arms=arms, pretrain__set={"train.lr": 9, "track.system_metrics": False}))
    (one,) = plan.pretrainings
    config = configs.load(TrainConfig, one.preset, one.overrides)
    assert config == one.config
    assert (config.run.dir, config.run.seed, config.train.lr) == ("out/pretraining/both-s0", 0, 1e-3)
    assert (config.loss.mlm.weight, config.track.system_metrics, config.track.report_every) == (0.5, False, 0)
    assert (config.track.experiment, config.track.registered_model) == ("tiny", "tiny")
    program = program_of(plan.config, one)
    assert program.arguments[:3] == ("trainer/main.py", "--config", "preset.yaml")
    assert "track.uri=${oc.env:MLFLOW_TRACKING_URI}" in program.arguments
    assert program.environment["MLFLOW_TRACKING_URI"] == config.track.uri
    assert (program.environment["DNA_THREADS"], program.environment["CUDA_VISIBLE_DEVICES"]) == ("1", "")


def test_automatic_precision_is_what_the_pretrainings_began_with_also_on_another_machine(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = study(pretrain__seeds=[0, 1], pretrain__set={"train.precision": "auto"})
    monkeypatch.setattr(precision, "best_precision", lambda device: "bf16")
    first = planned(given).pretrainings
    assert {one.config.train.precision for one in first} == {"bf16"}
    run_status.write_config(first[1].config)
    run_status.write_finished(first[1].config.run.dir, steps=first[1].cost.steps, delivered=True)
    Path(first[1].config.run.dir, pretrained.WEIGHTS).touch()
    monkeypatch.setattr(precision, "best_precision", lambda device: "fp32")
    again = planned(given).pretrainings
    assert [one.config for one in again] == [one.config for one in first]
    assert statuses(again)[str(again[1])] == "finished"
    arms = {"plain": {"train.precision": "fp32"}, "masked": {"loss.contrastive.weight": 0}}
    mixed = study(pretrain__seeds=[0, 1], pretrain__set={"train.precision": "auto"}, arms=arms)
    run_status.write_config(planned(mixed).pretrainings[0].config)
    found = {one.arm: one.config.train.precision for one in planned(mixed).pretrainings}
    assert found == {"plain": "fp32", "masked": "bf16"}, "the arm's own before that of another one"
    fixed = planned(study(pretrain__seeds=[0, 1], pretrain__set={"train.precision": "fp32"})).pretrainings
    assert {one.config.train.precision for one in fixed} == {"fp32"}
    with pytest.raises(ConfigError, match=r"(?s)masked-s1: .*train.precision: was 'bf16', now 'fp32'"):
        statuses(fixed)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.3, "cuda")])
def test_automatic_precision_is_that_of_the_device_that_pretrainings_get(
    gpus: float, device: str, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(precision, "best_precision", lambda device: asked.append(device.type) or "bf16")
    monkeypatch.setattr(engine_config, "best_precision", lambda device: "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    planned(study(pretrain__gpus=gpus, pretrain__set={"train.precision": "bf16"}))
    assert asked == []
    arms = planned(study(pretrain__gpus=gpus, pretrain__set={"train.precision": "auto"})).pretrainings
    assert asked == [device] * 2 and {one.config.train.precision for one in arms} == {"bf16"}


@pytest.mark.parametrize(
    ("pretrain", "cores", "chips", "seconds", "said"),
    [
        ({}, 2, 0, 500, "all pretrainings, at the speed of 2 at once: about 500 s to go"),
        ({"cpus": 2}, 2, 0, 500, "at the speed of 1 at once: about 1,000 s to go"),
        ({"at_once": 1}, 8, 0, 500, "at the speed of 1 at once: about 1,000 s to go"),
        ({"gpus": 0.2}, 16, 1, 50, "at the speed of 1 at once: about 100 s to go"),  # they share one
        ({"gpus": 0.5}, 16, 2, 50, "at the speed of 2 at once: about 50 s to go"),
        ({"gpus": 1}, 16, 0, None, "not timed, there is no GPU here"),
    ],
)
def test_the_time_of_a_plan(
    pretrain: dict[str, Any],
    cores: int,
    chips: int,
    seconds: int | None,
    said: str,
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two networks that are the same are timed once, and each on the device that it will have."""
    asked = []

    def speed(config: TrainConfig, *, threads: int, on_gpu: bool) -> float:
        asked.append((threads, on_gpu))
        return (10 if on_gpu else 1) * 1e9 / (0.8 * 500)

    given = study(tasks=[{"configs": ["b.yaml"], "set": {"modes": ["kmer", "finetune"]}}])
    given["pretrain"] |= pretrain
    plan = planned(given)
    same = [replace(one, cost=Cost(steps=10, flops=1e9, parameters=1)) for one in plan.pretrainings]
    plan = replace(plan, pretrainings=tuple(same))
    monkeypatch.setattr(estimate, "speed", speed)
    monkeypatch.setattr(estimate.host, "usable", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(chips))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: chips)
    monkeypatch.setattr(estimate, "read_data", lambda tasks: [(task, None) for task in tasks])
    monkeypatch.setattr(estimate, "weight", lambda mode, work: 0.0)
    lines = list(estimate.describe_plan(plan, {str(one): "new" for one in plan.pretrainings}))
    assert any(said in line for line in lines), lines
    if seconds:
        assert [f"about {seconds} s alone" in line for line in lines[:2]] == [True, True]
    of_pretraining = (pretrain.get("cpus", 1), "gpus" in pretrain)
    of_tasks = (1, False)
    assert asked == list(dict.fromkeys([of_pretraining, of_tasks] if seconds else [of_tasks]))
    done = list(estimate.describe_plan(plan, {str(one): "finished" for one in plan.pretrainings}))
    assert done[0].endswith("; done") and not any("to go" in line for line in done)


def test_a_cluster_config_makes_each_pretraining_a_supervised_one(study: Study) -> None:
    plan = planned(study(pretrain__cluster="ray.yaml", track={"uri": "http://mlflow:5000"}))
    arguments = program_of(plan.config, plan.pretrainings[0]).arguments
    assert arguments[:6] == ("-m", "cluster", "train", "--config", "ray.yaml", "--")
    assert arguments[-1] == "track.uri=http://mlflow:5000"


def test_tasks_of_globs_in_their_numbers_of_rows_with_the_modes_that_the_arms_have(study: Study) -> None:
    sets = [
        {"configs": ["a_*.yaml"], "set": {"max_train_rows": [10, None], "modes": ["probe", "scratch"]}},
        {"configs": "b.yaml"},
    ]
    plan = planned(study(tasks=sets, groups={"a": ["a_*"]}))
    found = [(task.name, task.max_train_rows, task.modes) for task in plan.task_configs]
    assert found[:2] == [("a_1", 10, ("probe", "scratch")), ("a_1", None, ("probe", "scratch"))]
    assert len(found) == 5 and "scratch" in found[4][2]
    assert plan.groups == {"a_1": "a", "a_2": "a", "b": "b"}
    without = planned(study(tasks=sets, arms={"both": {}}))
    assert [task.modes for task in without.task_configs[:2]] == [("probe",), ("probe",)]


def test_scratch_is_made_of_an_arm_with_the_same_network(study: Study) -> None:
    wide = {"model.hidden_size": 16}
    arms = {"masked": {}, "wide": wide, "from_scratch": {"scratch": True, **wide}, "plain": {"scratch": True}}
    assert planned(study(arms=arms)).scratch == {"from_scratch": "wide", "plain": "masked"}


def test_all_pairs_are_compared_unless_it_is_said(study: Study) -> None:
    config = configs.validate(StudyConfig, study(), source="")
    assert config.pairs()[:3] == [("masked", "scratch"), ("both", "scratch"), ("both", "masked")]
    assert config.pairs()[3:] == [(arm, "floor") for arm in config.arms]
    chosen = configs.validate(StudyConfig, study(compare=[["both", "masked"]]), source="")
    assert chosen.pairs() == [("both", "masked")]


@pytest.mark.parametrize(
    "value",
    [
        "text",
        "null",
        "1e3",
        " x",
        "[a",
        '"',
        "a b",
        "a: b",
        3,
        0.5,
        True,
        None,
        [1, "null", None],
        {"a": [True]},
    ],
    ids=repr,
)
def test_an_override_says_what_the_config_said(value: Any) -> None:
    (word,) = words({"key": value} if not isinstance(value, dict) else {"key": [value]})
    key, _, text = word.partition("=")
    assert key == "key"
    read = argument(text)
    assert read == ([value] if isinstance(value, dict) else value)
    assert isinstance(read, str) == isinstance(value, str)


def test_of_a_key_in_both_ways_the_later_counts() -> None:
    assert flat({"a.b": 1, "c": 2, "a": {"b": 3, "d": {}}}) == {"c": 2, "a.b": 3, "a.d": {}}
    assert list(flat({"a.b": 1, "c": 2, "a": {"b": 3}})) == ["c", "a.b"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pretrain": {"config": "preset.yaml"}}, "pretrain.flops: missing"),
        ({"pretrain__flops": 0}, "pretrain.flops: input should be greater than 0"),
        ({"pretrain__flops": float("inf")}, "pretrain.flops: input should be a finite number"),
        ({"pretrain__flops": 10}, "pretrain.flops: 10 is less than one step of arm masked"),
        ({"pretrain__config": "no.yaml"}, "arms.masked: config file no.yaml does not exist"),
        ({"pretrain__seeds": [1, 1]}, "pretrain.seeds: at least one is needed, and none twice"),
        ({"pretrain__set": {"train.step": 3}}, "arms.masked: preset.yaml: 1 fault"),
        ({"arms": {"both": {"train.lrr": 3}}}, "train.lrr: unknown key, did you mean 'lr'?"),
        ({"arms": {"both": {"train.steps": 3}}}, "arms.both: train.steps is set by the study itself"),
        ({"arms": {"both": {"run": {"seed": 3}}}}, "arms.both: run.seed is set by the study itself"),
        (
            {"arms": {"both": {"track.experiment": "x"}}},
            "arms.both: track.experiment is set by the study itself",
        ),
        ({"arms": {"a/b": {}}}, "'a/b' must be letters, digits"),
        ({"arms": {"a+b": {}}}, "'a+b' must be letters, digits"),
        (
            {"arms": {"x": {}, "y": {"loss.mlm.weight": 1.0}}},
            "arms.y: it is the same pretraining as arms.x; remove one",
        ),
        ({"arms": {"floor": {}}}, "arms: floor means the better of the models without a network"),
        ({"arms": {"x": {"scratch": True}}}, "arms: at least one must be pretrained"),
        ({"arms": {"x": {"scratch": "yes"}}}, "arms.x.scratch: must be true or false, not 'yes'"),
        ({"arms": {"x": {"config": 3}}}, "arms.x.config: must be the path of a preset, not 3"),
        (
            {"arms": {"x": {}, "y": {"scratch": True, "model.hidden_size": 16}}},
            "arms.y: no arm that is pretrained has its network",
        ),
        (
            {"arms": {"x": {}, "wide": {"model.hidden_size": 16}, "y": {"scratch": True}}},
            "arms.wide: no arm with scratch: true has its network, so that what is learned from scratch",
        ),
        (
            {"arms": {"x": {}, "y": {"scratch": True}, "z": {"scratch": True}}},
            "arms.z: another arm is the same network from scratch",
        ),
        ({"compare": [["both", "bath"]]}, "compare: bath is no arm; there are both, floor, masked, scratch"),
        ({"compare": [["both", "both"]]}, "compare: both is compared with itself"),
        ({"tasks": [{"configs": ["c*.yaml"]}]}, "tasks.0.configs: no file matches c*.yaml"),
        ({"tasks": [{"configs": ["c.yaml"]}]}, "tasks.0: config file c.yaml does not exist"),
        (
            {"tasks": [{"configs": ["b.yaml"], "set": {"seed": 3}}]},
            "seed: unknown key, did you mean 'seeds'?",
        ),
        (
            {"tasks": [{"configs": ["b.yaml"]}, {"configs": ["*b.yaml"]}]},
            "tasks: b with all training rows is given twice",
        ),
        (
            {"tasks": [{"configs": ["b.yaml"], "set": {"modes": ["kmer"]}}]},
            "tasks: no mode uses what was pretrained",
        ),
        ({"data": {"uri": "x"}}, "data.uri: without data.config there is nothing to build"),
        ({"data": {"config": "x.yaml"}}, "config file x.yaml does not exist"),
        ({"output": "$HOME/x"}, "output"),
        ({"statistics": {"interval": 90}}, "statistics.interval: input should be less than 1"),
        ({"arm": {}}, "arm: unknown key, did you mean 'arms'?"),
    ],
    ids=str,
)
def test_mistakes_are_sentences_with_the_key(study: Study, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as fault:
        planned(study(**changes))
    assert sentence in str(fault.value)


def test_all_faults_are_told_at_once(study: Study) -> None:
    wrong = study(arms={"a": {"train.lrr": 3}, "b": {"train.steps": 3}}, tasks=[{"configs": ["c.yaml"]}])
    with pytest.raises(ConfigError) as fault:
        planned(wrong)
    assert all(part in str(fault.value) for part in ("arms.a", "arms.b", "tasks.0"))


def test_a_folder_of_another_study_is_refused(study: Study) -> None:
    plan = planned(study())
    assert set(statuses(plan.pretrainings).values()) == {"new"}
    folder = Path("out/pretraining/both-s0")
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    with pytest.raises(
        ConfigError, match=r"both-s0: run.dir: out/pretraining/both-s0 holds files of something"
    ):
        statuses(plan.pretrainings)


def test_in_a_ray_job_what_would_be_lost_is_refused(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError) as fault:
        planned(study())
    assert "output: out is relative" in str(fault.value)
    assert "a_1: train: a_1.csv is relative and not there" in str(fault.value)
