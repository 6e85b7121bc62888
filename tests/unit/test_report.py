"""trainer.report: one page that loads nothing, escapes everything, and states where accuracy stands."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import configs
from data_prep.manifests import kept_name, open_manifest
from tests.datasets import markov_sequence, write_dataset
from tests.registered import CANDIDATE, Registered, registered, registry
from trainer.core import drawing
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.downstream import finetune
from trainer.report import figures
from trainer.report.__main__ import main
from trainer.report.facts import ReadDataset, dataset_rows, datasets_of, first_with_val, trouble, verdict
from trainer.tracking.mlflow_run import Run, RunSpec


@pytest.fixture
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return registered(tmp_path_factory)


def test_page_has_everything_and_loads_nothing(where: Registered, capsys: pytest.CaptureFixture[str]) -> None:
    task = configs.load(TaskConfig, where.task, ["name=short", "modes=[kmer,probe]", "seeds=[0,1]"])
    finetune(registry(where), CANDIDATE, task)
    assert main([where.run_id, "--track-uri", where.uri]) == 0
    page = where.folder / "run" / "report" / "index.html"
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    names = ("accuracy", "transfer", "losses", "health", "embedding", "schedule", "throughput")
    for name in names:
        picture = (page.parent / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert b"matplotlib.org" not in picture
    assert text.count("data:image/png;base64,") == len(names)
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(?!data:)[\w/]", text), "an external resource"
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;toy &amp; run&gt;" in text
    assert "What went wrong" not in text
    for words in (
        "above always guessing the most frequent letter (0.3000) by 6.4 standard errors",
        "4+4 Markov",
        "12,000 bp: train 9,000, val 3,000",
        "<td>short</td><td>kmer</td>",
        "<td>short</td><td>probe</td>",
        "health/effective_rank",
        "val/scored_positions",
        "model.version",
    ):
        assert words in text, words


def test_an_unreachable_dataset_is_reported_plainly(where: Registered, tmp_path: Path) -> None:
    hidden = where.folder / "data" / "manifest.json"
    hidden.rename(tmp_path / "manifest.json")
    try:
        assert main([where.run_id, "--track-uri", where.uri, "--output", str(tmp_path / "out")]) == 0
    finally:
        (tmp_path / "manifest.json").rename(hidden)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "No picture, because the windows could not be embedded: no dataset at" in text
    assert "The dataset cannot be reached from here" in text
    assert not (tmp_path / "out" / "embedding.png").exists()


def test_a_wrong_run_is_one_sentence(where: Registered, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nosuchrun", "--track-uri", where.uri]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: run nosuchrun at sqlite:")
    assert err.count("\n") == 1


def test_a_failed_run_says_so_and_shows_its_readings(where: Registered, tmp_path: Path) -> None:
    params = {"run.dir": str(tmp_path / "run"), "data.uri": str(where.folder / "data"), "data.length": 64}
    run = Run(RunSpec(where.uri, "troubled", "stuck", params=params, artifact_uri=str(tmp_path / "art")))
    for step in (10, 20, 30):
        run.log(
            {
                "loss/total": 3.0,
                "loss/koleo": 1.0,
                "batch_health/kl": 0.1,
                "batch_health/effective_rank": 1.5,
                "batch_health/collapsed": float(step > 10),
            },
            step=step,
        )
    for step in (31, 32):
        run.log({"train/skipped_steps": step - 30}, step=step)
    run.finish("FAILED")
    assert main([run.id, "--track-uri", where.uri]) == 0
    page = tmp_path / "run" / "report" / "index.html"
    trouble_section = re.search(
        r"<section><h2>What went wrong</h2>\n(.*?)</section>", page.read_text(), re.DOTALL
    )
    assert trouble_section and re.findall(r"<p>(.*?)</p>", trouble_section[1]) == [
        "The run failed at step 32, the last that it logged.",
        "From step 20 on the batch showed a collapse, in 2 of 3 readings, still in the last one, at step 30.",
        "2 steps were skipped, since their loss or gradient was not finite.",
    ]
    assert (page.parent / "losses.png").exists() and (page.parent / "health.png").exists()


def history(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"step": range(len(values)), "value": values})


@pytest.mark.parametrize(
    ("accuracy", "scored", "expected"),
    [
        (
            (0.25, 0.36),
            10_000,
            [
                "above always guessing the most frequent letter (0.3000) by 12.5 standard errors.",
                "below the two-sided 4+4 Markov model (0.3720) by 2.5 standard errors, which is less",
                ": rising",
            ],
        ),
        ((0.36, 0.36), 10_000, ["not rising beyond chance"]),
        (
            (0.25, 0.28),
            None,
            ["below always guessing the most frequent letter (0.3000) by 0.0200.", "are not known"],
        ),
        ((0.31,), 100, ["measured once", "no difference is shown"]),
    ],
)
def test_verdict(accuracy: tuple[float, ...], scored: int | None, expected: list[str]) -> None:
    found = {
        "val/mlm_accuracy": history(*accuracy),
        "val/mlm_accuracy_majority": history(0.3),
        "val/mlm_accuracy_markov": history(0.372),
    } | ({"val/scored_positions": history(scored)} if scored else {})
    text = " ".join(verdict(found))
    for words in expected:
        assert words in text
    assert verdict({}) == ["The run logged no held-out accuracy."]


def test_the_datasets_of_a_mixture(tmp_path: Path) -> None:
    letters = [markov_sequence(3000, seed=1)]
    without = write_dataset(tmp_path / "a", {"train": letters})
    held_out = write_dataset(tmp_path / "b", {"train": letters, "val": letters})
    logged = str(
        [{"uri": without, "weight": 1.0}, {"uri": held_out, "weight": 0.5}]
    )  # as MLflow keeps a parameter
    one, two = (open_manifest(uri).digest for uri in (without, held_out))
    found = datasets_of(run_with(logged, f"{one},{two}"))
    assert found == [(without, one), (held_out, two)]
    assert first_with_val(found) == (held_out, two) and first_with_val(found[:1]) == (without, one)
    assert datasets_of(run_with("s3://bucket/x", "")) == [("s3://bucket/x", None)]


def run_with(uri: str, digests: str) -> Any:
    data = SimpleNamespace(params={"data.uri": uri}, tags={"dataset.manifest_sha256": digests})
    return SimpleNamespace(data=data)


def test_the_dataset_is_the_one_that_the_run_read(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path / "d", {"train": [markov_sequence(3000, seed=1)]})
    before = open_manifest(uri)
    (dataset,) = datasets_of(run_with(uri, before.digest))
    rows = dataset_rows(dataset)
    (tmp_path / "d" / kept_name(before.digest)).write_bytes(before.manifest.to_bytes())
    changed = replace(before.manifest, sources=(replace(before.manifest.sources[0], name="grown"),))
    (tmp_path / "d" / "manifest.json").write_bytes(changed.to_bytes())
    assert dataset_rows(dataset) == rows and "grown" in dict(dataset_rows(ReadDataset(uri, None)))["sources"]


def test_every_loss_and_reading_is_drawn() -> None:
    metrics = [
        f"loss/{name}" for name in ("contrastive", "koleo", "mlm", "patch", "total", "vicreg", "to_come")
    ]
    metrics += [f"health/{name}" for name in ("alignment", "effective_rank")]
    metrics += [
        f"batch_health/{name}"
        for name in (
            "alignment",
            "effective_rank",
            "kl",
            "collapsed",
            "patch_entropy",
            "centre_drift",
            "dead_dimensions",
            "to_come",
            "prototype_usage",
            "prototypes_chosen",
        )
    ]
    found = {name: history(*range(100 * place, 100 * place + 60)) for place, name in enumerate(metrics)}
    losses, health = figures.loss_panels(found), figures.health_panels(found)
    assert [title for title, _ in losses] == [
        "total",
        "contrastive",
        "koleo",
        "mlm",
        "patch",
        "to_come",
        "vicreg",
    ]
    titles: list[str] = []
    colours: dict[str, set[str]] = {name: set() for name in metrics}
    for panels, smooth in ((losses, 20), (health, 1)):
        figure = figures.curves(found, panels, smooth=smooth)
        assert figure
        assert drawing.png(figure).startswith(b"\x89PNG")
        for axis in figure.axes[: len(panels)]:
            titles.append(axis.get_title())
            for line in axis.get_lines():
                name = metrics[int(np.asarray(line.get_ydata())[0]) // 100]
                colours[name].add(str(line.get_color()))
                assert name.split("/")[1] == titles[-1]
    assert [name for name in metrics if not colours[name]] == [], "not drawn"
    assert len(titles) == len(set(titles)) + 1, (
        "to_come is a loss and a reading; every other name has one panel"
    )
    assert titles[len(losses) :][:2] == ["alignment", "effective_rank"], "those of validations first"
    held_out, batch = (
        set().union(*(colours[name] for name in metrics if name.startswith(prefix)))
        for prefix in ("health/", "batch_health/")
    )
    assert len(held_out) == len(batch) == 1 and held_out != batch


def test_many_readings_stand_in_a_grid_and_a_flag_keeps_its_scale() -> None:
    found = {f"batch_health/reading{i:02}": history(0, 1, 0) for i in range(20)} | {
        "batch_health/kl": history(1, 5)
    }
    figure = figures.curves(found, figures.health_panels(found))
    assert figure
    assert len({axis.get_position().x0 for axis in figure.axes}) == 4, "columns"
    width, height = figure.get_size_inches()
    assert width < 12 and height < 15
    limits = {axis.get_title(): axis.get_ylim() for axis in figure.axes[:21]}
    assert limits["reading00"] == (-0.05, 1.05)
    assert limits["kl"][1] > 5
    assert figures.health_panels({"loss/total": history(1)}) == []


@pytest.mark.parametrize(
    ("found", "status", "expected"),
    [
        ({"lr": history(1, 1)}, "FINISHED", []),
        ({"lr": history(1, 1)}, "RUNNING", []),
        (
            {"lr": history(1, 1), "loss/total": history(3, 2, 1)},
            "FAILED",
            ["The run failed at step 2, the last that it logged."],
        ),
        ({}, "FAILED", ["The run failed before it logged anything."]),
        ({"batch_health/collapsed": history(0, 0)}, "FINISHED", []),
        (
            {"batch_health/collapsed": history(0, 1, 0, 1)},
            "FINISHED",
            [
                "From step 1 on the batch showed a collapse, in 2 of 4 readings, still in the last one, at "
                "step 3."
            ],
        ),
        (
            {"batch_health/collapsed": history(0, 1, 1, 0)},
            "FINISHED",
            [
                "From step 1 on the batch showed a collapse, in 2 of 4 readings, but no longer in the last "
                "one, at step 3."
            ],
        ),
        ({"train/skipped_steps": history(0)}, "FINISHED", []),
        (
            {"train/skipped_steps": history(1)},
            "FINISHED",
            ["1 step was skipped, since its loss or gradient was not finite."],
        ),
        (
            {"train/skipped_steps": history(1, 2, 3)},
            "FINISHED",
            ["3 steps were skipped, since their loss or gradient was not finite."],
        ),
    ],
)
def test_trouble(found: dict[str, pd.DataFrame], status: str, expected: list[str]) -> None:
    assert trouble(found, status) == expected


def test_scores_of_versions_are_curves_by_task_without_those_on_dev() -> None:
    points = pd.DataFrame({"step": [10, 20], "value": [0.1, 0.2]})
    names = ["downstream/tf/probe_mcc", "downstream/tf/kmer_mcc", "downstream/tf/probe_dev_mcc", "loss/total"]
    panels = figures.downstream_panels(dict.fromkeys(names, points))
    assert panels == [("tf: test mcc", ["downstream/tf/kmer_mcc", "downstream/tf/probe_mcc"])]
    assert figures.downstream_panels({"loss/total": points}) == []


def test_readings_on_dev_are_a_picture_of_their_own_with_the_floor() -> None:
    points = pd.DataFrame({"step": [0, 20], "value": [0.1, 0.2]})
    online = ("online_probe_dev_mcc", "online_knn_dev_mcc", "floor_dev_mcc", "probe_mcc", "knn_mcc")
    found = {f"downstream/tf/{name}": points for name in online} | {
        "downstream/tf/probe_test_mcc": points,
        "downstream/of versions/probe_mcc": points,
        "downstream/dna/online_probe_dev_pearson": points,
    }
    figure = figures.online(found)
    assert figure
    drawn = {axis.get_title(): axis.get_legend_handles_labels()[1] for axis in figure.axes}
    assert drawn == {
        "dna: dev pearson": ["probe"],
        "tf: dev mcc": ["probe", "nearest neighbours", "floor 0.200"],
    }
    assert figures.downstream_panels(found) == [
        ("of versions: test mcc", ["downstream/of versions/probe_mcc"]),
        ("tf: test mcc", ["downstream/tf/probe_test_mcc"]),
    ]
    assert figures.online({"downstream/tf/probe_mcc": points}) is None
