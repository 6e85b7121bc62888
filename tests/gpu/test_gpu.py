"""The training step under nccl on one GPU: the same losses as on CPU, and the teacher's bits."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import coupled_config, method, run_steps, set_up, small_config
from tests.gpu import where
from tests.gpu.where import DEVICE, few
from tests.ranks import on_ranks
from trainer.core import random
from trainer.data.locus import loci, same_place
from trainer.data.windows import Windows
from trainer.distill.step import train_step
from trainer.run import reading, train_state
from trainer.views.alignment import align
from trainer.views.crops import local_windows
from trainer.views.masking import mask
from trainer.views.view import make_view

pytestmark = where.marks
STEPS = 2 if where.REHEARSE else 10
Changes = dict[str, Any]
CONVOLUTIONS = {"name": "dilated-conv", "hidden_size": 24, "dilations": [1, 4]}
CONFIGS = {
    "plain": small_config,
    "coupled": coupled_config,
    "convolutions": partial(small_config, model=CONVOLUTIONS),
}
# name: (config, changes of it); each has the losses of its config on CPU.
FP32: dict[str, tuple[str, Changes]] = {
    **{
        f"{kind}, ZeRO-{stage}": (kind, {"train__zero_stage": stage})
        for kind in ("plain", "coupled")
        for stage in range(4)
    },
    "convolutions, ZeRO-1": ("convolutions", {}),
    "convolutions, ZeRO-3, activation checkpointing": (
        "convolutions",
        {"train__zero_stage": 3, "train__activation_checkpointing": True},
    ),
    "plain, ZeRO-2, 6 micro-batches": ("plain", {"train__zero_stage": 2, "train__micro_batch": 4}),
    "plain, ref": ("plain", {"loss__contrastive__variant": "ref"}),
    "plain, ring": ("plain", {"loss__contrastive__variant": "ring"}),
    "plain, ZeRO-3, activation checkpointing": (
        "plain",
        {"train__zero_stage": 3, "train__activation_checkpointing": True},
    ),
    "coupled, ring": ("coupled", {"loss__contrastive__variant": "ring"}),
    "coupled, ZeRO-3, 3 micro-batches": ("coupled", {"train__zero_stage": 3, "train__micro_batch": 8}),
}
BF16 = [
    (kind, stage, micro)
    for kind in CONFIGS
    for stage in range(4)
    for micro in (24, 8)
    if stage or micro == 24
]


NAMES = few(list(FP32))
BF16 = few(BF16)


def write_toy(folder: Path) -> str:
    contigs = [markov_sequence(30_000, seed=1), markov_sequence(40, seed=2)]
    return write_dataset(folder, {"train": contigs}, block_bp=1024, soft=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy(tmp_path_factory.mktemp("toy"))


def run_all(cases: dict[Any, Changes], device: str) -> dict[Any, dict[str, Any]]:
    return {name: run_steps(values, STEPS, device) for name, values in cases.items()}


def on_cpu(toy: str) -> dict[str, dict[str, Any]]:
    """The runs that those on the GPU are held against."""
    return on_ranks(1, run_all, {kind: make(toy) for kind, make in CONFIGS.items()}, "cpu", timeout_s=600)[0]


@pytest.fixture(scope="module")
def cpu(toy: str) -> dict[str, dict[str, Any]]:
    return where.reference("steps", lambda: on_cpu(toy))


@pytest.fixture(scope="module")
def fp32(toy: str) -> dict[str, dict[str, Any]]:
    cases = {name: CONFIGS[FP32[name][0]](toy, **FP32[name][1]) for name in NAMES}
    return on_ranks(1, run_all, cases, DEVICE, timeout_s=600, gpu=not where.REHEARSE)[0]


@pytest.fixture(scope="module")
def bf16(toy: str) -> dict[tuple[str, int, int], dict[str, Any]]:
    cases = {
        (kind, stage, micro): CONFIGS[kind](
            toy,
            train__precision="bf16",
            train__zero_stage=stage,
            train__micro_batch=micro,
            ema__momentum=0.999,
        )
        for kind, stage, micro in BF16
    }
    return on_ranks(1, run_all, cases, DEVICE, timeout_s=600, gpu=not where.REHEARSE)[0]


@pytest.mark.parametrize("name", NAMES)
def test_fp32_losses_are_those_of_the_cpu(cpu: Any, fp32: Any, name: str) -> None:
    theirs, ours = cpu[FP32[name][0]], fp32[name]
    assert ours["mismatches"] == 0
    same_losses(ours["losses"], theirs["losses"])
    # Letters and masks are integers and must be the same; noise goes through libm and may differ in the last
    # bit.
    assert {k: v[:3] for k, v in ours["samples"].items()} == {
        k: theirs["samples"][k][:3] for k in ours["samples"]
    }


def same_losses(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """A reference may have more steps than a rehearsal."""
    assert len(ours) == STEPS
    for at_step, expected in zip(ours, theirs[:STEPS], strict=True):
        assert at_step == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("case", BF16, ids=str)
def test_bf16_teacher_is_the_average_of_the_fp32_masters(
    cpu: Any, bf16: Any, case: tuple[str, int, int]
) -> None:
    assert bf16[case]["mismatches"] == 0
    assert bf16[case]["moved"] > 0
    assert bf16[case]["first_update"] == pytest.approx(cpu[case[0]]["first_update"], rel=0.02)


def test_cpu_ranks_beside_a_gpu_compute_on_the_cpu(cpu: Any, toy: str) -> None:
    """DeepSpeed takes a network to any GPU that it sees, also one that a rank did not ask for."""
    (here,) = on_ranks(1, run_all, {"plain": small_config(toy, train__zero_stage=1)}, "cpu", timeout_s=600)
    assert here["plain"]["mismatches"] == 0
    same_losses(here["plain"]["losses"], cpu["plain"]["losses"])


def read_ahead(values: dict[str, Any], device: str) -> list[tuple[bool, bool]]:
    """Of three batches read ahead: whether the letters are pinned, and whether they come to the device
    whole."""
    reader, found = set_up(values, device)[3], []
    for step, batch in enumerate(reader.batches(0, 3)):
        there = batch.windows.to(torch.device(device))
        plain = reader.batch(step).windows.codes_BS
        found.append((batch.windows.codes_BS.is_pinned(), torch.equal(there.codes_BS.cpu(), plain)))
    return found


def test_windows_wait_in_pinned_memory(toy: str) -> None:
    (found,) = on_ranks(1, read_ahead, small_config(toy), DEVICE, gpu=not where.REHEARSE)
    assert found == [(not where.REHEARSE, True)] * 3


def waiting_steps(values: dict[str, Any], device: str) -> list[float]:
    """Losses of 4 steps whose inputs were prepared ahead. torch raises where one of the last two makes the
    host wait, but for the one event that each ends with."""
    config, engine, now, reader = set_up(values, device, ahead=True)
    losses = []
    for step, batch in enumerate(reader.batches(0, 4)):
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        inputs = reading.step_inputs(config, engine, batch)
        result = train_step(engine, now.teacher, inputs, method=method(config), states=now.centres)
        metrics = train_state.apply(
            now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4
        )
        losses.append(metrics["loss/total"])
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    return losses


@pytest.mark.parametrize(("stage", "precision"), few([(1, "bf16"), (1, "fp32"), (2, "bf16")]))
@pytest.mark.parametrize("kind", few(list(CONFIGS)))
def test_the_host_waits_for_nothing_but_the_steps_numbers(
    toy: str, kind: str, stage: int, precision: str
) -> None:
    values = CONFIGS[kind](toy, train__zero_stage=stage, train__precision=precision)
    (losses,) = on_ranks(1, waiting_steps, values, DEVICE, gpu=not where.REHEARSE)
    assert len(losses) == 4


@pytest.mark.parametrize("seed", few(range(20)))
def test_views_and_masks_are_the_same_bits_as_on_the_cpu(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, length, flank = 33, 211 + seed, 60
    codes_BS = torch.randint(0, 5, (rows, length + 2 * flank), generator=generator, dtype=torch.uint8)
    low_B = torch.randint(0, flank + 20, (rows,), generator=generator)
    high_B = length + 2 * flank - torch.randint(0, flank + 20, (rows,), generator=generator)
    place_B3 = torch.stack(
        [torch.zeros(rows).long(), 150 * torch.arange(rows), 150 * torch.arange(rows) + length], 1
    )
    windows = Windows(codes_BS, low_B, high_B, random.fold(seed, torch.arange(rows)), place_B3, flank)
    results = []
    for device in ("cpu", DEVICE):
        here = windows.to(torch.device(device))
        view = make_view(
            here,
            name="v",
            operations={"insertion": 20, "shift": 20, "deletion": 20},
            substitution=0.1,
            reverse_complement=0.5,
        )
        masked = mask(view, here, name="v", rate=0.3, mask_share=0.8, random_share=0.1)
        teacher = make_view(here, name="t", operations={"shift": 20})
        pairs, crop = (
            align(view, masked, teacher, here, name="p", pairs=64),
            local_windows(here, name="c", length=70),
        )
        places = loci(here)
        results.append(
            [
                part.cpu()
                for part in (
                    view.codes_BL,
                    view.source_BL,
                    view.altered_BL,
                    view.length_B,
                    masked.codes_BL,
                    masked.target_BL,
                    *vars(pairs).values(),
                    crop.codes_BS,
                    crop.low_B,
                    crop.high_B,
                    crop.place_B3,
                    places.place_N4,
                    same_place(places, loci(crop)),
                )
            ]
        )
    assert all(torch.equal(cpu, gpu) for cpu, gpu in zip(*results, strict=True))
