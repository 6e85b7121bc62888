"""Each loss against its naive loop, in value and in gradient."""

import math

import pytest
import torch

from trainer.losses import LOSSES, LossInputs, teacher_probabilities


def inputs(*, seed: int = 0, rows: int = 5, rows_total: int = 12) -> LossInputs:
    g = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize
    target_BL = torch.rand(rows, 11, generator=g) < 0.3
    return LossInputs(
        logits_BLV=torch.randn(rows, 11, 4, generator=g, requires_grad=True),
        labels_BL=torch.randint(0, 4, (rows, 11), generator=g, dtype=torch.uint8),
        target_BL=target_BL,
        targets_total=float(target_BL.sum()) + 7,
        rows_total=rows_total,
        student_BPK=torch.randn(rows, 3, 6, generator=g).requires_grad_(),
        teacher_BPK=torch.randn(rows, 3, 6, generator=g),
        centre_K=torch.randn(6, generator=g) * 0.1,
        query_BE=unit(torch.randn(rows, 8, generator=g), dim=-1).requires_grad_(),
        keys_GE=unit(torch.randn(rows_total, 8, generator=g), dim=-1),
        positive_B=torch.arange(4, 4 + rows),
    )


def naive_mlm(i: LossInputs) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for b in range(i.logits_BLV.shape[0]):
        for place in range(i.logits_BLV.shape[1]):
            if i.target_BL[b, place]:
                total = total - torch.softmax(i.logits_BLV[b, place].double(), 0)[int(i.labels_BL[b, place])].log()
    return total / i.targets_total


def naive_distill(i: LossInputs) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for b in range(i.student_BPK.shape[0]):
        for p in range(i.student_BPK.shape[1]):
            t = torch.softmax((i.teacher_BPK[b, p].double() - i.centre_K.double()) / i.teacher_temperature, 0)
            s = torch.softmax(i.student_BPK[b, p].double() / i.student_temperature, 0)
            for k in range(len(t)):
                total = total - t[k] * s[k].log()
    return total / (i.rows_total * i.student_BPK.shape[1])


def naive_contrastive(i: LossInputs) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for b in range(i.query_BE.shape[0]):
        similar = [(i.query_BE[b].double() * key.double()).sum() / i.contrastive_temperature for key in i.keys_GE]
        total = total - (similar[int(i.positive_B[b])].exp() / sum(s.exp() for s in similar)).log()
    return total / i.rows_total


NAIVE = {
    "mlm": (naive_mlm, "logits_BLV"),
    "distill": (naive_distill, "student_BPK"),
    "contrastive": (naive_contrastive, "query_BE"),
}


def test_every_loss_has_a_naive_reference() -> None:
    assert NAIVE.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_its_naive_loop_in_value_and_gradient(name: str, seed: int) -> None:
    naive, leaf = NAIVE[name]
    i = inputs(seed=seed)
    value, expected = LOSSES[name](i), naive(i)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, getattr(i, leaf))
    (reference,) = torch.autograd.grad(expected, getattr(i, leaf))
    torch.testing.assert_close(gradient, reference.float(), rtol=1e-4, atol=1e-6)


def test_masked_loss_touches_exactly_the_targets() -> None:
    i = inputs()
    (gradient,) = torch.autograd.grad(LOSSES["mlm"](i), i.logits_BLV)
    touched = gradient.abs().sum(-1) > 0
    assert torch.equal(touched, i.target_BL)


def test_no_target_gives_zero_and_not_nan() -> None:
    i = inputs()
    empty = LossInputs(logits_BLV=i.logits_BLV, labels_BL=i.labels_BL, target_BL=torch.zeros_like(i.target_BL),
                       targets_total=0.0, rows_total=5)
    assert LOSSES["mlm"](empty).item() == 0


def test_shares_of_micro_batches_sum_to_the_global_mean() -> None:
    """A loss is this micro-batch's share, so that ranks and accumulation need no weights of their own."""
    whole = inputs(rows=12)
    whole = LossInputs(**{**vars(whole), "positive_B": torch.arange(12), "targets_total": float(whole.target_BL.sum())})
    for name, loss in LOSSES.items():
        parts = 0.0
        for rows in (slice(0, 5), slice(5, 12)):
            local = {key: value[rows] for key, value in vars(whole).items()
                     if isinstance(value, torch.Tensor) and key.split("_")[-1].startswith("B")}
            parts += loss(LossInputs(**{**vars(whole), **local})).item()
        assert parts == pytest.approx(loss(whole).item(), rel=1e-5), name


def test_losses_are_computed_in_fp32_from_bf16_inputs() -> None:
    i = inputs()
    low = LossInputs(**{**vars(i), "logits_BLV": i.logits_BLV.bfloat16(), "student_BPK": i.student_BPK.bfloat16()})
    for name in ("mlm", "distill"):
        assert LOSSES[name](low).dtype == torch.float32


def test_centring_and_sharpening() -> None:
    cosines = torch.tensor([[[0.5, 0.1, 0.0]]])
    sharp = teacher_probabilities(cosines, None, 0.04)
    assert sharp.argmax() == 0
    assert sharp[0, 0, 0] == pytest.approx(math.exp(12.5) / (math.exp(12.5) + math.exp(2.5) + 1), rel=1e-5)
    centred = teacher_probabilities(cosines, cosines[0, 0], 0.04)
    torch.testing.assert_close(centred, torch.full((1, 1, 3), 1 / 3))
