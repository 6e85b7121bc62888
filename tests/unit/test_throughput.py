"""The meter counts what steps really read, also where their length changes between two readings."""

import json
from pathlib import Path

import pytest
import torch

from cluster.storage.store import StoreError
from trainer.core.waiting import device_wait
from trainer.run import goodput, throughput
from trainer.run.goodput import Goodput
from trainer.run.throughput import Meter


def test_bp_and_flops_are_summed_over_steps_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(throughput, "matmul_flops_per_s", lambda *_: 50.0)
    monkeypatch.setattr(throughput, "nominal_flops_per_s", lambda *_: 200.0)
    measured = Meter(device=torch.device("cpu"), dtype=torch.float32)
    for bp, flops in ((64, 10.0), (64, 10.0), (256, 90.0)):
        with measured.waiting():
            now[0] += 0.5
        now[0] += 0.5
        measured.step(bp=bp, flops=flops)
    found = measured.read()
    assert found["throughput/bp_per_s"] == 384 / 3
    assert found["throughput/step_ms"] == 1000
    assert found["throughput/data_wait_fraction"] == 0.5
    assert found["throughput/mfu"] == 110 / 3 / 50
    assert found["throughput/mfu_nominal"] == 110 / 3 / 200
    assert found["throughput/host_fraction"] == 0.5
    now[0] += 1
    assert measured.read()["throughput/bp_per_s"] == 0


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("Some other chip", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA A10G", None),
    ],
)
def test_the_nominal_rate_is_that_of_the_chip(
    monkeypatch: pytest.MonkeyPatch, name: str, rate: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert throughput.nominal_flops_per_s(torch.device("cuda", 0)) == rate


def test_a_processor_has_a_measured_peak_and_no_nominal_one() -> None:
    measured = Meter(device=torch.device("cpu"), dtype=torch.float32)
    assert measured.measured_peak > 1e8
    assert "throughput/mfu_nominal" not in measured.read()


class Clock:
    """Stands for ``time`` in the modules that read it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(goodput.time, "time", lambda: self.now)
        monkeypatch.setattr(goodput, "age_s", lambda pid: 7.0)
        monkeypatch.setattr(throughput, "matmul_flops_per_s", lambda *_: 50.0)
        monkeypatch.setattr(throughput, "nominal_flops_per_s", lambda *_: None)


def test_a_steps_time_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    measured = Meter(device=torch.device("cpu"), dtype=torch.float32, ranks=4)
    for seconds in [1.0] * 18 + [3.0, 11.0]:
        with measured.waiting():
            clock.now += 0.25 * seconds
        with device_wait.running():
            clock.now += 0.5 * seconds
        clock.now += 0.25 * seconds
        measured.step(bp=64, flops=1.0)
    found = measured.read()
    assert found["throughput/step_ms_p50"] == 1000
    assert found["throughput/step_ms_p95"] == 3000
    assert found["throughput/step_ms"] == 1600
    shares = [found[f"throughput/{name}_fraction"] for name in ("data_wait", "device_wait", "host")]
    assert shares == [0.25, 0.5, 0.25]
    assert found["throughput/bp_per_s_per_rank"] == found["throughput/bp_per_s"] / 4 == 64 * 20 / 32 / 4
    measured.restart()
    clock.now += 5
    measured.restart()  # a pause is no step's time
    clock.now += 1
    measured.step(bp=1, flops=1.0)
    assert measured.read()["throughput/step_ms_p95"] == 1000


def test_goodput_counts_applied_steps_against_all_time_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, said = Clock(monkeypatch), list[str]()

    def meter(step: int) -> Meter:
        run = Goodput(str(tmp_path), step=step, say=said.append)
        return Meter(device=torch.device("cpu"), dtype=torch.float32, goodput=run)

    measured = meter(0)  # the process began 7 s ago
    clock.now += 3
    measured.restart()
    for applied in (True, False, True):
        clock.now += 2
        measured.step(bp=1, flops=1.0, applied=applied)
    assert measured.read()["throughput/goodput"] == 4 / (7 + 3 + 6)
    measured.keep(3)
    clock.now += 4
    measured.step(bp=1, flops=1.0)
    measured.keep(4)

    clock.now += 30  # step 4 was lost with a crash
    measured = meter(3)
    clock.now += 2
    measured.step(bp=1, flops=1.0)
    assert measured.read()["throughput/goodput"] == (4 + 2) / (7 + 3 + 6 + 4 + 30 + 2)
    measured.keep(4)
    assert json.loads((tmp_path / "track/goodput.json").read_text()) == {
        "began": 993.0,
        "applied_s": {"3": 4.0, "4": 6.0},
    }
    assert said == []
    assert meter(0).read()["throughput/goodput"] == 0, "another run in the same folder"


@pytest.mark.parametrize(
    "content",
    [None, "{", "[]", '{"began": 1}', '{"began": 1, "applied_s": {"8": 1}}', '{"applied_s": {"9": 1}}'],
)
def test_goodput_without_its_file_counts_from_this_start_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    if content is not None:
        (tmp_path / "track").mkdir()
        (tmp_path / "track/goodput.json").write_text(content)
    run = Goodput(str(tmp_path), step=9, say=said.append)
    (sentence,) = said
    assert sentence.startswith("throughput/goodput counts from this start on, not from the run's: ")
    assert "goodput.json" in sentence
    clock.now += 13
    run.applied(5)
    assert run.read() == 5 / 20


def test_a_store_that_does_not_take_goodput_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = list[str]()

    def refuse(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(goodput.store, "write_bytes", refuse)
    Goodput(str(tmp_path), step=0, say=said.append).keep(5)
    assert said == ["warning: goodput of step 5 is not kept: the disk is full"]


def test_only_the_newest_steps_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Clock(monkeypatch)
    run = Goodput(str(tmp_path), step=0, say=pytest.fail)
    for step in range(100):
        run.keep(step)
    kept = json.loads((tmp_path / "track/goodput.json").read_text())["applied_s"]
    assert list(map(int, kept)) == list(range(36, 100))
