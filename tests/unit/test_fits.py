"""Does a config fit: what a rank holds against an engine's own tensors, activations against what autograd
keeps, a network of 1 B parameters without memory, and the advice."""

import gc
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import configs
from cluster.doctor import machine, training
from tests.dist.teachers import Watch, make_engine
from tests.large import ONE_BILLION, PRESET
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.engine.config import Train
from trainer.engine.process_group import init_distributed
from trainer.models.backbone import Backbone
from trainer.models.chordmixer import ChordMixer, ChordMixerConfig
from trainer.models.dilated_conv import DilatedConv, DilatedConvConfig
from trainer.run import fits
from trainer.run.config import TrainConfig
from trainer.run.fits import Plan
from trainer.run.memory import activation_bytes, held, kept_for_backward, network_on_meta

GIB = 1 << 30
WIDTH, DEPTH = 128, 12
PARAMETERS = DEPTH * WIDTH * (WIDTH + 1)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def bytes_of_an_engine() -> dict[tuple[int, str], int]:
    """(stage, precision) -> bytes of all tensors of this rank before the second step."""
    init_distributed(torch.device("cpu"))
    found = {}
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            with Watch(None) as watch:
                engine = make_engine(Group.of(), stage, precision, 1, Deep(), kept_whole=0)
                teacher = engine.teacher()
                for step in range(2):
                    rows = torch.zeros(2, WIDTH, dtype=engine.settings.compute_dtype)
                    engine.backward(engine.forward(rows).float().square().sum())
                    if step == 1:
                        gc.collect()
                        found[stage, precision] = watch.alive
                    engine.step(1e-3)
                    teacher.update(0.9)
                    assert teacher.module is not None
            engine._deepspeed.destroy()
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_a_rank_holds_is_what_its_tensors_take(ranks: int) -> None:
    answers = on_ranks(ranks, bytes_of_an_engine)
    for stage, precision in answers[0]:
        train = Train(steps=1, precision=precision, zero_stage=stage)
        formula = held(PARAMETERS, train, stage=stage, ranks=ranks)
        # DeepSpeed's bucket stays under ZeRO-3 alone; else it is gone before the step.
        expected = formula.total - formula.buffers + (4 * 500_000_000 if stage == 3 else 0)
        # Of all ranks the least: one may still hold a buffer that it has sent.
        measured = min(answer[stage, precision] for answer in answers)
        assert measured == pytest.approx(expected, abs=PARAMETERS), (stage, precision)


def saved_bytes(network: Any, codes_BL: torch.Tensor) -> int:
    """Bytes that autograd saves, each piece of memory once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(codes_BL)
    assert outputs is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


D, INNER, CHANNELS, LAYERS = 36, 128, 64, 6
# Entries for each position and layer, by the plain layers: what docs/training.md says.
BACKBONES: dict[str, tuple[type[Backbone], Any, int, int]] = {
    "mixer": (
        ChordMixer,
        ChordMixerConfig(
            num_layers=LAYERS, num_groups=6, group_channels=6, intermediate_size=INNER, num_summary=1
        ),
        D + 2 * INNER,
        D,
    ),
    "mixer with norms": (
        ChordMixer,
        ChordMixerConfig(
            num_layers=LAYERS,
            num_groups=6,
            group_channels=6,
            intermediate_size=INNER,
            num_summary=1,
            norm="layer",
        ),
        2 * D + 2 * INNER + 2,
        D,
    ),
    "dilated convolution": (
        DilatedConv,
        DilatedConvConfig(hidden_size=CHANNELS, kernel=3, dilations=(1,) * LAYERS, expansion=2),
        2 * CHANNELS + 2 * 2 * CHANNELS + 2,
        CHANNELS,
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_activations_are_those_of_the_formula(name: str) -> None:
    kind, config, plain, checkpointed = BACKBONES[name]
    length, rows = 255, 2
    codes_BL = torch.zeros(rows, length, dtype=torch.uint8)
    backbone = kind(config)
    per_layer = 4 * rows * backbone.positions(length) * LAYERS
    beside = (
        6 * per_layer * D // LAYERS
    )  # input, output, one-hot letters: of a layer's order, whatever the depth
    assert saved_bytes(backbone, codes_BL) == pytest.approx(per_layer * plain, abs=beside)
    on_meta, meta_codes_BL = kind(config).to("meta"), codes_BL.to("meta")
    assert kept_for_backward(lambda: on_meta(meta_codes_BL)) == pytest.approx(per_layer * plain, abs=beside)
    again = kind(config, activation_checkpointing=True).to("meta")
    kept = kept_for_backward(lambda: again(meta_codes_BL))
    assert kept == pytest.approx(per_layer * checkpointed, abs=beside)


def test_the_meta_device_counts_what_a_processor_keeps() -> None:
    backbone = ChordMixer(BACKBONES["mixer with norms"][1])
    codes_BL = torch.zeros(2, 100, dtype=torch.uint8)
    real = kept_for_backward(lambda: backbone(codes_BL))
    backbone.to("meta")
    assert kept_for_backward(lambda: backbone(codes_BL.to("meta"))) == pytest.approx(real, rel=0.01)


def preset(*changes: str) -> TrainConfig:
    return configs.load(TrainConfig, PRESET, changes)


def test_a_billion_parameters_fit_by_stages_and_ranks() -> None:
    config = preset(*ONE_BILLION)
    network = network_on_meta(config)
    parameters = sum(p.numel() for p in network.parameters())
    assert 0.95e9 < parameters < 1.1e9
    assert all(p.is_meta for p in network.parameters())
    of = {
        (stage, ranks): held(parameters, config.train, stage=stage, ranks=ranks)
        for stage in (1, 2, 3)
        for ranks in (1, 8, 64)
    }
    per_parameter = {key: (value.total - value.buffers) / parameters for key, value in of.items()}
    # Bytes a parameter: weights 2, gradients 4 (ZeRO-2: 2, and 4 in parts), teacher's weights 2; in parts
    # masters 4, moments 8, φ 4.
    assert per_parameter[1, 1] == pytest.approx(24)
    assert per_parameter[1, 8] == pytest.approx(8 + 16 / 8)
    assert per_parameter[2, 64] == pytest.approx(6 + 20 / 64)
    assert per_parameter[3, 64] == pytest.approx(24 / 64)
    assert all(of[3, ranks].total < of[1, ranks].total for ranks in (8, 64))


def test_activations_grow_with_rows_and_shrink_with_checkpointing() -> None:
    plain = preset("model.num_layers=4")
    again = preset("model.num_layers=4", "train.activation_checkpointing=true")
    one = activation_bytes(plain, network_on_meta(plain), rows=1)
    assert activation_bytes(plain, network_on_meta(plain), rows=6) == 6 * one
    layers = 4 * 1010 * 2 * (308 + 2 * 512)  # bf16
    assert layers < one < 2 * layers, "and the heads'"
    assert activation_bytes(again, network_on_meta(again), rows=1) < one - 0.7 * layers


def plan(memory_gib: float, **changes: Any) -> Plan:
    """1 B parameters, 2 GiB a window, 0.25 with checkpointing."""
    train = Train(steps=1, global_batch=64, precision="bf16", **changes)
    return Plan(train, 64, 1 << 30, {False: 2 * GIB, True: GIB // 4}, round(memory_gib * GIB))


@pytest.mark.parametrize(
    ("memory", "ranks", "changes", "advice"),
    [
        (100, 1, {}, "set train.micro_batch=32: that needs 88.00 GiB a rank"),
        (80, 1, {}, "set train.micro_batch=16: that needs 56.00 GiB a rank"),
        (
            27,
            2,
            {"micro_batch": 1, "zero_stage": 3},
            "set train.deepspeed.zero_optimization.reduce_bucket_size=50000000",
        ),
        (10.8, 64, {"micro_batch": 1}, "set train.zero_stage=2: that needs 9.24 GiB a rank"),
        (8, 8, {"micro_batch": 8}, "set train.zero_stage=3 train.deepspeed"),
        (8, 1, {}, "use at least"),
        (0.01, 1, {}, "no number of ranks is enough, even with train.micro_batch=1"),
    ],
)
def test_the_advice_is_the_first_change_that_fits(
    memory: float, ranks: int, changes: dict[str, Any], advice: str
) -> None:
    found = fits.advice_for(plan(memory, **changes), ranks)
    assert found.startswith(advice), found


def test_a_number_of_ranks_that_fits_makes_the_others_warnings() -> None:
    found = list(fits.findings(plan(24, micro_batch=1), [1, 8, 3]))
    assert [line["state"] for line in found] == ["warning", "ok", "warning"]
    assert [line["what"] for line in found] == ["fits, 1 rank", "fits, 8 ranks", "fits, 3 ranks"]
    assert found[0]["found"].startswith("1,073.7 M parameters, ZeRO-1 bf16: 26.00 GiB a rank: weights 2.00, ")
    assert "(with ZeRO-2 28.93, ZeRO-3 27.86) of 24.0 GiB here" in found[0]["found"]
    assert "must both be divisible by the 3 processes" in found[2]["advice"]
    (alone,) = fits.findings(plan(24, micro_batch=1), [1])
    assert alone["state"] == "FAILED"


def test_the_command_refuses_what_is_no_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", str(PRESET), "--bytes-per-rank", "1000000000"]
    assert fits.main([*command, "--worlds", "1,many"]) == 2
    assert "--worlds: '1,many' must be numbers of at least 1, as in 1,8,64" in capsys.readouterr().err
    assert fits.main([*command, "--worlds", "2", "model.num_layers=2", "train.micro_batch=1"]) == 0
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert (line["what"], line["state"]) == ("fits, 2 ranks", "ok")


@pytest.mark.parametrize("preset", ["demo", "small"])
def test_presets_with_convolutions_are_counted(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", f"configs/train/{preset}.yaml", "--bytes-per-rank", str(80 << 30)]
    assert fits.main([*command, "--worlds", "2", "train.precision=bf16"]) == 0
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert " M parameters, ZeRO-1 bf16: " in line["found"]


def test_the_doctor_asks_it_for_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "gpu_bytes", lambda: [80 << 30, 40 << 30])
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append(command)
        line = json.dumps({"what": "fits, 1 rank", "state": "ok", "found": "all of it", "advice": ""})
        return subprocess.CompletedProcess(command, 0, stdout=f"noise\n{line}\n", stderr="")

    with monkeypatch.context() as patch:
        patch.setattr(training.subprocess, "run", run)
        assert [one.found for one in training.fits("a.yaml", ["x=1"], ranks=3)] == ["all of it"]
        assert asked[0][-3:] == ["--bytes-per-rank", str(40 << 30), "x=1"], "of the smallest GPU"
        monkeypatch.setattr(machine, "gpu_bytes", list)
        monkeypatch.setattr(machine, "memory_bytes", lambda: (12 << 30, 1 << 30))
        list(training.fits("a.yaml", [], ranks=3))
        assert asked[1][-1] == str(4 << 30), "the ranks share it"
        assert list(training.fits("", [], ranks=None)) == []
    (finding,) = training.fits(str(tmp_path / "no.yaml"), [], ranks=None)
    assert finding.state == "FAILED"
    assert "no.yaml does not exist" in finding.found


def test_without_what_trains_the_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(
            command, 1, stdout="", stderr="ModuleNotFoundError: No module named 'torch'\n"
        )

    monkeypatch.setattr(training.subprocess, "run", run)
    (finding,) = training.fits("a.yaml", [], ranks=1)
    assert (finding.state, finding.found) == ("warning", "not looked at: torch is not installed here")
    assert "pip install 'dna-distill[train]'" in finding.advice


def test_kernels_of_a_gpu_do_not_keep_the_doctor_from_counting() -> None:
    config = preset("model.num_layers=2", "model.kernel=triton")
    assert activation_bytes(config, network_on_meta(config), rows=1) > 0


@pytest.mark.parametrize(("said", "found"), [("81559\n81559\n", [81559 << 20] * 2), ("[N/A]\n", [])])
def test_the_memory_of_gpus(monkeypatch: pytest.MonkeyPatch, said: str, found: list[int]) -> None:
    answer = subprocess.CompletedProcess([], 0, stdout=said, stderr="")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: answer)
    assert machine.gpu_bytes() == found


def test_without_nvidia_smi_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(machine.subprocess, "run", run)
    assert machine.gpu_bytes() == []
