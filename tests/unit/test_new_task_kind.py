"""A new kind of task is one class and a line in KINDS: nothing else has to change for it.

Here a share, a number from 0 to 1, is to be predicted, that of G and C in a sequence. The package has no such
kind.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

import configs
from tests.registered import CANDIDATE, NAME, Registered, registered, registry
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.kinds.kind import Array, LinearModel, Metric, TaskKind
from trainer.evaluation.tasks.kinds.registry import KINDS
from trainer.evaluation.tasks.results.results_log import past_results
from trainer.evaluation.tasks.rows.data import load
from trainer.finetune import main
from trainer.report.report import write_report

MODES = ["kmer", "onehot", "probe", "finetune", "scratch"]


class Share(TaskKind):
    """One share for each sequence; it and its prediction are [N]."""

    metrics = (Metric("pearson", "Pearson r"), Metric("mse", "MSE", percent=False))
    dtype = np.float32
    outputs = 1

    def __init__(self, labels: tuple[str, ...]) -> None:
        if labels:
            raise ValueError(f"labels: a share has none, not {list(labels)}")

    def parse(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise ValueError("is no number from 0 to 1")
        return value

    def fault_of_split(self, truth_N: Array) -> str:
        return "" if len(np.unique(truth_N)) > 1 else "has fewer than two different values"

    def statistics(self, truth_N: Array, *, balanced: bool) -> dict[str, Any]:
        """Outputs are told from the mean of the train split on."""
        return {"start": float(_logit(truth_N.mean()))}

    def loss(self, output_BK: Tensor, truth_B: Tensor) -> Tensor:
        logit_B = output_BK[:, 0] + self.state["start"]
        return torch.nn.functional.binary_cross_entropy_with_logits(logit_B, truth_B)

    def predict(self, output_NK: Tensor) -> Array:
        return (output_NK[:, 0].double() + self.state["start"]).sigmoid().numpy()

    def table(self, prediction_N: Array) -> dict[str, Array]:
        return {"share": prediction_N}

    def fit_linear(self, features_NF: Any, truth_N: Array, *, c: float, seed: int) -> LinearModel:
        target_N = _logit(truth_N) - self.state["start"]
        model = Ridge(alpha=1 / (2 * c), random_state=seed).fit(features_NF, target_N)
        return LinearModel(model.coef_[None], np.array([model.intercept_]))

    def score(self, truth_N: Array, prediction_N: Array) -> dict[str, float]:
        pearson = float(np.corrcoef(truth_N, prediction_N)[0, 1]) if prediction_N.std() > 0 else 0.0
        return {"pearson": pearson, "mse": float(((truth_N - prediction_N) ** 2).mean())}


def _logit(share_N: Any) -> Any:
    inside = np.clip(share_N, 0.01, 0.99)
    return np.log(inside / (1 - inside))


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "share", Share)


@pytest.fixture
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return registered(tmp_path_factory)


def write_gc_task(folder: Path, *, change: tuple[str, str] = ("", "")) -> Path:
    """A task of 160 sequences of 30 to 40 bp, whose labels are their GC content."""
    rng = np.random.default_rng(3)
    lines = ["sequence,gc"]
    for _ in range(160):
        gc = rng.uniform(0.1, 0.9)
        letters = rng.choice(list("GCAT"), int(rng.integers(30, 41)), p=[gc / 2] * 2 + [(1 - gc) / 2] * 2)
        lines.append(f"{''.join(letters)},{np.isin(letters, ['G', 'C']).mean():.4f}")
    text = "\n".join(lines) + "\n"
    (folder / "gc.csv").write_text(text.replace(*change, 1) if change[0] else text)
    path = folder / "gc.yaml"
    path.write_text(
        f"name: gc\nkind: share\nlabel_column: gc\ntest: {folder / 'gc.csv'}\nseeds: [0]\n"
        "finetune: {epochs: 8, batch: 16, lr: [1.0e-2], precision: fp32}\n"
        "probe: {precision: fp32, C: [0.1, 10]}\nkmer: {k: 2, C: [0.1, 10]}\n"
    )
    return path


def test_every_mode_learns_it_and_its_results_stand_beside_the_others(
    where: Registered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["--model", CANDIDATE, "--track-uri", where.uri]
    kept = ["--json", str(tmp_path / "rows.json")]
    assert main([*task, *kept, "--task", str(write_gc_task(tmp_path))]) == 0
    out, err = capsys.readouterr()
    rows = {row["mode"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert list(rows) == MODES
    for mode, row in rows.items():
        assert row["kind"] == "share"
        assert row["test/pearson"] > 0.6, mode
    assert rows["kmer"]["test/pearson"] > 0.97, "GC content is almost linear in the counts"
    assert "test Pearson r × 100" in out and "MSE" in out and "MCC" not in out
    assert re.search(r"gc kmer seed 0: dev Pearson r 0\.\d{3}, test Pearson r 0\.\d{3}", err)

    children = {
        run.data.params["mode"]: run
        for run in registry(where).tagged("toys", {"finetune": "child"}, finished=True)
        if run.data.params["task"] == "gc"
    }
    for mode, run in children.items():
        assert run.data.params["kind"] == "share"
        assert run.data.metrics["test/pearson"] == rows[mode]["test/pearson"]
        assert run.data.metrics["val/mse"] == rows[mode]["val/mse"]
    assert [r.unit.mode for r in past_results(registry(where), NAME, "1") if r.kind == "share"] == MODES

    assert main([*task, "--task", str(where.task), "modes=[kmer]", "name=beside"]) == 0
    page = write_report(where.run_id, track_uri=where.uri, output=str(tmp_path / "report"))
    html = Path(page).read_text()
    assert "On labelled tasks: share" in html and "On labelled tasks: classification" in html
    assert "test Pearson r × 100" in html and "test MCC × 100" in html
    assert {"transfer_classification.png", "transfer_share.png"} <= {
        path.name for path in (tmp_path / "report").iterdir()
    }


@pytest.mark.parametrize(
    ("overrides", "change", "code", "message"),
    [
        (["labels=[a,b]"], ("", ""), 2, "labels: a share has none, not ['a', 'b']"),
        ([], (".", "!"), 1, "gc.csv, line 2: label '0!"),
        (["label_column=sequence"], ("", ""), 1, "nucleotides) is no number from 0 to 1"),
    ],
)
def test_its_mistakes_are_one_sentence(
    where: Registered,
    tmp_path: Path,
    overrides: list[str],
    change: tuple[str, str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_gc_task(tmp_path, change=change)
    command = ["--model", CANDIDATE, "--task", str(path), "--track-uri", where.uri]
    assert main([*command, *overrides]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ") and "Traceback" not in err


def test_a_split_that_it_cannot_use_is_refused(tmp_path: Path) -> None:
    path = write_gc_task(tmp_path)
    (tmp_path / "gc.csv").write_text("sequence,gc\n" + "".join(f"ACGTACGT{s},0.5\n" for s in ("AA", "CC")))
    every = [f"{role}={tmp_path / 'gc.csv'}" for role in ("train", "dev", "test")]
    with pytest.raises(ValueError, match=r"task gc: its .* split of .* has fewer than two different values"):
        load(configs.load(TaskConfig, path, every))


def test_results_of_a_kind_that_this_code_does_not_know_are_left_out_with_a_warning(
    where: Registered,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--model", CANDIDATE, "--task", str(write_gc_task(tmp_path)), "--track-uri", where.uri]
    assert main([*command, "modes=[kmer]", "name=unknown"]) == 0
    monkeypatch.delitem(KINDS, "share")
    capsys.readouterr()
    found = past_results(registry(where), NAME, "1")
    assert "unknown" not in {result.unit.task for result in found}
    assert "its task unknown is of kind 'share', this code knows classification" in (capsys.readouterr().err)
