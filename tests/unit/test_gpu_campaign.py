"""The campaign for a GPU, rehearsed on a CPU without the libraries that such a machine lacks; and how it goes
on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import campaign, pack, speed
from tests.gpu.campaign import RESULT, Campaign, tables

ROOT = Path(__file__).resolve().parents[2]
# Not on a machine that was made for training alone.
ABSENT = ("ray", "mlflow", "boto3", "botocore", "aiobotocore", "s3fs", "moto", "pyfaidx", "py2bit", "flask")
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Python in the repository, where ABSENT cannot be imported, by its children neither."""
    (folder / "sitecustomize.py").write_text(BLOCK)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(600)
def test_every_stage_runs_small_on_a_cpu_and_without_what_a_gpu_machine_lacks(tmp_path: Path) -> None:
    done = python(tmp_path, "-m", "tests.gpu.campaign", "--rehearse", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / RESULT).read_text())
    assert list(found) == ["machine", "peaks", "kernels", "tests", "steps", "compiled", "contrastive"]
    assert found["tests"]["tests/gpu"]["passed"] >= 9
    assert found["tests"]["tests/gpu"]["failed"] == 0
    assert found["peaks"]["peaks"]["bf16_tflops"] > 0
    assert list(found["steps"]) == [setting.name for setting in speed.REHEARSED]
    for name, row in found["steps"].items():
        if "skipped" in row:
            assert "triton" in name
            continue
        for part in ("", "forward_", "forward_backward_"):
            assert 0 < row[f"{part}mfu_measured"] < 1.5
        assert row["kernels_per_step"] > 100
        assert (row.get("student"), row.get("teacher")) == ((1, 1) if "compiled" in name else (None, None))
    for stage, path in (("kernels", campaign.KERNELS), ("compiled", campaign.COMPILED)):
        assert found[stage][path]["skipped"]
    assert found["tests"]["tests/gpu"]["skipped"] >= 4, "of tests/gpu/test_compiled.py"
    for row in found["contrastive"].values():
        assert row["ours"]["ms"] > 0 < row["naive"]["ms"]
    assert len(list((tmp_path / "out").iterdir())) <= 8
    assert "## contrastive" in (tmp_path / "out" / "campaign.md").read_text()


def test_training_says_in_a_sentence_that_mlflow_is_missing(tmp_path: Path) -> None:
    said = python(
        tmp_path,
        "-c",
        "import trainer.main\nfrom trainer.tracking.mlflow_run import Run, RunSpec\n"
        "Run(RunSpec('sqlite:///x.db', 'e', 'n'))",
    )
    assert (
        "TrackError: runs are logged to MLflow, and mlflow is not installed: pip install mlflow"
        in said.stderr
    )


def test_a_machine_without_a_gpu_is_told_of_the_rehearsal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        campaign.main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "no NVIDIA GPU on this machine; --rehearse runs every stage small" in capsys.readouterr().err


def run(folder: Path, rows: dict[str, Any], *, limit_s: float = 100, resume: Path | None = None) -> list[str]:
    return list(Campaign(folder, rehearse=False, limit_s=limit_s, resume=resume).rows("stage", rows))


def test_rows_are_kept_as_they_come_and_only_what_is_missing_or_failed_is_run_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def good(name: str) -> Any:
        def measure() -> dict[str, float]:
            calls.append(name)
            return {"ms": 1.5}

        return measure

    def bad() -> dict[str, float]:
        kept = json.loads((tmp_path / RESULT).read_text())
        assert kept["stage"]["one"]["ms"] == 1.5, "written before the next row begins"
        raise RuntimeError("the GPU fell off")

    assert run(tmp_path, {"one": good("one"), "two": bad, "three": good("three")}) == ["one", "two", "three"]
    kept = json.loads((tmp_path / RESULT).read_text())["stage"]
    assert kept["two"]["fault"] == "RuntimeError: the GPU fell off"
    assert "the GPU fell off" in tables({"stage": kept})
    elsewhere = tmp_path / "elsewhere"
    assert run(elsewhere, {"one": good("one"), "two": good("two")}, resume=tmp_path / RESULT) == ["two"]
    assert calls == ["one", "three", "two"]
    assert "fault" not in json.loads((elsewhere / RESULT).read_text())["stage"]["two"]


def test_a_short_row_is_run_where_a_long_one_has_no_time_any_more(tmp_path: Path) -> None:
    rows = Campaign(tmp_path, rehearse=False, limit_s=60, resume=None).rows(
        "stage", {"long": dict, "short": dict}, needs_s={"long": 100}
    )
    assert list(rows) == ["short"]


def test_the_ladder_has_each_row_once_and_the_dearest_late() -> None:
    names = [setting.name for setting in speed.SETTINGS]
    assert len(set(names)) == len(names)
    assert names[0] == "findna bf16 batch 64, 64 at once"
    assert "findna bf16 batch 64, 16 at once triton reduce-overhead" in names
    assert {setting.compile for setting in speed.SETTINGS} == {"off", "default", "reduce-overhead"}
    assert all(setting.seconds == speed.EAGER_S for setting in speed.SETTINGS[:2])


def test_a_triton_kernel_is_not_timed_on_a_cpu() -> None:
    setting = speed.Setting("findna", "bf16", 64, 64, kernel="triton")
    assert speed.measure(setting, "cpu", small=True) == {
        "skipped": "Triton's kernels are timed on a GPU only"
    }


def test_no_row_is_begun_near_the_end_of_the_time(tmp_path: Path) -> None:
    assert run(tmp_path, {"one": dict}, limit_s=campaign._ROW_S - 1) == []
    assert not (tmp_path / RESULT).exists()


@pytest.mark.parametrize(
    ("rows", "limit", "code"),
    [
        ({"one": dict}, "100", 0),
        ({"one": dict}, "1", 75),
        ({"one": lambda: {"fault": "x"}}, "100", 1),
    ],
)
def test_the_exit_code_says_whether_all_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Any, limit: str, code: int
) -> None:
    monkeypatch.setattr(campaign.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(campaign, "stages", lambda _: {"stage": rows})
    assert campaign.main(["--out", str(tmp_path), "--limit-s", limit]) == code


def test_all_that_travels_is_pinned() -> None:
    found = [pack.pinned(name) for name in pack.NEEDED]
    assert len(found) == len(pack.NEEDED)
    assert all("==" in line for line in found)
