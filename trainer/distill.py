"""One step of self-distillation: a global batch in, gradients and global losses out. It knows no single loss.

The teacher reads first, over all micro-batches and without gradient. Then everything that needs the global batch (keys,
sums for the centre, counts of scored positions) travels in one packed all-gather. Then the student goes through its
micro-batches, each against all keys; its keys need no gradient, so accumulation is exact.

Shapes: B rows of a micro-batch, K prototypes, E embedding; lists run over views, then over micro-batches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import collectives
from trainer.collectives import Group
from trainer.config import TrainConfig, ViewConfig, Views
from trainer.engine import Engine
from trainer.heads import Network, Outputs
from trainer.losses import LOSSES, LossInputs
from trainer.views import Masked, View, Windows, input_noise, make_view, mask


@dataclass(frozen=True)
class Pair:
    """What one micro-batch shows: the student's masked view with its noise, and the teacher's view of the same rows."""

    student: View
    masked: Masked
    noise_BLC: Tensor | None
    teacher: View


@dataclass(frozen=True)
class StepResult:
    """``losses``: name -> mean over the global batch, and "total", their weighted sum. ``centre_K``: of this batch."""

    losses: dict[str, float]
    centre_K: Tensor | None


def make_pairs(windows: Windows, config: Views) -> list[Pair]:
    """One pair, or with ``symmetric`` two, in which the networks change views."""
    first, second = (
        make_view(windows, name=name, operations=view.operations, substitution=view.substitution,
                  reverse_complement=view.reverse_complement)
        for name, view in (("student", config.student), ("teacher", config.teacher))
    )  # fmt: skip

    def pair(student: View, teacher: View, name: str, view: ViewConfig) -> Pair:
        noise = input_noise(student, windows, name=name, std=view.noise) if view.noise else None
        masking = config.masking
        masked = mask(student, windows, name=name, rate=masking.rate, mask_share=masking.mask_share,
                      random_share=masking.random_share)  # fmt: skip
        return Pair(student, masked, noise, teacher)

    pairs = [pair(first, second, "student", config.student)]
    if config.symmetric:
        pairs.append(pair(second, first, "teacher", config.student))
    return pairs


def lengths(view: View) -> Tensor | None:
    """The view's lengths where any row has padding, else None (the faster path of the backbone)."""
    return None if bool((view.length_B == view.codes_BL.shape[1]).all()) else view.length_B


def train_step(
    engine: Engine,
    teacher: Network,
    micro_batches: list[Windows],
    *,
    config: TrainConfig,
    centre_K: Tensor | None,
    group: Group,
) -> StepResult:
    """Forward and backward of every micro-batch; the gradient is left in the engine, not applied."""
    weights = config.loss.weights()
    pairs = [make_pairs(windows, config.views) for windows in micro_batches]
    directions = len(pairs[0])
    taught = _teach(teacher, pairs) if weights.keys() - {"mlm"} else []

    payload = {"targets": torch.stack([p.masked.target_BL.sum() for ps in pairs for p in ps]).sum().view(1).float()}
    for d in range(directions):
        if "contrastive" in weights:
            payload[f"keys{d}"] = torch.cat([outputs[d].embedding for outputs in taught])
    if "distill" in weights:
        cosines = (outputs.prototypes_BPK for by_direction in taught for outputs in by_direction)
        payload["centre"] = torch.cat([c.flatten(0, 1) for c in cosines if c is not None]).mean(0)
    everywhere = collectives.gather_packed(group, payload)

    rows_total = config.train.global_batch * directions
    first_row = group.rank * (config.train.global_batch // group.size)
    sums = torch.zeros(len(weights), dtype=torch.float64, device=micro_batches[0].codes_BS.device)
    for m, micro_pairs in enumerate(pairs):
        loss = torch.zeros((), device=sums.device)
        rows = len(micro_pairs[0].masked.codes_BL)
        for d, (pair, outputs) in enumerate(zip(micro_pairs, _learn(engine, micro_pairs), strict=True)):
            inputs = LossInputs(
                logits_BLV=outputs.logits_BLV,
                labels_BL=pair.masked.labels_BL,
                target_BL=pair.masked.target_BL,
                targets_total=float(everywhere["targets"].sum()),
                rows_total=rows_total,
                student_BPK=outputs.prototypes_BPK,
                teacher_BPK=taught[m][d].prototypes_BPK if taught else None,
                centre_K=centre_K,
                student_temperature=config.loss.distill.student_temperature,
                teacher_temperature=config.loss.distill.teacher_temperature,
                query_BE=outputs.embedding_BE,
                keys_GE=everywhere[f"keys{d}"].flatten(0, 1) if "contrastive" in weights else None,
                positive_B=torch.arange(first_row, first_row + rows, device=sums.device),
                contrastive_temperature=config.loss.contrastive.temperature,
            )
            for i, (name, weight) in enumerate(weights.items()):
                share = LOSSES[name](inputs)
                sums[i] += share.detach()
                loss = loss + weight * share
        first_row += rows
        engine.backward(loss)
        if m + 1 < len(pairs):
            engine.end_micro_batch()

    means = collectives.sum_over_ranks(group, sums).tolist()
    losses = dict(zip(weights, means, strict=True))
    losses["total"] = sum(weights[name] * value for name, value in losses.items())
    return StepResult(losses, everywhere["centre"].mean(0) if "distill" in weights else None)


@torch.no_grad()
def _teach(teacher: Network, pairs: list[list[Pair]]) -> list[list[Outputs]]:
    """The teacher's outputs for its unmasked view of every pair."""
    return [
        [teacher(pair.teacher.codes_BL, length_B=lengths(pair.teacher), nucleotides=False) for pair in micro_pairs]
        for micro_pairs in pairs
    ]


def _learn(engine: Engine, pairs: list[Pair]) -> list[Outputs]:
    """The student's outputs for its masked view of each pair, from one forward: DeepSpeed allows one a backward."""
    noises = [pair.noise_BLC for pair in pairs if pair.noise_BLC is not None]
    length_B = torch.cat([pair.student.length_B for pair in pairs])
    codes_BL = torch.cat([pair.masked.codes_BL for pair in pairs])
    outputs: Outputs = engine.forward(
        codes_BL,
        length_B=None if bool((length_B == codes_BL.shape[1]).all()) else length_B,
        noise_BLC=torch.cat(noises) if noises else None,
    )
    parts = [[None] * len(pairs) if tensor is None else tensor.chunk(len(pairs)) for tensor in outputs]
    return [Outputs(*part) for part in zip(*parts, strict=True)]
