"""What a reviewer reads of a run: texts, the log, datasets, and that no secret is among them."""

import json
from pathlib import Path

import pytest

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import small_config
from trainer.core.console import say
from trainer.data.dataset import Dataset
from trainer.run import story
from trainer.run.config import TrainConfig
from trainer.run.run_log import RunLog
from trainer.run.story import Validated
from trainer.tracking import provenance
from trainer.tracking.inputs import DatasetInput

SECRET = "s3://key:word@host/data?X-Amz-Signature=abc"


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(small_config("data", train__steps=100, **changes))


def inputs(uri: str = "data") -> tuple[DatasetInput, ...]:
    return (
        DatasetInput("yeast train", "d" * 64, uri, "training", profile={"bp": 12_000_000, "contigs": 15}),
        DatasetInput("yeast val", "d" * 64, uri, "validation", profile={"bp": 230_000, "contigs": 1}),
    )


def validated(accuracy: float, step: int = 50) -> Validated:
    levels = {"val/mlm_accuracy_majority": 0.30, "val/mlm_accuracy_markov": 0.36}
    return Validated(step, {"val/mlm_accuracy": accuracy, "val/scored_positions": 10_000.0} | levels)


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        (0.40, "above both baselines"),
        (0.33, "above the most frequent letter only"),
        (0.37, "above the most frequent letter only"),  # 2 standard errors above Markov
        (0.29, "above no baseline"),
    ],
)
def test_the_result_stands_first_and_is_judged_by_standard_errors(accuracy: float, verdict: str) -> None:
    text = story.description(config(), inputs(), 1234, validated(accuracy))
    assert text.index("**Result after step 50") < text.index("### Data") < text.index("### How to go on")
    assert f"Result after step 50: {verdict}**" in text
    assert f"| the teacher&emsp; | {accuracy:.4f} ± 0.00" in text
    assert "Result after step 50 of 100" in text


def test_a_run_that_was_not_validated_says_so() -> None:
    text = story.description(config(), inputs(), 1234, None)
    assert "**Result:** not validated yet." in text
    assert "1,234 parameters; 100 steps" in text
    assert "| yeast train (training)&emsp; | 12,000,000&emsp; | 15&emsp; | `dddddddddddd`&emsp; |" in text


def test_no_secret_reaches_a_description_or_an_input() -> None:
    text = story.description(config(run__dir="s3://key:word@host/run"), inputs(SECRET), 1, validated(0.4))
    entity = inputs(SECRET)[0].to_mlflow()
    for found in (text, entity.dataset.source):
        assert "word" not in found
        assert "abc" not in found
        assert "host" in found
    assert entity.dataset.source_type == "s3"
    assert entity.tags[0].value == "training"
    assert len(entity.dataset.digest) == 36
    assert "mlflow_colspec" in json.loads(entity.dataset.schema)


def test_without_a_registered_model_no_command_names_one() -> None:
    assert "models:/findna@candidate" in story.description(config(), inputs(), 1, None)
    assert "models:/" not in story.description(config(track__registered_model=None), inputs(), 1, None)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"run__dir": "s3://u:p@bucket/runs/yeast-3/"}, "findna (yeast-3)"),
        ({"run__dir": "runs/findna"}, "findna"),
        ({"run__dir": "runs/x", "run__name": "mine"}, "mine"),
        ({"run__dir": "runs/x", "run__name": "findna"}, "findna"),
    ],
)
def test_a_given_name_stays_and_the_default_tells_runs_apart(changes: dict[str, str], name: str) -> None:
    assert story.run_name(config(**changes)) == name


def test_the_splits_of_a_dataset_are_inputs_with_their_context(tmp_path: Path) -> None:
    contigs = {"train": [markov_sequence(9000, seed=1)], "val": [markov_sequence(3000, seed=2)]}
    found = story.dataset_inputs([Dataset(write_dataset(tmp_path / "d", contigs), "train")])
    assert [(each.context, each.profile["bp"]) for each in found] == [
        ("training", 9000),
        ("validation", 3000),
    ]
    assert found[0].digest == found[1].digest
    assert found[0].name != found[1].name  # MLflow takes two with one name and digest for one


def test_the_log_has_what_is_said_without_secrets_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept.txt")
    log = RunLog(tmp_path / "a", kept=kept)
    say("warning: https://me:word@host/x does not answer")
    log.keep()
    log.close()
    say("after its end")
    again = RunLog(tmp_path / "b", kept=kept)  # on another machine
    say("going on\nin two lines")
    again.close()
    again.close()
    lines = (tmp_path / "b" / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == [
        "warning: https://***@host/x does not answer",
        "going on",
        "in two lines",
    ]


def test_source_tags_are_mlflows_and_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "c0ffee", "status": " M x.py"}
    monkeypatch.setattr(provenance, "_git", lambda *words: answers.get(words[0]))
    tags = provenance.source_tags("trainer/main.py")
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == "c0ffee"
    assert (tags["git.dirty"], tags["mlflow.source.type"]) == ("yes", "LOCAL")
    assert tags["mlflow.source.name"] == "trainer/main.py"
    assert tags["mlflow.user"]
    answers["status"] = ""
    assert provenance.git_dirty() == "no"
    answers.clear()
    assert provenance.source_tags("x")["git.commit"] == provenance.git_dirty() == "unknown"
    assert "mlflow.source.git.commit" not in provenance.source_tags("x")


def test_a_user_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(provenance.getpass, "getuser", fail)
    assert provenance.user() == "unknown"
