"""The meter counts what steps really read, also where their length changes between two readings."""

import pytest
import torch

from trainer.run import throughput
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
