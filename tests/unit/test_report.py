"""trainer.report: one page that loads nothing, escapes everything, and says plainly where accuracy stands."""

import re
from pathlib import Path

import pandas as pd
import pytest

import configs
from tests.datasets import markov_sequence, write_dataset
from tests.registered import CANDIDATE, Registered, registered, registry
from trainer.finetune import finetune
from trainer.report.__main__ import main
from trainer.report.facts import dataset_uris, first_with_val, verdict
from trainer.tasks.config import TaskConfig


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
    for words in ("above always guessing the most frequent letter (0.3000) by 6.4 standard errors", "4+4 Markov",
                  "12,000 bp: train 9,000, val 3,000", "<td>short</td><td>kmer</td>", "<td>short</td><td>probe</td>",
                  "health/effective_rank", "val/scored_positions", "model.version"):  # fmt: skip
        assert words in text, words


def test_an_unreachable_dataset_is_said_plainly(where: Registered, tmp_path: Path) -> None:
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


def history(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"step": range(len(values)), "value": values})


@pytest.mark.parametrize(("accuracy", "scored", "expected"), [
    ((0.25, 0.36), 10_000, ["above always guessing the most frequent letter (0.3000) by 12.5 standard errors.",
                            "below the two-sided 4+4 Markov model (0.3720) by 2.5 standard errors, which is less",
                            ": rising"]),
    ((0.36, 0.36), 10_000, ["not rising beyond chance"]),
    ((0.25, 0.28), None, ["below always guessing the most frequent letter (0.3000) by 0.0200.", "are not known"]),
    ((0.31,), 100, ["measured once", "no difference is shown"]),
])  # fmt: skip
def test_verdict(accuracy: tuple[float, ...], scored: int | None, expected: list[str]) -> None:
    found = {"val/mlm_accuracy": history(*accuracy), "val/mlm_accuracy_majority": history(0.3),
             "val/mlm_accuracy_markov": history(0.372)} | ({"val/scored_positions": history(scored)} if scored else {})
    said = " ".join(verdict(found))
    for words in expected:
        assert words in said
    assert verdict({}) == ["The run logged no held-out accuracy."]


def test_the_datasets_of_a_mixture(tmp_path: Path) -> None:
    letters = [markov_sequence(3000, seed=1)]
    without = write_dataset(tmp_path / "a", {"train": letters})
    held_out = write_dataset(tmp_path / "b", {"train": letters, "val": letters})
    logged = str([{"uri": without, "weight": 1.0}, {"uri": held_out, "weight": 0.5}])  # as MLflow keeps a parameter
    assert dataset_uris({"data.uri": logged}) == [without, held_out]
    assert first_with_val([without, held_out]) == held_out
    assert first_with_val([without]) == without
    assert dataset_uris({"data.uri": "s3://bucket/x"}) == ["s3://bucket/x"]
