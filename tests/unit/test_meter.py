"""The meter counts what steps really read, also where their length changes between two readings."""

import pytest
import torch

from trainer import meter
from trainer.meter import Meter


def test_bp_and_flops_are_summed_over_steps_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(meter, "_matmul_flops_per_s", lambda *_: 50.0)
    measured = Meter(device=torch.device("cpu"), dtype=torch.float32)
    for bp, flops in ((64, 10.0), (64, 10.0), (256, 90.0)):
        measured.expect(bp_per_step=bp)
        if measured.flops_per_step == 0:
            measured.flops_per_step = flops
        assert measured.flops_per_step == flops, "counted anew when the length changes, and only then"
        with measured.waiting():
            now[0] += 0.5
        now[0] += 0.5
        measured.step()
    found = measured.read()
    assert found["throughput/bp_per_s"] == 384 / 3
    assert found["throughput/step_ms"] == 1000
    assert found["throughput/data_wait_fraction"] == 0.5
    assert found["throughput/mfu"] == 110 / 3 / 50
    now[0] += 1
    assert measured.read()["throughput/bp_per_s"] == 0
